"""Files on their way between the agent and a caller, in pieces that fit its frames.

The agent never opens a path that a caller names: what goes in or out lies in a directory of its own meanwhile, under a
name that only the caller was told. Nothing is kept over a restart of the agent, nor longer than `KEEP_SECONDS` unused.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from mvm.host.clock import Clock
from mvm.model.errors import Conflict, NotFound, QuotaExceeded

PIECE = 512 * 1024
"""Bytes that one request carries at most; in base64 they fit a frame."""
MAX_TRANSFERS = 8
KEEP_SECONDS = 3600.0
_NAME = re.compile(r"[0-9a-f]{32}")


class Transfers:
    """The files of one agent that are on their way. Blocking calls are short, but for `begin` after a crash."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._used: dict[str, float] = {}
        self._busy: set[str] = set()

    def begin(self) -> str:
        """A new, empty transfer. Raises `QuotaExceeded` when there are too many."""
        if not self._used:
            shutil.rmtree(self._directory, ignore_errors=True)  # of an earlier agent
        now = self._clock.monotonic()
        for name in [n for n, at in self._used.items() if now - at > KEEP_SECONDS and n not in self._busy]:
            self.end(name)
        if len(self._used) >= MAX_TRANSFERS:
            raise QuotaExceeded(
                f"{MAX_TRANSFERS} files are being exported or imported already", hint="wait for one of them to end"
            )
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = self._clock.entropy(16).hex()
        os.close(os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self._used[name] = now
        return name

    def path(self, name: str) -> Path:
        """Where the file is. Raises `NotFound`."""
        if not _NAME.fullmatch(name) or name not in self._used:
            raise NotFound("there is no such transfer", hint="it was ended, or the agent was restarted: begin again")
        self._used[name] = self._clock.monotonic()
        return self._directory / name

    @contextlib.contextmanager
    def in_use(self, name: str) -> Iterator[Path]:
        """Keep a transfer from being forgotten while the block works with its file."""
        path = self.path(name)
        self._busy.add(name)
        try:
            yield path
        finally:
            self._busy.discard(name)

    def write(self, name: str, offset: int, data: bytes) -> int:
        """Append a piece at `offset`, which must be the end; returns the new end."""
        path = self.path(name)
        size = path.stat().st_size
        if offset != size:
            raise Conflict(f"the next piece of this transfer begins at {size}, not at {offset}")
        with path.open("ab") as file:
            file.write(data)
        return size + len(data)

    def read(self, name: str, offset: int) -> bytes:
        """The piece at `offset`; empty at the end."""
        with self.path(name).open("rb") as file:
            file.seek(offset)
            return file.read(PIECE)

    def end(self, name: str) -> None:
        """Forget a transfer and remove its file. Idempotent."""
        if self._used.pop(name, None) is not None:
            (self._directory / name).unlink(missing_ok=True)
