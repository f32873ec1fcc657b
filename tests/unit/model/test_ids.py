"""Identifiers and the addresses that people write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.model import ids
from mvm.model.errors import InvalidInput
from mvm.model.ids import Address, InstanceRef

names = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
instance_ids = st.from_regex(r"i-[0-9a-f]{8}", fullmatch=True)


@given(names)
def test_a_name_of_the_right_form_is_a_tenant_pool_and_user_id(name: str) -> None:
    assert ids.tenant_id(name) == ids.pool_id(name) == ids.user_id(name) == name


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("", "empty"),
        ("-a", "hyphen"),
        ("a-", "hyphen"),
        ("Alice", "'A' is not allowed"),
        ("a_b", "'_' is not allowed"),
        ("a\n", "'\\n' is not allowed"),
        ("a.b", "'.' is not allowed"),
        ("ä", "'ä' is not allowed"),
        ("a" * 64, "64 characters"),
    ],
)
@pytest.mark.parametrize(("check", "kind"), [(ids.tenant_id, "tenant"), (ids.pool_id, "pool"), (ids.user_id, "user")])
def test_a_bad_name_is_refused_with_its_kind_and_the_broken_rule(check, kind, name, rule) -> None:
    with pytest.raises(InvalidInput) as refused:
        check(name)
    assert f"{kind} id" in refused.value.message
    assert rule in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize("text", ["i-0a1b2c3", "i-0A1B2C3D", "0a1b2c3d", "i-0a1b2c3d ", "i-0a1b2c3d\n", ""])
def test_an_instance_id_has_exactly_eight_lowercase_hex_digits(text: str) -> None:
    with pytest.raises(InvalidInput, match="instance id"):
        ids.instance_id(text)


@pytest.mark.parametrize("value", [0, -1, 4095, True])
def test_a_net_id_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(InvalidInput, match="net id"):
        ids.tenant_net_id(value)


@given(names, names, instance_ids)
def test_every_written_form_of_an_address_reads_back(tenant: str, pool: str, instance: str) -> None:
    for text in (tenant, f"{tenant}/{pool}", f"{tenant}/{pool}/{instance}"):
        assert str(Address.parse(text)) == text
    assert Address.parse(f"{tenant}/{pool}/{instance}").instance == InstanceRef(tenant, pool, instance)


@pytest.mark.parametrize("text", ["", "/", "a/", "/b", "a//i-00000000", "a/b/i-00000000/x", "a b", "a/b/c"])
def test_any_other_address_is_refused_with_the_expected_form(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Address.parse(text)
    assert refused.value.hint


def test_an_address_of_a_pool_names_no_instance() -> None:
    with pytest.raises(InvalidInput, match="names no instance"):
        _ = Address.parse("a/b").instance


@given(names, names, names, names)
def test_worker_keys_of_different_people_differ(a: str, b: str, c: str, d: str) -> None:
    assert (ids.worker_key(a, b) == ids.worker_key(c, d)) == ((a, b) == (c, d))
