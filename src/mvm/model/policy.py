"""When an instance goes to rest (CONTRACT 13). Pure decisions: who does what about them is `mvm.host`.

Time comes in two kinds. Durations (`idle_for_seconds`, `in_state_for_seconds`) are measured by the host on its
monotonic clock and decide wherever they are known: no jump of a wall clock can lengthen them. Wall-clock timestamps of
the record are used where the host has no measure of its own (it was restarted meanwhile), and only ever to hold back:
one that lies in the future, because the wall clock went backwards, counts as no time passed. A timestamp that is
missing holds nothing back.

Idle means that nothing is being done for anyone. What is not known counts as busy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Protocol

from mvm.model.entities import Instance, Pool, RuntimePolicy
from mvm.model.states import State

_EARLIEST = datetime.min.replace(tzinfo=UTC)

ALARM_MARGIN_SECONDS = 60.0
"""An instance whose next alarm is nearer than this is not put to sleep: it would be woken at once."""
ALARM_GRACE_SECONDS = 60.0
"""How long an instance that is awake for its alarm is given for beginning what the alarm is for."""
WANTED_MARGIN_SECONDS = 10.0
"""An instance that somebody asked to wake this short a time ago is not put to rest: their message is on its way."""
ALARM_LEAD_SECONDS = 20.0
"""How long before its alarm the wake of a sleeping instance begins at the latest."""
ALARM_SPREAD_SECONDS = 30.0
"""Over how long a time before that the wakes for one popular moment are spread."""
IDLE_STATUSES = frozenset({"idle", "ready"})
"""Statuses of `WorkerStatus` (CONTRACT 9) that mean idle; busy, unknown and anything else mean busy."""


class Action(StrEnum):
    """What to do with an instance."""

    STAY = "stay"
    """Nothing: it is not idle for long enough, or policy has no say over it."""
    WARM = "warm"
    SLEEP = "sleep"
    DEFER = "defer"
    """It is idle for long enough, but something holds it back; counted and audited with the reason."""


@dataclass(frozen=True)
class Decision:
    """What to do and why, in words for an operator."""

    action: Action
    reason: str


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the host knows of an instance beyond its record. Seconds are of the monotonic clock."""

    status: str = "unknown"
    """As the guest said last: ready, idle, busy or unknown."""
    in_flight: int = 0
    """Turns, tools and messages under way or queued."""
    idle_for_seconds: float | None = None
    """How long it has been idle without a break; None when it is not, or when that is not known."""
    in_state_for_seconds: float | None = None
    """How long the host has seen it in its present state; None when the host did not see it enter that state."""
    wanted_seconds_ago: float | None = None
    """When somebody last asked for it to be awake; None for never."""
    next_alarm_at: datetime | None = None
    """The person's next alarm, by the guest's word."""
    host_sees_activity: bool = False
    """True when CPU or network counters on the host say that it works, whatever it says itself."""

    @property
    def idle(self) -> bool:
        """True only when it is known that nothing is being done for anyone."""
        return self.status in IDLE_STATUSES and self.in_flight == 0 and not self.host_sees_activity


def decide(
    instance: Instance,
    pool: Pool,
    observation: Observation,
    *,
    now: datetime,
    warm_allowed: bool = True,
    keeps_warm: bool = True,
    policy: RuntimePolicy | None = None,
) -> Decision:
    """What policy does with an instance now: warm an idle running one, put an idle warm one to sleep.

    `now` is wall-clock UTC. `warm_allowed` is False when the tenant's `max_warm` is used up: then a running instance
    goes to sleep directly once it is idle for that long. So does, without anything holding it back, one whose runtime
    had better not pause it (`keeps_warm`). `policy` is the pool's unless given. An idle time of 0
    in it means at once, a guard (`min_running_seconds`, `min_warm_seconds`) of 0 guards nothing.
    """
    policy = policy or pool.runtime_policy
    if (reason := _out_of_reach(instance, pool)) is not None:
        return Decision(Action.STAY, reason)
    if instance.state is State.RUNNING:
        return _decide_running(instance, policy, observation, now, warm_allowed=warm_allowed, keeps_warm=keeps_warm)
    return _decide_warm(instance, policy, observation, now)


