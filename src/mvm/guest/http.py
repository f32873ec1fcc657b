"""HTTP/1.1 messages for loopback and tenant-network use: requests, answers and their strict parsing.

Strict on purpose: one request line form, bounded headers and bodies, no obsolete line folding, no message that could be
read in two ways (`Content-Length` together with `Transfer-Encoding` is refused). `http_server` serves, `http_client`
calls; both set the time limits.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote

MAX_HEADER_BYTES = 32 * 1024
MAX_BODY_BYTES = 1024 * 1024

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[^\r\n]*)?\r\n")


class HttpError(Exception):
    """A request that cannot be served (server side) or an answer that is not HTTP (client side)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Request:
    """One parsed request. Header names are lowercase; a repeated header is joined with a comma."""

    method: str
    target: str
    """As sent: path and query, still percent-encoded."""
    headers: dict[str, str]
    raw_headers: tuple[tuple[str, str], ...]
    """As sent, for passing on."""
    body: bytes
    peer: str
    """Address of the caller, without the port."""

    @property
    def path(self) -> str:
        """The path, still percent-encoded."""
        return self.target.partition("?")[0]

    @property
    def segments(self) -> list[str]:
        """The decoded segments of the path: `/v1/a%2Fb` gives `["v1", "a/b"]`."""
        return [unquote(part, errors="strict") for part in self.path.split("/")[1:]]

    def query(self, name: str) -> str | None:
        """First value of that query parameter."""
        return parse_qs(self.target.partition("?")[2]).get(name, [None])[0]

    @property
    def bearer(self) -> str | None:
        """The token of `Authorization: Bearer <token>`, None without one."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None

    @property
    def wants_upgrade(self) -> bool:
        """True for a request that asks to leave HTTP (`Connection: Upgrade`)."""
        tokens = [token.strip().lower() for token in self.headers.get("connection", "").split(",")]
        return "upgrade" in tokens and bool(self.headers.get("upgrade"))

    def json_object(self) -> dict[str, Any]:
        """The body as a JSON object, its texts whole; anything else is answered with 400."""
        try:
            value = _whole(json.loads(self.body))
        except (ValueError, RecursionError):
            raise HttpError(400, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise HttpError(400, "the body is not a JSON object")
        return value


def _whole(value: Any) -> Any:
    """JSON whose texts can be written down: half a character (an emoji that was cut) becomes a question mark."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(name): _whole(item) for name, item in value.items()}
    return value


@dataclass(frozen=True)
class Response:
    """An answer with a complete body."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, status: int, value: object, headers: dict[str, str] | None = None) -> Response:
        """An answer with a JSON body."""
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        return cls(status, body, {"Content-Type": "application/json", **(headers or {})})

    @classmethod
    def error(cls, status: int, message: str, **more: object) -> Response:
        """An answer `{"error": message, ...}`."""
        return cls.json(status, {"error": message, **more})

    def json_value(self) -> Any:
        """The body as JSON; raises `HttpError` when it is not."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise HttpError(502, f"the answer (status {self.status}) is not JSON") from None


@dataclass(frozen=True)
class TakeOver:
    """Handler's wish to drive the connection itself from here on; it is closed when `run` returns."""

    run: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


Handler = Callable[[Request], Awaitable[Response | TakeOver]]


def render_response(response: Response, *, keep_alive: bool, head_only: bool = False) -> bytes:
    """Bytes of an answer."""
    try:
        phrase = HTTPStatus(response.status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {response.status} {phrase}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    if response.status != HTTPStatus.NO_CONTENT:
        lines.append(f"Content-Length: {len(response.body)}")
    lines.append(f"Connection: {'keep-alive' if keep_alive else 'close'}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head if head_only or response.status == HTTPStatus.NO_CONTENT else head + response.body


def head_lines(head: bytes, *, status: int) -> list[str]:
    """Lines of a message head; raises `HttpError(status)` when it holds control characters."""
    text = head[:-4].decode("latin-1")
    lines = text.split("\r\n")
    if any("\n" in line or "\r" in line or "\0" in line for line in lines):
        raise HttpError(status, "the headers hold control characters")
    return lines


def parse_headers(lines: list[str], *, status: int) -> tuple[tuple[str, str], ...]:
    """Headers in the order sent; raises `HttpError(status)` for a line that is none."""
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not TOKEN.fullmatch(name):
            raise HttpError(status, "a header is not valid")
        headers.append((name, value.strip(" \t")))
    return tuple(headers)


def joined(raw: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Headers by lowercase name; a repeated one is joined with a comma."""
    headers: dict[str, str] = {}
    for name, value in raw:
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str], limit: int, *, request: bool) -> bytes:
    """The body that these headers announce, at most `limit` bytes; the caller sets a time limit."""
    status = 400 if request else 502
    too_long = HttpError(413 if request else 502, f"the body is longer than {limit} bytes")
    length = headers.get("content-length")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if length is not None or coding.strip().lower() != "chunked":
            raise HttpError(status, "the length of the body is not clear")
        return await _read_chunks(reader, limit, too_long, status)
    if length is not None:
        if not re.fullmatch(r"[0-9]{1,15}", length):
            raise HttpError(status, "the content length is not a number")
        if int(length) > limit:
            raise too_long
        return await reader.readexactly(int(length))
    if request:
        return b""
    body = await reader.read(limit + 1)
    while len(body) <= limit and (more := await reader.read(limit + 1 - len(body))):
        body += more
    if len(body) > limit:
        raise too_long
    return body


async def _read_chunks(reader: asyncio.StreamReader, limit: int, too_long: HttpError, status: int) -> bytes:
    body = bytearray()
    try:
        while True:
            match = _CHUNK_SIZE.fullmatch(await reader.readuntil(b"\r\n"))
            if match is None:
                raise HttpError(status, "a chunk of the body is not valid")
            size = int(match[1], 16)
            if len(body) + size > limit:
                raise too_long
            body += await reader.readexactly(size)
            if size == 0:
                break
            if await reader.readexactly(2) != b"\r\n":
                raise HttpError(status, "a chunk of the body is not valid")
        trailer = 0
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            trailer += len(line)
            if trailer > MAX_HEADER_BYTES:
                raise HttpError(status, "the trailers of the body are too long")
    except asyncio.LimitOverrunError:
        raise HttpError(status, "a chunk of the body is not valid") from None
    return bytes(body)
