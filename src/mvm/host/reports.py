"""What guests say of themselves: busy or idle, and when their next alarm is.

Kept in memory only: after an agent restart every instance is *unknown*, which counts as busy, until it reports again.
Idle time is measured on the monotonic clock from the moment the host saw the instance become idle, so that neither a
guest's clock nor a jump of the host's can make anything eligible for sleep.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from mvm.host.clock import Clock
from mvm.model.ids import InstanceId


class Activity(StrEnum):
    """What a guest says it is doing (`WorkerStatus`, CONTRACT 9)."""

    READY = "ready"
    IDLE = "idle"
    BUSY = "busy"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Report:
    """The latest word of a guest."""

    activity: Activity
    in_flight: int = 0
    next_alarm_at: datetime | None = None
    last_busy_at: datetime | None = None
    received_at: float = 0.0
    """Monotonic time at which the host got it."""
    idle_since: float | None = None
    """Monotonic time since when it has been idle without a break; None while busy or unknown."""


UNKNOWN = Report(activity=Activity.UNKNOWN)


class Reports:
    """Latest report per instance, and a way to wait for the next one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latest: dict[InstanceId, Report] = {}
        self._changed: dict[InstanceId, asyncio.Event] = {}

    def latest(self, instance: InstanceId) -> Report:
        """The latest report, or one that says unknown."""
        return self._latest.get(instance, UNKNOWN)

    def record(
        self,
        instance: InstanceId,
        activity: Activity,
        *,
        in_flight: int = 0,
        next_alarm_at: datetime | None = None,
        last_busy_at: datetime | None = None,
    ) -> Report:
        """Take in a report; continues the idle period when it was idle before and nothing was done in between."""
        now = self._clock.monotonic()
        before = self.latest(instance)
        idle = activity in (Activity.IDLE, Activity.READY) and in_flight == 0
        worked_meanwhile = last_busy_at is not None and before.last_busy_at not in (None, last_busy_at)
        idle_since = (
            (before.idle_since if before.idle_since is not None and not worked_meanwhile else now) if idle else None
        )
        report = Report(
            activity=activity,
            in_flight=in_flight,
            next_alarm_at=next_alarm_at,
            last_busy_at=last_busy_at if last_busy_at is not None else before.last_busy_at,
            received_at=now,
            idle_since=idle_since,
        )
        self._latest[instance] = report
        if (event := self._changed.pop(instance, None)) is not None:
            event.set()
        return report

    def forget(self, instance: InstanceId) -> None:
        """Nothing is known of it any more (it slept, stopped or died)."""
        self._latest.pop(instance, None)
        if (event := self._changed.pop(instance, None)) is not None:
            event.set()

    async def changed(self, instance: InstanceId) -> None:
        """Return at the next report of that instance."""
        await self._changed.setdefault(instance, asyncio.Event()).wait()
