"""A snapshot is whole or it is none, fits or is rejected by name, and is used once."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.runtime.qemu_machines import machine

from mvm.model.errors import MvmError, SnapshotRejected, Unavailable
from mvm.runtime import bases, compression, saved, sparse
from mvm.runtime.base import Snapshot
from mvm.runtime.qemu.bases import keep_files
from mvm.runtime.qemu.files import Files
from mvm.runtime.qemu.runtime import QemuRuntime
from mvm.runtime.qemu.snapshots import SNAPSHOTS

MADE_BY = {
    "image": "0123abcd",
    "qemu": "7.2.22",
    "accelerator": "tcg",
    "layout": "4711",
    "vcpus": "1",
    "mem_mib": "64",
    "processor": "a processor",
    "kernel": "6.1",
    "drives": "secrets=262144,config=1048576",
}


def fill(files: Files) -> None:
    """What a paused guest leaves: memory, devices, data."""
    os.close(files.make_ram(mib=64, uid=None))
    with files.ram.open("r+b") as ram:
        ram.seek(5 << 20)
        ram.write(os.urandom(100_000))
    (files.memory / saved.DEVICES).write_bytes(os.urandom(5000))
    files.data.write_bytes(os.urandom(9000))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files.of(machine(tmp_path))
    fill(files)
    return files


@pytest.fixture
def snapshot(files: Files) -> Snapshot:
    return SNAPSHOTS.finish(files, MADE_BY)


def test_what_was_saved_is_found_and_fits(files: Files, snapshot: Snapshot) -> None:
    assert saved.load(files.memory) == snapshot
    SNAPSHOTS.verify(files, snapshot, MADE_BY)


@pytest.mark.parametrize("name", sorted(set(SNAPSHOTS.parts) - {"format"}))
def test_whatever_differs_is_named(files: Files, snapshot: Snapshot, name: str) -> None:
    with pytest.raises(SnapshotRejected, match=SNAPSHOTS.parts[name]) as rejected:
        SNAPSHOTS.verify(files, snapshot, MADE_BY | {name: "another"})
    assert "another" in rejected.value.message


def test_a_snapshot_of_another_form_is_rejected(files: Files, snapshot: Snapshot) -> None:
    for form in ("0", None):
        metadata = {name: value for name, value in snapshot.metadata.items() if name != "format"}
        other = Snapshot(directory=snapshot.directory, metadata=metadata | ({"format": form} if form else {}))
        with pytest.raises(SnapshotRejected, match="the form of snapshots"):
            SNAPSHOTS.verify(files, other, MADE_BY)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def written(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"something else")


def replaced(path: Path) -> None:
    content = path.read_bytes()
    path.rename(path.with_name("former"))
    path.write_bytes(content[:-1] + b"!")


@pytest.mark.parametrize("part", ["ram", "devices", "data"])
@pytest.mark.parametrize("harm", [truncated, written, replaced, Path.unlink])
def test_whatever_happened_to_a_file_is_noticed(
    files: Files, snapshot: Snapshot, part: str, harm: Callable[[Path], None]
) -> None:
    harm({"ram": files.ram, "devices": files.memory / saved.DEVICES, "data": files.data}[part])
    with pytest.raises(SnapshotRejected):
        SNAPSHOTS.verify(files, snapshot, MADE_BY)


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "null"])
def test_damaged_metadata_is_no_snapshot(files: Files, snapshot: Snapshot, text: str) -> None:
    (files.memory / saved.METADATA).write_text(text)
    assert saved.load(files.memory) is None


def test_it_is_used_once(files: Files, snapshot: Snapshot) -> None:
    saved.consume(files)
    assert saved.load(files.memory) is None
    with pytest.raises(SnapshotRejected, match="used already"):
        saved.consume(files)


def test_it_is_given_back_when_nothing_touched_it(files: Files, snapshot: Snapshot) -> None:
    saved.consume(files)
    saved.give_back(files)
    assert saved.load(files.memory) == snapshot


async def test_what_a_killed_agent_took_and_did_not_use_is_there_for_the_next(
    tmp_path: Path, files: Files, snapshot: Snapshot
) -> None:
    saved.consume(files)
    later = QemuRuntime()
    assert await later.saved_snapshot(machine(tmp_path)) == snapshot
    SNAPSHOTS.verify(files, snapshot, MADE_BY)


async def test_what_a_machine_was_told_to_go_on_from_is_given_back_by_nobody(
    tmp_path: Path, files: Files, snapshot: Snapshot
) -> None:
    saved.consume(files)
    saved.begin(files)
    assert await QemuRuntime().saved_snapshot(machine(tmp_path)) is None


async def test_after_a_power_cut_nothing_that_was_taken_is_given_back(
    tmp_path: Path, files: Files, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved.consume(files)
    monkeypatch.setattr(saved, "boot_id", lambda: "another boot")
    assert await QemuRuntime().saved_snapshot(machine(tmp_path)) is None
    saved.discard(files)
    assert not any(files.memory.iterdir())


def test_without_room_to_unpack_the_snapshot_stays_as_it_was(
    files: Files, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    SNAPSHOTS.compress(files)
    compressed = saved.load(files.memory)
    assert compressed is not None
    with monkeypatch.context() as full:
        full.setattr(compression, "_write_extent", no_room)
        with pytest.raises(Unavailable, match="no room"):
            SNAPSHOTS.make_ready(files, compressed, MADE_BY, uid=None)
    assert not files.ram.exists()
    SNAPSHOTS.make_ready(files, compressed, MADE_BY, uid=None)
    assert files.ram.stat().st_size == 64 << 20


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_discarding_leaves_the_memory_of_a_guest_that_goes_on(files: Files, snapshot: Snapshot) -> None:
    saved.discard_name(files)
    assert saved.load(files.memory) is None
    assert sorted(path.name for path in files.memory.iterdir()) == ["ram"]
    saved.discard(files)
    saved.discard(files)
    assert list(files.memory.iterdir()) == []


def test_compressed_memory_is_the_same_snapshot(files: Files, snapshot: Snapshot) -> None:
    before = files.ram.read_bytes()
    assert SNAPSHOTS.compress(files) is not None
    packed = saved.load(files.memory)
    assert packed is not None
    assert not files.ram.exists()
    SNAPSHOTS.verify(files, packed, MADE_BY)
    saved.unpack(files, packed, uid=None)
    assert files.ram.read_bytes() == before


def test_compressing_that_fails_leaves_the_snapshot_as_it_was(
    files: Files, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path, abandon: Callable[[], bool]) -> bool:
        raise MvmError("the disk is full")

    monkeypatch.setattr(compression, "compress", fail)
    with pytest.raises(MvmError):
        SNAPSHOTS.compress(files)
    SNAPSHOTS.verify(files, snapshot, MADE_BY)
    assert saved.load(files.memory) == snapshot


def test_compressing_is_given_up_when_the_memory_is_wanted(files: Files, snapshot: Snapshot) -> None:
    assert SNAPSHOTS.compress(files, lambda: True) is None
    SNAPSHOTS.verify(files, snapshot, MADE_BY)
    assert saved.load(files.memory) == snapshot


@pytest.mark.parametrize("step", ["compressing", "naming"])
def test_what_a_killed_agent_left_of_the_memory_goes_with_the_snapshot(
    files: Files, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    left: set[str] = set()

    def look(*_: object, **__: object) -> bool:
        left.update(path.name for path in files.memory.iterdir())
        return True

    with monkeypatch.context() as dying:
        if step == "naming":
            dying.setattr(json, "dump", look)
        SNAPSHOTS.compress(files, look if step == "compressing" else lambda: False)
    assert left > {saved.METADATA, saved.DEVICES}, "something unfinished was there"
    for name in left:
        (files.memory / name).touch()
    saved.remove_used(files)
    assert {path.name for path in files.memory.iterdir()} <= {"ram", saved.METADATA}


def test_damaged_memory_is_not_compressed(files: Files, snapshot: Snapshot) -> None:
    written(files.ram)
    with pytest.raises(SnapshotRejected):
        SNAPSHOTS.compress(files)
    assert files.ram.exists()


# Bases


@pytest.fixture
def base(tmp_path: Path, files: Files) -> Path:
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / bases.DEVICES).write_bytes((files.memory / saved.DEVICES).read_bytes())
    (directory / bases.DEVICES).chmod(bases.FILE_MODE)
    keep_files(files, directory, MADE_BY)
    return directory


@pytest.fixture
def young(tmp_path: Path) -> Files:
    """An instance that never ran."""
    return Files.of(machine(tmp_path / "young"))


def test_a_copy_has_everything_of_its_base_and_shares_nothing(base: Path, young: Files) -> None:
    snapshot = bases.copy(base, young, SNAPSHOTS, uid=None, wanted=MADE_BY)
    SNAPSHOTS.verify(young, snapshot, MADE_BY)
    assert young.ram.read_bytes() == (base / bases.RAM).read_bytes()
    assert young.ram.stat().st_ino != (base / bases.RAM).stat().st_ino
    assert all((base / name).stat().st_mode & 0o777 == 0o400 for name in (bases.RAM, bases.DATA, bases.DEVICES))


def test_a_base_that_does_not_fit_is_named(base: Path, young: Files) -> None:
    with pytest.raises(SnapshotRejected, match=r"QEMU.s version was 7\.2\.22, is 9"):
        bases.copy(base, young, SNAPSHOTS, uid=None, wanted=MADE_BY | {"qemu": "9"})
    assert not young.data.exists()


@pytest.mark.parametrize("name", [bases.RAM, bases.DATA, bases.DEVICES])
def test_a_damaged_base_is_given_to_nobody(base: Path, young: Files, name: str) -> None:
    (base / name).chmod(0o600)
    written(base / name)
    with pytest.raises(SnapshotRejected, match="is damaged"):
        bases.copy(base, young, SNAPSHOTS, uid=None, wanted=MADE_BY)
    assert not young.data.exists()
    assert saved.load(young.memory) is None


def test_an_unfinished_base_is_none(base: Path, young: Files) -> None:
    (base / bases.BASE).unlink()
    with pytest.raises(SnapshotRejected, match="no complete base"):
        bases.copy(base, young, SNAPSHOTS, uid=None, wanted=MADE_BY)


def test_a_copy_that_fails_half_way_leaves_nothing(base: Path, young: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(files: Files, made_by: dict[str, str]) -> Snapshot:
        raise MvmError("the disk is full")

    monkeypatch.setattr(SNAPSHOTS, "finish", fail)
    with pytest.raises(MvmError, match="the disk is full"):
        bases.copy(base, young, SNAPSHOTS, uid=None, wanted=MADE_BY)
    assert not [path for path in young.state_dir.iterdir() if path.is_file()]
    assert list(young.memory.iterdir()) == []


def test_a_copy_has_its_data_drive_only_when_it_is_whole(
    base: Path, young: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has one counts as having run: half of one, left by an agent that was killed, would be booted from."""
    copy, had = sparse.copy, []

    def watched(source: Path, target: Path, *, mode: int = 0o600) -> None:
        copy(source, target, mode=mode)
        had.append(young.data.exists())

    monkeypatch.setattr(sparse, "copy", watched)
    bases.copy(base, young, SNAPSHOTS, uid=None, wanted=MADE_BY)
    assert had == [False] * 3
    assert young.data.read_bytes() == (base / bases.DATA).read_bytes()


