"""Measures of text and the error that the markup parsers share."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Entity(TypedDict):
    """A MessageEntity: a piece of text with a meaning; offset and length in UTF-16 code units."""

    type: str
    offset: int
    length: int
    url: NotRequired[str]
    language: NotRequired[str]
    custom_emoji_id: NotRequired[str]


class EntityProblem(Exception):
    """Markup that cannot be parsed; the text is what follows `can't parse entities: `."""


def utf16_length(text: str) -> int:
    """Length in UTF-16 code units, the measure of entity offsets."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def byte_offset(text: str, index: int) -> int:
    """Offset in bytes of UTF-8 of the character at `index`, the measure in error texts."""
    return len(text[:index].encode("utf-8", "surrogatepass"))
