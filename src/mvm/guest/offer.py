"""`guest.pyz offer`: hands files to the host, once, at a guest port of their own (`mvm.wire.transfer`).

That is how what a builder has built gets out of its machine: nobody but the guest looks into a file system that a
guest has written.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mvm.guest.channel import Channel, open_channel
from mvm.wire import transfer

LIMIT_SECONDS = 3600.0
"""All of it; the host ends the machine when it has what it wants, or has waited long enough."""


def main(directory: str, names: Sequence[str], environment: Mapping[str, str]) -> int:
    """Do it; returns the exit status. What went wrong is said on stderr."""
    try:
        asyncio.run(offer(open_channel(environment), Path(directory), names))
    except (OSError, ValueError) as error:  # TimeoutError is one
        print(f"offer: {error or 'nobody took it'}", file=sys.stderr)
        return 1
    return 0


async def offer(channel: Channel, directory: Path, names: Sequence[str], *, seconds: float = LIMIT_SECONDS) -> None:
    """Send the files to who connects first. Raises `OSError` when they cannot be read or taken, `TimeoutError`."""
    sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.close()
        try:
            await transfer.send(writer, directory, names)
            writer.close()
            await writer.wait_closed()
        except OSError as error:
            if not sent.done():
                sent.set_exception(error)
            writer.transport.abort()
        else:
            if not sent.done():
                sent.set_result(None)

    server = await channel.listen(transfer.PORT, serve)
    try:
        async with asyncio.timeout(seconds):
            await sent
    finally:
        server.close()
