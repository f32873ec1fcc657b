"""One HTTP/1.1 request at a time, each on a connection of its own."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from contextlib import suppress
from http import HTTPStatus

from mvm.guest.http import (
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    HttpError,
    Response,
    head_lines,
    joined,
    parse_headers,
    read_body,
)


async def call(
    host: str,
    port: int,
    method: str,
    target: str,
    *,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    seconds: float = 10.0,
    source: str | None = None,
    max_body: int = MAX_BODY_BYTES,
    tls: ssl.SSLContext | None = None,
) -> Response:
    """One request on a connection of its own, from the address `source` if given.

    Raises `OSError` (nobody there, connection lost; `TimeoutError` is one) or `HttpError` (not an HTTP answer).
    """
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(
            host, port, local_addr=(source, 0) if source else None, limit=MAX_HEADER_BYTES, ssl=tls
        )
        try:
            sent = {
                "Host": f"{host}:{port}",
                "Connection": "close",
                "Content-Length": str(len(body)),
                **(headers or {}),
            }
            lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
            if any(control in line for line in lines for control in "\r\n\0"):
                raise ValueError("a header or target holds a control character")
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)
            await writer.drain()
            return await _read_response(reader, method, max_body)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise ConnectionResetError(f"{host}:{port} ended its answer early") from error
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def call_json(
    host: str,
    port: int,
    method: str,
    target: str,
    value: object,
    *,
    headers: dict[str, str] | None = None,
    seconds: float = 10.0,
    source: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> Response:
    """`call` with a JSON body."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    sent = {"Content-Type": "application/json", **(headers or {})}
    return await call(host, port, method, target, headers=sent, body=body, seconds=seconds, source=source, tls=tls)


async def _read_response(reader: asyncio.StreamReader, method: str, max_body: int) -> Response:
    status = 100
    while 100 <= status < 200:
        lines = head_lines(await reader.readuntil(b"\r\n\r\n"), status=502)
        parts = lines[0].split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not re.fullmatch(r"[1-5][0-9]{2}", parts[1]):
            raise HttpError(502, "the answer is not HTTP")
        status = int(parts[1])
    headers = joined(parse_headers(lines[1:], status=502))
    if method == "HEAD" or status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return Response(status, b"", headers)
    return Response(status, await read_body(reader, headers, max_body, request=False), headers)
