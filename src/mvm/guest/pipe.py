"""Joining two TCP connections: bytes both ways, with back-pressure and keep-alive."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]

CHUNK_BYTES = 64 * 1024
KEEP_ALIVE = (60, 10, 6)
"""Seconds of silence before the first probe, seconds between probes, probes before the peer counts as gone."""
UNACKNOWLEDGED_SECONDS = 120.0
"""How long the kernel goes on sending to a peer that takes nothing; left alone it does for a quarter of an hour."""
HALF_OPEN_SECONDS = 30.0
"""How long one direction may go on after the other has ended."""


def keep_alive(writer: asyncio.StreamWriter) -> None:
    """Have the kernel notice a peer that vanished without a word."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    idle, interval, probes = KEEP_ALIVE
    with suppress(OSError):  # the peer may be gone already; the pipe finds out by itself
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # macOS has no TCP_KEEPIDLE and calls it TCP_KEEPALIVE.
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", 0x10), idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNACKNOWLEDGED_SECONDS * 1000))


async def join(one: Connection, other: Connection, heard: Callable[[], None] = lambda: None) -> None:
    """Carry bytes both ways until both directions have ended or one is lost. Closes neither connection's writer.

    `heard` is called whenever `other` says something.
    """
    tasks = [asyncio.create_task(_carry(one[0], other[1])), asyncio.create_task(_carry(other[0], one[1], heard))]
    try:
        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if rest and not any(task.exception() for task in done):
            await asyncio.wait(rest, timeout=HALF_OPEN_SECONDS)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def close(writer: asyncio.StreamWriter, seconds: float = 1.0) -> None:
    """Close a connection; one that is broken already is closed too."""
    writer.close()
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(seconds):
            await writer.wait_closed()


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Callable[[], None] = lambda: None
) -> None:
    while data := await reader.read(CHUNK_BYTES):
        heard()
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
