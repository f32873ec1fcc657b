"""The schemas that editors get: up to date, complete, and never at odds with the models."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from tests.unit.model.json_schema import complaints
from tests.unit.test_scripts import script

from mvm.model import schema
from mvm.model.desired import DesiredState
from mvm.model.errors import InvalidInput
from mvm.model.manifest_tables import DeploymentFile, PoolTable, deploy_file
from mvm.model.validation import parse_or_report
from mvm.openclaw.template import OPENCLAW

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs/manifests.md"
Json = dict[str, Any]

SCHEMAS = {
    "deployment": schema.deployment_schema(),
    "deploy": schema.deploy_schema(OPENCLAW),
    "desired": schema.desired_schema(),
}
MODELS: dict[str, type[BaseModel]] = {
    "deployment": DeploymentFile,
    "deploy": deploy_file(OPENCLAW.pool_ids()),
    "desired": DesiredState,
}


def examples() -> dict[str, Json]:
    """The manifests of the documentation, and a desired state."""
    found = re.findall(r"```toml\n# (\w+)\.toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    manifests = {name: tomllib.loads(text) for name, text in found}
    pool = {
        "pool_id": "gateways",
        "role": "gateway",
        "instance_resources": {"mem_mib": 1024},
        "desired_counts": {"running": 1},
        "routing_table": {
            "routes": [{"name": "a", "match_rule": {"peer": "telegram:1"}, "target": {"pool_id": "gateways"}}]
        },
    }
    network = {"tenant_net_id": 12, "ipv4_subnet": "10.240.12.0/24"}
    desired = {
        "schema_version": 1,
        "node_id": "local",
        "tenants": [{"tenant_id": "erin", "network": network, "pools": [pool]}],
    }
    return {**manifests, "desired": desired}


EXAMPLES = examples()


def test_what_is_committed_is_what_the_models_say() -> None:
    stale = [path for path, content in script("reference").made().items() if path.read_text() != content]
    assert stale == [], "run `make reference`"


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_examples_are_valid(name: str) -> None:
    assert complaints(EXAMPLES[name], SCHEMAS[name], SCHEMAS[name]) == []
    parse_or_report(MODELS[name], EXAMPLES[name])


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_key_is_explained(name: str) -> None:
    whole = SCHEMAS[name]
    tables = {"": whole, **{n: d for n, d in whole["$defs"].items() if d.get("type") == "object"}}
    unexplained = [
        f"{n}.{key}" for n, t in tables.items() for key, v in t["properties"].items() if not v.get("description")
    ]
    assert unexplained == []
    assert "null" not in json.dumps(whole)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('[tenant]\nid = "Alice"', ".tenant.id"),
        ('[tenant]\nname = "alice"', "unknown key name"),
        ('[[pools]]\nid = "a"\nrole = "gatway"', ".pools[0].role"),
        ('[[pools]]\nid = "a"\nvcpus = 0', ".pools[0].vcpus"),
        ('[secrets]\nanthropic_key = "sk-1"', ".secrets.anthropic_key"),
        ('[secrets]\nanthropic_key = { file = "a", env = "B" }', ".secrets.anthropic_key"),
        ('[secrets]\nmail = { file = "a" }', ".secrets.mail"),
        ('[[users]]\nid = "bob"\ntelegram = ["x"]', ".users[0].telegram[0]"),
        ('[openclaw]\nprovider_base_url = "example.org"', ".openclaw.provider_base_url"),
        ('egress = "all"', "unknown key egress"),
    ],
)
def test_what_is_wrong_is_seen_while_it_is_typed(table: str, said: str) -> None:
    document = {"tenant": {"id": "alice"}, "pools": [{"id": "workers"}], **tomllib.loads(table)}
    found = complaints(document, SCHEMAS["deployment"], SCHEMAS["deployment"])
    assert [c for c in found if said in c] != []


def test_defaults_are_those_of_the_models() -> None:
    entries = SCHEMAS["deployment"]["$defs"]["PoolTable"]["properties"]
    said = {name: entry["default"] for name, entry in entries.items() if "default" in entry}
    pool = PoolTable(id="any").pool().model_dump(mode="json")
    pool |= {f"desired_{state}": count for state, count in pool["desired"].items()}
    assert said == {name: pool[name] for name in said}
    assert {"vcpus", "mem_mib", "role", "egress", "allow_exec", "desired_running"} <= said.keys()
    quotas = SCHEMAS["deploy"]["$defs"]["Quotas"]["properties"]
    assert {name: entry["default"] for name, entry in quotas.items()} == OPENCLAW.quotas.model_dump()


SCALARS = st.one_of(
    st.booleans(), st.integers(-2, 5000), st.text(max_size=8), st.sampled_from(["none", "a", "10.0.0.0/8"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner, max_size=2)
)


@st.composite
def changed(draw: st.DrawFn) -> tuple[str, Json]:
    """An example with one thing in it changed: a value, a key that goes, a key that comes."""
    name = draw(st.sampled_from(sorted(EXAMPLES)))
    document = copy.deepcopy(EXAMPLES[name])
    places: list[tuple[Any, Any]] = []
    waiting: list[Any] = [document]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    holder, key = draw(st.sampled_from(places))
    match draw(st.sampled_from(["value", "gone", "more"])):
        case "value":
            holder[key] = draw(VALUES)
        case "gone":
            del holder[key]
        case _:
            (holder if isinstance(holder, dict) else document)[draw(st.text(min_size=1, max_size=6))] = draw(VALUES)
    return name, document


@given(changed())
def test_an_editor_never_complains_of_what_mvm_takes(case: tuple[str, Json]) -> None:
    name, document = case
    try:
        parse_or_report(MODELS[name], document)
    except (ValidationError, InvalidInput):
        return
    found = complaints(document, SCHEMAS[name], SCHEMAS[name])
    # The long form of a secret, and known names, are looked at by the reader of the file, not by its tables.
    assert [c for c in found if not c.startswith(".secrets")] == []
