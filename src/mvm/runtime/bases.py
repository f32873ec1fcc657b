"""Bases: guests that are warm and belong to nobody yet, kept to be copied.

The files of a base are never written again, and nobody ever runs from its data drive: every copy gets one of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mvm.model.errors import Conflict, SnapshotRejected
from mvm.runtime import saved, sparse
from mvm.runtime.base import Snapshot
from mvm.runtime.saved import Place, Snapshots

BASE = "base.json"
RAM = "ram"
DEVICES = "devices"
DATA = "data.img"
FILE_MODE = 0o400


def key(wanted: Mapping[str, str], *, role: str, data_mib: int) -> str:
    """Name of the base for machines of this make: equal makes have equal names."""
    document = json.dumps({**wanted, "role": role, "data_mib": data_mib}, sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()[:20]


def require_empty(directory: Path) -> None:
    """Raise `Conflict` when something is in the directory of a base to be."""
    if os.listdir(directory):
        raise Conflict(f"'{directory}' is not empty", hint="remove what an interrupted build left there")


def finish(directory: Path, made_by: Mapping[str, str], snapshots: Snapshots) -> None:
    """Memory, devices and data drive are in the directory: say what they are and by what they were made."""
    metadata = dict(made_by) | {
        "format": saved.FORMAT,
        "devices": saved.digest(directory / DEVICES),
        "ram": snapshots.describe(directory / RAM),
        "data": sparse.identity(directory / DATA),
    }
    saved.write_metadata(directory / BASE, metadata)


def remove_files(directory: Path) -> None:
    """Remove the files of a base. Idempotent."""
    for name in (BASE, RAM, DEVICES, DATA):
        (directory / name).unlink(missing_ok=True)


def copy(
    directory: Path,
    files: Place,
    snapshots: Snapshots,
    *,
    uid: int | None,
    wanted: Mapping[str, str],
    shared: bool = False,
) -> Snapshot:
    """Give an instance that never ran copies of a base, as a snapshot of its own. On failure it has nothing.

    With `shared`, for machines that never write to the file they are given, the memory is the base's own file under
    one more name. Raises `SnapshotRejected` when the base does not fit or is damaged, `Conflict` when the instance ran
    before.
    """
    if files.data.exists() or saved.load(files.memory) is not None:
        raise Conflict(f"'{files.memory.parent}' is the state of an instance that ran already")
    metadata = _load(directory)
    snapshots.check_make(metadata, wanted, what="the base")
    _verify(directory, metadata, snapshots)
    files.memory.mkdir(mode=0o700, parents=True, exist_ok=True)
    saved.discard(files)
    unfinished = files.data.with_name(f".{files.data.name}.new")
    unfinished.unlink(missing_ok=True)
    try:
        if not (shared and _link(directory / RAM, files.ram)):
            sparse.copy(directory / RAM, files.ram)
            if uid is not None:
                os.chown(files.ram, uid, uid)
        sparse.copy(directory / DEVICES, files.memory / saved.DEVICES)
        # Who has a data drive has a whole one, whenever this agent is killed.
        sparse.copy(directory / DATA, unfinished)
        unfinished.replace(files.data)
        return snapshots.finish(files, wanted)
    except BaseException:
        saved.discard(files)
        for path in (unfinished, files.data):
            path.unlink(missing_ok=True)
        raise


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another file system, or too many names of one file
        return False
    return True


def _load(directory: Path) -> dict[str, str]:
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads((directory / BASE).read_text())
        return {str(name): str(value) for name, value in found.items()}
    raise SnapshotRejected(f"there is no complete base in '{directory}'")


def _verify(directory: Path, metadata: Mapping[str, str], snapshots: Snapshots) -> None:
    """A base never changes; one that did must not be given to anybody."""
    whole = {name: False for name in ("devices", "ram", "data")}
    with suppress(OSError):
        whole["devices"] = saved.digest(directory / DEVICES) == metadata.get("devices")
        whole["ram"] = snapshots.holds(directory / RAM, metadata.get("ram", ""))
        whole["data"] = sparse.identity(directory / DATA) == metadata.get("data")
    for name, as_written in whole.items():
        if not as_written:
            raise SnapshotRejected(f"the base in '{directory}' is damaged: {name} is not what was written")