def _out_of_reach(instance: Instance, pool: Pool) -> str | None:
    """Why policy has no say over an instance; None when it has."""
    if instance.transition is not None:
        return f"{instance.transition.kind} is under way"
    if instance.state not in (State.RUNNING, State.WARM):
        return f"it is {instance.state}"
    if not instance.role.may_sleep_by_policy:
        return f"a {instance.role} is never put to sleep by policy"
    if pool.pinned or pool.critical:
        return f"its pool is {'pinned' if pool.pinned else 'critical'}"
    return None


def _decide_running(
    instance: Instance,
    policy: RuntimePolicy,
    seen: Observation,
    now: datetime,
    *,
    warm_allowed: bool,
    keeps_warm: bool,
) -> Decision:
    if not seen.idle:
        return Decision(Action.STAY, _why_busy(seen))
    idle_for = seen.idle_for_seconds
    if idle_for is None:
        return Decision(Action.STAY, "it is not known since when it is idle")
    least = policy.warm_after_idle_seconds if keeps_warm else policy.sleep_after_idle_seconds
    if idle_for < least:
        return Decision(Action.STAY, f"idle for less than {least} s")
    if (held := _held_back(instance, policy, seen, now)) is not None:
        return Decision(Action.DEFER, held)
    if warm_allowed and keeps_warm:
        return Decision(Action.WARM, f"idle for at least {policy.warm_after_idle_seconds} s")
    if idle_for < policy.sleep_after_idle_seconds:
        return Decision(Action.DEFER, "quota max_warm is used up")
    return Decision(Action.SLEEP, f"idle for at least {policy.sleep_after_idle_seconds} s")


def _decide_warm(instance: Instance, policy: RuntimePolicy, seen: Observation, now: datetime) -> Decision:
    """A warm instance was idle when its vCPUs were paused, and cannot become busy: its report is not looked at."""
    warm_for = _elapsed(seen.in_state_for_seconds, instance.entered_warm_at, now)
    idle_for = seen.idle_for_seconds if seen.idle_for_seconds is not None else warm_for
    if idle_for is not None and idle_for < policy.sleep_after_idle_seconds:
        return Decision(Action.STAY, f"idle for less than {policy.sleep_after_idle_seconds} s")
    if (held := _held_back(instance, policy, seen, now)) is not None:
        return Decision(Action.DEFER, held)
    return Decision(Action.SLEEP, f"idle for at least {policy.sleep_after_idle_seconds} s")


def _why_busy(seen: Observation) -> str:
    if seen.status not in (*IDLE_STATUSES, "busy"):
        return "unknown counts as busy"
    return "it is busy" if seen.status == "busy" or seen.in_flight else "the host sees it work"


def _held_back(instance: Instance, policy: RuntimePolicy, seen: Observation, now: datetime) -> str | None:
    """Why an idle instance is not put to rest yet; None when nothing holds it back."""
    guard, least, entered_at = (
        ("min_running_seconds", policy.min_running_seconds, instance.entered_running_at)
        if instance.state is State.RUNNING
        else ("min_warm_seconds", policy.min_warm_seconds, instance.entered_warm_at)
    )
    elapsed = _elapsed(seen.in_state_for_seconds, entered_at, now)
    if least > 0 and elapsed is not None and elapsed < least:
        return f"{instance.state} for less than {guard} ({least} s)"
    if seen.wanted_seconds_ago is not None and seen.wanted_seconds_ago < WANTED_MARGIN_SECONDS:
        return "somebody just asked for it to be awake"
    alarm = seen.next_alarm_at or instance.next_alarm_at
    if alarm is not None and alarm - now < timedelta(seconds=ALARM_MARGIN_SECONDS):
        if alarm > now:
            return "its next alarm is due"
        if (now - _chance_for(alarm, instance)).total_seconds() < ALARM_GRACE_SECONDS:
            return "its alarm has just been due"
    return None


def _chance_for(alarm: datetime, instance: Instance) -> datetime:
    """Since when an instance that is awake could do what an alarm is for."""
    awake_since = instance.entered_running_at
    return alarm if awake_since is None else max(alarm, awake_since)


