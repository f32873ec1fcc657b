"""The host's link over real sockets, with a true guest's end or a peer that is none."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import time
import tty
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from pathlib import Path

import pytest

from mvm.guest.channel import UnixChannel
from mvm.guest.channel_service import Bridge, MuxCarrier
from mvm.guest.virtio_port import VirtioPort
from mvm.model.errors import TimedOut, Unavailable
from mvm.runtime.link import MOST_UNWRITTEN, Link
from mvm.wire.mux_frames import Kind, encode

pytestmark = pytest.mark.timeout(30)


class Machine:
    """What a machine is to a link: a listening socket, behind which a guest's service may run."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mvm-link-"))
        self.path = self.directory / "mux.sock"
        self.channel = UnixChannel(self.directory / "ch")
        self.links: list[Link] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.setblocking(False)
        self._listening.bind(str(self.path))
        self._listening.listen(1)
        self.accepted: list[socket.socket] = []
        """The streams that links opened."""
        self._bridges: list[Bridge] = []
        self._servers: list[asyncio.AbstractServer] = []

    async def open(self) -> Link:
        self.links.append(await Link.open(self.path, name="alice/i-1"))
        return self.links[-1]

    async def accept(self) -> socket.socket:
        """The stream that a link opened, for a test to be its guest."""
        stream, _ = await asyncio.get_running_loop().sock_accept(self._listening)
        stream.setblocking(False)
        self.accepted.append(stream)
        return stream

    async def boot(self, descriptor: int | None = None) -> Bridge:
        """The guest's service begins, on the stream if on nothing else."""
        if descriptor is None:
            descriptor = os.dup((await self.accept()).fileno())
        bridge = Bridge(self.directory / "ch", self.directory / "supervisor.sock", MuxCarrier(descriptor))
        await bridge.start()
        self._bridges.append(bridge)
        return bridge

    async def serve(self, port: int) -> None:
        self._servers.append(await self.channel.listen(port, echo))

    def vanish(self) -> None:
        """QEMU is gone."""
        self._listening.close()
        for stream in self.accepted:
            stream.close()

    async def close(self) -> None:
        for link in self.links:
            await link.close()
        for bridge in self._bridges:
            await bridge.close()
        for server in self._servers:
            server.close()
        self.vanish()
        shutil.rmtree(self.directory)


class Port:
    """A terminal in place of a virtio port: a device whose other end comes and goes. Joins that end to a stream."""

    def __init__(self) -> None:
        self.guest, other = os.openpty()
        tty.setraw(other)
        self._name = os.ttyname(other)
        os.close(other)
        self._end: VirtioPort | None = None
        self._detached = asyncio.Event()

    async def attach(self, stream: socket.socket) -> None:
        """The host is there; it leaves when the stream ends."""
        self._detached.clear()
        port = self

        class Relay(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = transport
                port._end = VirtioPort(os.open(port._name, os.O_RDWR | os.O_NOCTTY), self)

            def data_received(self, data: bytes) -> None:
                port._end.write(data)

            def connection_lost(self, error: Exception | None) -> None:
                port._end.close()
                port._detached.set()

            def received(self, data: bytes) -> None:
                self.transport.write(data)

            def host_left(self) -> None:
                pass

        await asyncio.get_running_loop().connect_accepted_socket(Relay, socket.socket(fileno=os.dup(stream.fileno())))
        stream.close()

    async def detached(self) -> None:
        """Return when the host has left."""
        await self._detached.wait()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    machine = Machine()
    try:
        yield machine
    finally:
        await machine.close()


Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echoes(opening: Awaitable[Opened]) -> None:
    reader, writer = await opening
    writer.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    writer.close()
    await writer.wait_closed()


async def test_both_sides_reach_each_other(machine: Machine) -> None:
    link = await machine.open()
    await machine.boot()
    await machine.serve(52)
    await link.listen(53, echo)
    await echoes(link.connect(52))
    await echoes(machine.channel.connect(53))


async def test_a_megabyte_goes_through_both_ways(machine: Machine) -> None:
    link = await machine.open()
    await machine.boot()
    await machine.serve(52)
    reader, writer = await link.connect(52)
    content = bytes(range(256)) * 4096

    async def send() -> None:
        writer.write(content)
        await writer.drain()
        writer.write_eof()

    back, _ = await asyncio.gather(reader.read(), send())
    assert back == content
    writer.close()


async def test_the_supervisor_is_guest_port_51(machine: Machine) -> None:
    link = await machine.open()
    await machine.boot()
    server = await asyncio.start_unix_server(echo, str(machine.directory / "supervisor.sock"))
    await echoes(link.connect(51))
    server.close()


async def test_whoever_connects_waits_for_a_guest_that_is_not_there_yet(machine: Machine) -> None:
    link = await machine.open()
    await machine.serve(52)
    connecting = [asyncio.ensure_future(echoes(link.connect(52))) for _ in range(5)]
    await machine.boot()
    await asyncio.gather(*connecting)


async def test_a_silent_guest_is_given_up_and_can_still_be_reached_later(machine: Machine) -> None:
    link = await machine.open()
    with pytest.raises(TimedOut, match=r"guest port 52 of alice/i-1 does not answer within 0\.05 s"):
        await link.connect(52, timeout=0.05)
    with pytest.raises(TimedOut, match="the channel of alice/i-1 does not answer"):
        await link.ready(timeout=0.05)
    await machine.boot()
    await machine.serve(52)
    await echoes(link.connect(52))


async def test_a_port_where_nobody_listens_is_unavailable(machine: Machine) -> None:
    link = await machine.open()
    await machine.boot()
    with pytest.raises(Unavailable, match="guest port 52 of alice/i-1 cannot be reached: nobody listens"):
        await link.connect(52)


async def test_nobody_listening_at_the_host_ends_the_guests_connection(machine: Machine) -> None:
    link = await machine.open()
    await machine.boot()
    server = await link.listen(53, echo)
    await echoes(machine.channel.connect(53))
    server.close()
    reader, writer = await machine.channel.connect(53)
    with suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()


async def test_listening_again_takes_the_port_over(machine: Machine) -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"not here\n")
        writer.close()

    link = await machine.open()
    await machine.boot()
    former = await link.listen(53, refuse)
    await link.listen(53, echo)
    former.close()
    await echoes(machine.channel.connect(53))


