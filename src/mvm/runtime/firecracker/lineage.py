"""The memory that a running guest went on from, kept where its next sleep is to write only what has changed since.

Firecracker tells what has changed since it loaded, or last wrote, that guest's memory. So this memory is good for the
very process that loaded it, and only until anything of that process is written down: whoever has a snapshot written
takes it, or forgets it, first. What is left by an agent that was killed is never taken for more than it is (ADR 0022).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mvm.guest.processes import Identity
from mvm.model.errors import MvmError
from mvm.runtime import saved, sparse
from mvm.runtime.firecracker import memory_file
from mvm.runtime.firecracker.files import Files

BEFORE = "ram.before"
RECORD = "before.json"
COPY = saved.UNFINISHED[0]
"""What an agent that is killed leaves of it is removed with everything that is unfinished."""


def keep(files: Files, process: Identity) -> None:
    """The guest runs from `ram`, in that process: its next sleep may build upon it."""
    before = files.memory / BEFORE
    os.replace(files.ram, before)
    record = {"process": _named(process), "traces": memory_file.traces(before.stat())}
    (files.memory / RECORD).write_text(json.dumps(record))


@contextmanager
def taken(files: Files, process: Identity | None) -> Iterator[int | None]:
    """What that process went on from, open to be read; None when it is not known for certain.

    Nobody else finds it any more, whatever becomes of the one who has it.
    """
    descriptor = _open(files, process)
    forget(files)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open(files: Files, process: Identity | None) -> int | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((files.memory / RECORD).read_text())
        if process is None or record["process"] != _named(process):
            return None
        descriptor = os.open(files.memory / BEFORE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if memory_file.untouched(os.fstat(descriptor), str(record["traces"])):
            return descriptor
        os.close(descriptor)
    return None


def _named(process: Identity) -> list[int]:
    return [process.pid, process.start_time]


def forget(files: Files) -> None:
    """The next sleep writes everything. Idempotent."""
    for name in (RECORD, BEFORE):
        (files.memory / name).unlink(missing_ok=True)


def copy(files: Files, before: int) -> Path:
    """A copy that may be written to, blocks shared where the file system can. Raises `MvmError`; then there is none."""
    path = files.memory / COPY
    path.unlink(missing_ok=True)
    sparse.copy(Path(f"/proc/self/fd/{before}"), path)
    return path


def require_merged(ram: Path, before: int) -> None:
    """Raise `MvmError` unless everything of the former memory has something in its place.

    A Firecracker that began a new file instead of writing into the one it was given would have left out the rest.
    """
    descriptor = os.open(ram, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not sparse.covers(descriptor, before):
            raise MvmError("Firecracker wrote what has changed and did not keep the rest of the memory")
    finally:
        os.close(descriptor)
