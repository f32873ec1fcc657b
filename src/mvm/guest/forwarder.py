"""The worker's delivery forwarder: lets the gateway, and nobody else, reach OpenClaw.

OpenClaw grants its scopes to loopback peers only and therefore listens on loopback only; the forwarder listens on the
instance's own address and makes the gateway's connection a local one. Its connections are also how the guest knows that
somebody is being served: `in_flight` is never zero while a turn is delivered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from mvm.guest import pipe

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
CONNECT_SECONDS = 120.0
"""How long a delivery waits for an OpenClaw that is still starting."""
RETRY_SECONDS = (0.05, 1.0)
"""First and longest pause between two attempts to connect."""


class DeliveryForwarder:
    """Forwards `host:port` to `127.0.0.1:target_port` for callers from `sources`."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        sources: Collection[str],
        target_port: int,
        on_change: Callable[[], None] = lambda: None,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        """`on_change` is called whenever `in_flight` changes."""
        self._host = host
        self._port = port
        self._sources = frozenset(sources)
        self._target_port = target_port
        self._on_change = on_change
        self._connect_seconds = connect_seconds
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._last_busy_at: float | None = None

    @property
    def in_flight(self) -> int:
        """Deliveries that are open now."""
        return len(self._tasks)

    @property
    def last_busy_at(self) -> float | None:
        """Unix time of the last moment at which a delivery was open; None when there was none."""
        return time.time() if self._tasks else self._last_busy_at

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    @property
    def accepting(self) -> bool:
        """True while it lets deliveries in."""
        return self._server is not None

    async def start(self) -> None:
        """Listen. Raises `OSError` when the address is taken."""
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, self._host, self._port)
            self._port = int(self._server.sockets[0].getsockname()[1])

    def configure(self, *, host: str, sources: Collection[str], target_port: int) -> None:
        """Take over a changed configuration; connections that are open stay.

        With another address nobody is let in until `start`, on that one then.
        """
        if host != self._host:
            self._host = host
            self._stop_listening()
        self._sources = frozenset(sources)
        self._target_port = target_port

    async def close_for_sleep(self, seconds: float) -> bool:
        """Let nobody in any more and wait until what is open has ended.

        False when something is still open after `seconds`; it stays closed to new callers until `reopen`.
        A caller that comes meanwhile is refused before a byte was taken from it, so that it asks for a wake again.
        """
        self._stop_listening()
        if self._tasks:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._empty.wait()
        return not self._tasks

    async def reopen(self) -> None:
        """Let callers in again."""
        await self.start()

    async def close(self) -> None:
        """Stop listening and end every connection."""
        self._stop_listening()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        source = str(peer[0]) if peer else ""
        # Closed a moment ago: this caller came through the backlog and must not be served by a guest going to sleep.
        if self._server is None or source not in self._sources or len(self._tasks) >= MAX_CONNECTIONS:
            if self._server is not None:
                log.warning("refused a delivery connection from %s", source)
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._empty.clear()
        self._on_change()
        try:
            await self._forward((reader, writer))
        except asyncio.CancelledError:
            if self._server is not None:
                raise
        except OSError as error:
            log.warning("a delivery ended: %s", error)
        finally:
            self._tasks.discard(task)
            self._last_busy_at = time.time()
            if not self._tasks:
                self._empty.set()
            self._on_change()
            await pipe.close(writer)

    async def _forward(self, caller: pipe.Connection) -> None:
        pipe.keep_alive(caller[1])
        target = await self._connect(caller[0])
        if target is None:
            return
        try:
            pipe.keep_alive(target[1])
            await pipe.join(caller, target)
        finally:
            await pipe.close(target[1])

    async def _connect(self, caller: asyncio.StreamReader) -> pipe.Connection | None:
        """Connect to OpenClaw, which may still be starting; None when the caller went away meanwhile."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._connect_seconds
        pause, longest = RETRY_SECONDS
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", self._target_port)
            except OSError as error:
                if loop.time() + pause > deadline:
                    raise ConnectionError(
                        f"OpenClaw did not listen on port {self._target_port} within {self._connect_seconds:g} s"
                    ) from error
            if caller.at_eof():
                return None
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)
