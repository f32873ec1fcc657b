"""The channel to one guest, by the convention of Firecracker's vsock.

The host reaches guest port N by the socket `v.sock`: `CONNECT N`, answered with `OK` when somebody listens. The guest
reaches host port N where somebody listens on the socket `v.sock_N`: that has to be there before the machine starts or
is restored.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from mvm.model.errors import MvmError, TimedOut, Unavailable
from mvm.runtime.base import Connection, Handler
from mvm.runtime.firecracker.files import LOG, METRICS, VSOCK, Files, host_port_socket
from mvm.runtime.firecracker.logs import Copying
from mvm.runtime.link import PortServer
from mvm.runtime.short_paths import Reachable, listening

log = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 64


class Channel:
    """One per instance, over all its processes: who listens on a host port goes on doing so after a restart."""

    def __init__(self, files: Files, *, owner: int | None, who: str) -> None:
        """`owner` is the user that Firecracker runs as; None: this one."""
        self._files = files
        self._owner = owner
        self._who = who
        self._handlers: dict[int, PortServer] = {}
        self._sockets: dict[int, asyncio.Server] = {}
        self._opening = asyncio.Lock()
        self._copies: list[Copying] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, room: Path) -> None:
        """Listen in a room where a Firecracker is about to start, or runs already."""
        async with self._opening:
            for port in list(self._handlers):
                await self._open(room, port)
        if not self._copies:
            for pipe, kept in ((LOG, self._files.log), (METRICS, self._files.metrics)):
                with suppress(OSError):
                    self._copies.append(Copying(room / pipe, kept))

    async def _open(self, room: Path, port: int) -> None:
        if port in self._sockets:
            return
        try:
            listener = listening(room / host_port_socket(port), owner=self._owner)
        except OSError as error:
            raise MvmError(f"host port {port} of {self._who} cannot be opened: {error.strerror or error}") from error
        self._sockets[port] = await asyncio.start_unix_server(self._connected_to(port), sock=listener)

    def _connected_to(self, port: int) -> Handler:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            server = self._handlers.get(port)
            try:
                if server is None:
                    writer.transport.abort()
                else:
                    await server.handler(reader, writer)
            except OSError as error:
                log.debug("host port %d of %s: %s", port, self._who, error)
                writer.transport.abort()
            except asyncio.CancelledError:
                writer.transport.abort()
            except Exception:
                log.exception("host port %d of %s: a handler failed", port, self._who)
                writer.transport.abort()

        return connected

    async def listen(self, port: int, handler: Handler) -> asyncio.AbstractServer:
        """Serve what the guest connects to, now and after each start; whoever did before does no more."""
        server = PortServer(self._handlers, port, handler)
        self._handlers[port] = server
        if (room := self._files.room) is not None:
            await self.begin(room)  # of an earlier agent: its guest may have something to say
        return server

    async def connect(self, port: int, *, seconds: float) -> Connection:
        """Connect to a guest port. Raises `Unavailable` when nobody listens there, `TimedOut` when it is silent."""
        room = self._files.room
        if room is None:
            raise Unavailable(f"nobody listens on guest port {port} of {self._who}: it does not run")
        try:
            async with asyncio.timeout(seconds):
                with Reachable(room / VSOCK) as path:
                    reader, writer = await asyncio.open_unix_connection(path)
                try:
                    await self._ask_for(port, reader, writer)
                except BaseException:
                    writer.transport.abort()
                    raise
        except TimeoutError:
            raise TimedOut(
                f"guest port {port} of {self._who} does not answer within {seconds:g} s",
                hint="the guest may still be starting, or be stuck; its log says more",
            ) from None
        except (OSError, ValueError) as error:
            raise Unavailable(f"nobody listens on guest port {port} of {self._who}: {error}") from error
        return reader, writer

    async def _ask_for(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"CONNECT %d\n" % port)
        answer = await reader.readline()
        if not answer:
            raise ConnectionResetError("Firecracker hung up")
        if len(answer) > MAX_ANSWER_BYTES or not answer.startswith(b"OK "):
            raise ConnectionResetError(f"Firecracker answers {answer[:MAX_ANSWER_BYTES]!r}")

    async def process_ended(self) -> None:
        """There is no Firecracker any more: every connection ends, and the last words are on disk."""
        for server in self._sockets.values():
            server.close()
        self._sockets.clear()
        for copying in self._copies:
            copying.close()
        self._copies.clear()
        others = self._tasks - {asyncio.current_task()}  # whoever ends the machine may have been told to by its guest
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def close(self) -> None:
        """Let go for good; a machine that runs goes on, and another agent can take its sockets over."""
        self._handlers.clear()
        await self.process_ended()
