"""Frames: what one side encodes the other decodes, and nothing a peer sends does more than raise `FrameError`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mvm.wire.frames import (
    API_FRAME_LIMIT,
    GUEST_FRAME_LIMIT,
    MAX_DEPTH,
    MAX_INTEGER,
    MIN_INTEGER,
    FrameError,
    FrameFault,
    decode,
    decode_body,
    encode,
    read_frame,
    write_frame,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(MIN_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=5)
    ),
    max_leaves=20,
)


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def fault(body: bytes) -> FrameFault:
    with pytest.raises(FrameError) as refusal:
        decode_body(body)
    assert str(refusal.value)
    assert len(str(refusal.value)) < 300  # a peer's data is quoted in part only
    return refusal.value.kind


@given(json_values)
def test_what_is_encoded_is_decoded(value: Any) -> None:
    assert decode(encode(value)) == value


@given(json_values)
def test_a_frame_is_a_length_and_plain_json(value: Any) -> None:
    frame = encode(value)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    assert json.loads(frame[4:]) == value


@given(st.binary(max_size=300))
@example(b"\x00\x00\x00\x02{}x")
def test_no_bytes_do_more_than_raise_a_frame_error(data: bytes) -> None:
    for attempt in (decode, decode_body):
        try:
            value = attempt(data)
        except FrameError:
            continue
        assert json.loads(data[4:] if attempt is decode else data) == value


@given(
    st.lists(
        st.sampled_from(["{", "}", "[", "]", '"', "\\", ":", ",", "a", "1", "-", ".", "e", "\\ud800"]), max_size=80
    )
)
def test_nearly_json_does_no_more_than_raise_a_frame_error(parts: list[str]) -> None:
    text = "".join(parts)
    try:
        value = decode_body(text.encode())
    except FrameError:
        return
    assert json.loads(text) == value


@given(st.integers(0, MAX_DEPTH + 10), st.text('[]{}"\\', max_size=20))
def test_depth_is_counted_exactly_and_not_inside_strings(depth: int, text: str) -> None:
    value = [text, nested(depth)]
    if depth + 1 <= MAX_DEPTH:
        assert decode(encode(value)) == value
    else:
        with pytest.raises(FrameError) as refusal:
            encode(value)
        assert refusal.value.kind is FrameFault.DEPTH
        assert fault(json.dumps(value).encode()) is FrameFault.DEPTH


def test_width_is_no_depth() -> None:
    value: Any = [[{}] for _ in range(20_000)]
    assert decode(encode(value)) == value


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", FrameFault.NOT_JSON),
        (b"   ", FrameFault.NOT_JSON),
        (b"{", FrameFault.NOT_JSON),
        (b"{}{}", FrameFault.NOT_JSON),
        (b"{'a':1}", FrameFault.NOT_JSON),
        (b"[1,]", FrameFault.NOT_JSON),
        (b'"a\nb"', FrameFault.NOT_JSON),
        (b"\xef\xbb\xbf{}", FrameFault.NOT_JSON),
        (b'"\xff"', FrameFault.NOT_UTF8),
        (b'"\xed\xa0\x80"', FrameFault.NOT_UTF8),
        (b"NaN", FrameFault.NOT_FINITE),
        (b'{"a":[Infinity]}', FrameFault.NOT_FINITE),
        (b"-Infinity", FrameFault.NOT_FINITE),
        (b"1e999", FrameFault.NOT_FINITE),
        (b"18446744073709551616", FrameFault.HUGE_INTEGER),
        (b"-9223372036854775809", FrameFault.HUGE_INTEGER),
        (b"1" * 10_000, FrameFault.HUGE_INTEGER),
        (b'{"a":1,"b":2,"a":1}', FrameFault.DUPLICATE_KEY),
        (b'[{"x":{"a":1,"\\u0061":2}}]', FrameFault.DUPLICATE_KEY),
        (b'"\\ud800"', FrameFault.SURROGATE),
        (b'{"a":["\\uDC00x"]}', FrameFault.SURROGATE),
        (b'{"\\udbff":1}', FrameFault.SURROGATE),
        (b'"\\ud83d\\u0041"', FrameFault.SURROGATE),
        (b"[" * 100_000, FrameFault.DEPTH),
        (b'{"a":' * 100_000, FrameFault.DEPTH),
        (b"[" * 50_000 + b"]" * 50_000, FrameFault.DEPTH),
    ],
)
def test_each_rule_has_a_name(body: bytes, kind: FrameFault) -> None:
    assert fault(body) is kind


def test_errors_name_the_place() -> None:
    for body, place in (
        (b'{"a":[0,{"b":"\\ud800"}]}', r"a[1].b"),
        (b'{"a":1,"twice":1,"twice":2}', "'twice'"),
        (b'{"a":tru}', "character 5"),
        (b'["abc\xff"]', "byte 5"),
    ):
        with pytest.raises(FrameError) as refusal:
            decode_body(body)
        assert place in str(refusal.value)


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert decode_body(b'"\\ud83d\\ude00"') == "\U0001f600"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (float("nan"), FrameFault.NOT_FINITE),
        ({"a": float("-inf")}, FrameFault.NOT_FINITE),
        ("\ud800", FrameFault.SURROGATE),
        ({"\udfff": 1}, FrameFault.SURROGATE),
        (2**64, FrameFault.HUGE_INTEGER),
        ([-(2**80)], FrameFault.HUGE_INTEGER),
        (b"bytes", FrameFault.NOT_JSON),
        ({1, 2}, FrameFault.NOT_JSON),
        (nested(5000), FrameFault.DEPTH),
    ],
)
def test_what_a_peer_would_refuse_is_not_sent(value: Any, kind: FrameFault) -> None:
    with pytest.raises(FrameError) as refusal:
        encode(value)
    assert refusal.value.kind is kind


def test_a_value_that_contains_itself_is_not_sent() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(FrameError):
        encode(value)


@pytest.mark.parametrize("limit", [10, GUEST_FRAME_LIMIT, API_FRAME_LIMIT])
def test_the_limit_is_of_bytes_and_exact(limit: int) -> None:
    longest = "x" * (limit - 2)
    assert decode(encode(longest, limit), limit) == longest
    for value in (longest + "x", longest[:-1] + "ü"):
        with pytest.raises(FrameError) as refusal:
            encode(value, limit)
        assert refusal.value.kind is FrameFault.TOO_LONG
        with pytest.raises(FrameError) as refusal:
            decode(encode(value, limit + 2), limit)
        assert refusal.value.kind is FrameFault.TOO_LONG


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (b"", FrameFault.SHORT),
        (b"\x00\x00\x00", FrameFault.SHORT),
        (b"\x00\x00\x00\x00", FrameFault.EMPTY),
        (b"\x00\x00\x00\x03{}", FrameFault.SHORT),
        (b"\x00\x00\x00\x01{}", FrameFault.SHORT),
        (b"\xff\xff\xff\xff", FrameFault.TOO_LONG),
        (b"GET / HTTP/1.1\r\n", FrameFault.TOO_LONG),
    ],
)
def test_a_wrong_length_is_refused(frame: bytes, kind: FrameFault) -> None:
    with pytest.raises(FrameError) as refusal:
        decode(frame)
    assert refusal.value.kind is kind


def test_a_hostile_frame_of_a_mebibyte_costs_little() -> None:
    """Every shape that is worse than linear in some parser; a quadratic one would take minutes."""
    size = API_FRAME_LIMIT
    bodies = [
        b"[" * size,
        b"[" * (size // 2) + b"]" * (size // 2),
        b'"' * size,
        b'"' + b'\\"' * (size // 2 - 1),
        b"[" * 40 + b'"' + b"\\" * (size - 100),
        b'["\\"' * (size // 4),
        b"1" * size,
        b"0." + b"1" * (size - 2),
        b"1e" + b"9" * (size - 2),
        b"[" + b"[]," * (size // 3 - 2) + b"[]]",
        b"[" + b",".join([b'"\\ud800"'] * (size // 9)) + b"]",
        b"{" + b",".join(b'"%d":0' % n for n in range(size // 12)) + b"}",
    ]
    began = time.process_time()
    for body in bodies:
        try:
            decode_body(body)
        except FrameError:
            continue
    assert time.process_time() - began < 10


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, asyncio.StreamWriter]]:
    """A loopback connection: its reading side, that side's writer, and the writer of the peer."""
    accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda *ends: accepted.put_nowait(ends), "127.0.0.1", 0)
    _, peer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    reader, writer = await accepted.get()
    try:
        yield reader, writer, peer
    finally:
        for end in (writer, peer):
            end.transport.abort()
        server.close()
        await server.wait_closed()


