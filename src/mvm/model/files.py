"""Reading the small files that a person names, with errors that say what is the matter."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mvm.model.errors import InvalidInput


def read_limited(path: Path, *, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; raises `InvalidInput` naming it."""
    return read_with_mode(path, limit=limit)[0]


def read_with_mode(path: Path, *, limit: int) -> tuple[bytes, int]:
    """The same, with the file's permission bits."""
    try:
        # Not blocking: to open a named pipe would wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InvalidInput(
            f"{path}: there is no such file", hint="check the path, and the directory it starts from"
        ) from None
    except PermissionError:
        raise InvalidInput(f"{path}: may not be read", hint="check who owns it and its permissions") from None
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be opened: {error.strerror}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise InvalidInput(f"{path}: is a directory", hint="name the file in it")
        if not stat.S_ISREG(mode):
            raise InvalidInput(f"{path}: is not a regular file", hint="write the content to a file and name that")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise InvalidInput(f"{path}: has more than {limit} bytes", hint="check that it is the right file")
    return content, stat.S_IMODE(mode)
