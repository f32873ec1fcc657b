"""Memory of a guest that has slept long, compressed. Only what the file holds is written; holes stay holes.

Form: 8 bytes magic, 8 bytes length of a JSON header with size and extents, the header, one zstd frame of all extents'
bytes in order (with a checksum).
"""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import zstandard

from mvm.model.errors import MvmError, SnapshotRejected, Unavailable
from mvm.runtime import sparse

MAGIC = b"mvmram1\n"
LEVEL = 3
_HEAD = struct.Struct(">8sQ")
_CHUNK = 1024 * 1024
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MAX_HEADER = 64 * 1024 * 1024


class _Abandoned(Exception):
    """Somebody wants the memory back, or it is in too many pieces."""


def compress(source: Path, target: Path, abandon: Callable[[], bool] = lambda: False) -> bool:
    """Write the compressed form of `source` to `target`, flushed to disk and whole or not at all.

    `abandon` is asked for each mebibyte; False when it said yes, and for a file in so many pieces that their list would
    be longer than `decompress` takes (a guest's balloon can punch it page by page).
    """
    unfinished = target.with_suffix(".new")
    try:
        with source.open("rb") as reader, unfinished.open("wb") as writer:
            os.fchmod(writer.fileno(), 0o600)
            found = list(sparse.extents(reader.fileno()))
            header = json.dumps({"size": os.fstat(reader.fileno()).st_size, "extents": found}).encode()
            if len(header) > _MAX_HEADER:
                raise _Abandoned
            writer.write(_HEAD.pack(MAGIC, len(header)) + header)
            packer = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
            with packer.stream_writer(writer, closefd=False) as packed:
                for offset, length in found:
                    _read_extent(reader.fileno(), offset, length, packed, abandon)
            writer.flush()
            os.fsync(writer.fileno())
        os.replace(unfinished, target)
    except _Abandoned:
        return False
    except OSError as error:
        raise MvmError(
            f"'{source}' cannot be compressed: {error.strerror or error}", hint="is the disk full?"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return True


def decompress(source: Path, target: Path) -> None:
    """Make the file that was compressed; on failure there is none.

    Raises `SnapshotRejected` when it is damaged, `Unavailable` when there is no room: then it is as good as before.
    """
    try:
        with source.open("rb") as reader, target.open("xb") as writer:
            os.fchmod(writer.fileno(), 0o600)
            magic, length = _HEAD.unpack(reader.read(_HEAD.size))
            if magic != MAGIC or length > _MAX_HEADER:
                raise ValueError("it does not begin as it should")
            header = json.loads(reader.read(length))
            writer.truncate(int(header["size"]))
            with zstandard.ZstdDecompressor().stream_reader(reader, closefd=False) as unpacked:
                for offset, size in header["extents"]:
                    writer.seek(offset)
                    _write_extent(unpacked, size, writer)
                if unpacked.read(1):
                    raise ValueError("it is longer than it should be")
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno in _NO_ROOM:
            raise Unavailable(
                f"there is no room to unpack the memory to '{target}': {error.strerror}",
                hint="make room on that file system; it goes on from its memory then",
            ) from error
        raise SnapshotRejected(f"the compressed memory cannot be unpacked: {error}") from error
    except (ValueError, KeyError, TypeError, struct.error, zstandard.ZstdError) as error:
        target.unlink(missing_ok=True)
        raise SnapshotRejected(f"the compressed memory cannot be unpacked: {error}") from error


def _read_extent(
    descriptor: int, offset: int, length: int, packed: zstandard.ZstdCompressionWriter, abandon: Callable[[], bool]
) -> None:
    end = offset + length
    while offset < end:
        if abandon():
            raise _Abandoned
        data = os.pread(descriptor, min(_CHUNK, end - offset), offset)
        if not data:
            raise OSError("it became shorter while it was being read")
        packed.write(data)
        offset += len(data)


def _write_extent(unpacked: zstandard.ZstdDecompressionReader, length: int, writer: BinaryIO) -> None:
    left = length
    while left:
        data = unpacked.read(min(_CHUNK, left))
        if not data:
            raise ValueError("it is shorter than it should be")
        writer.write(data)
        left -= len(data)
