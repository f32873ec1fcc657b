"""Images of drives: of a fixed size, rewritten in place, made once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mvm.drives import images
from mvm.model.errors import MvmError, Unavailable

pytestmark = pytest.mark.skipif(bool(images.missing_programs()), reason="needs e2fsprogs")

SMALL = 64 * 1024


@pytest.fixture
def content(tmp_path: Path) -> Path:
    directory = tmp_path / "content"
    (directory / "scope").mkdir(parents=True)
    (directory / "scope/KEY").write_text("a secret")
    (directory / "scope/KEY").chmod(0o400)
    return directory


def test_an_image_has_a_fixed_size_and_is_private(content: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    assert images.write_erofs(content, image, smallest=SMALL) == image.stat().st_size == SMALL
    assert image.stat().st_mode & 0o777 == 0o600
    assert b"a secret" in image.read_bytes()


def test_it_is_rewritten_in_place_and_nothing_old_is_left(content: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    images.write_erofs(content, image, smallest=SMALL)
    (content / "scope/OTHER").write_text("old and long " * 1000)
    images.write_erofs(content, image, smallest=SMALL)
    inode = image.stat().st_ino
    (content / "scope/OTHER").unlink()
    (content / "scope/KEY").unlink()
    (content / "scope/KEY").write_text("another secret")
    with image.open("rb") as held:
        images.write_erofs(content, image, smallest=SMALL)
        seen = held.read()
    assert image.stat().st_ino == inode
    assert b"another secret" in seen
    assert b"old and long" not in seen
    assert len(seen) == SMALL


def test_more_content_gets_a_larger_image_that_never_shrinks(content: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    (content / "large").write_bytes(os.urandom(3 * SMALL))
    assert images.write_erofs(content, image, smallest=SMALL) == 4 * SMALL
    (content / "large").unlink()
    assert images.write_erofs(content, image, smallest=SMALL) == 4 * SMALL


def test_what_an_image_does_not_use_takes_no_room_however_often_it_is_written(content: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    for _ in range(2):
        assert images.write_erofs(content, image, smallest=images.GATEWAY_IMAGE_BYTES) == images.GATEWAY_IMAGE_BYTES
        assert image.stat().st_blocks * 512 <= 64 * 1024


def test_what_is_made_on_the_way_is_removed(content: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    images.write_erofs(content, place / "image", smallest=SMALL)
    assert [path.name for path in place.iterdir()] == ["image"]


def test_an_image_is_not_written_through_a_link(content: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "image").symlink_to(tmp_path / "victim")
    with pytest.raises((OSError, MvmError)):
        images.write_erofs(content, tmp_path / "image", smallest=SMALL)
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_data_drive_is_sparse_and_clean(tmp_path: Path) -> None:
    image = tmp_path / "data.img"
    images.make_ext4(image, mib=256)
    assert image.stat().st_size == 256 << 20
    assert image.stat().st_blocks * 512 < 4 << 20
    subprocess.run(["/usr/sbin/e2fsck", "-fn", str(image)], capture_output=True, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["data.img"]


def test_a_data_drive_grows_and_never_shrinks(tmp_path: Path) -> None:
    image = tmp_path / "data.img"
    images.make_ext4(image, mib=64)
    assert images.grow(image, mib=128)
    assert not images.grow(image, mib=64)
    assert image.stat().st_size == 128 << 20


def test_a_data_drive_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MvmError):
        images.make_ext4(tmp_path / "data.img", mib=0)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_program_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_which", lambda program: None)
    with pytest.raises(Unavailable, match=r"mkfs\.ext4 is not installed") as refused:
        images.make_ext4(tmp_path / "data.img", mib=64)
    assert "e2fsprogs" in (refused.value.hint or "")


def test_a_data_drive_can_begin_with_something_on_it(tmp_path: Path) -> None:
    (tmp_path / "content/build").mkdir(parents=True)
    (tmp_path / "content/build/config.json").write_text("{}")
    image = tmp_path / "data.img"
    images.make_ext4(image, mib=64, content=tmp_path / "content")
    command = ["debugfs", "-R", "cat /build/config.json", str(image)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout == "{}"
    assert image.stat().st_blocks * 512 < 32 << 20
