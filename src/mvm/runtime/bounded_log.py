"""A log that somebody else fills, kept within bounds: of what a guest or its machine says the newest is kept."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

LIMIT = 256 * 1024
"""Bytes that are kept at most; of a longer log the newest half stays."""


def append(log: Path, data: bytes) -> None:
    """Add to a log that is never longer than `LIMIT`."""
    descriptor = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "r+b", buffering=0) as file:
        if os.fstat(descriptor).st_size + len(data) > LIMIT:
            kept = os.pread(descriptor, LIMIT, 0)[-LIMIT // 2 :]
            file.truncate(0)
            file.write(kept[kept.find(b"\n") + 1 :])
        file.write(data)


def last_words(log: Path) -> str:
    """The last line of a log, printable."""
    with suppress(OSError):
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        said = ["".join(c for c in line if c.isprintable()).strip() for line in lines]
        if any(said):
            return [line for line in said if line][-1][:300]
    return "nothing"
