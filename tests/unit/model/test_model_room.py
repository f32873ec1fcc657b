"""The room itself: cheap to import, and strict about documents."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from mvm.model.base import Frozen
from mvm.model.desired import DesiredState
from mvm.model.egress import parse_egress, parse_rule
from mvm.model.entities import (
    Instance,
    OpenClawSettings,
    Pool,
    PoolSpec,
    Quotas,
    StageTiming,
    Tenant,
    User,
    UserSpec,
)
from mvm.model.errors import InvalidInput
from mvm.model.manifest_tables import DeploymentFile
from mvm.model.routes import Route
from mvm.model.validation import ValidationProblems, found_in, known_keys, nearest, parse

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_importing_the_model_brings_in_pydantic_and_nothing_else() -> None:
    code = (
        "import importlib, pkgutil, sys, mvm.model\n"
        "for module in pkgutil.iter_modules(mvm.model.__path__):\n"
        "    importlib.import_module(f'mvm.model.{module.name}')\n"
        "print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)\n"
        "print(*[name for name in sys.modules if name.startswith('mvm.') and not name.startswith('mvm.model')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    foreign, rooms = done.stdout.splitlines()
    allowed = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection", "mvm"}
    allowed.add("sitecustomize")  # of the machine, imported by Python itself
    assert {name for name in foreign.split() if not name.startswith("_")} <= allowed
    assert rooms == ""


class Inner(Frozen):
    number: int
    flag: bool = False


class Outer(Frozen):
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}  # noqa: RUF012
    some: Annotated[tuple[Inner, ...], Field(min_length=1)] = (Inner(number=1),)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"inner": {"number": "1"}}, "inner.number: expected a whole number, not a string"),
        ({"inner": {"number": 1.5}}, "inner.number: expected a whole number, not a number with a fraction"),
        ({"inner": {"number": 1, "flag": 1}}, "inner.flag: expected true or false, not a whole number"),
        ({"many": [{"number": 1}, {"numbr": 2, "number": 1}]}, "many[1].numbr: unknown key 'numbr'"),
        ({"named": {"x": {"number": 1, "flg": 2}}}, "named.x.flg: unknown key 'flg'"),
        ({"many": {}}, "many: expected a list, not a table"),
        ({"inner": []}, "inner: expected a table of keys and values, not a list"),
        ({"inner": {}}, "inner.number: is missing"),
        ({"some": []}, "some: has too few entries: at least 1 needed"),
        ({"some": [{"number": 1, "flag": 0}]}, "some[0].flag: expected true or false, not a whole number"),
    ],
)
def test_a_document_of_another_shape_is_refused_with_path_and_expectation(document: Any, said: str) -> None:
    with pytest.raises(ValidationProblems) as refused:
        parse(Outer, document, what="document")
    assert refused.value.message.startswith(said)


def test_the_nearest_key_is_looked_for_where_the_wrong_one_is() -> None:
    assert known_keys(Outer, ("many", 3)) == known_keys(Outer, ("named", "x")) == ("number", "flag")
    assert known_keys(Outer, ("inner", "number")) == ()
    assert nearest("numbre", known_keys(Outer, ("inner",))) == "number"


def test_a_very_wrong_document_has_a_message_of_bounded_length() -> None:
    with pytest.raises(ValidationProblems) as refused:
        parse(Outer, {"many": [3] * 10_000}, what="document")
    assert len(refused.value.problems) == 10_000
    assert refused.value.message.endswith("... and 9500 more")


def test_a_value_of_the_wrong_kind_is_in_no_error() -> None:
    with pytest.raises(ValidationProblems) as refused:
        parse(Outer, {"inner": {"number": "hunter2"}}, what="document")
    assert "hunter2" not in str(refused.value) + str(refused.value.__cause__)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([Outer, PoolSpec, UserSpec, Quotas, OpenClawSettings]), junk)
def test_any_json_is_of_a_model_or_refused_in_words(model: type[BaseModel], document: Any) -> None:
    with contextlib.suppress(InvalidInput):
        read = parse(model, document, what="document")
        again = parse(model, read.model_dump(mode="json"), what="document")
        assert again == read


WRONG = (None, True, 1, 1.5, -1, 10**30, 10**3000, "x", "", [], ["x"], [1], [None], [[]], {}, {"x": 1}, {"": {}})


@pytest.mark.parametrize("model", [DesiredState, DeploymentFile, Instance, PoolSpec, StageTiming, Tenant, User, Route])
def test_pydantics_own_words_are_in_no_error(model: type[BaseModel]) -> None:
    said = set()
    for key, value in itertools.product(known_keys(model, ()), WRONG):
        with pytest.raises(ValidationError) as refused:
            model.model_validate_json(json.dumps({key: value, "no such key": 1}), strict=True)
        said |= {message for _, message, _ in found_in(refused.value, model)}
        theirs = {detail["msg"] for detail in refused.value.errors() if detail["type"] != "mvm"}
        assert said & theirs == set()
    assert [text for text in said if "nput" in text or "required" in text or "valid " in text] == []


def test_what_is_of_the_wrong_kind_is_told_with_what_to_write() -> None:
    with pytest.raises(ValidationProblems) as refused:
        parse(Outer, {"inner": {"number": "1"}}, what="document")
    assert refused.value.hint == "write digits, without quotes"
    with pytest.raises(ValidationProblems) as refused:
        parse(Outer, {"inner": {}}, what="document")
    assert refused.value.hint == "add it: it has no default"


def test_pools_and_users_are_their_settings_with_an_owner() -> None:
    spec = PoolSpec(pool_id="w", vcpus=3, egress=("host:80",))
    pool = Pool.from_spec(spec, tenant_id="a", created_at=NOW)
    assert (pool.tenant_id, pool.spec) == ("a", spec)
    person = UserSpec(user_id="u", pool_id="w", telegram=("1",), discord=("2",))
    user = User.from_spec(person, tenant_id="a", created_at=NOW)
    assert (user.instance_id, user.spec, user.peers) == (None, person, ("telegram:1", "discord:2"))


@pytest.mark.parametrize(
    "settings",
    [
        {"vcpus": 0},
        {"vcpus": 33},
        {"mem_mib": 0},
        {"data_disk_mib": -1},
        {"pool_id": "W"},
        {"role": "nobody"},
        {"desired": {"running": 101}},
        {"secret_scopes": {"workers": ("*",)}},
        {"egress": "some"},
        {"colour": "red"},
    ],
)
def test_a_pool_that_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PoolSpec(**({"pool_id": "w"} | settings))


@pytest.mark.parametrize(
    "text", ["10.0.0.0/8", "192.0.2.7", "10.0.0.0/8:443", "0.0.0.0/0:80,8000-8080", "host:8080", "internet"]
)
def test_what_the_contract_names_is_an_egress_rule(text: str) -> None:
    parse_rule(text)


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:80,81", "host:80-81", "host:0", "10.0.0.1/8", "10.0.0.0/8:", "10.0.0.0/8:9-1", "x:80", "::/0"],
)
def test_any_other_egress_rule_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_rule(text)


@pytest.mark.parametrize("value", [None, "all", 1, ["10.0.0.0/8", 1], {"internet": True}])
def test_any_other_egress_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput):
        parse_egress(value)
