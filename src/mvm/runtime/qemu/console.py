"""What a guest writes on its serial console, kept within bounds: the last words of one that never answered."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path

LIMIT = 256 * 1024
"""Bytes that are kept at most; of a longer log the newest half stays."""
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
            append(log, data)
            await asyncio.sleep(PAUSE_SECONDS)


def append(log: Path, data: bytes) -> None:
    """Add to a log that is never longer than `LIMIT`."""
    descriptor = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "r+b", buffering=0) as file:
        if os.fstat(descriptor).st_size + len(data) > LIMIT:
            kept = os.pread(descriptor, LIMIT, 0)[-LIMIT // 2 :]
            file.truncate(0)
            file.write(kept[kept.find(b"\n") + 1 :])
        file.write(data)


def last_words(log: Path) -> str:
    """The last line that the guest wrote, printable."""
    with suppress(OSError):
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        said = ["".join(c for c in line if c.isprintable()).strip() for line in lines]
        if any(said):
            return [line for line in said if line][-1][:300]
    return "nothing"
