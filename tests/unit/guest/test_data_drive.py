"""The data drive: what its file system says of itself, and what is done about it. Real ext4, in files."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from mvm.guest.data_drive import CHECK_PROGRAM, DataDriveError, Superblock, bring_up, check

MKFS = shutil.which("mkfs.ext4", path="/sbin:/usr/sbin:/usr/bin") or ""
needs_ext4 = pytest.mark.skipif(not MKFS or not Path(CHECK_PROGRAM).exists(), reason="e2fsprogs is not installed")
MIB = 2**20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "data.img"
    with path.open("wb") as file:
        file.truncate(16 * MIB)
    subprocess.run([MKFS, "-q", "-F", str(path)], check=True)
    return path


def superblock(image: Path) -> Superblock:
    with image.open("rb") as file:
        file.seek(1024)
        return Superblock.parse(file.read(1024))


def overwrite(image: Path, at: int, value: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(1024 + at)
        file.write(value)


@needs_ext4
def test_a_new_file_system_is_clean_and_as_large_as_its_device(image: Path) -> None:
    found = superblock(image)
    assert found.clean
    assert found.blocks * found.block_bytes == 16 * MIB
    assert found.growth(16 * MIB) is None


@needs_ext4
def test_a_larger_device_lets_it_grow(image: Path) -> None:
    found = superblock(image)
    assert found.growth(32 * MIB) == 32 * MIB // found.block_bytes
    assert found.growth(16 * MIB + 512 * 1024) is None, "too little to be worth it"


@needs_ext4
@pytest.mark.parametrize(
    ("at", "value"),
    [(0x3A, struct.pack("<H", 0)), (0x3A, struct.pack("<H", 3))],
    ids=["not unmounted", "errors"],
)
def test_one_that_was_not_left_in_order_is_repaired(image: Path, at: int, value: bytes) -> None:
    overwrite(image, at, value)
    assert not superblock(image).clean
    check(image)
    assert superblock(image).clean


@needs_ext4
def test_one_with_a_journal_to_replay_is_not_clean(image: Path) -> None:
    with image.open("rb") as file:
        file.seek(1024 + 0x60)
        (features,) = struct.unpack("<I", file.read(4))
    overwrite(image, 0x60, struct.pack("<I", features | 0x4))
    assert not superblock(image).clean


@needs_ext4
def test_what_cannot_be_repaired_is_said(tmp_path: Path) -> None:
    broken = tmp_path / "data.img"
    broken.write_bytes(b"\xff" * MIB)
    with pytest.raises(DataDriveError, match="e2fsck"):
        check(broken)


def test_a_device_without_a_file_system_is_left_as_it_is(tmp_path: Path) -> None:
    blank = tmp_path / "data.img"
    blank.write_bytes(bytes(MIB))
    with pytest.raises(DataDriveError, match="no ext4"):
        bring_up(blank, tmp_path / "data", print)
    assert blank.read_bytes() == bytes(MIB)
