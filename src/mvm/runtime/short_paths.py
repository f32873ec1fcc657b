"""Unix sockets in directories whose paths are too long for them.

The kernel takes 107 bytes. A directory that is open has a short path as well, by its number.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType

MAX_SOCKET_BYTES = 107
"""Longest path of a Unix socket: 108 bytes with the terminating NUL."""


class Reachable:
    """A path of a socket that the kernel takes, as long as the block lasts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= MAX_SOCKET_BYTES:
            return str(self._path)
        try:
            self._descriptor = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return f"/proc/self/fd/none/{self._path.name}"  # whoever connects is told that nobody is there
        return f"/proc/self/fd/{self._descriptor}/{self._path.name}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def listening(path: Path, *, owner: int | None = None, backlog: int = 16) -> socket.socket:
    """A Unix socket that only one user (`owner`, else this one) can connect to; what had its name is removed."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)  # so it has that mode from the first moment
        path.unlink(missing_ok=True)
        with Reachable(path) as short:
            listener.bind(short)
        if owner is not None:
            os.chown(path, owner, owner, follow_symlinks=False)
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
