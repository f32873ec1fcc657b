"""Files on their way out of a guest: a stream of its own at a guest port, for what is too large for frames.

Of each file a line of JSON with its name and size (null where there is none), its content, and a line with the SHA-256
of that. The receiver says beforehand which names it wants and how much it takes; everything else ends the transfer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import BinaryIO

PORT = 5201
"""Guest port where a builder offers what it has built."""
CHUNK = 256 * 1024
READ_SECONDS = 60.0
"""The longest wait for the next bytes."""
_LONGEST_LINE = 1024


class TransferError(Exception):
    """A transfer that is not what was agreed on; the text says why."""


class NothingCame(TransferError):
    """The connection ended before the first byte: over vsock, that is how nobody offers anything (yet)."""


async def send(writer: asyncio.StreamWriter, directory: Path, names: Sequence[str]) -> None:
    """Send files of a directory, those that are there; links are followed. Raises `OSError`."""
    for name in names:
        file = _open(directory / name)
        if file is None:
            writer.write(_line({"name": name, "size": None}))
            continue
        with file:
            size = os.fstat(file.fileno()).st_size
            writer.write(_line({"name": name, "size": size}))
            digest, left = hashlib.sha256(), size
            while left:
                piece = file.read(min(CHUNK, left))
                if not piece:
                    raise OSError(f"{directory / name} has become shorter")
                left -= len(piece)
                digest.update(piece)
                writer.write(piece)
                await writer.drain()
        writer.write(_line({"sha256": digest.hexdigest()}))
    await writer.drain()


async def receive(
    reader: asyncio.StreamReader,
    directory: Path,
    names: Sequence[str],
    *,
    most: int,
    on_bytes: Callable[[int, int], None],
) -> None:
    """Write what is sent of these names, in this order, into a directory; `most` is how many bytes that may be in all.

    `on_bytes` is told how many bytes of a file have come, and how many it has. Raises `TransferError`, and `OSError`.
    """
    first = await _first_byte(reader)
    for name in names:
        header, first = await _read_line(reader, first), b""
        size = header.get("size")
        if header.get("name") != name or header.keys() != {"name", "size"}:
            raise TransferError(f"{name} was expected and something else came")
        if size is None:
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= most:
            raise TransferError(f"{name} is said to have {str(size)[:20]} bytes, and {most} are left for it")
        most -= size
        digest = hashlib.sha256()
        with (directory / name).open("xb") as file:
            left = size
            while left:
                piece = await _within(reader.read(min(CHUNK, left)))
                if not piece:
                    raise TransferError(f"it ended {left} bytes before the end of {name}")
                left -= len(piece)
                digest.update(piece)
                await asyncio.to_thread(file.write, piece)
                on_bytes(size - left, size)
        if await _read_line(reader) != {"sha256": digest.hexdigest()}:
            raise TransferError(f"{name} is not what was sent")


def _open(path: Path) -> BinaryIO | None:
    """A plain file, opened; None when there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a plain file")
    return os.fdopen(descriptor, "rb")


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value).encode() + b"\n"


async def _first_byte(reader: asyncio.StreamReader) -> bytes:
    try:
        first = await _within(reader.read(1))
    except ConnectionError as error:
        raise NothingCame(str(error)) from error
    if not first:
        raise NothingCame("it ended before it began")
    return first


async def _read_line(reader: asyncio.StreamReader, begun: bytes = b"") -> dict[str, object]:
    """The line that begins with `begun`."""
    try:
        line = begun + await _within(reader.readuntil(b"\n"))
        value = json.loads(line) if len(line) <= _LONGEST_LINE else None
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, RecursionError):
        raise TransferError("it ended, or was of another form") from None
    if not isinstance(value, dict):
        raise TransferError("it was of another form")
    return value


async def _within(reading: Coroutine[None, None, bytes]) -> bytes:
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await reading
    except TimeoutError:
        raise TransferError(f"nothing came for {READ_SECONDS:.0f} s") from None
