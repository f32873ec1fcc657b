"""Timestamps as they travel: UTC, RFC 3339, ending in `Z` (CONTRACT 1)."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_RFC3339 = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})T([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?Z")


def parse_timestamp(text: str) -> datetime:
    """Read `2026-11-22T18:49:00Z`, with up to nine decimals of which six are kept; raises `ValueError` otherwise."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a UTC time such as '2026-11-22T18:49:00Z'")
    day, time, fraction = match.groups()
    try:
        return datetime.fromisoformat(f"{day}T{time}.{(fraction or '')[:6]:0<6}+00:00")
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not a time that exists") from None


def format_timestamp(moment: datetime) -> str:
    """Write an aware datetime in UTC with `Z`, decimals only where there are any; `ValueError` without a zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone")
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
