"""Firecracker's hybrid vsock: `CONNECT <port>` over one Unix socket of the host's, `<uds_path>_<port>` the other way.

On the guest's side the stand-in does what `mvm.guest.channel_service` does in a machine: it joins the host's
connections to the Unix sockets that mvm's agent and supervisor listen on, and theirs to the host's. As there, it takes
connections at `GUEST_PORTS` and nowhere else, and they end at once where nobody is behind that.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from tests.standins.firecracker.guest import Guest
from tests.standins.firecracker.jail import Jail, listening, short

from mvm.guest.channel import AGENT_PORT
from mvm.guest.vsock import GUEST_PORTS

MAX_LINE = 32
FIRST_HOST_PORT = 1 << 30


class Vsock:
    """One vsock device. It is bound when it is configured, and serves once there is a guest."""

    def __init__(self, jail: Jail, named: str, cid: int) -> None:
        """Raises `Fault` when the socket cannot be bound: it is never removed, whoever left it."""
        self._jail = jail
        self.named = named
        self.cid = cid
        self.path = jail.may_bind(named, "Cannot create backend for vsock device: UnixBind")
        self._listener = listening(self.path)
        jail.give(self.path)
        self._servers: list[asyncio.Server] = []
        self._open: set[asyncio.StreamWriter] = set()
        self._ports = FIRST_HOST_PORT
        self.hangs = False
        """Nothing that the host begins is answered any more (#6100)."""

    async def serve(self, guest: Guest, before: Callable[[], Awaitable[None]]) -> None:
        """Join both sides from now on; `before` is done before the host reaches the agent."""

        async def from_host(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._from_host(guest, before, reader, writer)

        self._servers.append(await asyncio.start_unix_server(from_host, sock=self._listener))
        for port in guest.host_ports:
            path = guest.channel / f"host_{port}.sock"
            path.unlink(missing_ok=True)
            listener = listening(path)

            async def from_guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int = port) -> None:
                await self._from_guest(port, reader, writer)

            self._servers.append(await asyncio.start_unix_server(from_guest, sock=listener))

    async def _from_host(
        self,
        guest: Guest,
        before: Callable[[], Awaitable[None]],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._open.add(writer)
        try:
            port = await _wanted_port(reader)
            if self.hangs:
                await asyncio.get_running_loop().create_future()
            while guest.paused:
                await asyncio.sleep(0.01)
            if port == AGENT_PORT:
                await before()
            if port not in GUEST_PORTS:
                return  # the guest's kernel refuses: the connection is closed without a word
            self._ports += 1
            writer.write(f"OK {self._ports}\n".encode())
            with short(guest.port(port)) as there:
                far = await asyncio.open_unix_connection(there)
            await self._join((reader, writer), far)
        except (ValueError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _from_guest(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with short(self.path.with_name(f"{self.path.name}_{port}")) as there:
                far = await asyncio.open_unix_connection(there)
            await self._join((reader, writer), far)
        except OSError:
            pass  # nobody listens on the host: the guest's connection is reset
        finally:
            self._open.discard(writer)
            writer.close()

    async def _join(
        self,
        one: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        other: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._open.add(other[1])
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_copy(one[0], other[1]))
                tasks.create_task(_copy(other[0], one[1]))
        finally:
            self._open.discard(other[1])
            other[1].close()

    def reset(self) -> None:
        """A snapshot was taken: connections end, whoever listens goes on."""
        for writer in list(self._open):
            writer.transport.abort()

    def close(self) -> None:
        """Serve no more. The socket's name stays, as Firecracker leaves it."""
        for server in self._servers:
            server.close()
        self._listener.close()


async def _wanted_port(reader: asyncio.StreamReader) -> int:
    line = await reader.readuntil(b"\n")
    word, _, number = line[:MAX_LINE].decode("ascii", "replace").strip().partition(" ")
    if word.upper() != "CONNECT" or not number.isdecimal():
        raise ValueError(line)
    return int(number)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError, OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def stale_socket(path: Path) -> None:
    """What a Firecracker that was killed leaves: a name of a socket that nobody listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(os.fspath(path))
