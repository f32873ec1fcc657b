"""The multiplexer against arbitrary bytes, and against everything that can happen to a stream, in any order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.wire.mux_world import Connection, World, virtual, works

from mvm.wire.mux_connection import WINDOW, MuxConnection
from mvm.wire.mux_frames import HEADER_BYTES, MAX_PAYLOAD, PADDING, Kind, encode
from mvm.wire.mux_session import MAX_INCOMING

EXAMPLES = 40
IDS = (0x1001, 0x1003, 0x1002, 0x1004)
"""Two that a host may give and two that a guest may."""
NONCES = (bytes(16), b"n" * 16)

Piece = tuple[Any, ...]
"""A kind of bytes and what they are made from: small, so that a failing example can be read."""
frames = st.tuples(
    st.just("frame"),
    st.sampled_from([int(kind) for kind in Kind]) | st.integers(0, 255),
    st.sampled_from(IDS) | st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 52, WINDOW // 4, WINDOW]) | st.integers(0, 2**32 - 1),
    st.binary(max_size=30) | st.sampled_from([*NONCES, MAX_PAYLOAD]),
)
hellos = st.tuples(st.just("frame"), st.sampled_from([1, 2]), st.just(0), st.just(0), st.sampled_from(NONCES))
cut_frames = st.tuples(st.just("cut"), st.integers(0, HEADER_BYTES + 8), frames)
others = st.tuples(st.just("bytes"), st.binary(max_size=60) | st.sampled_from([len(PADDING), b"MV", 7]))
reads = st.lists(st.lists(frames | hellos | cut_frames | others, max_size=8), max_size=12)


def render(piece: Piece) -> bytes:
    match piece:
        case ("cut", at, frame):
            return render(frame)[:at]
        case ("frame", kind, connection, argument, payload):
            return encode(kind, connection, argument, bytes(payload))
        case (_, content):
            return bytes(content)
    raise AssertionError(piece)


MOST_UNDER_WAY = HEADER_BYTES + MAX_PAYLOAD


class Listener(asyncio.Protocol):
    """Counts what a connection delivers, and keeps on reading, or does not."""

    def __init__(self, *, reads: bool) -> None:
        self._reads = reads
        self.alive = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.alive = True
        if not self._reads:
            transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        assert self.alive
        assert self._reads

    def connection_lost(self, error: Exception | None) -> None:
        assert self.alive
        self.alive = False


def take(behaviour: list[str]) -> Callable[[MuxConnection], None]:
    """What a side does with connections that a peer opens: each in its turn as `behaviour` says."""
    turn = iter(behaviour * MAX_INCOMING * 4)

    def opened(connection: MuxConnection) -> None:
        match next(turn, "refuse"):
            case "refuse":
                connection.refuse()
            case "leave":
                pass
            case how:
                connection.accept(Listener(reads=how == "read"))

    return opened


behaviours = st.lists(st.sampled_from(["read", "pause", "refuse", "leave"]), min_size=1, max_size=4)


@settings(max_examples=EXAMPLES)
@given(reads, behaviours)
@virtual
async def test_a_guest_survives_whatever_it_reads(reads: list[list[Piece]], behaviour: list[str], world: World) -> None:
    world.host.end("its agent was killed")
    world.held = True
    world.to_guest.clear()
    world.take = take(behaviour)
    size = 0
    for pieces in reads:
        data = b"".join(map(render, pieces))
        size += len(data)
        world.guest.received(data)
        assert world.guest.incomplete <= MOST_UNDER_WAY
        await world.settled()
    assert len(world.to_host) <= 2 * len(PADDING) + 3 * size

    world.take = None
    world.new_host()
    world.release()
    await works(world)


@settings(max_examples=EXAMPLES)
@given(reads, behaviours)
@virtual
async def test_a_host_survives_whatever_it_reads(reads: list[list[Piece]], behaviour: list[str], world: World) -> None:
    await world.host.session()
    world.take = take(behaviour)
    for pieces in reads:
        world.host.received(b"".join(map(render, pieces)))
        assert world.host.incomplete <= MOST_UNDER_WAY
        await world.settled()

    world.take = None
    world.new_guest()
    await world.settled()
    await works(world)


# Everything that can happen, in any order

OPENING = ("open", "open from guest")
USING = ("write", "answer", "end", "close", "close there", "abort", "abort there", "read", "read there")
HAPPENING = ("new host", "new guest", "host leaves", "hold", "release", "settle")
steps = st.lists(
    st.tuples(
        st.sampled_from([*OPENING, *USING, *HAPPENING]),
        st.integers(0, 7),
        st.integers(0, 3 * MAX_PAYLOAD),
    ),
    max_size=40,
)
CONTENT = bytes(range(251)) * 1000


class Pair:
    """Both ends of one connection, with what was written and what was read at each."""

    def __init__(self, near: Connection, there: Connection, number: int) -> None:
        self.ends = (near, there)
        self._start = number
        self._written = [0, 0]
        self._read = [0, 0]

    def write(self, side: int, count: int) -> None:
        writer = self.ends[side][1]
        if not writer.is_closing() and writer.transport.get_write_buffer_size() < WINDOW:
            try:
                writer.write(self._content(side, self._written[side], count))
            except RuntimeError:  # its end was written before
                return
            self._written[side] += count

    async def read(self, side: int) -> None:
        """What comes is what was written on the other side, from its beginning and without a gap."""
        reader = self.ends[side][0]
        try:
            data = await asyncio.wait_for(reader.read(WINDOW), 0.01)
        except (TimeoutError, ConnectionError):
            return
        assert data == self._content(1 - side, self._read[side], len(data))
        self._read[side] += len(data)
        assert self._read[side] <= self._written[1 - side]

    def _content(self, side: int, start: int, count: int) -> bytes:
        at = (start + self._start * 7 + side * 3) % 251
        return (CONTENT[at:] + CONTENT)[:count]


@settings(max_examples=EXAMPLES)
@given(steps)
@virtual
async def test_a_connection_delivers_only_what_was_written_to_it(steps: list[Any], world: World) -> None:
    pairs: list[Pair] = []
    for step, which, amount in steps:
        pair = pairs[which % len(pairs)] if pairs else None
        match step:
            case "open" | "open from guest":
                pairs.append(Pair(*await _opened(world, from_guest=step != "open"), len(pairs)))
            case "new host":
                world.host.end("its agent was killed")
                del world.to_guest[amount % (len(world.to_guest) + 1) :]
                world.new_host()
            case "new guest":
                world.guest.host_left()
                del world.to_host[amount % (len(world.to_host) + 1) :]
                world.new_guest()
            case "host leaves":
                world.guest.host_left()
                world.host.end("its agent was killed")
                world.to_guest.clear()
                world.new_host()
            case "hold":
                world.held = True
            case "release":
                world.release()
            case "settle":
                await world.settled()
            case _ if pair is not None:
                await _use(pair, step, amount)
    world.release()
    for pair in pairs:
        for side in (0, 1):
            await pair.read(side)
    await works(world)


async def _opened(world: World, *, from_guest: bool) -> tuple[Connection, Connection]:
    held, world.held = world.held, False
    world.carry()
    try:
        if from_guest:
            await works(world)  # so that there is a session
            return world.connect_from_guest(), await world.at_host.get()
        await works(world)
        return await world.joined()
    finally:
        world.held = held


async def _use(pair: Pair, step: str, amount: int) -> None:
    match step:
        case "write" | "answer":
            pair.write(int(step == "answer"), amount)
        case "end":
            pair.ends[0][1].write_eof()
        case "close" | "close there":
            pair.ends[int(step != "close")][1].close()
        case "abort" | "abort there":
            pair.ends[int(step != "abort")][1].transport.abort()
        case "read" | "read there":
            await pair.read(int(step != "read"))
