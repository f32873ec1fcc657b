"""Logs that cannot fill a disk: a file and its predecessor, each of a fixed size, and a limit to the rate.

Services write into pipes that the supervisor reads without ever waiting for the disk's sake; what is too much is
counted and dropped, and the log says so.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mvm.guest.paths import open_plainly, write_atomically

FILE_LIMIT = 4 * 1024 * 1024
"""Bytes of one log file; there are at most two of them."""
OWN = "-own"
"""Ends the name of a log that a service keeps by itself, in more detail: what it prints is in the log without it."""
BYTES_PER_SECOND = 1024 * 1024
BURST_BYTES = 4 * 1024 * 1024


class LogFile:
    """One service's log. Writing never raises: a full disk costs lines, not the service."""

    def __init__(
        self,
        path: Path,
        *,
        limit: int = FILE_LIMIT,
        rate: int = BYTES_PER_SECOND,
        burst: int = BURST_BYTES,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._limit = limit
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._now = now
        self._allowance = float(burst)
        self._counted_at = clock()
        self._descriptor: int | None = None
        self._size = 0
        self._dropped = 0
        self._at_line_start = True

    def write(self, data: bytes) -> None:
        """Append what a service said, or drop it when that is too much."""
        now = self._clock()
        self._allowance = min(float(self._burst), self._allowance + (now - self._counted_at) * self._rate)
        self._counted_at = now
        if len(data) > self._allowance:
            self._dropped += len(data)
            return
        self._allowance -= len(data)
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self.note(f"{dropped} bytes were dropped here: too much in too short a time, or the disk is full")
        self._append(data)

    def note(self, text: str) -> None:
        """Append a line of mvm's own, with the time."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._now()))
        line = f"mvm {stamp} {text}\n"
        self._append(line.encode() if self._at_line_start else b"\n" + line.encode())

    def close(self) -> None:
        """Close the file; writing opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _append(self, data: bytes) -> None:
        try:
            while data:
                if self._descriptor is None:
                    self._open()
                if self._size >= self._limit:
                    self._rotate()
                assert self._descriptor is not None
                written = os.write(self._descriptor, data[: self._limit - self._size])
                self._size += written
                self._at_line_start = data[written - 1 : written] == b"\n"
                data = data[written:]
        except OSError:
            self._dropped += len(data)
            self.close()

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Not waiting for a reader: whoever may write here might have left a FIFO.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        self.close()
        os.replace(self._path, predecessor(self._path))
        self._open()


def cut(path: Path, limit: int = FILE_LIMIT) -> bool:
    """Make room in a log that others append to, once it is longer than `limit`; True when it was.

    What is in it becomes the predecessor; what is written meanwhile may be lost. Raises `OSError`.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags), "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size <= limit:
            return False
        file.seek(size - limit)
        write_atomically(predecessor(path), file.read(limit))
        file.truncate(0)
    return True


def make(path: Path) -> None:
    """Have a plain file of one's own there, whatever is there now. Raises `OSError`.

    For who opens it by its name, as systemd does: a link that a service left would lead that elsewhere.
    """
    with suppress(FileNotFoundError):
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
            path.unlink()
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))


@dataclass(frozen=True)
class Tail:
    """The newest part of a log."""

    text: str
    truncated: bool
    """True when there is more before it."""


def unrepeated(names: Iterable[str]) -> list[str]:
    """Names of logs without those that say what another one of them says too."""
    known = set(names)
    return sorted(name for name in known if not (name.endswith(OWN) and name.removesuffix(OWN) in known))


def predecessor(path: Path) -> Path:
    """The file that holds what came before."""
    return path.with_name(f"{path.name}.1")


def tail(path: Path, *, lines: int, limit: int) -> Tail:
    """The last `lines` lines of a log, at most `limit` bytes of them, whole lines where possible.

    Reads no more than it returns; a log that does not exist is empty.
    """
    data, more = b"", False
    for part in (path, predecessor(path)):
        if len(data) >= limit or data.count(b"\n") > lines:
            more = True
            break
        piece, cut = _last_bytes(part, limit - len(data))
        data, more = piece + data, cut
    kept = data.splitlines(keepends=True)
    if more and len(kept) > 1:
        kept = kept[1:]  # the first line is not whole
    more = more or len(kept) > lines
    return Tail(b"".join(kept[-lines:]).decode(errors="replace"), more)


def _last_bytes(path: Path, count: int) -> tuple[bytes, bool]:
    with suppress(OSError), open(path, "rb", opener=open_plainly) as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - count)
        file.seek(start)
        return file.read(count), start > 0
    return b"", False
