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


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A snapshot that was read."""

    state: dict[str, Any]
    run: bytes
    """What the guest had below `/run`."""
    memory: int
    """The open memory file, which must not change while the guest runs."""
    problems: tuple[str, ...]
    """What Firecracker itself would not have noticed."""


def write(jail: Jail, state_path: str, memory_path: str, state: dict[str, Any], mem_mib: int, run: bytes) -> None:
    """Write both files; existing ones are emptied first, as Firecracker does. Raises `Fault`."""
    memory = jail.create(memory_path, "Cannot create the memory file")
    try:
        token = secrets.token_bytes(16)
        os.ftruncate(memory, mem_mib << 20)
        for at in range(0, mem_mib << 20, STRIDE):
            os.pwrite(memory, MAGIC + token + struct.pack("<Q", at), at)
        os.pwrite(memory, run, CONTENT_AT)
        digest = _digest(memory)
    finally:
        os.close(memory)
    text = json.dumps(state | {"memory": digest, "mem_mib": mem_mib, "run_bytes": len(run), **host()}).encode()
    content = STATE_MAGIC + text
    descriptor = jail.create(state_path, "Cannot create the state file")
    try:
        os.write(descriptor, content + struct.pack("<I", zlib.crc32(content)))
    finally:
        os.close(descriptor)


def read(jail: Jail, state_path: str, memory_path: str, version: str) -> Loaded:
    """Read a snapshot. Raises `Fault` for what ends the loading process."""
    state = _read_state(jail, state_path, version)
    memory = jail.open(memory_path, os.O_RDONLY, "Cannot open the memory file")
    size = os.fstat(memory).st_size
    if size < state["mem_mib"] << 20:
        os.close(memory)
        raise Fault(f"Cannot load guest memory: the file has {size} bytes, the guest {state['mem_mib']} MiB")
    problems = []
    if _digest(memory) != state["memory"]:
        problems.append("a guest was to run from a memory file that is not what was written")
    for name, value in host().items():
        if state[name] != value:
            problems.append(f"a guest was to run on another {name}: {state[name]}, now {value}")
    run = os.pread(memory, state["run_bytes"], CONTENT_AT)
    return Loaded(state=state, run=run, memory=memory, problems=tuple(problems))


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


def _digest(descriptor: int) -> str:
    hashed = hashlib.sha256()
    for begin, end in _extents(descriptor):
        for at in range(begin, end, 1 << 20):
            piece = os.pread(descriptor, min(1 << 20, end - at), at)
            for page in range(0, len(piece), PAGE):
                # A hole and a page of zeros are the same memory: copies may have either.
                if any(piece[page : page + PAGE]):
                    hashed.update(struct.pack("<Q", at + page) + piece[page : page + PAGE])
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
