"""What a Firecracker logs and counts, kept within bounds: it writes into pipes, and the agent copies what it reads.

Without an agent the pipes fill, and Firecracker leaves out what finds no room; it never waits.
"""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import suppress
from pathlib import Path

from mvm.runtime import bounded_log

PAUSE_SECONDS = 0.02
"""Between two looks: whatever a guest makes its Firecracker say, the agent is not kept busy with it."""
_CHUNK = 64 * 1024


def make_pipe(path: Path, *, owner: int | None) -> None:
    """Make a pipe that only its owner may use."""
    os.mkfifo(path, 0o600)
    if owner is not None:
        os.chown(path, owner, owner, follow_symlinks=False)


class Copying:
    """Copies one pipe to a bounded log while it is open."""

    def __init__(self, pipe: Path, log: Path) -> None:
        """Raises `OSError` when there is no such pipe."""
        self._log = log
        # For writing as well, so that it does not end when nobody else has it open.
        self._descriptor = os.open(pipe, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        if not stat.S_ISFIFO(os.fstat(self._descriptor).st_mode):
            os.close(self._descriptor)
            raise OSError(f"'{pipe}' is no pipe")
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._look()

    def _look(self) -> None:
        self._loop.add_reader(self._descriptor, self._copy)

    def _copy(self) -> None:
        self._loop.remove_reader(self._descriptor)
        self._pause = self._loop.call_later(PAUSE_SECONDS, self._look)
        self._take()

    def _take(self) -> None:
        with suppress(OSError):  # nothing there after all, or no room for it
            bounded_log.append(self._log, os.read(self._descriptor, _CHUNK))

    def close(self) -> None:
        """Copy what is left and let go."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._descriptor)
        self._take()
        os.close(self._descriptor)
