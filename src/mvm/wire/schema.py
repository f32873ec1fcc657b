"""How the fields of messages are checked and rendered: one small codec per kind of value.

A message class says the codec of each field in its annotation, `Annotated[int, Integer(0, 100)]`; `record_codec` makes
the codec of the class from them. Parsing is strict: a key that is not known, missing or of another type is a
`MessageError` that names its path. Rendering checks nothing but cuts free text to its limit, so that an answer which
quotes a long error still arrives.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar, get_type_hints

from mvm.wire.clock import format_timestamp, parse_timestamp
from mvm.wire.frames import MAX_INTEGER, JsonValue

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


class MessageError(Exception):
    """A well-formed frame that is not a valid message; `path` names the place, such as `Exec.argv[0]`."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


def type_name(value: object) -> str:
    """What JSON calls the type of a value."""
    if value is None:
        return "null"
    names: list[tuple[type | tuple[type, ...], str]] = [
        (bool, "a boolean"),
        ((int, float), "a number"),
        (str, "a string"),
        (Mapping, "an object"),
        (Sequence, "a list"),
    ]
    return next((name for kind, name in names if isinstance(value, kind)), type(value).__name__)


def _wrong_type(path: str, wanted: str, value: object) -> MessageError:
    return MessageError(path, f"expected {wanted}, got {type_name(value)}")


class Codec(Protocol[T]):
    """Checks and converts one kind of value, both ways."""

    def parse(self, value: JsonValue, path: str) -> T: ...

    def render(self, value: T) -> JsonValue: ...


