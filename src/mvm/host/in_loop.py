"""Coroutines of the agent's loop, called from a thread that blocks: builders of images work in such threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import TypeVar

WATCH_SECONDS = 0.25
"""How often who waits has a look at something else."""

T = TypeVar("T")


def nothing() -> None:
    """There is nothing to look at meanwhile."""


class InLoop:
    """The loop that was running when this was made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def run(self, work: Coroutine[object, object, T], watch: Callable[[], None] = nothing) -> T:
        """Run it in the loop and return what it returns, or raise what it raises. Not for use in the loop itself.

        `watch` is called a few times a second; what it raises cancels the work, waits until that has ended, and is
        raised on.
        """
        ended = threading.Event()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            task = self._loop.create_task(work)
            task.add_done_callback(lambda _: ended.set())
            tasks.append(task)

        self._loop.call_soon_threadsafe(begin)
        try:
            while not ended.wait(WATCH_SECONDS):
                watch()
        except BaseException:
            # After `begin`, for the loop does first what it was asked first.
            self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            ended.wait()
            if not tasks[0].cancelled():
                tasks[0].exception()  # looked at, or asyncio would report it
            raise
        return tasks[0].result()
