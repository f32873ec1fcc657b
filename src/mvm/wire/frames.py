"""Frames: a 4-byte big-endian length, then that many bytes of UTF-8 JSON (CONTRACT 9).

The JSON is stricter than the standard library's: no NaN or infinity, no key twice in an object, no lone surrogates, no
integer beyond 64 bits, no nesting deeper than `MAX_DEPTH`. What `encode` accepts, `decode` of the peer accepts.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NoReturn, TypeAlias

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"

GUEST_FRAME_LIMIT = 256 * 1024
"""Bytes of JSON in one frame between host and guest."""
API_FRAME_LIMIT = 1024 * 1024
"""Bytes of JSON in one frame of the agent API."""
DEFAULT_TIMEOUT = 10.0
"""Seconds to connect, to read a frame and to write one."""
MAX_DEPTH = 32
"""Objects and lists inside each other."""
MAX_INTEGER = 2**64 - 1
MIN_INTEGER = -(2**63)

_HEADER_BYTES = 4
_MAX_INTEGER_DIGITS = len(str(MAX_INTEGER))
# Both quantifiers are possessive and the closing quote optional, so that every quote is passed once whatever follows.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_ONLY_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_MANY_DIGITS = re.compile(rb"[0-9]{%d}" % _MAX_INTEGER_DIGITS)
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class FrameFault(StrEnum):
    """What is wrong with a frame."""

    TOO_LONG = "too-long"
    EMPTY = "empty"
    SHORT = "short"
    """The connection ended inside a frame, or the bytes do not match the length."""
    CLOSED = "closed"
    """The connection ended between frames: not an error unless an answer was due."""
    TIMEOUT = "timeout"
    NOT_UTF8 = "not-utf8"
    NOT_JSON = "not-json"
    DEPTH = "depth"
    DUPLICATE_KEY = "duplicate-key"
    NOT_FINITE = "not-finite"
    HUGE_INTEGER = "huge-integer"
    SURROGATE = "surrogate"


class FrameError(Exception):
    """A frame that cannot be read or written; `kind` says which rule it breaks, the text names the place."""

    def __init__(self, kind: FrameFault, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def encode(value: JsonValue, limit: int = GUEST_FRAME_LIMIT) -> bytes:
    """Render a value as one frame, header included.

    Raises `FrameError` when it is longer than `limit` bytes or holds something that a peer's `decode` would refuse.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        if "Circular" in str(error):
            raise FrameError(FrameFault.DEPTH, "the value contains itself") from None
        raise FrameError(FrameFault.NOT_FINITE, "the value holds NaN or an infinity, which JSON cannot say") from None
    except TypeError as error:
        raise FrameError(FrameFault.NOT_JSON, f"the value is not JSON: {error}") from None
    try:
        body = text.encode()
    except UnicodeEncodeError as error:
        raise FrameError(FrameFault.SURROGATE, f"character {error.start} of the frame is half a character") from None
    if len(body) > limit:
        raise _too_long(len(body), limit)
    if _deeper_than(body, MAX_DEPTH):
        raise _too_deep()
    if _MANY_DIGITS.search(body):
        _load(text)  # refuses an integer that is too large; digits inside a string are fine
    return len(body).to_bytes(_HEADER_BYTES, "big") + body


def decode(frame: bytes, limit: int = GUEST_FRAME_LIMIT) -> JsonValue:
    """Parse one whole frame, header included."""
    if len(frame) < _HEADER_BYTES:
        raise FrameError(FrameFault.SHORT, f"a frame begins with {_HEADER_BYTES} bytes of length, got {len(frame)}")
    length = _checked_length(frame[:_HEADER_BYTES], limit)
    if len(frame) - _HEADER_BYTES != length:
        raise FrameError(
            FrameFault.SHORT, f"the frame says {length} bytes and holds {len(frame) - _HEADER_BYTES} after the length"
        )
    return decode_body(frame[_HEADER_BYTES:])