async def test_without_a_machine_it_cannot_be_opened(machine: Machine) -> None:
    machine.vanish()
    with pytest.raises(Unavailable, match="the channel of alice/i-1 cannot be opened"):
        await machine.open()


async def test_a_machine_that_ends_ends_everything_at_once(machine: Machine) -> None:
    link = await machine.open()
    stream = await machine.accept()
    waiting = asyncio.ensure_future(link.connect(52))
    await asyncio.get_running_loop().sock_recv(stream, 1)
    machine.vanish()
    with pytest.raises(Unavailable, match=r"its virtual machine has ended|reset by peer"):
        await waiting
    with pytest.raises(Unavailable, match="cannot be opened"):
        await link.connect(52)
    assert not link.up


async def test_connections_end_with_the_guests_service_and_the_next_one_takes_over(machine: Machine) -> None:
    link = await machine.open()
    bridge = await machine.boot()
    await machine.serve(52)
    reader, writer = await link.connect(52)
    await bridge.close()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    await machine.boot(os.dup(machine.accepted[0].fileno()))
    await echoes(link.connect(52))


async def test_a_guest_that_the_agent_left_serves_the_next_one(machine: Machine) -> None:
    port = Port()
    await machine.boot(port.guest)
    await machine.serve(52)
    for _ in range(3):
        link = await machine.open()
        await port.attach(await machine.accept())
        await echoes(link.connect(52))
        reader, writer = await link.connect(52)
        await link.close()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await port.detached()


async def test_a_guest_without_a_host_rests(machine: Machine) -> None:
    port = Port()
    await machine.boot(port.guest)
    link = await machine.open()
    await port.attach(await machine.accept())
    await link.ready()
    await link.close()
    await port.detached()
    reader, writer = await machine.channel.connect(53)
    assert await reader.read() == b""  # so the service has seen that the host has left
    writer.close()
    begun, worked = time.monotonic(), time.thread_time()
    for _ in range(5):
        await asyncio.sleep(0.1)
    assert time.thread_time() - worked < (time.monotonic() - begun) / 2, "one that does not rest works all the time"


async def test_a_guest_that_takes_nothing_is_begun_anew(machine: Machine) -> None:
    link = await machine.open()
    stream = await machine.accept()
    loop = asyncio.get_running_loop()
    hello = await loop.sock_recv(stream, 65536)
    await loop.sock_sendall(stream, encode(Kind.ACK, payload=hello[-16:]))
    # Each refusal is a frame that the host has to write, and that nobody reads.
    flood = b"".join(encode(Kind.OPEN, 2 * number, 53) for number in range(2000))
    with suppress(ConnectionError):
        for _ in range(100 * MOST_UNWRITTEN // len(flood)):
            await loop.sock_sendall(stream, flood)
    await machine.boot()
    await machine.serve(52)
    await echoes(link.connect(52))


async def test_a_closed_link_connects_no_more(machine: Machine) -> None:
    link = await machine.open()
    await link.close()
    with pytest.raises(Unavailable, match="is closed"):
        await link.connect(52)


async def test_a_handler_that_fails_ends_its_connection(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise RuntimeError("a defect")

    link = await machine.open()
    await machine.boot()
    await link.listen(53, fail)
    reader, writer = await machine.channel.connect(53)
    with suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
    assert "host port 53 of alice/i-1: a handler failed" in caplog.text
