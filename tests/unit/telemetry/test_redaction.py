"""No secret is left in a redacted text, and nothing else is lost."""

from __future__ import annotations

import json
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.telemetry.redaction import MIN_LENGTH, REDACTED, Redactor

# Letters that appear in no replacement text, so that a found secret was really left over.
secrets = st.text("XYZ01\"\\ü/&= '\n", min_size=MIN_LENGTH, max_size=20)


def test_a_registered_value_is_taken_out_wherever_it_is() -> None:
    redactor = Redactor()
    redactor.register("alice", ["hunter2hunter2"])
    assert redactor.redact("hunter2hunter2") == REDACTED
    assert redactor.redact("a hunter2hunter2, b=hunter2hunter2!") == f"a {REDACTED}, b={REDACTED}!"
    assert redactor.redact("hunter2") == "hunter2"


def test_the_longest_value_wins() -> None:
    redactor = Redactor()
    redactor.register("alice", ["secret-1", "secret-1-and-more"])
    assert redactor.redact("x secret-1-and-more y secret-1 z") == f"x {REDACTED} y {REDACTED} z"


def test_what_is_quoted_is_found() -> None:
    value = 'a"b\\c/ü d'
    redactor = Redactor()
    redactor.register("alice", [value])
    for text in (json.dumps({"x": value}), json.dumps([value], ensure_ascii=False), f"https://x/?q={quote(value, '')}"):
        assert REDACTED in redactor.redact(text)


def test_short_values_are_left_alone() -> None:
    redactor = Redactor()
    redactor.register("alice", ["", "a", "12345"])
    assert redactor.redact("12345 a") == "12345 a"


def test_an_owner_that_is_forgotten_or_changes_takes_its_values_along() -> None:
    redactor = Redactor()
    redactor.register("alice", ["first-secret", "shared-secret"])
    redactor.register("bob", ["shared-secret"])
    redactor.register("alice", ["second-secret"])
    assert redactor.redact("first-secret second-secret shared-secret") == f"first-secret {REDACTED} {REDACTED}"
    redactor.forget("bob")
    redactor.forget("bob")
    assert redactor.redact("second-secret shared-secret") == f"{REDACTED} shared-secret"
    redactor.forget("alice")
    assert redactor.redact("second-secret") == "second-secret"


@pytest.mark.parametrize(
    "text",
    [
        "https://api.telegram.org/bot123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw-/getMe",
        "x-api-key: sk-ant-api03-abcdefghijklmnopqrstuvwxyz",
        "Authorization: Bearer abcdef0123456789",
        "token MTk4NjIyNDgzNDcxOTI1MjQ4.Cl2FMQ.ZnCjm1XVW7vRze4b7Cq4se7kKWs used",
    ],
)
def test_secrets_of_known_kinds_need_no_registration(text: str) -> None:
    redacted = Redactor().redact(text)
    assert REDACTED in redacted
    assert not any(
        len(word) > 20 and word in text for word in redacted.replace(REDACTED, " ").split() if "/" not in word
    )


@pytest.mark.parametrize(
    "text", ["2026-11-22T18:49:00Z wake of alice/workers/i-0a1b2c3d: 83.5 ms", "telegram:111111111 at 10.240.1.3:18790"]
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert Redactor().redact(text) == text


@given(st.lists(secrets, min_size=1, max_size=5), st.lists(st.text("abc ,", max_size=10), min_size=1, max_size=6))
def test_no_registered_value_survives(values: list[str], between: list[str]) -> None:
    redactor = Redactor()
    redactor.register("owner", values)
    text = "".join(part + values[index % len(values)] for index, part in enumerate(between))
    redacted = redactor.redact(text)
    assert not any(value in redacted for value in values)
    redactor.forget("owner")
    assert redactor.redact(text) == text


@given(st.text(max_size=300))
def test_without_secrets_nothing_changes(text: str) -> None:
    redactor = Redactor()
    redactor.register("owner", ["§§§§ no text of ours §§§§"])
    assert redactor.redact(text) == text


def test_many_secrets_that_begin_alike_cost_no_more_than_one() -> None:
    redactor = Redactor()
    began = time.perf_counter()
    for number in range(10_000):
        redactor.register(f"tenants/{number}", [f"sk-key-{number:08}-{'x' * 80}"])
    text = ("sk-key-nothing " * 50) + f"sk-key-{4711:08}-{'x' * 80}"
    for _ in range(20):
        assert redactor.redact(text).endswith(REDACTED)
    assert time.perf_counter() - began < 5  # with a search per secret it would be minutes
