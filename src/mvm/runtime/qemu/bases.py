"""Bases: guests that are warm and belong to nobody yet, kept to be copied.

A QEMU is only ever given copies. It writes into whatever memory file it is given, also one that it maps privately: what
the guest's balloon gives back is punched out of the file, and the next clone would read wrong content without an error
(facts/QEMU.md, section 6). So the files of a base are readable by their owner only, opened here and nowhere else, for
reading.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mvm.model.errors import Conflict, SnapshotRejected
from mvm.runtime import sparse
from mvm.runtime.base import Snapshot
from mvm.runtime.qemu import snapshots
from mvm.runtime.qemu.files import Files
from mvm.runtime.qemu.monitor import Monitor

BASE = "base.json"
RAM = "ram"
DEVICES = "devices"
DATA = "data.img"
FILE_MODE = 0o400


def key(wanted: Mapping[str, str], *, role: str, data_mib: int) -> str:
    """Name of the base for machines of this make: equal makes have equal names."""
    document = json.dumps({**wanted, "role": role, "data_mib": data_mib}, sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()[:20]


async def keep(files: Files, monitor: Monitor, directory: Path, made_by: Mapping[str, str]) -> None:
    """Copy a paused guest into an empty directory, whole or not at all."""
    if os.listdir(directory):
        raise Conflict(f"'{directory}' is not empty", hint="remove what an interrupted build left there")
    try:
        descriptor = os.open(directory / DEVICES, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            await monitor.save_devices(descriptor)
            os.fsync(descriptor)
            os.fchmod(descriptor, FILE_MODE)
        finally:
            os.close(descriptor)
        await asyncio.to_thread(_keep_files, files, directory, made_by)
    except BaseException:
        remove_files(directory)
        raise


def _keep_files(files: Files, directory: Path, made_by: Mapping[str, str]) -> None:
    sparse.copy(files.ram, directory / RAM, mode=FILE_MODE)
    sparse.copy(files.data, directory / DATA, mode=FILE_MODE)
    metadata = dict(made_by) | {
        "format": snapshots.FORMAT,
        "devices": snapshots.digest(directory / DEVICES),
        "ram": sparse.identity(directory / RAM),
        "data": sparse.identity(directory / DATA),
    }
    snapshots.write_metadata(directory / BASE, metadata)


def remove_files(directory: Path) -> None:
    """Remove the files of a base. Idempotent."""
    for name in (BASE, RAM, DEVICES, DATA):
        (directory / name).unlink(missing_ok=True)


def copy(directory: Path, files: Files, *, uid: int | None, wanted: Mapping[str, str]) -> Snapshot:
    """Give an instance that never ran copies of a base, as a snapshot of its own. On failure it has nothing.

    Raises `SnapshotRejected` when the base does not fit or is damaged, `Conflict` when the instance ran before.
    """
    if files.data.exists() or snapshots.load(files.memory) is not None:
        raise Conflict(f"'{files.state_dir}' is the state of an instance that ran already")
    metadata = _load(directory)
    for name, expected in wanted.items():
        if metadata.get(name) != expected:
            words = snapshots.PARTS.get(name, name)
            raise SnapshotRejected(f"the base does not fit: {words} was {metadata.get(name)}, is {expected}")
    _verify(directory, metadata)
    files.make_memory()
    snapshots.discard(files)
    unfinished = files.data.with_name(f".{files.data.name}.new")
    unfinished.unlink(missing_ok=True)
    try:
        sparse.copy(directory / RAM, files.ram)
        sparse.copy(directory / DEVICES, files.memory / snapshots.DEVICES)
        if uid is not None:
            os.chown(files.ram, uid, uid)
        # Who has a data drive has a whole one, whenever this agent is killed.
        sparse.copy(directory / DATA, unfinished)
        unfinished.replace(files.data)
        return snapshots.finish(files, wanted)
    except BaseException:
        snapshots.discard(files)
        for path in (unfinished, files.data):
            path.unlink(missing_ok=True)
        raise


def _load(directory: Path) -> dict[str, str]:
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads((directory / BASE).read_text())
        return {str(name): str(value) for name, value in found.items()}
    raise SnapshotRejected(f"there is no complete base in '{directory}'")


def _verify(directory: Path, metadata: Mapping[str, str]) -> None:
    """A base never changes; one that did must not be given to anybody."""
    found: dict[str, str] = {}
    with suppress(OSError):
        found["devices"] = snapshots.digest(directory / DEVICES)
        found["ram"] = sparse.identity(directory / RAM)
        found["data"] = sparse.identity(directory / DATA)
    for name in ("devices", "ram", "data"):
        if found.get(name) != metadata.get(name):
            raise SnapshotRejected(f"the base in '{directory}' is damaged: {name} is not what was written")
