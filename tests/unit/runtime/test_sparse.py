"""Files with holes keep them when they are copied or compressed, and damage is noticed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mvm.model.errors import MvmError, SnapshotRejected
from mvm.runtime import compression, sparse

MIB = 1024 * 1024


def make(path: Path, *, size: int, data: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, content in data.items():
            file.seek(offset)
            file.write(content)
    return path


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, short_directory: Path) -> Iterator[Path]:
    """A directory on a disk, and one on memory-backed storage (where the kernel's own copy fills holes)."""
    if request.param == "disk":
        yield tmp_path
        return
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        pytest.skip("no memory-backed storage")
    directory = shm / short_directory.name
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


def test_a_copy_is_equal_and_keeps_its_holes(place: Path) -> None:
    source = make(place / "a", size=64 * MIB, data={0: b"first" * 1000, 20 * MIB: os.urandom(MIB), 63 * MIB: b"last"})
    sparse.copy(source, place / "b", mode=0o400)
    copied = (place / "b").stat()
    assert (place / "b").read_bytes() == source.read_bytes()
    assert copied.st_blocks * 512 < 4 * MIB
    assert copied.st_mode & 0o777 == 0o400


def test_an_empty_file_and_one_that_is_all_hole_are_copied(place: Path) -> None:
    for name, size in (("empty", 0), ("hole", 8 * MIB)):
        source = make(place / name, size=size, data={})
        sparse.copy(source, place / f"{name}.copy")
        assert (place / f"{name}.copy").stat().st_size == size


def test_a_copy_replaces_nothing(tmp_path: Path) -> None:
    source = make(tmp_path / "a", size=10, data={})
    (tmp_path / "b").write_text("precious")
    with pytest.raises(MvmError, match="cannot be copied"):
        sparse.copy(source, tmp_path / "b")
    assert (tmp_path / "b").read_text() == "precious"


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MvmError, match="cannot be copied"):
        sparse.copy(tmp_path / "missing", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@given(
    pieces=st.dictionaries(st.integers(0, 40), st.binary(min_size=1, max_size=9000), max_size=6),
    tail=st.integers(0, 70_000),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_compressing_and_unpacking_gives_the_same_file(tmp_path: Path, pieces: dict[int, bytes], tail: int) -> None:
    source = make(tmp_path / "a", size=0, data={number * 4096: content for number, content in pieces.items()})
    os.truncate(source, source.stat().st_size + tail)
    compression.compress(source, tmp_path / "z")
    (tmp_path / "b").unlink(missing_ok=True)
    compression.decompress(tmp_path / "z", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == source.read_bytes()


def test_unpacked_memory_keeps_its_holes(tmp_path: Path) -> None:
    source = make(tmp_path / "a", size=64 * MIB, data={MIB: os.urandom(MIB), 40 * MIB: bytes(MIB)})
    compression.compress(source, tmp_path / "z")
    compression.decompress(tmp_path / "z", tmp_path / "b")
    assert (tmp_path / "b").stat().st_blocks * 512 < 4 * MIB
    assert (tmp_path / "z").stat().st_size < 2 * MIB


@pytest.mark.parametrize("at", [0, 3, 12, 40, 2000, -10, -1])
def test_a_flipped_byte_is_noticed_and_leaves_nothing(tmp_path: Path, at: int) -> None:
    source = make(tmp_path / "a", size=MIB, data={0: os.urandom(9000), 500_000: os.urandom(9000)})
    compression.compress(source, tmp_path / "z")
    damaged = bytearray((tmp_path / "z").read_bytes())
    damaged[at] ^= 0x55
    (tmp_path / "z").write_bytes(damaged)
    try:
        compression.decompress(tmp_path / "z", tmp_path / "b")
    except SnapshotRejected:
        assert not (tmp_path / "b").exists()
    else:
        assert (tmp_path / "b").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("length", [0, 5, 16, 100, 5000])
def test_a_truncated_file_is_noticed_and_leaves_nothing(tmp_path: Path, length: int) -> None:
    source = make(tmp_path / "a", size=MIB, data={0: os.urandom(9000)})
    compression.compress(source, tmp_path / "z")
    os.truncate(tmp_path / "z", length)
    with pytest.raises(SnapshotRejected):
        compression.decompress(tmp_path / "z", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_identity_changes_with_the_file(tmp_path: Path) -> None:
    path = make(tmp_path / "a", size=10, data={})
    before = sparse.identity(path)
    assert sparse.identity(path) == before
    os.utime(path, ns=(1, 1))
    assert sparse.identity(path) != before


def test_memory_in_more_pieces_than_can_be_unpacked_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, packed = tmp_path / "ram", tmp_path / "ram.zst"
    with source.open("wb") as file:
        for number in range(100):
            file.seek(number * 64 * 1024)
            file.write(b"a page")
    assert compression.compress(source, packed)
    monkeypatch.setattr(compression, "_MAX_HEADER", 200)
    packed.unlink()
    assert not compression.compress(source, packed)
    assert [path.name for path in tmp_path.iterdir()] == ["ram"]


PIECES = st.sets(st.integers(0, 15), max_size=10)
"""Which of sixteen stretches of a file are data."""


@given(PIECES, PIECES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_covers_another_when_it_has_data_wherever_that_has(
    tmp_path: Path, own: set[int], others: set[int]
) -> None:
    step = 64 * 1024
    opened = []
    for name, pieces in (("own", own), ("other", others)):
        path = make(tmp_path / name, size=16 * step, data={piece * step: b"x" * step for piece in pieces})
        opened.append(os.open(path, os.O_RDONLY))
    try:
        assert sparse.covers(*opened) == (others <= own)
    finally:
        for descriptor in opened:
            os.close(descriptor)
