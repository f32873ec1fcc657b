"""The way of a turn: the plugin's WebSocket, passed through to the worker's OpenClaw, waking it first.

Nothing is taken from the plugin before the worker has begun to answer. So a worker that goes to sleep, dies or is
replaced between its wake and its answer costs another wake, and never a turn. A machine that ends closes no connection:
when a worker is silent the host is asked, and one that does not run is hung up on, so that the plugin has it woken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from mvm.guest import pipe
from mvm.guest.http import Request, Response, TakeOver
from mvm.guest.router_table import Worker
from mvm.guest.router_wake import NOTICE_NO_ANSWER, WakeFailed, Wakes
from mvm.guest.trace import valid_trace

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 5.0
"""How long a worker may say nothing before the host is asked whether it runs."""
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
_NOT_PASSED_ON = frozenset({"authorization", "host", "forwarded", "origin", "content-length", "transfer-encoding"})


class WorkerPipe:
    """Opens connections to workers' forwarders and joins them with the plugin's."""

    def __init__(
        self,
        wakes: Wakes,
        *,
        source: str,
        on_change: Callable[[int], None] = lambda _: None,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        """`source` is this gateway's own address: workers accept no other. `silence_seconds` is how long a worker may
        say nothing before the host is asked about it."""
        self._wakes = wakes
        self._source = source
        self._silence_seconds = silence_seconds
        self._on_change = on_change
        self._open = 0

    @property
    def in_flight(self) -> int:
        """Turns under way."""
        return self._open

    async def serve(self, worker: Worker, request: Request) -> Response | TakeOver:
        """Answer an Upgrade request: take over once the worker answers, else say why not."""
        try:
            trace = valid_trace(request.query("trace"))
            target, first = await self._connect(worker, _replayed(request, worker.port), trace)
        except WakeFailed as failure:
            return Response.error(503, failure.notice, reason=failure.reason, retry=failure.retry)

        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._count(1)
            log.info("trace %s: %s is connected", trace, worker.key)
            try:
                pipe.keep_alive(writer)
                writer.write(first)
                await writer.drain()
                await self._join(worker, (reader, writer), target)
            finally:
                self._count(-1)
                await pipe.close(target[1])

        return TakeOver(run)

    async def _connect(self, worker: Worker, head: bytes, trace: str | None) -> tuple[pipe.Connection, bytes]:
        """A connection on which the worker has begun to answer, and the beginning of its answer."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wakes.wake_seconds
        pause = FIRST_PAUSE
        while True:
            address = await self._wakes.wake(worker, trace=trace)
            try:
                return await self._open_to(worker, address, head, max(deadline - loop.time(), CONNECT_SECONDS))
            except OSError as error:
                reason = f"{worker.key} at {address}:{worker.port} does not answer: {error or 'time is over'}"
                if loop.time() + pause >= deadline:
                    raise WakeFailed(NOTICE_NO_ANSWER, reason, True) from error
                log.warning("%s; tried again in %.2f s", reason, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _open_to(
        self, worker: Worker, address: str, head: bytes, seconds: float
    ) -> tuple[pipe.Connection, bytes]:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(address, worker.port, local_addr=(self._source, 0))
        try:
            pipe.keep_alive(writer)
            writer.write(head)
            gone = asyncio.create_task(self._until_gone(worker, _Line(), writer))
            try:
                async with asyncio.timeout(seconds):
                    await writer.drain()
                    first = await reader.read(pipe.CHUNK_BYTES)
            finally:
                gone.cancel()
            if not first:
                raise ConnectionResetError("it closed the connection")
        except BaseException:
            await pipe.close(writer)
            raise
        return (reader, writer), first

    async def _join(self, worker: Worker, plugin: pipe.Connection, target: pipe.Connection) -> None:
        line = _Line()
        gone = asyncio.create_task(self._until_gone(worker, line, plugin[1], target[1]))
        try:
            await pipe.join(plugin, target, line.heard)
        finally:
            gone.cancel()

    async def _until_gone(self, worker: Worker, line: _Line, *writers: asyncio.StreamWriter) -> None:
        """Hang up when the worker is silent and does not run any more."""
        while True:
            await asyncio.sleep(line.quiet_at(self._silence_seconds))
            if line.quiet_at(self._silence_seconds) > 0:
                continue
            if not await self._wakes.runs(worker):
                log.warning("%s ended without a word; hanging up", worker.key)
                for writer in writers:
                    writer.transport.abort()
                return
            line.heard()  # of, at least

    def _count(self, change: int) -> None:
        self._open += change
        self._on_change(self._open)


class _Line:
    """When the other end of a connection was last heard."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()

    def heard(self) -> None:
        self._last = self._loop.time()

    def quiet_at(self, seconds: float) -> float:
        """Seconds until it will have been silent for `seconds`; 0 once it has."""
        return max(self._last + seconds - self._loop.time(), 0.0)


def _replayed(request: Request, port: int) -> bytes:
    """The plugin's request as the worker's OpenClaw should see it: a local one, without the router's token."""
    lines = ["GET / HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    for name, value in request.raw_headers:
        if name.lower() not in _NOT_PASSED_ON and not name.lower().startswith(("x-forwarded-", "x-real-")):
            lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
