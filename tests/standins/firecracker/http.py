"""HTTP/1.1 over a Unix socket, no more of it than Firecracker takes: requests with a Content-Length, one by one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

MAX_HEAD = 4096
METHODS = ("GET", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True, kw_only=True)
class Request:
    method: str
    path: str
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Response:
    status: int
    body: Any = None

    def encode(self) -> bytes:
        content = b"" if self.body is None else json.dumps(self.body).encode()
        head = f"HTTP/1.1 {self.status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
        if self.status != 204:
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        return head.encode() + b"\r\n" + content


class BadRequest(Exception):
    """What came is no request; the connection cannot go on."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


Answer = Callable[[Request], Awaitable[Response]]


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answer: Answer, limit: int) -> None:
    """Answer requests until the other end hangs up."""
    try:
        while (request := await _read(reader, limit)) is not None:
            writer.write((await answer(request)).encode())
            await writer.drain()
    except BadRequest as error:
        writer.write(Response(status=error.status, body={"fault_message": str(error)}).encode())
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, limit: int) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise BadRequest("Invalid HTTP request.") from None
        return None
    if len(head) > MAX_HEAD:
        raise BadRequest("The request's headers are too long.")
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    words = first.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1"):
        raise BadRequest("Invalid HTTP request.")
    method, path, _ = words
    if method not in METHODS:
        raise BadRequest(f"Unsupported HTTP method {method}.")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequest("Invalid HTTP header.")
        headers[name.strip().lower()] = value.strip()
    if "transfer-encoding" in headers:
        raise BadRequest("Transfer-Encoding is not supported.")
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise BadRequest("Invalid Content-Length.")
    if int(length) > limit:
        raise BadRequest(
            f"Request payload with size {length} is larger than the limit of {limit} allowed by server.", 413
        )
    return Request(method=method, path=path.partition("?")[0], body=await reader.readexactly(int(length)))
