"""Files with holes: copied with their holes, and known by what they are."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mvm.model.errors import MvmError

FICLONE = 0x40049409
"""Share all blocks with another file, copied only when written (btrfs, xfs, bcachefs)."""
_CHUNK = 4 * 1024 * 1024
_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


def extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each stretch of data of an open file, in order."""
    end = os.fstat(descriptor).st_size
    at = 0
    while at < end:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        at = min(os.lseek(descriptor, begin, os.SEEK_HOLE), end)
        yield begin, at - begin


def covers(descriptor: int, other: int) -> bool:
    """Whether an open file has data wherever the other one has."""
    own = extents(descriptor)
    begin = end = 0
    for offset, length in extents(other):
        while end <= offset:
            found = next(own, None)
            if found is None:
                return False
            begin, end = found[0], found[0] + found[1]
        # Two stretches that follow each other are one, so the rest cannot be in the next.
        if begin > offset or end < offset + length:
            return False
    return True


def copy(source: Path, target: Path, *, mode: int = 0o600) -> None:
    """Copy a file to a new one, holes as holes; whole and flushed to disk, or not at all.

    Blocks are shared where the file system can. Raises `MvmError`, also when `target` exists.
    """
    try:
        with source.open("rb") as reader:
            descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            try:
                with open(descriptor, "r+b") as writer:
                    _fill(reader.fileno(), writer.fileno())
                    os.fsync(writer.fileno())
            except BaseException:
                target.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise MvmError(
            f"'{source}' cannot be copied to '{target}': {error.strerror or error}", hint="is the file system full?"
        ) from error


def _fill(source: int, target: int) -> None:
    with suppress(OSError):
        fcntl.ioctl(target, FICLONE, source)
        return
    os.ftruncate(target, os.fstat(source).st_size)
    for offset, length in extents(source):
        _copy_extent(source, target, offset, length)


def _copy_extent(source: int, target: int, offset: int, length: int) -> None:
    """Copy one stretch. Never a whole file: copy_file_range fills holes on tmpfs (facts/QEMU.md, section 6)."""
    end = offset + length
    while offset < end:
        try:
            done = os.copy_file_range(source, target, end - offset, offset, offset)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
            done = os.pwrite(target, os.pread(source, min(_CHUNK, end - offset), offset), offset)
        if done == 0:
            raise OSError(errno.EIO, "it became shorter while it was being copied")
        offset += done


def sync_directory(directory: Path) -> None:
    """Make what was created, renamed and removed in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def identity(path: Path) -> str:
    """Changes when the file is replaced, resized or written: inode, size and modification time."""
    found = path.stat()
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"
