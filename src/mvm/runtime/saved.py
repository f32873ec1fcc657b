"""A sleeping guest on disk, whatever ran it: its memory file, the state of its devices, and what both fit to.

A snapshot is `memory/snapshot.json`, written last and renamed into place: what it names was flushed to disk before.
It says by what the files were made and what they were, so that nothing is restored that does not belong together: a
damaged or exchanged file, another image, processor, kernel or version, a data drive that was written since. Waking uses
the snapshot up: the name is taken away before anything of the guest may run. Until a machine is told to go on from the
files they are as they were, so what an agent took and did not live to use is given back.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from mvm.model.errors import SnapshotRejected
from mvm.runtime import compression, sparse
from mvm.runtime.base import Snapshot
from mvm.runtime.records import boot_id

FORMAT = "1"
METADATA = "snapshot.json"
CONSUMED = "snapshot.used"
TAKEN = "snapshot.taken"
"""Followed by the boot of the host: after a power cut nobody knows whether a machine ran."""
DEVICES = "devices"
COMPRESSED = "ram.zst"
UNFINISHED = ("ram.new", "snapshot.new")
"""What an agent that is killed while it compresses or writes metadata leaves: guests' memory is in it."""


class Place(Protocol):
    """Where the files of a guest's memory are."""

    @property
    def memory(self) -> Path:
        """Directory of the memory and of its snapshot."""

    @property
    def ram(self) -> Path:
        """The memory, in that directory."""

    @property
    def data(self) -> Path:
        """Image of the data drive."""


class Snapshots:
    """Snapshots of one runtime."""

    def __init__(
        self,
        parts: Mapping[str, str],
        *,
        describe: Callable[[Path], str] = sparse.identity,
        holds: Callable[[Path, str], bool] = lambda path, told: sparse.identity(path) == told,
    ) -> None:
        """`parts` is what both sides of a restore must have in common, with its words for the operator.

        `describe` tells of a memory file what is written down, `holds` whether that is still so.
        """
        self.parts = {"format": "the form of snapshots", **parts}
        self.describe = describe
        self.holds = holds

    def finish(self, files: Place, made_by: Mapping[str, str]) -> Snapshot:
        """Flush what belongs to the snapshot, give it its name, and read it back as the restore will."""
        for path in (files.ram, files.memory / DEVICES, files.data):
            sparse.sync_file(path)
        metadata = dict(made_by) | {
            "format": FORMAT,
            "ram": self.describe(files.ram),
            "data": sparse.identity(files.data),
            "devices": digest(files.memory / DEVICES),
        }
        write_metadata(files.memory / METADATA, metadata)
        snapshot = load(files.memory)
        if snapshot is None:
            raise SnapshotRejected(f"'{files.memory / METADATA}' cannot be read back")
        self.verify(files, snapshot, made_by)
        return snapshot

    def make_ready(self, files: Place, snapshot: Snapshot, wanted: Mapping[str, str], *, uid: int | None) -> None:
        """`verify`, and `unpack` what is compressed: the machine can be given what was saved then."""
        self.verify(files, snapshot, wanted)
        unpack(files, snapshot, uid=uid)

    def verify(self, files: Place, snapshot: Snapshot, wanted: Mapping[str, str]) -> None:
        """Raise `SnapshotRejected`, naming the first reason, unless this snapshot may be restored as it is wanted."""
        metadata = snapshot.metadata
        self.check_make(metadata, {"format": FORMAT, **wanted}, what="the snapshot")
        try:
            self._verify_files(files, metadata)
        except OSError as error:
            name = Path(error.filename).name if error.filename else "a file"
            raise SnapshotRejected(f"the snapshot is incomplete: {name}: {error.strerror}") from error

    def check_make(self, metadata: Mapping[str, str], wanted: Mapping[str, str], *, what: str) -> None:
        """Raise `SnapshotRejected` unless everything of `parts` that is wanted is as it was."""
        for name, words in self.parts.items():
            if name in wanted and (found := metadata.get(name)) != wanted[name]:
                raise SnapshotRejected(f"{what} does not fit: {words} was {found}, is {wanted[name]}")

    def _verify_files(self, files: Place, metadata: Mapping[str, str]) -> None:
        if metadata.get("data") != sparse.identity(files.data):
            raise SnapshotRejected("the data drive was written after the snapshot was taken")
        if metadata.get("devices") != digest(files.memory / DEVICES):
            raise SnapshotRejected("the snapshot is damaged: the state of the devices is not what was written")
        if "compressed" in metadata:
            if metadata["compressed"] != sparse.identity(files.memory / COMPRESSED):
                raise SnapshotRejected("the snapshot is damaged: the compressed memory is not what was written")
        elif not self.holds(files.ram, metadata.get("ram", "")):
            raise SnapshotRejected("the snapshot is damaged: the memory is not what was written")

    def compress(self, files: Place, abandon: Callable[[], bool] = lambda: False) -> int | None:
        """Replace a sleeper's memory file by a compressed one. Returns its bytes; None when there is nothing to do, or
        somebody wanted it back meanwhile.

        Whatever interrupts it, there is one complete snapshot: the metadata changes sides in one rename.
        """
        snapshot = load(files.memory)
        if snapshot is None or "compressed" in snapshot.metadata:
            return None
        if not self.holds(files.ram, snapshot.metadata.get("ram", "")):
            raise SnapshotRejected("the snapshot is damaged: the memory is not what was written")
        compressed = files.memory / COMPRESSED
        if not compression.compress(files.ram, compressed, abandon):
            return None
        metadata = dict(snapshot.metadata) | {"compressed": sparse.identity(compressed)}
        metadata.pop("ram")
        write_metadata(files.memory / METADATA, metadata)
        files.ram.unlink()
        return compressed.stat().st_size


