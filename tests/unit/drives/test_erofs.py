"""Images in the format erofs: what the tools of its authors, and so the kernel, read is what was put in."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mvm.drives import erofs
from mvm.model.errors import MvmError

FSCK = shutil.which("fsck.erofs", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
needs_fsck = pytest.mark.skipif(FSCK is None, reason="needs erofs-utils")

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..")
)
trees = st.recursive(
    st.binary(max_size=9000), lambda children: st.dictionaries(names, children, max_size=5), max_leaves=12
)


def put(tree: object, path: Path) -> None:
    """Write a tree of dictionaries and bytes."""
    if isinstance(tree, dict):
        path.mkdir()
        for name, child in tree.items():
            put(child, path / name)
    else:
        assert isinstance(tree, bytes)
        path.write_bytes(tree)


def taken(path: Path) -> object:
    """The tree that is there."""
    return {child.name: taken(child) for child in path.iterdir()} if path.is_dir() else path.read_bytes()


def read_back(image: bytes, directory: Path) -> Path:
    """What the format's own tool finds in an image, as files."""
    assert FSCK is not None
    (directory / "image").write_bytes(image)
    target = directory / "read"
    subprocess.run([FSCK, f"--extract={target}", str(directory / "image")], capture_output=True, check=True)
    return target


@needs_fsck
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, trees, max_size=6))
def test_what_is_put_in_is_read(tmp_path: Path, tree: dict[str, object]) -> None:
    work = tmp_path / "work"
    work.mkdir()
    try:
        put(tree, work / "content")
        assert taken(read_back(erofs.render(work / "content"), work)) == tree
    finally:
        shutil.rmtree(work)


@needs_fsck
def test_a_directory_may_have_more_entries_than_a_block_holds(tmp_path: Path) -> None:
    tree = {f"{'long' * 20}{number}": b"%d" % number for number in range(300)}
    put(tree, tmp_path / "content")
    assert taken(read_back(erofs.render(tmp_path / "content"), tmp_path)) == tree


@needs_fsck
def test_modes_are_kept(tmp_path: Path) -> None:
    put({"scope": {"KEY": b"a secret"}}, tmp_path / "content")
    (tmp_path / "content/scope/KEY").chmod(0o400)
    (tmp_path / "content/scope").chmod(0o750)
    found = read_back(erofs.render(tmp_path / "content"), tmp_path)
    assert (found / "scope").stat().st_mode & 0o7777 == 0o750
    assert (found / "scope/KEY").stat().st_mode & 0o7777 == 0o400


def test_the_same_content_gives_the_same_image(tmp_path: Path) -> None:
    for name in ("one", "two"):
        put({"b": b"2", "a": {"x": b"1"}}, tmp_path / name)
    assert erofs.render(tmp_path / "one") == erofs.render(tmp_path / "two")


def test_what_is_no_file_is_refused_by_name(tmp_path: Path) -> None:
    put({}, tmp_path / "content")
    (tmp_path / "content/link").symlink_to("/etc/shadow")
    with pytest.raises(MvmError, match="link' is neither a file nor a directory"):
        erofs.render(tmp_path / "content")
