"""Places for instances that come up: starting and restoring is the heaviest thing that a host does.

More at once than there are cores only makes each one late. Where guests are emulated that is worse than late: an
OpenClaw that boots beside another one was seen to give up, because a thread of its own did not run for five seconds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

SLOT_SECONDS = 30.0
"""How long one that comes up counts among those that do; longer than a cold start natively takes."""
EMULATED_BOOT_SECONDS = 600.0
"""The same for one that boots emulated; alone on two cores it takes three minutes."""


class Slots:
    """Hands out places, first come, first served."""

    def __init__(self, cores: int | None = None) -> None:
        self._rising = asyncio.Semaphore(max(2, cores or os.cpu_count() or 2))
        self._emulated_boots = asyncio.Semaphore(1)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place among those that come up."""
        async with _held(self._rising, SLOT_SECONDS):
            yield

    @asynccontextmanager
    async def boot(self, *, slowness: float) -> AsyncIterator[None]:
        """A place among those that boot: emulated guests do it one after the other."""
        if slowness <= 1:
            yield
            return
        async with _held(self._emulated_boots, EMULATED_BOOT_SECONDS):
            yield


@asynccontextmanager
async def _held(places: asyncio.Semaphore, seconds: float) -> AsyncIterator[None]:
    """Hold a place until the end of the block, or for `seconds`: a guest that never becomes ready must not keep
    everybody else's asleep."""
    await places.acquire()
    held = True

    def give_back() -> None:
        nonlocal held
        if held:
            held = False
            places.release()

    timer = asyncio.get_running_loop().call_later(seconds, give_back)
    try:
        yield
    finally:
        timer.cancel()
        give_back()
