"""What a guest writes on its serial console: the last words of one that never answered."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

from mvm.runtime import bounded_log

PAUSE_SECONDS = 0.02
"""Between two looks. A guest writes byte by byte, one without good intentions without end: what has come is taken
together, and a guest that is faster waits."""
_CHUNK = 64 * 1024


async def copy(console: Path, log: Path) -> None:
    """Append what comes from the socket to the log until the guest's machine ends. Never raises `OSError`."""
    loop = asyncio.get_running_loop()
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.setblocking(False)
        await loop.sock_connect(line, str(console))
        while data := await loop.sock_recv(line, _CHUNK):
            bounded_log.append(log, data)
            await asyncio.sleep(PAUSE_SECONDS)