async def write_for_ever(writer: asyncio.StreamWriter, *, timeout: float) -> None:
    while True:
        await write_frame(writer, "x" * 200_000, timeout=timeout)


async def test_frames_follow_each_other_on_a_stream() -> None:
    async with connection() as (reader, _, peer):
        for value in ("Ping", {"a": [1, 2]}, None, "x" * 200_000):
            await write_frame(peer, value)
            assert await read_frame(reader) == value
        peer.close()
        with pytest.raises(FrameError) as refusal:
            await read_frame(reader)
        assert refusal.value.kind is FrameFault.CLOSED


@pytest.mark.parametrize("sent", [b"\x00", b"\x00\x00\x00\x10", b"\x00\x00\x00\x10{}"])
async def test_an_end_inside_a_frame_is_told_from_one_between_frames(sent: bytes) -> None:
    async with connection() as (reader, _, peer):
        peer.write(sent)
        peer.close()
        with pytest.raises(FrameError) as refusal:
            await read_frame(reader)
        assert refusal.value.kind is FrameFault.SHORT


async def test_a_long_frame_is_refused_before_it_arrives() -> None:
    async with connection() as (reader, _, peer):
        peer.write(b"\x7f\xff\xff\xff")
        with pytest.raises(FrameError) as refusal:
            await read_frame(reader)
        assert refusal.value.kind is FrameFault.TOO_LONG


