"""Coroutines of the agent's loop, called from a thread."""

from __future__ import annotations

import asyncio

import pytest

from mvm.host import in_loop
from mvm.host.in_loop import InLoop
from mvm.model.errors import Unavailable


class Enough(Exception):
    pass


def enough() -> None:
    raise Enough


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_loop, "WATCH_SECONDS", 0.005)


async def test_it_gives_what_the_coroutine_gives_and_raises_what_it_raises() -> None:
    async def give() -> int:
        return 3

    async def fail() -> int:
        raise Unavailable("no")

    loop = InLoop()
    assert await asyncio.to_thread(loop.run, give()) == 3
    with pytest.raises(Unavailable, match="no"):
        await asyncio.to_thread(loop.run, fail())


async def test_who_stops_watching_cancels_it_and_waits_until_it_has_cleared_up() -> None:
    done: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            done.append("cleared up")

    with pytest.raises(Enough):
        await asyncio.to_thread(InLoop().run, work(), enough)
    assert done == ["cleared up"]


async def test_what_goes_wrong_while_it_clears_up_is_not_what_is_raised() -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise Unavailable("another one")

    with pytest.raises(Enough):
        await asyncio.to_thread(InLoop().run, work(), enough)
