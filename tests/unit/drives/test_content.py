"""Config and secrets reach a guest whole or not at all."""

import os
import threading
from pathlib import Path

import pytest

from mvm.drives.content import CONFIG_FILE_MODE, SECRET_FILE_MODE, write_tree
from mvm.model.errors import InvalidInput, MvmError


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_directory_holds_exactly_what_was_given(tmp_path: Path) -> None:
    root = tmp_path / "secrets"
    write_tree(root, {"telegram/TELEGRAM_BOT_TOKEN": b"1", "openclaw/X": b"2"}, file_mode=SECRET_FILE_MODE)
    assert write_tree(root, {"openclaw/X": b"3"}, file_mode=SECRET_FILE_MODE)
    assert tree(root) == {"openclaw/X": b"3"}
    assert [p.name for p in root.iterdir()] == ["openclaw"]


def test_nobody_else_may_read_any_of_it(tmp_path: Path) -> None:
    root = tmp_path / "secrets"
    before = os.umask(0)
    try:
        write_tree(root, {"a/B": b"x"}, file_mode=SECRET_FILE_MODE)
    finally:
        os.umask(before)
    assert root.stat().st_mode & 0o777 == 0o700
    assert (root / "a").stat().st_mode & 0o777 == 0o700
    assert (root / "a/B").stat().st_mode & 0o777 == 0o400


def test_a_file_that_is_already_right_is_not_touched(tmp_path: Path) -> None:
    write_tree(tmp_path, {"config.json": b"{}"}, file_mode=CONFIG_FILE_MODE)
    before = (tmp_path / "config.json").stat()
    assert not write_tree(tmp_path, {"config.json": b"{}"}, file_mode=CONFIG_FILE_MODE)
    after = (tmp_path / "config.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_an_interrupted_write_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".unfinished-config.json").write_bytes(b"half")
    (tmp_path / ".unfinished-other").write_bytes(b"half")
    write_tree(tmp_path, {"config.json": b"whole"}, file_mode=CONFIG_FILE_MODE)
    assert tree(tmp_path) == {"config.json": b"whole"}


def test_a_scope_may_become_a_file_and_back(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a/B": b"1"}, file_mode=SECRET_FILE_MODE)
    write_tree(tmp_path, {"a": b"2"}, file_mode=SECRET_FILE_MODE)
    assert tree(tmp_path) == {"a": b"2"}
    write_tree(tmp_path, {"a/B": b"3"}, file_mode=SECRET_FILE_MODE)
    assert tree(tmp_path) == {"a/B": b"3"}


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", ".hidden", "a/\0b"])
def test_a_path_that_leads_elsewhere_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        write_tree(tmp_path, {"fine": b"", name: b""}, file_mode=CONFIG_FILE_MODE)
    assert tree(tmp_path) == {}


def test_a_symbolic_link_is_never_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").write_bytes(b"kept")
    root = tmp_path / "drive"
    root.mkdir()
    (root / "stale").symlink_to(victim)
    (root / "config.json").symlink_to(victim / "kept")
    write_tree(root, {"config.json": b"new"}, file_mode=CONFIG_FILE_MODE)
    assert tree(root) == {"config.json": b"new"}
    assert tree(victim) == {"kept": b"kept"}
    (root / "scope").symlink_to(victim)
    with pytest.raises(MvmError, match="not a directory"):
        write_tree(root, {"scope/KEY": b"x"}, file_mode=SECRET_FILE_MODE)
    assert tree(victim) == {"kept": b"kept"}


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    old, new = b"a" * 200_000, b"b" * 200_000
    write_tree(tmp_path, {"routes.json": old}, file_mode=CONFIG_FILE_MODE)
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add((tmp_path / "routes.json").read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(50):
        write_tree(tmp_path, {"routes.json": new if turn % 2 == 0 else old}, file_mode=CONFIG_FILE_MODE)
    done.set()
    reader.join()
    assert seen <= {old, new}
