"""The memory that a guest went on from is built upon only by the process that did, once, and while it is untouched."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.runtime.qemu_machines import machine

from mvm.guest.processes import Identity
from mvm.model.errors import MvmError
from mvm.runtime.firecracker import lineage
from mvm.runtime.firecracker.files import Files

PROCESS = Identity(pid=17, start_time=4711)
CONTENT = b"what the guest went on from" * 1000


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Of a guest that runs."""
    found = Files.of(machine(tmp_path))
    found.make_memory()
    found.ram.write_bytes(CONTENT)
    lineage.keep(found, PROCESS)
    return found


def before(files: Files) -> Path:
    return files.memory / lineage.BEFORE


def test_it_is_there_for_its_process_once(files: Files) -> None:
    assert not files.ram.exists()
    with lineage.taken(files, PROCESS) as descriptor:
        assert descriptor is not None
        assert os.pread(descriptor, len(CONTENT), 0) == CONTENT
        assert list(files.memory.iterdir()) == []
    with lineage.taken(files, PROCESS) as descriptor:
        assert descriptor is None


@pytest.mark.parametrize("process", [None, Identity(pid=17, start_time=4712), Identity(pid=18, start_time=4711)])
def test_it_is_for_no_other_process_and_then_for_nobody(files: Files, process: Identity | None) -> None:
    with lineage.taken(files, process) as descriptor:
        assert descriptor is None
    with lineage.taken(files, PROCESS) as descriptor:
        assert descriptor is None
    assert list(files.memory.iterdir()) == []


def write(path: Path) -> None:
    """Two bytes, with the times put back."""
    times = path.stat()
    with path.open("r+b") as file:
        file.write(b"xy")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace(path: Path) -> None:
    path.with_name("other").write_bytes(CONTENT)
    path.with_name("other").replace(path)


def link(path: Path) -> None:
    path.with_name("other").write_bytes(CONTENT)
    path.unlink()
    path.symlink_to("other")


TOUCHES: dict[str, Callable[[Path], None]] = {
    "written": write,
    "cut": lambda path: os.truncate(path, 100),
    "exchanged": replace,
    "a link": link,
    "gone": Path.unlink,
    "without a record": lambda path: path.with_name(lineage.RECORD).unlink(),
    "with half a record": lambda path: os.truncate(path.with_name(lineage.RECORD), 20),
    "with an empty record": lambda path: path.with_name(lineage.RECORD).write_text("[]") and None,
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_it_is_not_built_upon_when_it_was_touched(files: Files, touch: str) -> None:
    TOUCHES[touch](before(files))
    with lineage.taken(files, PROCESS) as descriptor:
        assert descriptor is None
    assert not before(files).exists()


def test_a_file_that_is_a_bases_as_well_may_get_more_names(tmp_path: Path) -> None:
    files = Files.of(machine(tmp_path))
    files.make_memory()
    base = tmp_path / "base"
    base.write_bytes(CONTENT)
    os.link(base, files.ram)
    lineage.keep(files, PROCESS)
    os.link(base, tmp_path / "another copy's")
    with lineage.taken(files, PROCESS) as descriptor:
        assert descriptor is not None


def test_a_copy_is_another_file_and_takes_the_place_of_an_unfinished_one(files: Files) -> None:
    (files.memory / lineage.COPY).write_bytes(b"of an agent that was killed")
    with lineage.taken(files, PROCESS) as descriptor:
        assert descriptor is not None
        copy = lineage.copy(files, descriptor)
        copy.write_bytes(b"written to")
        assert os.pread(descriptor, len(CONTENT), 0) == CONTENT


def test_what_was_begun_anew_is_not_what_was_merged(tmp_path: Path) -> None:
    whole, merged, anew = tmp_path / "whole", tmp_path / "merged", tmp_path / "anew"
    for path, pieces in ((whole, (0, 8, 32)), (merged, (0, 8, 9, 32)), (anew, (9, 32))):
        with path.open("wb") as file:
            file.truncate(64 << 20)
            for piece in pieces:
                file.seek(piece << 20)
                file.write(b"x" * (1 << 20))
    descriptor = os.open(whole, os.O_RDONLY)
    try:
        lineage.require_merged(merged, descriptor)
        with pytest.raises(MvmError, match="did not keep the rest"):
            lineage.require_merged(anew, descriptor)
    finally:
        os.close(descriptor)


def test_forgetting_twice_is_no_mistake(files: Files) -> None:
    for _ in range(2):
        lineage.forget(files)
    assert list(files.memory.iterdir()) == []
