"""Files of snapshots: the state of the devices, and a memory file of the machine's size, as sparse as a guest's is.

The memory file holds what the stand-in's guest has in memory (the files below `/run`), and marks at fixed distances by
which a missing or changed piece is known. Firecracker checks its state file by a CRC only and the memory not at all:
what it would have run from is reported as a violation, so that a test sees what mvm should have noticed before.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.standins.firecracker.jail import Jail
from tests.standins.firecracker.rules import Fault

MAGIC = b"MVM stand-in memory\n"
STATE_MAGIC = b"MVM stand-in state\n"
STRIDE = 8 << 20
CONTENT_AT = 64 << 10
PAGE = 4096
TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A snapshot that was read."""

    state: dict[str, Any]
    run: bytes
    """What the guest had below `/run`."""
    pages: Pages
    memory: int
    """The open memory file, which must not change while the guest runs."""
    problems: tuple[str, ...]
    """What Firecracker itself would not have noticed."""


Pages = dict[int, bytes]
"""What is in a memory, page by page; what is not there is clear."""


def pages(marks: dict[int, bytes], run: bytes) -> Pages:
    """A memory that holds these marks, and what the guest has below `/run`."""
    found = {at: (MAGIC + token + struct.pack("<Q", at)).ljust(PAGE, b"\0") for at, token in marks.items()}
    for at in range(0, len(run), PAGE):
        found[CONTENT_AT + at] = run[at : at + PAGE].ljust(PAGE, b"\0")
    return found


def marks(mem_mib: int) -> dict[int, bytes]:
    """Marks of a guest that boots."""
    return {at: secrets.token_bytes(TOKEN) for at in range(0, mem_mib << 20, STRIDE)}


def marks_in(memory: Pages) -> dict[int, bytes]:
    """The marks of a guest that was restored."""
    return {
        at: page[len(MAGIC) : len(MAGIC) + TOKEN]
        for at, page in memory.items()
        if at % STRIDE == 0 and page.startswith(MAGIC)
    }


def write(
    jail: Jail, state_path: str, memory_path: str, state: dict[str, Any], memory: Pages, *, since: Pages | None = None
) -> None:
    """Write both files. Raises `Fault`.

    All of the memory goes into a file that is emptied first; with `since`, what the memory was before, only the pages
    that differ. They go into the file that is there already if it has the memory's size, else into an empty one.
    """
    mem_mib = state["machine"]["mem_size_mib"]
    changed = memory
    if since is not None:
        clear = bytes(PAGE)
        changed = {at: memory.get(at, clear) for at in memory.keys() | since if memory.get(at) != since.get(at)}
    descriptor = _memory_file(jail, memory_path, mem_mib << 20, merge=since is not None)
    try:
        os.ftruncate(descriptor, mem_mib << 20)
        for at, page in sorted(changed.items()):
            os.pwrite(descriptor, page, at)
    finally:
        os.close(descriptor)
    text = json.dumps(state | {"memory": _digest(memory), "mem_mib": mem_mib, **host()}).encode()
    content = STATE_MAGIC + text
    descriptor = jail.create(state_path, "Cannot create the state file")
    try:
        os.write(descriptor, content + struct.pack("<I", zlib.crc32(content)))
    finally:
        os.close(descriptor)


def _memory_file(jail: Jail, named: str, size: int, *, merge: bool) -> int:
    what = "Cannot create the memory file"
    if merge and jail.path(named).exists() and jail.path(named).stat().st_size == size:
        return jail.open(named, os.O_RDWR, what)
    return jail.create(named, what)


def read(jail: Jail, state_path: str, memory_path: str, version: str) -> Loaded:
    """Read a snapshot. Raises `Fault` for what ends the loading process."""
    state = _read_state(jail, state_path, version)
    memory = jail.open(memory_path, os.O_RDONLY, "Cannot open the memory file")
    size = os.fstat(memory).st_size
    if size < state["mem_mib"] << 20:
        os.close(memory)
        raise Fault(f"Cannot load guest memory: the file has {size} bytes, the guest {state['mem_mib']} MiB")
    problems = []
    content = read_pages(memory)
    if _digest(content) != state["memory"]:
        problems.append("a guest was to run from a memory file that is not what was written")
    for name, value in host().items():
        if state[name] != value:
            problems.append(f"a guest was to run on another {name}: {state[name]}, now {value}")
    run = os.pread(memory, state["run_bytes"], CONTENT_AT)
    return Loaded(state=state, run=run, pages=content, memory=memory, problems=tuple(problems))


def _read_state(jail: Jail, named: str, version: str) -> dict[str, Any]:
    descriptor = jail.open(named, os.O_RDONLY, "Cannot open the state file")
    try:
        content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)
    body, checksum = content[:-4], content[-4:]
    if not body.startswith(STATE_MAGIC) or checksum != struct.pack("<I", zlib.crc32(body)):
        raise Fault("Failed to restore from snapshot: CRC validation failed")
    state: dict[str, Any] = json.loads(body[len(STATE_MAGIC) :])
    if _format(state["version"]) != _format(version):
        raise Fault(f"Failed to restore from snapshot: its version {state['version']} is not that of {version}")
    return state


def _format(version: str) -> list[str]:
    """Nearly every minor version has a format of its own."""
    return version.split(".")[:2]


def host() -> dict[str, str]:
    """What a guest's memory fits to, besides Firecracker."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"processor": models[0] if models else platform.machine(), "kernel": os.uname().release}


def read_pages(descriptor: int) -> Pages:
    """What is in an open memory file. A hole and a page of zeros are the same memory: copies may have either."""
    found = {}
    for begin, end in _extents(descriptor):
        for at in range(begin, end, 1 << 20):
            piece = os.pread(descriptor, min(1 << 20, end - at), at)
            for page in range(0, len(piece), PAGE):
                if any(piece[page : page + PAGE]):
                    found[at + page] = piece[page : page + PAGE]
    return found


def memory_in(path: Path) -> Pages:
    """What is in a memory file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_pages(descriptor)
    finally:
        os.close(descriptor)


def _digest(memory: Pages) -> str:
    hashed = hashlib.sha256()
    for at in sorted(memory):
        if any(memory[at]):
            hashed.update(struct.pack("<Q", at) + memory[at])
    return hashed.hexdigest()


def _extents(descriptor: int) -> Iterator[tuple[int, int]]:
    end = os.fstat(descriptor).st_size
    at = 0
    while at < end:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:
            return
        at = min(os.lseek(descriptor, begin, os.SEEK_HOLE), end)
        yield begin, at