def alarm_was_served(instance: Instance) -> bool:
    """True for an instance at rest that was awake for its alarm and had its chance.

    A guest that keeps an alarm of the past would otherwise be woken again as soon as it rests, for ever.
    """
    rested_at = {State.SLEEPING: instance.slept_at, State.WARM: instance.entered_warm_at}.get(instance.state)
    if instance.next_alarm_at is None or instance.entered_running_at is None or rested_at is None:
        return False
    chance = _chance_for(instance.next_alarm_at, instance)
    return (rested_at - chance).total_seconds() >= ALARM_GRACE_SECONDS


def _elapsed(measured: float | None, since: datetime | None, now: datetime) -> float | None:
    """Seconds in a state: measured where known, else by wall clock and never negative; None when neither is known."""
    if measured is not None:
        return measured
    return None if since is None else max(0.0, (now - since).total_seconds())


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An instance that might have to give up its place."""

    instance: Instance
    pool: Pool
    observation: Observation


def choose_eviction(
    candidates: Iterable[Candidate], *, now: datetime, states: frozenset[State] = frozenset({State.RUNNING})
) -> list[Candidate]:
    """Who may be put to sleep to make room, coldest first.

    Used when a wake would exceed `max_running` (only running instances free a place) and under memory pressure (pass
    `states` with warm ones too). An idle time below the threshold does not protect; being busy or unknown, a guard,
    a pinned or critical pool, a near alarm and somebody's wish do.
    """
    eligible = [c for c in candidates if c.instance.state in states and _may_be_evicted(c, now)]
    return sorted(eligible, key=lambda c: (-_coldness(c, now), c.instance.instance_id))


def _may_be_evicted(candidate: Candidate, now: datetime) -> bool:
    instance, seen = candidate.instance, candidate.observation
    if _out_of_reach(instance, candidate.pool) is not None:
        return False
    if instance.state is State.RUNNING and not (seen.idle and seen.idle_for_seconds is not None):
        return False
    return _held_back(instance, candidate.pool.runtime_policy, seen, now) is None


def _coldness(candidate: Candidate, now: datetime) -> float:
    """Seconds idle; a warm instance of which nothing is known is the coldest there is."""
    seen = candidate.observation
    if seen.idle_for_seconds is not None:
        return seen.idle_for_seconds
    warm_for = _elapsed(seen.in_state_for_seconds, candidate.instance.entered_warm_at, now)
    return float("inf") if warm_for is None else warm_for


@dataclass(frozen=True, kw_only=True)
class MemoryState:
    """How the host is off for memory."""

    total_bytes: int
    available_bytes: int
    """What could be had without swapping (`MemAvailable`)."""
    stalled_percent: float = 0.0
    """Of the last 10 seconds in which everything that runs waited for memory (`full avg10` of the kernel's PSI)."""


LOW_MEMORY_FRACTION = 0.05
HIGH_STALL_PERCENT = 10.0


def memory_pressure(state: MemoryState) -> str | None:
    """Why idle instances are to make room now, before they are due; None when there is memory enough."""
    if state.available_bytes < LOW_MEMORY_FRACTION * state.total_bytes:
        return f"{state.available_bytes // 2**20} of {state.total_bytes // 2**20} MiB of memory are left"
    if state.stalled_percent >= HIGH_STALL_PERCENT:
        return f"everything waited for memory in {state.stalled_percent:.0f} % of the last 10 s"
    return None


class Jitter(Protocol):
    """A source of chance, such as `random.Random`."""

    def random(self) -> float:
        """A number from 0 to 1, 1 excluded."""


def alarm_wake_at(
    next_alarm: datetime,
    jitter: Jitter,
    *,
    lead_seconds: float = ALARM_LEAD_SECONDS,
    spread_seconds: float = ALARM_SPREAD_SECONDS,
) -> datetime:
    """When to begin the wake for an alarm: `lead_seconds` before it or up to `spread_seconds` earlier, never later.

    The jitter spreads the wakes for one popular moment. Draw it once per alarm (or seed it by instance and alarm): a
    new draw at every look would let the earliest one win. Guests choose their alarms: one at the beginning of time is
    simply due.
    """
    lead = timedelta(seconds=lead_seconds + jitter.random() * spread_seconds)
    return next_alarm - min(lead, next_alarm - _EARLIEST)
