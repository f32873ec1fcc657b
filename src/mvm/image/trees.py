"""Directory trees: digests, copies with settled owners and modes, and layers put over each other by hard links."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

Keep = Callable[[str, bool], bool]
"""Whether an entry, by its path relative to the tree and whether it is a directory, is wanted."""
_REMOVED = ".removed-"


def everything(_relative: str, _is_directory: bool) -> bool:
    return True


def digest(root: Path, keep: Keep = everything) -> str:
    """SHA-256 over the names, kinds, executability and content of all that is kept."""
    total = hashlib.sha256()
    for relative, entry in _walk(root, keep):
        kind, content = _content_digest(entry)
        total.update(f"{kind} {relative}\0{content}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def copy(source: Path, target: Path, keep: Keep = everything) -> int:
    """Copy all that is kept, as files and directories that everybody may read and only their owner, we, may change.

    Returns the number of entries. Special files are left out; symbolic links stay what they are.
    """
    make_directory(target)
    count = 0
    for relative, entry in _walk(source, keep):
        there = target / relative
        if entry.is_dir(follow_symlinks=False):
            make_directory(there)
        elif entry.is_symlink():
            there.symlink_to(os.readlink(entry))
        else:
            copy_file(Path(entry.path), there, executable=bool(entry.stat().st_mode & stat.S_IXUSR))
        count += 1
    return count


def copy_file(source: Path, target: Path, *, executable: bool = False) -> None:
    """Copy a file's content; readable by everybody, changeable by us."""
    shutil.copyfile(source, target)
    target.chmod(0o755 if executable else 0o644)


def make_directory(path: Path) -> None:
    """Make a directory that everybody may read, with its parents."""
    for parent in reversed((path, *path.parents)):
        if not parent.exists():
            parent.mkdir()
            parent.chmod(0o755)


def link_layer(source: Path, target: Path) -> None:
    """Put a layer's content into a tree: directories made anew, everything else linked. Needs root for foreign owners.

    Nothing of the tree may be changed in place afterwards: the layer would change with it.
    """
    for relative, entry in _walk(source, everything):
        there = target / relative
        if entry.is_dir(follow_symlinks=False):
            there.mkdir(exist_ok=True)
            status = entry.stat(follow_symlinks=False)
            os.chown(there, status.st_uid, status.st_gid)
            there.chmod(stat.S_IMODE(status.st_mode))
        else:
            os.link(entry.path, there, follow_symlinks=False)


def remove(path: Path) -> None:
    """Remove a file, or a directory with all in it, at once as far as anybody can see. Idempotent."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    doomed = Path(tempfile.mkdtemp(prefix=_REMOVED, dir=path.parent))
    path.rename(doomed / path.name)
    shutil.rmtree(doomed)


def clear_removed(directory: Path) -> None:
    """Remove what a `remove` in this directory that was killed has left. Nobody else may be removing there."""
    for doomed in directory.glob(f"{_REMOVED}*"):
        shutil.rmtree(doomed, ignore_errors=True)


def _walk(root: Path, keep: Keep, prefix: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below `root` that is kept, sorted, each directory before what is in it; no special files."""
    with os.scandir(root) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        is_directory = entry.is_dir(follow_symlinks=False)
        relative = f"{prefix}{entry.name}"
        if not keep(relative, is_directory):
            continue
        if is_directory:
            yield relative, entry
            yield from _walk(Path(entry.path), keep, f"{relative}/")
        elif entry.is_symlink() or entry.is_file():
            yield relative, entry


def _content_digest(entry: os.DirEntry[str]) -> tuple[str, str]:
    if entry.is_dir(follow_symlinks=False):
        return "directory", ""
    if entry.is_symlink():
        return "link", os.readlink(entry)
    with open(entry.path, "rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return ("program" if entry.stat().st_mode & stat.S_IXUSR else "file"), content