async def test_a_silent_peer_is_given_up() -> None:
    async with connection() as (reader, _, _):
        with pytest.raises(FrameError) as refusal:
            await read_frame(reader, timeout=0.01)
        assert refusal.value.kind is FrameFault.TIMEOUT


async def test_a_dripping_peer_is_given_up() -> None:
    async with connection() as (reader, _, peer):

        async def drip() -> None:
            peer.write(b"\x00\x03\xff\xff")
            while True:
                peer.write(b"x")
                await asyncio.sleep(0)

        dripping = asyncio.create_task(drip())
        with pytest.raises(FrameError) as refusal:
            await read_frame(reader, timeout=0.05)
        dripping.cancel()
        assert refusal.value.kind is FrameFault.TIMEOUT


async def test_a_peer_that_does_not_read_is_given_up() -> None:
    async with connection() as (_, writer, _):
        with pytest.raises(FrameError) as refusal:
            await write_for_ever(writer, timeout=0.05)
        assert refusal.value.kind is FrameFault.TIMEOUT


async def test_a_broken_connection_is_a_frame_error() -> None:
    async with connection() as (reader, writer, peer):
        peer.transport.abort()
        with pytest.raises(FrameError) as refusal:
            await read_frame(reader)
        assert refusal.value.kind is FrameFault.CLOSED
        with pytest.raises(FrameError) as refusal:
            await write_for_ever(writer, timeout=5)
        assert refusal.value.kind is FrameFault.CLOSED


async def test_a_value_too_long_leaves_the_connection_usable() -> None:
    async with connection() as (reader, _, peer):
        with pytest.raises(FrameError):
            await write_frame(peer, "x" * GUEST_FRAME_LIMIT)
        await write_frame(peer, "ok")
        assert await read_frame(reader) == "ok"
