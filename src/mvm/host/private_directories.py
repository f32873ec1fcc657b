"""Directories that only the agent's user may write to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mvm.model.errors import MvmError, Refused


def make_private(directory: Path, mode: int = 0o700) -> None:
    """Make a directory of that mode, or accept one that is safe; its place may be one that others write to (/dev/shm).

    Raises `Refused` for one that belongs to someone else, that others may write to, or that is a symbolic link.
    """
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise MvmError(
            f"directory '{error.filename}' could not be made: {error.strerror}",
            hint="set MVM_STATE_DIR and MVM_RUN_DIR to directories of your own",
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise Refused(
            f"directory '{directory}' is not safe: it must be a directory that only you can write to",
            hint=f"remove it, or choose another one; `ls -ld {directory}` shows whose it is",
        )
