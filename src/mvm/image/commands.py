"""Running the programs that builders are made of."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from mvm.model.errors import MvmError, TimedOut

ENVIRONMENT = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "SOURCE_DATE_EPOCH": "946684800"}
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LIMIT_SECONDS = 1800.0
_POLL_SECONDS = 0.25
_GRACE_SECONDS = 15.0
_TAIL = 3


def run(
    command: Sequence[str | Path],
    *,
    what: str,
    hint: str,
    directory: Path | None = None,
    watch: Callable[[str], None] | None = None,
    limit: float = LIMIT_SECONDS,
) -> str:
    """Run a program to its end and return what it printed.

    `watch` is called a few times a second with what it has written to stderr so far; what it raises ends the program
    and is raised on. Raises `MvmError` with the last lines and the command, so that it can be tried by hand.
    """
    arguments = [str(part) for part in command]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        status = execute(
            arguments,
            what=what,
            output=output,
            errors=errors,
            directory=directory,
            watch=lambda: watch(_written(errors.fileno())) if watch else None,
            limit=limit,
        )
        if status:
            errors.seek(0)
            output.seek(0)
            said = (errors.read() or output.read()).decode(errors="replace").strip().splitlines()
            raise MvmError(
                f"{what} failed with status {status}: {' / '.join(said[-_TAIL:]) or 'no output'} "
                f"(command: {shlex.join(arguments)[:300]})",
                hint=hint,
            )
        output.seek(0)
        return output.read().decode(errors="replace")


def execute(
    arguments: Sequence[str],
    *,
    what: str,
    output: IO[bytes],
    errors: IO[bytes],
    watch: Callable[[], None],
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    limit: float = LIMIT_SECONDS,
) -> int:
    """Run a program to its end, its output going into two files, and return its status.

    `watch` is called a few times a second; what it raises ends the program with all it started, and is raised on.
    """
    process = subprocess.Popen(
        arguments,
        cwd=directory,
        env={**os.environ, **ENVIRONMENT, "PATH": search_path(), **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        start_new_session=True,
    )
    try:
        _wait(process, watch, what, limit)
    except BaseException:
        _end(process)
        raise
    return process.returncode


def search_path() -> str:
    """Where programs are looked for: what the caller has, and where the system's administration tools are."""
    return f"{os.environ.get('PATH', '')}:{SEARCH_PATH}".lstrip(":")


def _wait(process: subprocess.Popen[bytes], watch: Callable[[], None], what: str, limit: float) -> None:
    deadline = time.monotonic() + limit
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
            return
        watch()
        if time.monotonic() > deadline:
            raise TimedOut(f"{what} was given up after {limit:.0f} s", hint="is the disk or the network stuck?")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the program with all it started; first kindly, so that it takes its mounts away."""
    for number, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, _GRACE_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    # What is left of the session once its leader has ended.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _written(descriptor: int) -> str:
    """What has been written so far, read without moving the writer's place in the file."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")
