"""What strangers write cannot act on a terminal."""

from __future__ import annotations

import pytest

from mvm.telemetry.printable import printable


@pytest.mark.parametrize(
    "character", ["\x1b", "\x07", "\x08", "\r", "\x00", "\x7f", "\x9b", "\x85", "\u202e", "\u2066", "\u200b", "\ud800"]
)
def test_what_acts_on_a_terminal_is_replaced(character: str) -> None:
    assert printable(f"a{character}b") == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize("text", ["", "plain", "Zoë und 张伟", "🦞 lobster", "two\nlines\tand a tab"])
def test_what_people_write_is_left(text: str) -> None:
    assert printable(text) == text


def test_lines_are_joined_where_nothing_is_to_be_kept() -> None:
    assert printable("a\nb", keep="") == "a\N{REPLACEMENT CHARACTER}b"