def load(directory: Path) -> Snapshot | None:
    """The snapshot that a directory names; None when there is none that is complete."""
    with suppress(OSError, ValueError, AttributeError):
        metadata = json.loads((directory / METADATA).read_text())
        return Snapshot(directory=directory, metadata={str(name): str(value) for name, value in metadata.items()})
    return None


def consume(files: Place) -> None:
    """Take the name away: nobody else can use the files. Raises `SnapshotRejected` when it is gone.

    `sparse.sync_directory` makes it last; until then a power cut may bring the name back.
    """
    try:
        os.replace(files.memory / METADATA, _taken(files))
    except FileNotFoundError:
        raise SnapshotRejected("the snapshot was used already") from None


def begin(files: Place) -> None:
    """A machine is told to go on from the files, and they may change: `untouched` does not give them back any more."""
    os.replace(_taken(files), files.memory / CONSUMED)


def give_back(files: Place) -> None:
    """Undo `consume`, as long as no machine went on from the files."""
    for name in (files.memory / CONSUMED, _taken(files)):
        with suppress(FileNotFoundError):
            os.replace(name, files.memory / METADATA)


def untouched(files: Place) -> Snapshot | None:
    """Give back what was taken in this boot of the host and then not used; no process may have it. None: not so."""
    if not _taken(files).exists():
        return None
    give_back(files)
    return load(files.memory)


def _taken(files: Place) -> Path:
    return files.memory / f"{TAKEN}-{boot_id()}"


def remove_used(files: Place) -> None:
    """The guest runs: remove what it was restored from. Idempotent."""
    for name in (CONSUMED, DEVICES, COMPRESSED, *UNFINISHED):
        (files.memory / name).unlink(missing_ok=True)
    for path in files.memory.glob(f"{TAKEN}-*"):
        path.unlink(missing_ok=True)


def discard_name(files: Place) -> None:
    """There is no snapshot any more; the memory may belong to a guest that runs on. Idempotent."""
    if not files.memory.is_dir():
        return
    (files.memory / METADATA).unlink(missing_ok=True)
    remove_used(files)
    sparse.sync_directory(files.memory)


def discard(files: Place) -> None:
    """Remove snapshot and memory; no process may use them. Idempotent."""
    discard_name(files)
    files.ram.unlink(missing_ok=True)


def unpack(files: Place, snapshot: Snapshot, *, uid: int | None) -> None:
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