def decode_body(body: bytes) -> JsonValue:
    """Parse the JSON of a frame whose length has been checked."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise FrameError(FrameFault.NOT_UTF8, f"byte {error.start} of the frame is not UTF-8") from None
    if _deeper_than(body, MAX_DEPTH):
        raise _too_deep()
    value = _load(text)
    if _SURROGATE_ESCAPE.search(body):
        _refuse_surrogates(value, "")
    return value


async def read_frame(
    reader: asyncio.StreamReader, *, limit: int = GUEST_FRAME_LIMIT, timeout: float | None = DEFAULT_TIMEOUT
) -> JsonValue:
    """Read one frame; the time-out (seconds; None waits for ever) covers the whole of it, so a dripping peer is cut.

    Raises `FrameError`: kind CLOSED when the peer ended the connection between frames, SHORT when inside one.
    """
    try:
        async with asyncio.timeout(timeout):
            length = _checked_length(await reader.readexactly(_HEADER_BYTES), limit)
            body = await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        if not error.partial and error.expected == _HEADER_BYTES:
            raise FrameError(FrameFault.CLOSED, "the peer closed the connection") from None
        raise FrameError(
            FrameFault.SHORT, f"the connection ended after {len(error.partial)} of {error.expected} bytes"
        ) from None
    except TimeoutError:
        raise FrameError(FrameFault.TIMEOUT, f"no whole frame within {timeout} s") from None
    except OSError as error:
        raise FrameError(FrameFault.CLOSED, f"the connection broke: {error.strerror or error}") from None
    return decode_body(body)


async def write_frame(
    writer: asyncio.StreamWriter,
    value: JsonValue,
    *,
    limit: int = GUEST_FRAME_LIMIT,
    timeout: float | None = DEFAULT_TIMEOUT,
) -> None:
    """Write one frame and wait until the peer takes it; a value that is too long is refused before a byte is sent."""
    frame = encode(value, limit)
    try:
        async with asyncio.timeout(timeout):
            writer.write(frame)
            await writer.drain()
    except TimeoutError:
        raise FrameError(FrameFault.TIMEOUT, f"the peer did not take a frame within {timeout} s") from None
    except OSError as error:
        raise FrameError(FrameFault.CLOSED, f"the connection broke: {error.strerror or error}") from None


def _checked_length(header: bytes, limit: int) -> int:
    length = int.from_bytes(header, "big")
    if length == 0:
        raise FrameError(FrameFault.EMPTY, "a frame of no bytes holds no message")
    if length > limit:
        raise _too_long(length, limit)
    return length


def _too_long(length: int, limit: int) -> FrameError:
    return FrameError(FrameFault.TOO_LONG, f"the frame has {length} bytes and may have {limit}")


def _too_deep() -> FrameError:
    return FrameError(
        FrameFault.DEPTH, f"the frame is nested deeper than {MAX_DEPTH} levels, or its brackets do not match"
    )


def _deeper_than(body: bytes, limit: int) -> bool:
    """True when brackets nest deeper than `limit`, or do not match; in C throughout, for frames of a megabyte."""
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    brackets = _STRING.sub(b"", body).translate(_ONLY_BRACKETS, _NOT_BRACKETS)
    for _ in range(limit):  # each pass takes away the innermost level
        rest = brackets.replace(b"[]", b"")
        if len(rest) == len(brackets):
            break
        brackets = rest
    return bool(brackets)


def _load(text: str) -> JsonValue:
    try:
        value: JsonValue = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise FrameError(FrameFault.NOT_JSON, f"the frame is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise _too_deep() from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise FrameError(FrameFault.NOT_FINITE, f"the frame holds {name}, which is not JSON")


def _parse_integer(digits: str) -> int:
    if len(digits) <= _MAX_INTEGER_DIGITS and MIN_INTEGER <= (number := int(digits)) <= MAX_INTEGER:
        return number
    raise FrameError(FrameFault.HUGE_INTEGER, f"the integer {digits[:24]}... does not fit 64 bits")


def _parse_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise FrameError(FrameFault.NOT_FINITE, f"the number {digits[:24]} is too large")
    return number


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise FrameError(FrameFault.DUPLICATE_KEY, f"the key {twice[:80]!r} is in an object twice")
    return found


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_int=_parse_integer,
    parse_float=_parse_float,
    object_pairs_hook=_unique_keys,
)


def _refuse_surrogates(value: JsonValue, path: str) -> None:
    if isinstance(value, str):
        if _SURROGATE.search(value):
            raise FrameError(FrameFault.SURROGATE, f"{path or 'the message'} holds half a character (a lone surrogate)")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_surrogates(key, f"a key of {path or 'the message'}")
            _refuse_surrogates(item, f"{path}.{key}" if path else key)
    elif isinstance(value, Sequence):
        for index, item in enumerate(value):
            _refuse_surrogates(item, f"{path}[{index}]")
