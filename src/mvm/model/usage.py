"""What a tenant's people used, by day (UTC): the figures that a bill is made of. Pure sums over records.

Running time is the time in state running. Memory is held while running and while warm; a MiB-second is one MiB held for
one second. A wake is a return from sleep; a message is one whose answer was sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta

from pydantic import Field

from mvm.model.base import Frozen
from mvm.model.entities import Instance, TransitionKind
from mvm.model.states import State


class Usage(Frozen):
    """An amount; amounts add up."""

    running_seconds: float = Field(0.0, ge=0)
    memory_mib_seconds: float = Field(0.0, ge=0)
    wakes: int = Field(0, ge=0)
    messages: int = Field(0, ge=0)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            running_seconds=self.running_seconds + other.running_seconds,
            memory_mib_seconds=self.memory_mib_seconds + other.memory_mib_seconds,
            wakes=self.wakes + other.wakes,
            messages=self.messages + other.messages,
        )


def held(state: State, mem_mib: int, seconds: float) -> Usage:
    """What an instance uses by being in that state for that long."""
    return Usage(
        running_seconds=seconds if state is State.RUNNING else 0.0,
        memory_mib_seconds=mem_mib * seconds if state.has_process else 0.0,
    )


def by_day(begin: datetime, end: datetime) -> Iterator[tuple[date, float]]:
    """The seconds of each UTC day between two moments; nothing when the end lies before the beginning."""
    begin, end = begin.astimezone(UTC), end.astimezone(UTC)
    while begin < end:
        midnight = datetime.combine(begin.date() + timedelta(days=1), time(), UTC)
        until = min(midnight, end)
        yield begin.date(), (until - begin).total_seconds()
        begin = until


def unseen(instance: Instance, mem_mib: int, *, since: datetime, now: datetime) -> Iterator[tuple[date, Usage]]:
    """What an instance used between `since` and `now` while nobody counted, by its own record.

    The record tells when it began to run, was paused and fell asleep. One that ended in another way (it was stopped, it
    died, the host lost its power) does not tell when: that is not charged.
    """
    ran_from = max(since, instance.entered_running_at or now)
    warm_from = max(since, instance.entered_warm_at or now)
    spans: list[tuple[State, datetime, datetime]] = []
    match instance.state:
        case State.RUNNING:
            spans.append((State.RUNNING, ran_from, now))
        case State.WARM:
            spans += [(State.RUNNING, ran_from, warm_from), (State.WARM, warm_from, now)]
        case State.SLEEPING if instance.slept_at is not None:
            paused = instance.entered_warm_at
            if paused is not None and (instance.entered_running_at or since) <= paused <= instance.slept_at:
                spans += [(State.RUNNING, ran_from, warm_from), (State.WARM, warm_from, instance.slept_at)]
            else:
                spans.append((State.RUNNING, ran_from, instance.slept_at))
    for state, begin, end in spans:
        for day, seconds in by_day(begin, end):
            yield day, held(state, mem_mib, seconds)
    wake = instance.last_wake
    if wake is not None and wake.kind is TransitionKind.WAKE and since < wake.began_at <= now:
        yield wake.began_at.astimezone(UTC).date(), Usage(wakes=1)