class Integer:
    """A whole number within bounds, both included; 5.0 and true are not numbers here."""

    def __init__(self, least: int = 0, most: int = MAX_INTEGER) -> None:
        self.least, self.most = least, most

    def parse(self, value: JsonValue, path: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(path, "a whole number", value)
        if not self.least <= value <= self.most:
            raise MessageError(path, f"{value} is not between {self.least} and {self.most}")
        return value

    def render(self, value: int) -> JsonValue:
        return value


class Number:
    """A finite number, not negative; for measurements."""

    def parse(self, value: JsonValue, path: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _wrong_type(path, "a number", value)
        if not 0 <= value < float("inf"):
            raise MessageError(path, f"{value} is not a finite number from 0 up")
        return float(value)

    def render(self, value: float) -> JsonValue:
        return value


class Flag:
    """True or false."""

    def parse(self, value: JsonValue, path: str) -> bool:
        if not isinstance(value, bool):
            raise _wrong_type(path, "true or false", value)
        return value

    def render(self, value: bool) -> JsonValue:
        return value


class Text:
    """Free text of at most `limit` characters; a longer one is cut when it is rendered and refused when it is read."""

    def __init__(self, limit: int = 4096) -> None:
        self.limit = limit

    def parse(self, value: JsonValue, path: str) -> str:
        if not isinstance(value, str):
            raise _wrong_type(path, "a string", value)
        if len(value) > self.limit:
            raise MessageError(path, f"the text has {len(value)} characters and may have {self.limit}")
        return value

    def render(self, value: str) -> JsonValue:
        whole = value.encode(errors="replace").decode()
        return whole if len(whole) <= self.limit else whole[: self.limit - 1] + "…"


class Pattern:
    """A string that matches a regular expression as a whole; `what` names it in errors."""

    def __init__(self, what: str, expression: str) -> None:
        self.what, self._expression = what, re.compile(expression)

    def parse(self, value: JsonValue, path: str) -> str:
        if not isinstance(value, str):
            raise _wrong_type(path, self.what, value)
        if not self._expression.fullmatch(value):
            raise MessageError(path, f"{value[:80]!r} is not {self.what}")
        return value

    def render(self, value: str) -> JsonValue:
        return value


class Checked:
    """A string that a function accepts; the function raises `ValueError` for others."""

    def __init__(self, what: str, check: Callable[[str], object], limit: int = 1024) -> None:
        self.what, self._check, self._limit = what, check, limit

    def parse(self, value: JsonValue, path: str) -> str:
        if not isinstance(value, str):
            raise _wrong_type(path, self.what, value)
        try:
            if len(value) > self._limit:
                raise ValueError
            self._check(value)
        except ValueError:
            raise MessageError(path, f"{value[:80]!r} is not {self.what}") from None
        return value

    def render(self, value: str) -> JsonValue:
        return value


class Choice(Generic[E]):
    """One of an enumeration's values."""

    def __init__(self, kind: type[E]) -> None:
        self._kind = kind

    def parse(self, value: JsonValue, path: str) -> E:
        if isinstance(value, str) and value in self._kind.__members__.values():
            return self._kind(value)
        valid = ", ".join(self._kind)
        if isinstance(value, str):
            raise MessageError(path, f"{value[:80]!r} is none of {valid}")
        raise _wrong_type(path, f"one of {valid}", value)

    def render(self, value: E) -> JsonValue:
        return str(value)


class Moment:
    """A UTC timestamp, RFC 3339 with `Z`."""

    def parse(self, value: JsonValue, path: str) -> datetime:
        if not isinstance(value, str):
            raise _wrong_type(path, "a UTC time", value)
        try:
            return parse_timestamp(value)
        except ValueError as error:
            raise MessageError(path, str(error)) from None

    def render(self, value: datetime) -> JsonValue:
        return format_timestamp(value)


class Base64:
    """Bytes, as base64 with padding on the wire; `limit` bounds the bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def parse(self, value: JsonValue, path: str) -> bytes:
        if not isinstance(value, str):
            raise _wrong_type(path, "base64", value)
        if len(value) > (self.limit + 2) // 3 * 4:
            raise MessageError(path, f"the data is longer than {self.limit} bytes")
        try:
            data = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise MessageError(path, "not base64") from None
        if len(data) > self.limit:
            raise MessageError(path, f"the data is longer than {self.limit} bytes")
        return data

    def render(self, value: bytes) -> JsonValue:
        return base64.b64encode(value).decode()


class Nullable(Generic[T]):
    """A value or null."""

    def __init__(self, inner: Codec[T]) -> None:
        self._inner = inner

    def parse(self, value: JsonValue, path: str) -> T | None:
        return None if value is None else self._inner.parse(value, path)

    def render(self, value: T | None) -> JsonValue:
        return None if value is None else self._inner.render(value)


class Optional(Nullable[T]):
    """A value whose key is left out when there is none: the only fields whose key may be missing."""


class ListOf(Generic[T]):
    """A list of at most `limit` items, all of one kind."""

    def __init__(self, item: Codec[T], limit: int, least: int = 0) -> None:
        self._item, self._limit, self._least = item, limit, least

    def parse(self, value: JsonValue, path: str) -> tuple[T, ...]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise _wrong_type(path, "a list", value)
        if not self._least <= len(value) <= self._limit:
            raise MessageError(path, f"the list has {len(value)} items and may have {self._least} to {self._limit}")
        return tuple(self._item.parse(item, f"{path}[{index}]") for index, item in enumerate(value))

    def render(self, value: tuple[T, ...]) -> JsonValue:
        return [self._item.render(item) for item in value]


@dataclasses.dataclass(frozen=True)
class _Field:
    name: str
    codec: Codec[Any]
    required: bool


class Record(Generic[T]):
    """An object whose keys are the fields of a dataclass."""

    def __init__(self, kind: type[T]) -> None:
        hints = get_type_hints(kind, include_extras=True)
        self._kind = kind
        self._fields = {
            field.name: _Field(
                field.name,
                hints[field.name].__metadata__[0],
                not isinstance(hints[field.name].__metadata__[0], Optional),
            )
            for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        }

    @property
    def has_fields(self) -> bool:
        return bool(self._fields)

    @property
    def is_optional(self) -> bool:
        """True when an object without any key is a valid value."""
        return not any(field.required for field in self._fields.values())

    def parse(self, value: JsonValue, path: str) -> T:
        if not isinstance(value, Mapping):
            raise _wrong_type(path, "an object", value)
        for key in value:
            if key not in self._fields:
                raise MessageError(f"{path}.{key[:80]}" if path else key[:80], self._unknown())
        found: dict[str, Any] = {}
        for field in self._fields.values():
            place = f"{path}.{field.name}" if path else field.name
            if field.name in value:
                found[field.name] = field.codec.parse(value[field.name], place)
            elif field.required:
                raise MessageError(place, "missing")
        return self._kind(**found)

    def render(self, value: T) -> dict[str, JsonValue]:
        rendered: dict[str, JsonValue] = {}
        for field in self._fields.values():
            item = getattr(value, field.name)
            if item is not None or not isinstance(field.codec, Optional):
                rendered[field.name] = field.codec.render(item)
        return rendered

    def _unknown(self) -> str:
        return f"unknown key; the keys are: {', '.join(self._fields)}" if self._fields else "unknown key; there is none"


NAME = Pattern("a name of lowercase letters, digits and inner hyphens", r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""Tenant, pool and user ids, as `mvm.model.ids` (which the guest does not have)."""
INSTANCE_ID = Pattern("an instance id such as 'i-0a1b2c3d'", r"i-[0-9a-f]{8}")
PEER = Pattern("a peer such as 'telegram:111'", r"(?:telegram|discord):[0-9]{1,20}")
WORKER_KEY = Pattern("a worker key such as 'alice.alice'", r"[a-z0-9-]{1,63}\.[a-z0-9-]{1,63}")
TRACE = Pattern("a trace id such as 'mvm:telegram:111:7'", r"[A-Za-z0-9._:%-]{1,600}")
"""Of a message on its way: what its turn is called at the worker's OpenClaw."""
