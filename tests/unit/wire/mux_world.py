"""Both ends of the multiplexer over a stream in memory, in virtual time: nothing sleeps and nothing is random."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import looptime

from mvm.wire.mux import GuestEnd, HostEnd
from mvm.wire.mux_connection import MuxConnection
from mvm.wire.mux_frames import Inbox, Kind, encode

CLOSED_PORT = 99
NEVER_SECONDS = 600.0
"""Virtual seconds after which something counts as never happening."""
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in a loop whose time passes only while nobody has anything to do; it may ask for a `world`."""
    signature = inspect.signature(test)

    async def with_world(*arguments: Any, **named: Any) -> None:
        world = World()
        try:
            await test(*arguments, **named, **({"world": world} if "world" in signature.parameters else {}))
        finally:
            world.close()

    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
            runner.run(asyncio.wait_for(with_world(*arguments, **named), NEVER_SECONDS))

    parameters = [each for name, each in signature.parameters.items() if name != "world"]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


class World:
    """A host, a guest and the stream between them. Each end accepts every port but `CLOSED_PORT`."""

    def __init__(self) -> None:
        self.piece = 65536
        """How many bytes the stream carries at a time."""
        self.to_guest = bytearray()
        self.to_host = bytearray()
        self.held = False
        """True: the stream carries nothing."""
        self.at_guest: asyncio.Queue[Connection] = asyncio.Queue()
        """Connections that the guest accepted."""
        self.at_host: asyncio.Queue[Connection] = asyncio.Queue()
        self.take: Callable[[MuxConnection], None] | None = None
        """What is done with a connection that somebody opens; None: it is accepted and put in the queue."""
        self._writers: list[asyncio.StreamWriter] = []
        self.guest = self.new_guest()
        self.host = self.new_host()

    def new_host(self) -> HostEnd:
        """Another host's agent takes the stream over."""
        host = HostEnd(
            transmit=lambda data: self._transmit(self.to_guest, data),
            untaken=lambda: len(self.to_guest),
            on_open=lambda connection: self._opened(connection, self.at_host),
        )
        self.host = host
        host.begin()
        return host

    def new_guest(self) -> GuestEnd:
        """The guest's service starts (again)."""
        guest = GuestEnd(
            transmit=lambda data: self._transmit(self.to_host, data),
            discard=self.to_host.clear,
            on_open=lambda connection: self._opened(connection, self.at_guest),
        )
        self.guest = guest
        guest.begin()
        return guest

    def close(self) -> None:
        """End everything."""
        self.host.end("the test is over")
        self.guest.host_left()
        for writer in self._writers:
            writer.transport.abort()

    def _over(
        self, connection: MuxConnection, protocol: asyncio.StreamReaderProtocol, reader: asyncio.StreamReader
    ) -> Connection:
        self._writers.append(asyncio.StreamWriter(connection, protocol, reader, asyncio.get_running_loop()))
        return reader, self._writers[-1]

    def _opened(self, connection: MuxConnection, accepted: asyncio.Queue[Connection]) -> None:
        if self.take is not None:
            self.take(connection)
            return
        if connection.port == CLOSED_PORT:
            connection.refuse()
            return
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        connection.accept(protocol)
        accepted.put_nowait(self._over(connection, protocol, reader))

    def _transmit(self, direction: bytearray, data: bytes) -> None:
        direction += data
        asyncio.get_running_loop().call_soon(self.carry)

    def carry(self) -> None:
        """Carry what is on the way."""
        for direction in (self.to_guest, self.to_host):
            while direction and not self.held:
                data = bytes(direction[: self.piece])
                del direction[: self.piece]
                (self.guest if direction is self.to_guest else self.host).received(data)

    def release(self) -> None:
        self.held = False
        self.carry()

    async def connect(self, port: int = 52) -> Connection:
        """From the host to a guest port."""
        session = await self.host.session()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        connection = session.open(port, protocol)
        await connection.wait_accepted()
        return self._over(connection, protocol, reader)

    def connect_from_guest(self, port: int = 53) -> Connection:
        """From the guest to a host port."""
        assert self.guest.session is not None
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        return self._over(self.guest.session.open(port, protocol), protocol, reader)

    async def joined(self) -> tuple[Connection, Connection]:
        """A connection opened by the host: its end and the guest's."""
        near = await self.connect()
        return near, await self.at_guest.get()

    async def settled(self) -> None:
        """Return when everything that was said has been taken in."""
        await asyncio.sleep(0.001)


async def works(world: World) -> None:
    """A new connection can be opened, and carries exactly what is written to it, both ways."""
    while not world.at_guest.empty():
        world.at_guest.get_nowait()
    (reader, writer), (guest_reader, guest_writer) = await world.joined()
    writer.write(b"question\n")
    writer.write_eof()
    assert await guest_reader.read() == b"question\n"
    guest_writer.write(b"answer\n")
    guest_writer.close()
    assert await reader.read() == b"answer\n"
    writer.close()
    await writer.wait_closed()


class RawHost:
    """A host that says whatever a test likes to a true guest's end."""

    def __init__(self) -> None:
        self.said = bytearray()
        self.opened: list[MuxConnection] = []
        self.guest = GuestEnd(transmit=self._take, discard=lambda: None, on_open=self.opened.append)
        self.guest.received(encode(Kind.HELLO, payload=bytes(16)))
        self.said.clear()

    def _take(self, data: bytes) -> None:
        self.said += data

    def frames(self) -> list[tuple[int, int, int, int]]:
        """What the guest said since last asked: kind, connection, argument, length of the payload."""
        inbox = Inbox()
        inbox.feed(bytes(self.said))
        self.said.clear()
        found = []
        while (frame := inbox.frame()) is not None:
            found.append((*frame[:3], len(frame[3])))
        return found
