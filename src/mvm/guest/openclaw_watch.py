"""Follows OpenClaw through its control socket: is it up, what is it doing, is anything of it held back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from mvm.guest.control import ControlError, ControlSocket, OpenClawStatus
from mvm.guest.http import HttpError
from mvm.guest.http_client import call
from mvm.guest.status import StatusBoard

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.1
HEALTH_PAUSES = (0.02, 0.5)
"""First and longest pause between two looks at the health check."""
HEALTH_SECONDS = 5.0


class OpenClawWatch:
    """Keeps the board's picture of OpenClaw; calls `on_up` each time it has come up."""

    def __init__(
        self,
        control: ControlSocket,
        board: StatusBoard,
        *,
        port: Callable[[], int],
        on_up: Callable[[], Awaitable[None]],
    ) -> None:
        self._control = control
        self._board = board
        self._port = port
        self._on_up = on_up
        self._latest: OpenClawStatus | None = None
        self._healthy = False
        self._health: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                self._following = asyncio.create_task(self._follow(), name="follow OpenClaw")
                await asyncio.wait([self._following])
                await self._forget()
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            await self._forget()

    async def reset(self) -> None:
        """That OpenClaw has ended: believe nothing more of what it said, not even what is still on its way."""
        await self._forget()

    async def _follow(self) -> None:
        try:
            async with aclosing(self._control.follow()) as statuses:
                async for status in statuses:
                    self._take_in(status)
        except ControlError as error:
            if self._latest is not None:
                log.info("OpenClaw is gone: %s", error)
        except Exception:  # the task's top: whatever it was, OpenClaw is looked at again
            log.exception("following OpenClaw failed")

    def _take_in(self, status: OpenClawStatus) -> None:
        self._latest = status
        if status.ready and self._health is None:
            self._health = asyncio.create_task(self._come_up(), name="health check")
        self._board.set_openclaw(status, healthy=self._healthy)

    async def _forget(self) -> None:
        for task in (self._following, self._health):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._latest, self._healthy, self._health = None, False, None
        self._board.set_openclaw(None, healthy=False)

    async def _come_up(self) -> None:
        pause, longest = HEALTH_PAUSES
        while not await self._answers():
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)
        self._healthy = True
        self._board.set_openclaw(self._latest, healthy=True)
        log.info("OpenClaw is up")
        try:
            await self._on_up()
        except ControlError as error:
            log.warning("OpenClaw is up, and then: %s", error)
        except Exception:  # the task's top: it is up all the same
            log.exception("OpenClaw is up, and then something failed")

    async def _answers(self) -> bool:
        # While it is held the health check says 503; it was up before that.
        if self._latest is not None and self._latest.suspended:
            return True
        try:
            answer = await call("127.0.0.1", self._port(), "GET", "/readyz", seconds=HEALTH_SECONDS)
        except (OSError, HttpError):
            return False
        return answer.status == 200
