"""A sleeper of this runtime: Firecracker writes its memory and the state of its devices, into fresh files.

It writes all of the memory, or, where that is wanted and possible, what has changed into a copy of what its guest went
on from, which itself is never touched. What was written is taken out of the room when it is complete.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mvm.model.errors import MvmError
from mvm.runtime import bases, saved, sparse
from mvm.runtime.firecracker import api, files, lineage, memory_file
from mvm.runtime.firecracker.files import Files
from mvm.runtime.firecracker.room import Room
from mvm.runtime.saved import Snapshots

if TYPE_CHECKING:
    from mvm.runtime.firecracker.client import Client

SNAPSHOT_SECONDS = 300.0
"""A snapshot writes all of the guest's memory to a disk that others use too."""

SNAPSHOTS = Snapshots(
    {
        "image": "the image revision",
        "firecracker": "Firecracker's version",
        "layout": "the machine's make-up",
        "vcpus": "the number of processors",
        "mem_mib": "the size of the memory",
        "processor": "the host's processor",
        "kernel": "the host's kernel",
        "drives": "the sizes of the config and secrets drives",
    },
    describe=memory_file.describe,
    holds=memory_file.holds,
)
PRIVATE_MODE = 0o600
SHARED_MODE = 0o444
"""Of a base's memory, which every copy maps and none may write. Its directory is closed to everybody else."""


async def write(client: Client, room: Room, *, upon: Path | None = None) -> None:
    """Have a paused machine written down in its room. On failure nothing is left of it.

    Only what has changed is written with `upon`, a copy of what the guest went on from, which it is moved into.
    """
    room.clear(files.FRESH_DEVICES, files.FRESH_MEMORY)
    if upon is not None:
        room.give(upon, files.FRESH_MEMORY)
    body = api.SnapshotCreate(
        snapshot_type="Full" if upon is None else "Diff",
        snapshot_path=files.FRESH_DEVICES,
        mem_file_path=files.FRESH_MEMORY,
    )
    try:
        await client.tell(api.CREATE_SNAPSHOT, body, seconds=SNAPSHOT_SECONDS)
    except BaseException:
        room.clear(files.FRESH_DEVICES, files.FRESH_MEMORY)
        raise


def take(room: Room, *, ram: Path, devices: Path, shared: bool = False, upon: int | None = None) -> None:
    """Take what was written out of the room, with holes where the memory is clear.

    `upon` is the open memory that it was written upon. Raises `MvmError` when that is not in it.
    """
    room.take(files.FRESH_MEMORY, ram, mode=PRIVATE_MODE)
    if upon is not None:
        lineage.require_merged(ram, upon)
    memory_file.make_holes(ram)
    if shared:
        ram.chmod(SHARED_MODE)
    room.take(files.FRESH_DEVICES, devices, mode=PRIVATE_MODE)


def require_whole(ram: Path, *, mem_mib: int) -> None:
    """Raise `MvmError` unless all of a guest's memory was written: its process, which still has it, is to be ended."""
    size = ram.stat().st_size
    if size != mem_mib << 20:
        raise MvmError(f"Firecracker wrote {size} bytes of a memory of {mem_mib} MiB", hint="is the file system full?")


def remove_used(places: Files) -> None:
    """The guest runs: nothing that could be restored once more is left of what it went on from. Idempotent."""
    saved.remove_used(places)
    places.ram.unlink(missing_ok=True)


def keep(room: Room, places: Files, directory: Path, made_by: dict[str, str]) -> None:
    """Make a base of what was written: memory, devices, and a copy of the data drive."""
    take(room, ram=directory / bases.RAM, devices=directory / bases.DEVICES, shared=True)
    require_whole(directory / bases.RAM, mem_mib=int(made_by["mem_mib"]))
    (directory / bases.DEVICES).chmod(bases.FILE_MODE)
    for name in (bases.RAM, bases.DEVICES):
        sparse.sync_file(directory / name)
    sparse.copy(places.data, directory / bases.DATA, mode=bases.FILE_MODE)
    bases.finish(directory, made_by, SNAPSHOTS)
