"""Writing what is on the config and secrets drives, so that no reader ever sees half a file.

Each file is written beside its place and renamed over it; new and changed files come before stale ones go. A file whose
bytes are already right is not touched, so its modification time tells a reader whether there is anything new.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from mvm.model.errors import InvalidInput, MvmError

CONFIG_FILE_MODE = 0o600
SECRET_FILE_MODE = 0o400
DIRECTORY_MODE = 0o700
_UNFINISHED = ".unfinished-"


def write_tree(root: Path, files: Mapping[str, bytes], *, file_mode: int) -> bool:
    """Make `root` hold exactly `files` (relative path with `/` -> content). True when anything changed.

    Directories get mode 0700. Raises `InvalidInput` for a path that leaves `root` or has a part that begins with a dot,
    before anything is written; `MvmError` when the file system refuses.
    """
    wanted = {_checked(name): content for name, content in files.items()}
    try:
        _make_directory(root)
        changed = False
        for name, content in sorted(wanted.items()):
            _make_parents(root, name)
            changed |= _write_file(root / name, content, file_mode)
        return _remove_stale(root, set(wanted)) or changed
    except OSError as error:
        raise MvmError(
            f"the drive content in '{root}' could not be written: {error.strerror} ({error.filename})",
            hint="is the file system full or read-only?",
        ) from error


def _checked(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or any(part.startswith(".") or "\0" in part for part in path.parts):
        raise InvalidInput(f"{name[:200]!r} is no path for a file on a drive")
    return path


def _make_directory(directory: Path) -> None:
    """Make a directory of mode 0700; a symbolic link in its place is refused, it may lead anywhere."""
    directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    if not stat.S_ISDIR(directory.lstat().st_mode):
        raise MvmError(f"'{directory}' is not a directory of its own", hint="remove it; mvm makes it anew")
    if stat.S_IMODE(directory.lstat().st_mode) != DIRECTORY_MODE:
        directory.chmod(DIRECTORY_MODE)


def _make_parents(root: Path, name: PurePosixPath) -> None:
    for parent in reversed(name.parents[:-1]):
        directory = root / parent
        if _is_file(directory):
            directory.unlink()
        _make_directory(directory)


def _write_file(path: Path, content: bytes, mode: int) -> bool:
    if _is_file(path) and _holds(path, content) and stat.S_IMODE(path.lstat().st_mode) == mode:
        return False
    if path.is_dir() and not path.is_symlink():
        _remove_directory(path)
    unfinished = path.with_name(_UNFINISHED + path.name)
    with contextlib.suppress(FileNotFoundError):
        unfinished.unlink()  # of a write that was interrupted
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask is
        file.write(content)
    unfinished.replace(path)
    return True


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.lstat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def _remove_stale(root: Path, wanted: set[PurePosixPath]) -> bool:
    """Remove every file that is not wanted and every directory that is then empty."""
    removed = False
    for directory, directories, names in os.walk(root, topdown=False):
        here = Path(directory)
        for name in names + [d for d in directories if (here / d).is_symlink()]:
            if PurePosixPath((here / name).relative_to(root).as_posix()) not in wanted:
                (here / name).unlink()
                removed = True
        if here != root and not any(here.iterdir()):
            here.rmdir()
    return removed


def _remove_directory(directory: Path) -> None:
    _remove_stale(directory, set())
    directory.rmdir()
