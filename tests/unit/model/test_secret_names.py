"""Names of secrets, who may see which, and what a value may hold."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.model.errors import InvalidInput
from mvm.model.roles import Role
from mvm.model.secrets import (
    LOGICAL_NAMES,
    MAX_VALUE_BYTES,
    SecretName,
    check_secret_scopes,
    check_values,
    is_variable,
    value_from_text,
    visible_secrets,
)

EVERYTHING = {
    "anthropic/ANTHROPIC_API_KEY": 1,
    "openai/OPENAI_API_KEY": 2,
    "telegram/TELEGRAM_BOT_TOKEN": 3,
    "discord/DISCORD_BOT_TOKEN": 4,
    "openclaw/OPENCLAW_AUTH_TOKEN": 5,
    "mail/PASSWORD": 6,
    "mail/USER": 7,
    "workers/alice.alice": 8,
}
TOKEN = SecretName("telegram", "TELEGRAM_BOT_TOKEN")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("anthropic_key", "anthropic/ANTHROPIC_API_KEY"),
        ("openai_key", "openai/OPENAI_API_KEY"),
        ("telegram_token", "telegram/TELEGRAM_BOT_TOKEN"),
        ("discord_token", "discord/DISCORD_BOT_TOKEN"),
        ("openclaw_token", "openclaw/OPENCLAW_AUTH_TOKEN"),
    ],
)
def test_a_logical_name_is_the_path_of_the_contract(name: str, path: str) -> None:
    assert LOGICAL_NAMES[name].path == path
    assert SecretName.parse(path) == LOGICAL_NAMES[name]


@pytest.mark.parametrize(
    "path", ["", "x", "/KEY", "x/", "../KEY", "x/../y", "x/.KEY", "X/KEY", "x/a b", "x/a/b", "x/a\n"]
)
def test_a_path_that_could_leave_its_directory_is_no_name(path: str) -> None:
    with pytest.raises(InvalidInput):
        SecretName.parse(path)


def test_the_scope_of_worker_tokens_and_the_gateways_own_variable_are_not_for_people() -> None:
    with pytest.raises(InvalidInput, match="mvm's own"):
        SecretName("workers", "X")
    with pytest.raises(InvalidInput, match="mvm's own"):
        SecretName("x", "OPENCLAW_GATEWAY_TOKEN")


@pytest.mark.parametrize(
    ("role", "seen"),
    [
        (Role.GATEWAY, {3, 4, 5}),
        (Role.CAPABILITY_OPENCLAW, {1, 2, 5, 6, 7}),
        (Role.BUILDER, set()),
        (Role.WORKER, set()),
        (Role.CAPABILITY_IMESSAGE, set()),
    ],
)
def test_a_role_sees_what_the_contract_gives_it(role: Role, seen: set[int]) -> None:
    assert set(visible_secrets(role, None, EVERYTHING).values()) == seen


def test_secret_scopes_replace_what_the_role_gets() -> None:
    scopes = {"telegram": ("TELEGRAM_BOT_TOKEN",), "mail": ("*",), "absent": ("X",)}
    seen = visible_secrets(Role.CAPABILITY_OPENCLAW, scopes, EVERYTHING)
    assert set(seen.values()) == {3, 6, 7}
    assert visible_secrets(Role.GATEWAY, {}, EVERYTHING) == {}


def test_a_role_without_a_secrets_drive_sees_nothing_whatever_is_asked_for() -> None:
    assert visible_secrets(Role.BUILDER, {"mail": ("*",)}, EVERYTHING) == {}


@given(
    st.sampled_from(Role),
    st.none()
    | st.dictionaries(st.sampled_from(["mail", "workers", "telegram"]), st.tuples(st.sampled_from(["*", "USER"]))),
)
def test_worker_tokens_are_never_seen_by_scope(role: Role, scopes: dict[str, tuple[str, ...]] | None) -> None:
    seen = visible_secrets(role, scopes, EVERYTHING)
    assert "workers/alice.alice" not in seen
    assert seen.items() <= EVERYTHING.items()


@pytest.mark.parametrize("scopes", [{"mail": ()}, {"Mail": ("X",)}, {"workers": ("*",)}, {"mail": ("a/b",)}])
def test_bad_secret_scopes_are_refused(scopes: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(InvalidInput):
        check_secret_scopes(scopes)


@pytest.mark.parametrize(("text", "value"), [("abc", "abc"), ("abc\n", "abc"), ("abc\r\n", "abc"), (" a b ", " a b ")])
def test_one_trailing_newline_is_dropped_and_nothing_else(text: str, value: str) -> None:
    assert value_from_text(TOKEN, text) == value


@pytest.mark.parametrize("text", ["hunter2\nx", "hunter2\n\n", "hunter2\0", "hunter2\rx"])
def test_what_a_variable_cannot_hold_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        value_from_text(TOKEN, text)
    assert "hunter2" not in f"{refused.value.message}{refused.value.hint}"
    assert "telegram/TELEGRAM_BOT_TOKEN" in refused.value.message


def test_a_key_that_is_no_variable_may_hold_many_lines() -> None:
    name = SecretName("tls", "ca.pem")
    assert not is_variable(name.key)
    assert value_from_text(name, "one\ntwo\n") == "one\ntwo"


@pytest.mark.parametrize("text", ["", "\n", "  \n", "x" * (MAX_VALUE_BYTES + 1), "\udc80"])
def test_an_empty_a_huge_and_an_undecodable_value_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        value_from_text(TOKEN, text)


@given(st.text())
def test_a_value_that_was_accepted_is_accepted_again_as_it_is(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        value = value_from_text(TOKEN, text)
        check_values({TOKEN.path: value})


def test_one_key_with_two_values_is_refused_and_names_both_scopes() -> None:
    check_values({"a/KEY": "same", "b/KEY": "same"})
    with pytest.raises(InvalidInput) as refused:
        check_values({"a/KEY": "hunter2", "b/KEY": "hunter3"})
    assert "'a'" in refused.value.message
    assert "'b'" in refused.value.message
    assert "hunter" not in refused.value.message
