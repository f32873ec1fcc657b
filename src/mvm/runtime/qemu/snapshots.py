"""A sleeping guest on disk: its memory file, the state of its devices, and what both fit to.

A snapshot is `memory/snapshot.json`, written last and renamed into place: what it names was flushed to disk before.
It says by what the files were made and what they were, so that nothing is restored that does not belong together: a
damaged or exchanged file, another image, processor, kernel or QEMU, a data drive that was written since. Waking uses
the memory up: the name is taken away before a QEMU may touch it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from mvm.model.errors import SnapshotRejected
from mvm.runtime import sparse
from mvm.runtime.base import Snapshot
from mvm.runtime.qemu import compression
from mvm.runtime.qemu.files import Files
from mvm.runtime.qemu.monitor import Monitor

FORMAT = "1"
METADATA = "snapshot.json"
CONSUMED = "snapshot.used"
DEVICES = "devices"
COMPRESSED = "ram.zst"
UNFINISHED = ("ram.new", "snapshot.new")
"""What an agent that is killed while it compresses or writes metadata leaves: guests' memory is in it."""
PARTS = {
    "format": "the form of snapshots",
    "image": "the image revision",
    "qemu": "QEMU's version",
    "accelerator": "the accelerator",
    "layout": "the machine's make-up",
    "vcpus": "the number of processors",
    "mem_mib": "the size of the memory",
    "processor": "the host's processor",
    "kernel": "the host's kernel",
    "drives": "the sizes of the config and secrets drives",
}
"""What both sides of a restore must have in common, with its words for the operator."""


def load(directory: Path) -> Snapshot | None:
    """The snapshot that a directory names; None when there is none that is complete."""
    with suppress(OSError, ValueError, AttributeError):
        metadata = json.loads((directory / METADATA).read_text())
        return Snapshot(directory=directory, metadata={str(name): str(value) for name, value in metadata.items()})
    return None


