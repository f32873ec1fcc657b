"""Timestamps on the wire."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.wire.clock import format_timestamp, parse_timestamp


@given(st.datetimes(timezones=st.just(UTC)))
def test_every_moment_travels(moment: datetime) -> None:
    text = format_timestamp(moment)
    assert text.endswith("Z")
    assert parse_timestamp(text) == moment


def test_other_zones_are_turned_into_utc() -> None:
    moment = datetime(2026, 11, 22, 20, 49, tzinfo=timezone(timedelta(hours=2)))
    assert format_timestamp(moment) == "2026-11-22T18:49:00Z"


def test_a_moment_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        format_timestamp(datetime(2026, 11, 22))


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [("Z", 0), (".5Z", 500_000), (".123Z", 123_000), (".123456Z", 123_456), (".123456789Z", 123_456)],
)
def test_decimals_may_be_there(text: str, microseconds: int) -> None:
    assert parse_timestamp(f"2026-11-22T18:49:00{text}").microsecond == microseconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-11-22",
        "2026-11-22T18:49:00",
        "2026-11-22T18:49:00+00:00",
        "2026-11-22 18:49:00Z",
        "2026-11-22t18:49:00z",
        "2026-11-22T18:49Z",
        "2026-11-22T18:49:00.Z",
        "2026-11-22T18:49:00.1234567890Z",
        "2026-11-22T18:49:00Z\n",
        "2026-02-30T00:00:00Z",
        "2026-11-22T24:00:00Z",
        "2026-11-22T18:49:60Z",
        "0000-01-01T00:00:00Z",
        "٢٠٢٦-11-22T18:49:00Z",
        "x" * 100_000,
    ],
)
def test_anything_else_is_refused_in_few_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a") as refusal:
        parse_timestamp(text)
    assert len(str(refusal.value)) < 200


@given(st.text(max_size=40))
def test_no_text_does_more_than_raise_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_timestamp(text).tzinfo is UTC
