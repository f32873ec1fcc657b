"""What this guest is doing, for anyone: put together from OpenClaw's own word, the deliveries and the outbox.

Unknown counts as busy. Nothing here asks OpenClaw anything, so watching it never fences its work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from mvm.guest.control import OpenClawStatus
from mvm.guest.paths import GuestPaths
from mvm.wire.messages import WorkerStatus, WorkStatus

MARKERS = (WorkStatus.READY, WorkStatus.IDLE, WorkStatus.BUSY)


class StatusBoard:
    """Everything that decides between busy and idle, in one place."""

    def __init__(
        self,
        *,
        runs_openclaw: bool,
        deliveries: Callable[[], int] = lambda: 0,
        outbound: Callable[[], int] = lambda: 0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`deliveries` counts open deliveries, `outbound` messages that wait to leave."""
        self.runs_openclaw = runs_openclaw
        self._deliveries = deliveries
        self._outbound = outbound
        self._now = now
        self._openclaw: OpenClawStatus | None = None
        self._healthy = False
        self._reachable = not runs_openclaw
        self._restarting = False
        self._own_work = 0
        self._last_busy_at: datetime | None = None
        self._before: tuple[object, ...] = ()
        self._was_busy = False
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change."""
        self._listeners.append(listener)

    @property
    def openclaw(self) -> OpenClawStatus | None:
        """OpenClaw's latest word; None while it says nothing."""
        return self._openclaw

    @property
    def openclaw_is_up(self) -> bool:
        """True while OpenClaw runs, answers its health check, and is not being restarted."""
        return not self.runs_openclaw or (
            self._openclaw is not None and self._openclaw.ready and self._healthy and not self._restarting
        )

    def set_openclaw(self, status: OpenClawStatus | None, *, healthy: bool) -> None:
        """Take in what the watch over OpenClaw sees."""
        self._openclaw, self._healthy = status, healthy
        self.changed()

    def set_reachable(self, reachable: bool) -> None:
        """Whether deliveries find this guest's forwarder."""
        self._reachable = reachable
        self.changed()

    def set_restarting(self, restarting: bool) -> None:
        """Whether OpenClaw is being stopped and started: it must not look ready in between."""
        self._restarting = restarting
        self.changed()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Counts as busy while it lasts (a command being run, a restart being prepared)."""
        self._own_work += 1
        self.changed()
        try:
            yield
        finally:
            self._own_work -= 1
            self.changed()

    @property
    def own_work(self) -> int:
        return self._own_work

    def current(self) -> WorkerStatus:
        """The answer to `WorkerStatus`."""
        openclaw = self._openclaw or OpenClawStatus(ready=False)
        in_flight = openclaw.in_flight + openclaw.queued + self._deliveries() + self._outbound() + self._own_work
        last = max((moment for moment in (self._last_busy_at, openclaw.last_busy_at) if moment), default=None)
        return WorkerStatus(
            status=self._status(in_flight),
            last_busy_at=last,
            next_alarm_at=openclaw.next_alarm_at,
            in_flight=in_flight,
        )

    def _status(self, in_flight: int) -> WorkStatus:
        if self.runs_openclaw and not (self.openclaw_is_up and self._reachable):
            return WorkStatus.UNKNOWN
        if in_flight:
            return WorkStatus.BUSY
        return WorkStatus.IDLE if self.runs_openclaw else WorkStatus.READY

    def changed(self) -> None:
        """Something may have changed: tell whoever listens, if it has."""
        status = self.current()
        if status.in_flight:
            self._last_busy_at = self._now()
            self._was_busy = True
        # While it is busy, that it was so a moment ago is no news.
        last_busy_at = None if status.in_flight else status.last_busy_at
        now = (status.status, status.in_flight, status.next_alarm_at, last_busy_at)
        if now != self._before:
            self._before = now
            for listener in self._listeners:
                listener()

    async def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until something holds of this board, looked at after each change; False when not within `seconds`."""
        changed = asyncio.Event()
        self._listeners.append(changed.set)
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            return condition()
        finally:
            self._listeners.remove(changed.set)
        return True

    def take_was_busy(self) -> bool:
        """Whether anything was going on since this was last asked, however short it was."""
        was, self._was_busy = self._was_busy, False
        return was


class Markers:
    """Keeps `/run/mvm/{ready,idle,busy}`: the file of what holds exists, the others do not."""

    def __init__(self, paths: GuestPaths) -> None:
        self._paths = paths

    def show(self, status: WorkStatus) -> None:
        """`ready` stands for every state in which the guest can be used, so it stays beside `idle` and `busy`."""
        shown = set() if status is WorkStatus.UNKNOWN else {WorkStatus.READY, status}
        with suppress(OSError):  # a full disk must not stop the guest
            for marker in MARKERS:
                path = self._paths.marker(marker.value)
                if marker in shown:
                    path.touch(mode=0o644)
                else:
                    path.unlink(missing_ok=True)
