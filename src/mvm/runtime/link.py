"""The host's end of an instance's channel where one stream carries it: real asyncio streams over the multiplexer.

A `Link` is opened as soon as QEMU listens, long before there is a guest; whoever connects waits for it, as long as he
likes. It goes on over everything that happens inside the guest, and ends with QEMU.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from mvm.model.errors import TimedOut, Unavailable
from mvm.runtime.base import Connection, Handler
from mvm.wire.mux import HostEnd
from mvm.wire.mux_connection import MuxConnection
from mvm.wire.mux_session import OnOpen

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
MOST_UNWRITTEN = 512 * 1024
"""Bytes that a guest may leave untaken; with less, only frames without data go on being written."""
LONG_SECONDS = 0.005
"""How long one guest's frames may keep the agent busy; then it is not listened to for three times as long."""


class Link:
    """The channel to one guest."""

    def __init__(self, where: Path | socket.socket, *, name: str) -> None:
        """`name` is what messages call the instance. Call `open`."""
        self._where = where
        self._name = name
        self._wire: _Wire | None = None
        self._opening = asyncio.Lock()
        self._closed = False
        self._servers: dict[int, PortServer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, where: Path | socket.socket, *, name: str = "the guest") -> Link:
        """Connect to QEMU's socket, or take one that is connected. Raises `Unavailable` when nobody listens.

        Does not wait for the guest.
        """
        link = cls(where, name=name)
        await link._connected_wire()
        return link

    @property
    def up(self) -> bool:
        """False once the other end is gone, which is QEMU (not the guest)."""
        return self._wire is not None and not self._wire.lost

    async def ready(self, *, timeout: float = CONNECT_SECONDS) -> None:
        """Wait until the guest's end answers. Raises `Unavailable`, `TimedOut` among them."""
        try:
            async with asyncio.timeout(timeout):
                await (await self._connected_wire()).end.session()
        except TimeoutError:
            raise TimedOut(f"the channel of {self._name} does not answer within {timeout:g} s") from None
        except OSError as error:
            raise Unavailable(f"the channel of {self._name} is gone: {error}") from error

    async def connect(self, port: int, *, timeout: float = CONNECT_SECONDS) -> Connection:
        """Connect to a guest port.

        Raises `Unavailable` when nobody listens there or the channel is gone, `TimedOut` when the guest is silent.
        """
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        connection: MuxConnection | None = None
        try:
            async with asyncio.timeout(timeout):
                session = await (await self._connected_wire()).end.session()
                connection = session.open(port, protocol)
                await connection.wait_accepted()
        except TimeoutError:
            raise TimedOut(
                f"guest port {port} of {self._name} does not answer within {timeout:g} s",
                hint="the guest may still be starting, or be stuck; its log says more",
            ) from None
        except OSError as error:
            raise Unavailable(f"guest port {port} of {self._name} cannot be reached: {error}") from error
        else:
            accepted, connection = connection, None
        finally:
            if connection is not None:
                connection.abort()
        return reader, asyncio.StreamWriter(accepted, protocol, reader, asyncio.get_running_loop())

    async def listen(self, port: int, handler: Handler) -> asyncio.AbstractServer:
        """Have a handler serve what the guest connects to at a host port; whoever listened there before does no more.

        It goes on doing so when the link is lost and found again.
        """
        server = PortServer(self._servers, port, handler)
        self._servers[port] = server
        return server

    async def close(self) -> None:
        """Let go of the channel; every connection ends, and the guest waits for whoever opens it next."""
        self._closed = True
        self._servers.clear()
        if self._wire is not None:
            await self._wire.close()

    async def _connected_wire(self) -> _Wire:
        async with self._opening:
            if self._closed:
                raise Unavailable(f"the channel of {self._name} is closed")
            if self._wire is None or self._wire.lost:
                self._wire = await self._connect_wire()
            return self._wire

    async def _connect_wire(self) -> _Wire:
        loop = asyncio.get_running_loop()
        try:
            if isinstance(self._where, Path):
                _, wire = await loop.create_unix_connection(self._make_wire, str(self._where))
            elif self._wire is None:
                _, wire = await loop.create_unix_connection(self._make_wire, sock=self._where)
            else:
                raise ConnectionResetError("its stream has ended")
        except OSError as error:
            raise Unavailable(
                f"the channel of {self._name} cannot be opened: {error.strerror or error}",
                hint="its virtual machine does not run",
            ) from error
        return wire

    def _make_wire(self) -> _Wire:
        return _Wire(self._opened_by_guest, self._given_up)

    def _given_up(self) -> None:
        """The guest did not take what was sent: what waits is dropped, and the stream begun anew for what it sends."""
        log.warning("%s leaves more than %d bytes untaken: its channel is begun anew", self._name, MOST_UNWRITTEN)
        if not self._closed and isinstance(self._where, Path):
            self._begin(self._open_again())

    async def _open_again(self) -> None:
        with suppress(Unavailable):  # it has ended meanwhile, as whoever connects next is told
            await self._connected_wire()

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _opened_by_guest(self, connection: MuxConnection) -> None:
        server = self._servers.get(connection.port)
        if server is None:
            connection.refuse()
            return
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        connection.accept(protocol)
        writer = asyncio.StreamWriter(connection, protocol, reader, asyncio.get_running_loop())
        self._begin(self._serve(server, reader, writer))

    async def _serve(self, server: PortServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await server.handler(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        except OSError as error:
            log.debug("host port %d of %s: %s", server.number, self._name, error)
            writer.transport.abort()
        except Exception:
            log.exception("host port %d of %s: a handler failed", server.number, self._name)
            writer.transport.abort()


class PortServer(asyncio.AbstractServer):
    """A handler in a table, under a number, that serves as long as it is there."""

    def __init__(self, servers: dict[int, PortServer], number: int, handler: Handler) -> None:
        self._servers = servers
        self.number = number
        self.handler = handler

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def start_serving(self) -> None:
        """It does from the beginning."""

    async def serve_forever(self) -> NoReturn:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody ends this but by cancelling it")

    def is_serving(self) -> bool:
        return self._servers.get(self.number) is self

    def close(self) -> None:
        if self.is_serving():
            del self._servers[self.number]

    async def wait_closed(self) -> None:
        """Nothing to wait for: connections that were accepted go on."""


class _Wire(asyncio.Protocol):
    """One connection to QEMU's socket, with the multiplexer's host end on it."""

    def __init__(self, on_open: OnOpen, on_given_up: Callable[[], None]) -> None:
        """`on_given_up` is called after the stream was ended here because the guest takes nothing."""
        self._on_given_up = on_given_up
        self._given_up = False
        self.end = HostEnd(transmit=self._transmit, untaken=self._untaken, on_open=on_open)
        self.lost = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.end.begin()

    def data_received(self, data: bytes) -> None:
        began = self._loop.time()
        self.end.received(data)
        took = self._loop.time() - began
        if took > LONG_SECONDS and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._loop.call_later(3 * took, self._listen_again)

    def _listen_again(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        self.end.pause_writing()

    def resume_writing(self) -> None:
        self.end.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.end.end("its virtual machine has ended" if error is None else str(error))
        self._gone.set()
        if self._given_up:
            self._on_given_up()

    async def close(self) -> None:
        self.end.end("it was closed")
        if self._transport is not None:
            self._transport.abort()
            await self._gone.wait()

    def _transmit(self, data: bytes) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > MOST_UNWRITTEN:
            self._given_up = True
            self._transport.abort()

    def _untaken(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()
