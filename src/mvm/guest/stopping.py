"""Being told to end, and ending others in order, within one time for all of them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

HELPERS_SHARE = 0.2
"""Share of the time that is kept for the agent and the router, which OpenClaw needs until it has ended."""


def told_to_end() -> asyncio.Event:
    """Set once this process gets SIGTERM or SIGINT; for the program's one event loop."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    return told


async def in_ranks(
    services: Iterable[tuple[int, T]], grace: float, stop: Callable[[T, float], Awaitable[object]]
) -> None:
    """Stop services, given with their ranks, within about `grace` seconds: those of the lowest rank first.

    `stop` is called with the seconds that a service has, for all of a rank at the same time.
    """
    by_rank: dict[int, list[T]] = {}
    for rank, service in services:
        by_rank.setdefault(rank, []).append(service)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + grace
    for position, rank in enumerate(sorted(by_rank)):
        kept = grace * HELPERS_SHARE if position + 1 < len(by_rank) else 0.0
        seconds = max(0.0, deadline - kept - loop.time())
        await asyncio.gather(*(stop(service, seconds) for service in by_rank[rank]))