def test_a_killed_copy_is_made_again(base: Path, young: Files) -> None:
    young.make_memory()
    for half in (young.ram, young.memory / saved.DEVICES, young.data.with_name(f".{young.data.name}.new")):
        half.write_bytes(b"half")
    snapshot = bases.copy(base, young, SNAPSHOTS, uid=None, wanted=MADE_BY)
    SNAPSHOTS.verify(young, snapshot, MADE_BY)


def test_what_a_snapshot_names_was_flushed_before(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut a sleeper has all of its memory, or none that would be taken for it."""
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def named(source: Path, target: Path) -> None:
        order.append(f"named {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    SNAPSHOTS.finish(files, MADE_BY)
    name = order.index(f"named {saved.METADATA}")
    assert {files.ram.name, saved.DEVICES, files.data.name, "snapshot.new"} <= set(order[:name])
    assert order[name + 1 :] == [files.memory.name]


def test_equal_makes_have_one_base_and_others_do_not() -> None:
    assert bases.key(MADE_BY, role="worker", data_mib=1) == bases.key(dict(MADE_BY), role="worker", data_mib=1)
    others = [
        bases.key(MADE_BY, role="gateway", data_mib=1),
        bases.key(MADE_BY, role="worker", data_mib=2),
        *(bases.key(MADE_BY | {name: "?"}, role="worker", data_mib=1) for name in MADE_BY),
    ]
    assert bases.key(MADE_BY, role="worker", data_mib=1) not in others


def test_metadata_is_readable_for_people(files: Files, snapshot: Snapshot) -> None:
    document = json.loads((files.memory / saved.METADATA).read_text())
    assert document["qemu"] == "7.2.22"
