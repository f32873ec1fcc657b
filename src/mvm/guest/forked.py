"""Services of this very program, started as copies of the process that starts them.

A new Python takes seconds to come up in an emulated machine; a copy of one that is up takes none, and shares its
memory. Only for services of the same user: a copy knows what the original knew.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_NAME_BYTES = 15


def start(
    name: str,
    work: Callable[[], int],
    *,
    environment: Mapping[str, str],
    directory: str,
    output: int,
    prepare: Callable[[], None],
) -> int:
    """Run `work` in a process of its own session, whose exit status it returns; gives its pid.

    It starts as if it had been executed: with that environment and directory, `output` for what it says, nothing else
    open, no signal handled. `prepare` is called last. Raises `OSError` when there can be no more processes.

    The caller has no other thread, and its objects live as long as the copy: their descriptors are closed in there.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        _forget_signals()
        _become(name, environment, directory, output)
        prepare()
        status = work()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # the process's top
        traceback.print_exc()
    finally:
        _end(status)


def _forget_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _become(name: str, environment: Mapping[str, str], directory: str, output: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, errors="backslashreplace")
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name[:_NAME_BYTES])
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)


def _end(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status & 0xFF)
