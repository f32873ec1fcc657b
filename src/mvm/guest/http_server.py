"""A small, strict HTTP/1.1 server on asyncio, for loopback and tenant-network use.

Every read has a time limit, connections and sizes are bounded, and one broken request never ends the service. A handler
either returns a `Response` or takes the connection over (`TakeOver`), which is how an Upgrade is passed through.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import Counter
from contextlib import suppress

from mvm.guest.http import (
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    TOKEN,
    Handler,
    HttpError,
    Request,
    Response,
    TakeOver,
    head_lines,
    joined,
    parse_headers,
    read_body,
    render_response,
)

log = logging.getLogger(__name__)

HEADER_TIMEOUT = 15.0
BODY_TIMEOUT = 30.0
KEEP_ALIVE_SECONDS = 75.0
MAX_CONNECTIONS = 512
CLOSE_SECONDS = 1.0
"""How long a connection that is closed may take to end before it is cut."""
_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER for a connection that ends at once: what the peer did not take is thrown away."""


class HttpServer:
    """Serves `handler` on one address until closed."""

    def __init__(
        self,
        handler: Handler,
        *,
        max_body: int = MAX_BODY_BYTES,
        header_timeout: float = HEADER_TIMEOUT,
        body_timeout: float = BODY_TIMEOUT,
        keep_alive: float = KEEP_ALIVE_SECONDS,
        max_connections: int = MAX_CONNECTIONS,
        max_per_caller: int | None = None,
    ) -> None:
        """`max_per_caller` bounds the connections from one address, where callers do not trust each other."""
        self._handler = handler
        self._max_body = max_body
        self._header_timeout = header_timeout
        self._body_timeout = body_timeout
        self._keep_alive = keep_alive
        self._max_connections = max_connections
        self._max_per_caller = max_per_caller
        self._callers: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Task[None]] = set()
        self._closing = False

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises `OSError` when the address is taken."""
        self._server = await asyncio.start_server(self._connected, host, port, limit=MAX_HEADER_BYTES)

    @property
    def port(self) -> int:
        """The port it listens on (useful after `start(host, 0)`)."""
        if self._server is None:
            raise RuntimeError("the server has not been started")
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self, grace: float = 0.0) -> None:
        """Accept nothing more, let requests under way finish for `grace` seconds, then end every connection."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        for task in self._connections - self._busy:
            task.cancel()
        if self._busy and grace > 0:
            await asyncio.wait(set(self._busy), timeout=grace)
        for task in set(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(set(self._connections))
        if self._server is not None:
            await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        peer = writer.get_extra_info("peername")
        caller = str(peer[0]) if peer else ""
        self._callers[caller] += 1
        # `drain` waits until the kernel has everything: nothing of an answer is left for `close` to wait for.
        writer.transport.set_write_buffer_limits(0)
        try:
            if self._closing:
                return
            if self._too_many(caller):
                await self._send(writer, Response.error(503, "too many connections"), keep_alive=False)
                return
            await self._serve(reader, writer, task)
        except asyncio.CancelledError:
            if not self._closing:
                raise
        except (ConnectionError, TimeoutError):
            pass
        finally:
            self._connections.discard(task)
            self._busy.discard(task)
            self._callers[caller] -= 1
            if not self._callers[caller]:
                del self._callers[caller]
            await _hang_up(writer)

    def _too_many(self, caller: str) -> bool:
        if len(self._connections) > self._max_connections:
            return True
        return self._max_per_caller is not None and self._callers[caller] > self._max_per_caller

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: asyncio.Task[None]
    ) -> None:
        idle_limit = self._header_timeout
        while not self._closing:
            try:
                request = await self._read_request(reader, writer, idle_limit)
                if request is None:
                    return
                self._busy.add(task)
                outcome = await self._answer(request)
            except HttpError as error:
                # After a broken request the position in the stream is unknown.
                await self._send(writer, Response.error(error.status, error.message), keep_alive=False)
                return
            if isinstance(outcome, TakeOver):
                await outcome.run(reader, writer)
                return
            wants_close = "close" in request.headers.get("connection", "").lower()
            keep_alive = not wants_close and not self._closing
            await self._send(writer, outcome, keep_alive=keep_alive, head_only=request.method == "HEAD")
            self._busy.discard(task)
            if not keep_alive:
                return
            idle_limit = self._keep_alive

    async def _send(
        self, writer: asyncio.StreamWriter, response: Response, *, keep_alive: bool, head_only: bool = False
    ) -> None:
        """Raises `TimeoutError` when the caller does not take it."""
        writer.write(render_response(response, keep_alive=keep_alive, head_only=head_only))
        async with asyncio.timeout(self._body_timeout):
            await writer.drain()

    async def _answer(self, request: Request) -> Response | TakeOver:
        try:
            return await self._handler(request)
        except HttpError as error:
            return Response.error(error.status, error.message)
        except Exception:  # the task's top: one broken request must not end the service
            log.exception("request %s %s failed", request.method, request.path)
            return Response.error(500, "this request failed inside mvm; the log of the service has the details")

    async def _read_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: float
    ) -> Request | None:
        """The next request, None at a clean end of the connection."""
        try:
            async with asyncio.timeout(limit):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise HttpError(400, "the request ended within its headers") from None
            return None
        except asyncio.LimitOverrunError:
            raise HttpError(431, f"the headers are longer than {MAX_HEADER_BYTES} bytes") from None
        lines = head_lines(head, status=400)
        parts = lines[0].split(" ")
        if len(parts) != 3 or not TOKEN.fullmatch(parts[0]) or not parts[1].startswith("/"):
            raise HttpError(400, "the request line is not valid")
        if parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
            raise HttpError(505, "only HTTP/1.1 is spoken here")
        raw = parse_headers(lines[1:], status=400)
        headers = joined(raw)
        if parts[2] == "HTTP/1.0":
            headers["connection"] = "close"
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            async with asyncio.timeout(self._body_timeout):
                body = await read_body(reader, headers, self._max_body, request=True)
        except asyncio.IncompleteReadError:
            raise HttpError(400, "the request ended within its body") from None
        except TimeoutError:
            raise HttpError(408, f"the body did not arrive within {self._body_timeout:g} s") from None
        peer = writer.get_extra_info("peername")
        request = Request(parts[0], parts[1], headers, raw, body, str(peer[0]) if peer else "")
        try:
            request.segments  # noqa: B018 - decoding is the check
        except UnicodeDecodeError:
            raise HttpError(400, "the path is not UTF-8") from None
        return request


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection; nothing is kept for a peer that does not take what it was sent."""
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await writer.wait_closed()
    except OSError:  # TimeoutError is one
        _cut(writer)
    except asyncio.CancelledError:
        _cut(writer)
        raise


def _cut(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket | None = writer.get_extra_info("socket")
    with suppress(OSError):  # it may be gone already
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()
