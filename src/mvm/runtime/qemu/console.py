"""What a guest writes on its serial console: the last words of one that never answered."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from mvm.runtime import bounded_log

_CHUNK = 16 * 1024


async def copy(socket: Path, log: Path) -> None:
    """Append what comes from the socket to the log until the guest's machine ends. Never raises `OSError`."""
    with suppress(OSError):
        reader, writer = await asyncio.open_unix_connection(str(socket))
        try:
            while data := await reader.read(_CHUNK):
                bounded_log.append(log, data)
        finally:
            writer.close()
