"""What every Unix socket of the guest needs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

MAX_PATH = 107
"""Bytes that a Unix socket's path may have."""

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def check_length(path: Path) -> None:
    """Raise `OSError` for a path that no Unix socket can have, saying so instead of `AF_UNIX path too long`."""
    length = len(os.fsencode(path))
    if length > MAX_PATH:
        raise OSError(f"the socket path {path} has {length} bytes and may have {MAX_PATH}; use a shorter run directory")


def uncancelled(handler: Handler) -> Handler:
    """A handler whose cancellation, at the end of the program, asyncio (of 3.11) does not report as a failure."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()

    return serve
