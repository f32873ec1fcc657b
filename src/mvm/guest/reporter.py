"""Tells the host what the guest is doing: at once when it becomes busy, soon after any other change, and regularly."""

from __future__ import annotations

import asyncio
import logging

from mvm.guest.router_host import Host, HostRefused, HostUnreachable
from mvm.guest.status import StatusBoard
from mvm.wire.messages import ReportStatus, WorkerStatus, WorkStatus

log = logging.getLogger(__name__)

DEBOUNCE_SECONDS = 0.1
HEARTBEAT_SECONDS = 20.0
RETRY_SECONDS = 1.0


class Reporter:
    """Sends `ReportStatus`, one at a time, always the latest."""

    def __init__(
        self,
        board: StatusBoard,
        host: Host,
        *,
        debounce: float = DEBOUNCE_SECONDS,
        heartbeat: float = HEARTBEAT_SECONDS,
        retry: float = RETRY_SECONDS,
    ) -> None:
        self._board = board
        self._host = host
        self._debounce = debounce
        self._heartbeat = heartbeat
        self._retry = retry
        self._changed = asyncio.Event()
        self._last: WorkStatus | None = None
        board.listen(self._changed.set)

    async def run(self) -> None:
        """Report until cancelled."""
        pause = 0.0
        while True:
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                pass
            if self._changed.is_set() and not self._urgent(self._board.current().status):
                await asyncio.sleep(self._debounce)
            self._changed.clear()
            pause = self._heartbeat if await self._report() else self._retry

    def _urgent(self, status: WorkStatus) -> bool:
        """Neither the change to busy may wait, nor the word that the guest is usable (or is not) any more."""
        return status is not self._last and (
            status is WorkStatus.BUSY or WorkStatus.UNKNOWN in (status, self._last or WorkStatus.UNKNOWN)
        )

    async def _report(self) -> bool:
        was_busy, status = self._board.take_was_busy(), self._board.current()
        if was_busy and self._last is status.status and status.status in (WorkStatus.IDLE, WorkStatus.READY):
            # Busy and idle again between two reports: the host must not believe that it was idle all the time.
            return await self._send(status, WorkStatus.BUSY) and await self._send(status, status.status)
        return await self._send(status, status.status)

    async def _send(self, status: WorkerStatus, said: WorkStatus) -> bool:
        report = ReportStatus(status=said, in_flight=status.in_flight, next_alarm_at=status.next_alarm_at)
        try:
            await self._host.ask(report)
        except HostUnreachable as error:
            log.info("the host does not take reports: %s", error)
            return False
        except HostRefused as error:
            log.warning("the host refused a report: %s", error)
        self._last = said
        return True
