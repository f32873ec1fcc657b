"""The memory of a sleeping guest as a file: with holes where it is clear, and known by its content.

Firecracker writes every byte of it. What is clear becomes holes again before it reaches the disk, and every mebibyte is
digested. A wake does not read it all again: a file that no call of the kernel has touched since is the same. One that
was touched (moved, linked, restored from a backup, tampered with) is read, and its content decides.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from mvm.runtime import sparse

CHUNK = 1024 * 1024
GRAIN = 16 * 1024
"""Stretches of this size that are clear become holes."""
SETTLED_NS = 20_000_000
"""Two changes of a file that are nearer than this may bear the same time."""
THREADS = 4
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def describe(path: Path) -> str:
    """What a memory file is: its traces and its content."""
    content = digest(path)
    while time.time_ns() - path.stat().st_ctime_ns < SETTLED_NS:
        time.sleep(SETTLED_NS / 4e9)
    return f"{traces(path.stat())} {content}"


def holds(path: Path, told: str) -> bool:
    """Whether a file is still what `describe` told of it. Raises `OSError` when it cannot be read."""
    known, _, content = told.partition(" ")
    return untouched(path.stat(), known) or digest(path) == content


def traces(found: os.stat_result) -> str:
    """What tells of a file that it was touched."""
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def untouched(found: os.stat_result, known: str) -> bool:
    """Whether a file has the traces that are known of it.

    One of several names is touched whenever it gets or loses one: it is a base's, which nobody may write, or in a room.
    """
    if found.st_nlink > 1:
        return traces(found).rpartition(":")[0] == known.rpartition(":")[0]
    return traces(found) == known


def digest(path: Path) -> str:
    """Size and digest of what is not clear; the same for two files of equal content, wherever they have holes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        whole = hashlib.sha256()

        def one(offset: int) -> tuple[int, bytes] | None:
            chunk = os.pread(descriptor, CHUNK, offset)
            return (offset, hashlib.sha256(chunk).digest()) if any_set(chunk) else None

        with ThreadPoolExecutor(THREADS) as pool:
            for found in pool.map(one, _chunks(descriptor, size)):
                if found is not None:
                    whole.update(b"%d:" % found[0] + found[1])
    finally:
        os.close(descriptor)
    return f"{size}:{whole.hexdigest()}"


def any_set(data: bytes) -> bool:
    """Whether any bit of it is set."""
    return data.count(0) != len(data)


def _chunks(descriptor: int, size: int) -> Iterator[int]:
    """Offset of each chunk that is not one hole."""
    done = 0
    for begin, length in sparse.extents(descriptor):
        first = max(done, begin // CHUNK * CHUNK)
        for offset in range(first, min(begin + length, size), CHUNK):
            yield offset
            done = offset + CHUNK


def make_holes(path: Path) -> None:
    """Give back the blocks of what is clear, where the file system can. The content stays the same."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            for offset in _chunks(descriptor, os.fstat(descriptor).st_size):
                for begin, length in _clear(os.pread(descriptor, CHUNK, offset)):
                    _punch(descriptor, offset + begin, length)
    finally:
        os.close(descriptor)


def _clear(chunk: bytes) -> Iterator[tuple[int, int]]:
    """The clear stretches of a chunk, in grains."""
    if not any_set(chunk):
        yield 0, len(chunk)
        return
    begin: int | None = None
    for offset in range(0, len(chunk), GRAIN):
        if any_set(chunk[offset : offset + GRAIN]):
            if begin is not None:
                yield begin, offset - begin
            begin = None
        elif begin is None:
            begin = offset
    if begin is not None:
        yield begin, len(chunk) - begin


def _punch(descriptor: int, offset: int, length: int) -> None:
    if _libc.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
