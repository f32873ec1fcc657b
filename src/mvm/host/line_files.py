"""Append-only files of JSON lines: one `write` per line, rotation by size, an unfinished last line set aside.

A line is with the kernel when `append` returns, so that it survives the death of the agent; it is on the disk within a
second (`Syncer`), or when `Syncer.flush` returns. A power cut may cost that second: at worst the file then ends in an
unfinished line, which the next start keeps aside and reports.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

SYNC_SECONDS = 1.0
KEPT_TORN_FILES = 3

_TAIL_BYTES = 64 * 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TornLine:
    """An unfinished last line that was found and set aside."""

    size: int
    kept_as: Path


class LineFile:
    """One file and its rotated predecessors `<path>.1` (newest) to `<path>.<kept>`. Not thread-safe."""

    def __init__(self, path: Path, *, limit: int, kept: int, now: datetime) -> None:
        self.path = path
        self._limit = limit
        self._kept = kept
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.torn = _set_torn_line_aside(path, now)
        self._size = path.stat().st_size if path.exists() else 0

    def files(self) -> list[Path]:
        """What exists, oldest first."""
        numbered = [self._rotated(number) for number in range(self._kept, 0, -1)]
        return [path for path in (*numbered, self.path) if path.exists()]

    @property
    def has_dropped(self) -> bool:
        """True when a rotation may have dropped the oldest lines."""
        return self._rotated(self._kept).exists()

    def last_line(self) -> bytes | None:
        """The newest line, without its end; None when there is none."""
        for path in reversed(self.files()):
            if (line := _last_line(path)) is not None:
                return line
        return None

    def append(self, line: bytes) -> None:
        """Write one line (without its end). Raises `OSError`; what was written of it is then taken back."""
        if self._size and self._size + len(line) >= self._limit:
            self._rotate()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            data = line + b"\n"
            if (written := os.write(descriptor, data)) != len(data):  # the disk filled up in the middle
                os.ftruncate(descriptor, self._size)
                raise OSError(f"only {written} of {len(data)} bytes could be written to {self.path}")
        finally:
            os.close(descriptor)
        self._size += len(data)

    def _rotate(self) -> None:
        sync(self.path)  # under its new name nobody would
        # From the oldest on, so that whichever rename is the last before a crash, the order of the files still holds.
        for number in range(self._kept - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._rotated(number).replace(self._rotated(number + 1))
        self.path.replace(self._rotated(1))
        self._size = 0

    def _rotated(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def remove(self) -> None:
        """Remove the file, its predecessors and what was set aside."""
        for path in (*self.files(), *_torn_files(self.path)):
            path.unlink(missing_ok=True)


class Syncer:
    """Brings files to the disk a second after they were written, off the event loop. `close` when done."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._syncing = threading.Lock()
        self._dirty: set[Path] = set()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def wrote(self, path: Path) -> None:
        """That file has something that is not on the disk yet."""
        with self._changed:
            self._dirty.add(path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify()

    def flush(self) -> None:
        """Bring everything written so far to the disk. Blocks; call it in a thread."""
        with self._syncing:  # also waits for a round under way
            with self._changed:
                paths, self._dirty = self._dirty, set()
            for path in paths:
                sync(path)
            for directory in {path.parent for path in paths}:
                sync(directory)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._closing.is_set())
            if self._closing.wait(SYNC_SECONDS):  # lines of one second share an fsync
                return
            try:
                self.flush()
            except OSError:  # the next lines may have better luck; without this thread they would have none
                _log.exception("what was written in the last second may not be on the disk")

    def close(self) -> None:
        """Flush and end the thread. Idempotent; blocks for an fsync."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self.flush()


def sync(path: Path) -> None:
    """Bring a file or directory to the disk."""
    # A file that is gone was rotated out or destroyed; a directory that cannot be opened is none of ours any more.
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _last_line(path: Path) -> bytes | None:
    """The last line of a file that ends with a line's end."""
    size = path.stat().st_size
    for tail in (_TAIL_BYTES, size):
        with path.open("rb") as file:
            file.seek(max(size - tail, 0))
            lines = file.read().split(b"\n")[:-1]
        if len(lines) > 1 or (lines and tail >= size):
            return lines[-1]
    return None


def _set_torn_line_aside(path: Path, now: datetime) -> TornLine | None:
    """Cut an unfinished last line off into a file of its own; the newest few of those are kept."""
    if not path.exists() or not path.stat().st_size:
        return None
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return None
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        kept_as = path.with_name(f"{path.name}.torn-{now:%Y%m%dT%H%M%S%f}")
        descriptor = os.open(kept_as, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as aside:
            aside.write(content[whole:])
            os.fsync(aside.fileno())
        file.truncate(whole)
    for old in _torn_files(path)[:-KEPT_TORN_FILES]:
        old.unlink()
    return TornLine(len(content) - whole, kept_as)


def _torn_files(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.torn-*"))
