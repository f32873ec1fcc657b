"""One at a time, over all processes of a host."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_POLL_SECONDS = 0.2


@contextlib.contextmanager
def only_one(path: Path, while_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock; the kernel lets go of it however its holder ends.

    `while_waiting` is called a few times a second as long as somebody else holds it; what it raises gives up.
    """
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                while_waiting()
                time.sleep(_POLL_SECONDS)
        yield
