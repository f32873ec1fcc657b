"""How guest and host reach each other's ports, whatever carries it: "listen on guest port N", "connect to host port N".

One class per kind of carrier; the rest of the guest does not know which one it is.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from mvm.guest.paths import GuestPaths
from mvm.guest.sockets import Handler, check_length, uncancelled

SUPERVISOR_PORT = 51
"""Guest port of the supervisor's control socket, in a machine of its own."""
AGENT_PORT = 52
"""Guest port of the agent."""
HOST_PORT = 53
"""Host port of the wake desk."""
SLEEP_PREP_PORT = 5200
"""Guest port of the one-line text protocol."""
DIRECTORY_VARIABLE = "MVM_CHANNEL_DIR"

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Channel(Protocol):
    """The guest's end of the control channel."""

    async def listen(self, port: int, handler: Handler) -> asyncio.AbstractServer:
        """Serve a guest port. Raises `OSError`."""

    async def connect(self, port: int) -> Connection:
        """Connect to a host port. Raises `OSError` when nobody listens there."""


class UnixChannel:
    """Unix sockets in a directory: shared with the host (process runtime), or bridged to it (`channel_service`)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def listen(self, port: int, handler: Handler) -> asyncio.AbstractServer:
        path = self._directory / f"guest_{port}.sock"
        check_length(path)
        self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        # Bound beside its place and renamed: whoever finds the name finds somebody who listens.
        fresh = path.with_name(f".{port}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(uncancelled(handler), str(fresh))
        finally:
            os.umask(mask)
        os.replace(fresh, path)
        return server

    async def connect(self, port: int) -> Connection:
        return await self._open(f"host_{port}.sock")

    async def connect_own(self, port: int) -> Connection:
        """Connect to a port of this very guest, as the host would. Raises `OSError` when nobody listens there."""
        return await self._open(f"guest_{port}.sock")

    async def _open(self, name: str) -> Connection:
        path = self._directory / name
        check_length(path)
        return await asyncio.open_unix_connection(str(path))


def open_channel(environment: Mapping[str, str]) -> UnixChannel:
    """The channel that this guest's runtime provides; raises `ValueError` when there is none."""
    if directory := environment.get(DIRECTORY_VARIABLE):
        return UnixChannel(Path(directory))
    paths = GuestPaths.from_environment(environment)
    if not paths.owns_machine:
        raise ValueError(f"no channel to the host: {DIRECTORY_VARIABLE} is not set")
    return UnixChannel(paths.channel)
