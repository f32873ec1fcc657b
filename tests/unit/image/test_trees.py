"""Copies, digests and layers of directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mvm.image import prune, trees


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "sub/file").write_text("content")
    (root / "program").write_text("#!")
    (root / "program").chmod(0o700)
    (root / "link").symlink_to("sub/file")
    return root


def test_a_digest_is_of_content_and_names(tree: Path) -> None:
    before = trees.digest(tree)
    os.utime(tree / "sub/file", (1, 1))
    assert trees.digest(tree) == before
    (tree / "sub/file").rename(tree / "sub/other")
    assert trees.digest(tree) != before


@pytest.mark.parametrize("change", ["content", "mode", "link"])
def test_a_digest_sees_every_change_that_counts(tree: Path, change: str) -> None:
    before = trees.digest(tree)
    match change:
        case "content":
            (tree / "sub/file").write_text("another")
        case "mode":
            (tree / "program").chmod(0o600)
        case "link":
            (tree / "link").unlink()
            (tree / "link").symlink_to("program")
    assert trees.digest(tree) != before


def test_a_copy_is_readable_by_all_and_changeable_by_its_owner(tree: Path, tmp_path: Path) -> None:
    trees.copy(tree, tmp_path / "copy")
    modes = {path: (tmp_path / "copy" / path).stat().st_mode & 0o777 for path in (".", "sub", "sub/file", "program")}
    assert modes == {".": 0o755, "sub": 0o755, "sub/file": 0o644, "program": 0o755}
    assert trees.digest(tmp_path / "copy") == trees.digest(tree)


def test_a_copy_leaves_special_files_out(tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tree / "pipe")
    trees.copy(tree, tmp_path / "copy")
    assert not (tmp_path / "copy/pipe").exists()


def test_a_layer_is_linked_not_copied(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "root/sub").mkdir(parents=True)
    trees.link_layer(tree, tmp_path / "root")
    assert (tmp_path / "root/sub/file").samefile(tree / "sub/file")
    assert (tmp_path / "root/link").readlink() == Path("sub/file")


def test_removing_twice_is_fine(tree: Path) -> None:
    trees.remove(tree)
    trees.remove(tree)
    assert list(tree.parent.iterdir()) == []


KEPT = [
    "openclaw/openclaw.mjs",
    "openclaw/docs/reference/templates/AGENTS.md",
    "openclaw/skills/weather/SKILL.md",
    "openclaw/dist/extensions/telegram/index.js",
    "openclaw/dist/tree-sitter-bash.wasm",
    "@snazzah/davey-linux-x64-gnu/davey.linux-x64-gnu.node",
    "typescript/lib/typescript.js",
    "some/package.json",
    "some/LICENSE",
]
LEFT_OUT = [
    "openclaw/docs/index.md",
    "openclaw/docs/reference/other.json",
    "openclaw/dist/index.js.map",
    "some/index.d.ts",
    "some/README.md",
    "@snazzah/davey-darwin-arm64/davey.darwin-arm64.node",
    "@snazzah/davey-linux-x64-musl/davey.linux-x64-musl.node",
    "@snazzah/davey-win32-x64-msvc/davey.win32-x64-msvc.node",
]


@pytest.mark.parametrize("path", KEPT)
def test_what_openclaw_reads_is_kept(path: str) -> None:
    assert _kept(path)


@pytest.mark.parametrize("path", [*LEFT_OUT, "@types/node/index.js", "openclaw/dist/control-ui/index.html"])
def test_what_no_program_reads_is_left_out(path: str) -> None:
    assert not _kept(path)


def _kept(path: str) -> bool:
    """Whether the file and every directory above it is kept."""
    parents = [str(parent) for parent in Path(path).parents if str(parent) != "."]
    return all(prune.keeps(parent, True) for parent in parents) and prune.keeps(path, False)