async def write(files: Files, monitor: Monitor) -> None:
    """Write the devices of a paused guest. Afterwards `finish` makes a snapshot of it; on failure nothing is left."""
    discard_name(files)
    devices = files.memory / DEVICES
    descriptor = os.open(devices, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        await monitor.save_devices(descriptor)
    except BaseException:
        devices.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def finish(files: Files, made_by: Mapping[str, str]) -> Snapshot:
    """Flush what belongs to the snapshot, give it its name, and read it back as the restore will."""
    for path in (files.ram, files.memory / DEVICES, files.data):
        sparse.sync_file(path)
    metadata = dict(made_by) | {
        "format": FORMAT,
        "ram": sparse.identity(files.ram),
        "data": sparse.identity(files.data),
        "devices": digest(files.memory / DEVICES),
    }
    write_metadata(files.memory / METADATA, metadata)
    snapshot = load(files.memory)
    if snapshot is None:
        raise SnapshotRejected(f"'{files.memory / METADATA}' cannot be read back")
    verify(files, snapshot, made_by)
    return snapshot


def make_ready(files: Files, snapshot: Snapshot, wanted: Mapping[str, str], *, uid: int | None) -> None:
    """`verify`, and `unpack` what is compressed: QEMU can be given what was saved then."""
    verify(files, snapshot, wanted)
    unpack(files, snapshot, uid=uid)


def verify(files: Files, snapshot: Snapshot, wanted: Mapping[str, str]) -> None:
    """Raise `SnapshotRejected`, naming the first reason, unless this snapshot may be restored as it is wanted."""
    metadata = snapshot.metadata
    for name, words in PARTS.items():
        expected = FORMAT if name == "format" else wanted[name]
        if (found := metadata.get(name)) != expected:
            raise SnapshotRejected(f"the snapshot does not fit: {words} was {found}, is {expected}")
    try:
        _verify_files(files, metadata)
    except OSError as error:
        name = Path(error.filename).name if error.filename else "a file"
        raise SnapshotRejected(f"the snapshot is incomplete: {name}: {error.strerror}") from error


def _verify_files(files: Files, metadata: Mapping[str, str]) -> None:
    if metadata.get("data") != sparse.identity(files.data):
        raise SnapshotRejected("the data drive was written after the snapshot was taken")
    if metadata.get("devices") != digest(files.memory / DEVICES):
        raise SnapshotRejected("the snapshot is damaged: the state of the devices is not what was written")
    if "compressed" in metadata:
        compressed = files.memory / COMPRESSED
        if metadata["compressed"] != sparse.identity(compressed):
            raise SnapshotRejected("the snapshot is damaged: the compressed memory is not what was written")
    elif metadata.get("ram") != sparse.identity(files.ram):
        raise SnapshotRejected("the snapshot is damaged: the memory is not what was written")


def consume(files: Files) -> None:
    """Take the name away: from now on the files may change. Raises `SnapshotRejected` when it is gone.

    `sparse.sync_directory` makes it last; until then a power cut may bring the name back.
    """
    try:
        os.replace(files.memory / METADATA, files.memory / CONSUMED)
    except FileNotFoundError:
        raise SnapshotRejected("the snapshot was used already") from None


def give_back(files: Files) -> None:
    """Undo `consume`, as long as no QEMU was told to use the files."""
    with suppress(FileNotFoundError):
        os.replace(files.memory / CONSUMED, files.memory / METADATA)


def remove_used(files: Files) -> None:
    """The guest runs: remove what it was restored from. Idempotent."""
    for name in (CONSUMED, DEVICES, COMPRESSED, *UNFINISHED):
        (files.memory / name).unlink(missing_ok=True)


def discard_name(files: Files) -> None:
    """There is no snapshot any more; the memory may belong to a guest that runs on. Idempotent."""
    if not files.memory.is_dir():
        return
    (files.memory / METADATA).unlink(missing_ok=True)
    remove_used(files)
    sparse.sync_directory(files.memory)


def discard(files: Files) -> None:
    """Remove snapshot and memory; no process may use them. Idempotent."""
    discard_name(files)
    files.ram.unlink(missing_ok=True)


def compress(files: Files, abandon: Callable[[], bool] = lambda: False) -> int | None:
    """Replace a sleeper's memory file by a compressed one. Returns its bytes; None when there is nothing to do, or
    somebody wanted it back meanwhile.

    Whatever interrupts it, there is one complete snapshot: the metadata changes sides in one rename.
    """
    snapshot = load(files.memory)
    if snapshot is None or "compressed" in snapshot.metadata:
        return None
    if snapshot.metadata.get("ram") != sparse.identity(files.ram):
        raise SnapshotRejected("the snapshot is damaged: the memory is not what was written")
    compressed = files.memory / COMPRESSED
    if not compression.compress(files.ram, compressed, abandon):
        return None
    metadata = dict(snapshot.metadata) | {"compressed": sparse.identity(compressed)}
    metadata.pop("ram")
    write_metadata(files.memory / METADATA, metadata)
    files.ram.unlink()
    return compressed.stat().st_size


def unpack(files: Files, snapshot: Snapshot, *, uid: int | None) -> None:
    """Make the memory file of a compressed snapshot again; nothing happens for another one."""
    if "compressed" not in snapshot.metadata:
        return
    files.ram.unlink(missing_ok=True)
    compression.decompress(files.memory / COMPRESSED, files.ram)
    if uid is not None:
        os.chown(files.ram, uid, uid)


def write_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Replace a metadata file so that a power cut leaves the old or the new one."""
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        os.fchmod(file.fileno(), 0o600)
        json.dump(metadata, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    sparse.sync_directory(path.parent)


def digest(path: Path) -> str:
    """Size and SHA-256 of a small file."""
    content = path.read_bytes()
    return f"{len(content)}:{hashlib.sha256(content).hexdigest()}"
