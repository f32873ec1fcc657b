"""Waiting for conditions in tests: no fixed sleeps, always with a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], *, what: str, seconds: float = 10.0) -> None:
    """Return as soon as `condition()` holds; fail with `what` after `seconds`."""
    async with asyncio.timeout(seconds) as limit:
        while not condition():
            try:
                await asyncio.sleep(0.005)
            except asyncio.CancelledError:
                if limit.expired():
                    raise AssertionError(f"{what} did not happen within {seconds:g} s") from None
                raise
