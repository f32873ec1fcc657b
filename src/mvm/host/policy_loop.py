"""Idle instances go to rest, alarms wake in time, always-on instances stay on (CONTRACT 12 and 13).

Decisions are pure (`mvm.model.policy`); this loop gathers what they need and carries them out, one instance at a time,
so that a failure of one never keeps the others waiting for ever.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from datetime import datetime

import structlog

from mvm.host.attachments import Attachments
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.guests import Guests
from mvm.host.host_view import HostView
from mvm.host.lifecycle import Lifecycle
from mvm.host.observation import Observer
from mvm.host.quotas import QuotaKeeper
from mvm.host.reports import Activity, Reports
from mvm.host.retries import Retries, sleep_of, warming_of
from mvm.host.runtimes import Runtimes
from mvm.host.wakes import Wakes
from mvm.model import policy
from mvm.model.entities import Instance, SnapshotCompression
from mvm.model.errors import MvmError, Refused
from mvm.model.ids import InstanceId, InstanceRef
from mvm.model.policy import MemoryState
from mvm.model.roles import Role
from mvm.model.states import State

log = structlog.get_logger(__name__)

TICK_SECONDS = 5.0
LONG_SLEEP_SECONDS = 3600.0
"""After this long a sleeper's memory is compressed, where its pool says so (`snapshot_compression`)."""
ACTOR = "policy"
RELIEF_SECONDS = 10.0
"""Between two instances that are put to sleep because memory is short."""
REPORT_MAX_AGE_SECONDS = 60.0
"""An older report is asked for again; a guest reports every 20 s by itself."""


class PolicyLoop:
    """Looks at every instance every few seconds."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        lifecycle: Lifecycle,
        wakes: Wakes,
        observer: Observer,
        quotas: QuotaKeeper,
        reports: Reports,
        guests: Guests,
        runtimes: Runtimes,
        chronicle: Chronicle,
        attachments: Attachments,
        retries: Retries,
        host_view: HostView | None = None,
        memory: Callable[[], MemoryState] | None = None,
        clock: Clock,
    ) -> None:
        """Without `host_view` and `memory` only what guests say counts, and memory is never short."""
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._wakes = wakes
        self._observer = observer
        self._quotas = quotas
        self._reports = reports
        self._guests = guests
        self._runtimes = runtimes
        self._chronicle = chronicle
        self._attachments = attachments
        self._clock = clock
        self._acting: dict[InstanceId, asyncio.Task[None]] = {}
        self._compressed: dict[InstanceId, datetime | None] = {}
        """When the sleep began of which this was done."""
        self._retries = retries
        self._host_view = host_view
        self._memory = memory
        self._evicted_at: float | None = None
        self.on_death: Callable[[], None] = lambda: None
        """Told when an instance has died and what policy has to say about that is under way."""

    async def run(self) -> None:
        """Run for ever: the tick, and the watch over processes that end."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tick_for_ever(), name="policy")
            group.create_task(self._revive_for_ever(group), name="revive")

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self._host_view is not None:
                running = [i for i in self._catalog.instances.values() if i.state is State.RUNNING]
                await asyncio.to_thread(self._host_view.look, running)
            self.tick()

    def tick(self) -> None:
        """Look at every instance once; what is to be done is begun as a task of its own."""
        self._observer.keep_only(self._catalog.instances)
        self._relieve_memory()
        for instance in list(self._catalog.instances.values()):
            try:
                self._look_at(instance)
            except Exception:  # whatever a guest made of its record: the others are looked at all the same
                log.exception("an instance cannot be looked at", instance=str(instance.ref))

    def _look_at(self, instance: Instance) -> None:
        if instance.instance_id in self._acting or self._lifecycle.busy(instance.instance_id):
            return
        if instance.transition is not None:
            return
        if self._alarm_is_due(instance):
            if self._retries.may_try(str(instance.ref)):
                self._act(instance, self._wake_for_alarm(instance))
        elif instance.manual_until is not None and self._clock.now() < instance.manual_until:
            return  # a person has just dealt with it
        elif self._should_be_up(instance):
            self._act(instance, self._keep_up(instance))
        elif instance.state.has_process and instance.role.may_sleep_by_policy:
            self._act(instance, self._consider_rest(instance))
        elif self._sleeps_long(instance):
            self._compressed[instance.instance_id] = instance.slept_at
            self._act(instance, self._lifecycle.compress(instance.ref))

    async def settled(self) -> None:
        """Return when everything that was begun has ended."""
        while self._acting:
            await asyncio.gather(*self._acting.values(), return_exceptions=True)

    async def tick_and_wait(self) -> None:
        """One look at every instance, carried out to the end."""
        self.tick()
        await self.settled()

    def _sleeps_long(self, instance: Instance) -> bool:
        """True once for each sleep that has become a long one, where its pool wants that to take less of the disk."""
        if instance.state is not State.SLEEPING or instance.slept_at is None:
            return False
        if self._compressed.get(instance.instance_id) == instance.slept_at or len(self._acting) > 0:
            return False  # one at a time, and only when there is nothing else to be done
        pool = self._catalog.pool(instance.tenant_id, instance.pool_id)
        asleep = (self._clock.now() - instance.slept_at).total_seconds()
        return pool.snapshot_compression is SnapshotCompression.ZSTD and asleep >= LONG_SLEEP_SECONDS

    def _act(self, instance: Instance, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(self._guarded(instance, work), name=f"policy {instance.ref}")
        self._acting[instance.instance_id] = task
        task.add_done_callback(lambda _: self._acting.pop(instance.instance_id, None))

    async def _guarded(self, instance: Instance, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except MvmError as error:
            log.info("policy could not act", instance=str(instance.ref), reason=error.message)
        except Exception:
            log.exception("policy failed", instance=str(instance.ref))

    # Rest

    async def _consider_rest(self, instance: Instance) -> None:
        await self._freshen_report(instance)
        instance = self._catalog.instances.get(instance.instance_id, instance)
        pool = self._catalog.pool(instance.tenant_id, instance.pool_id)
        warm_allowed = True
        try:
            self._quotas.check_warm(instance)
        except Refused:
            warm_allowed = False
        decision = policy.decide(
            instance,
            pool,
            self._observer.observe(instance),
            now=self._clock.now(),
            warm_allowed=warm_allowed,
            keeps_warm=self._runtimes.of(instance).capabilities.warm,
        )
        warming, sleep = warming_of(instance.ref), sleep_of(instance.ref)
        match decision.action:
            case policy.Action.WARM if self._retries.may_try(warming):
                with self._retries.attempt(warming):
                    await self._lifecycle.warm(instance.ref, actor=ACTOR, by_policy=True)
            case policy.Action.SLEEP if self._retries.may_try(sleep):
                with self._retries.attempt(sleep):
                    await self._lifecycle.sleep(instance.ref, actor=ACTOR, by_policy=True)
            case policy.Action.DEFER:
                self._chronicle.deferred(instance, decision.reason, actor=ACTOR)
            case _:
                pass

    async def _freshen_report(self, instance: Instance) -> None:
        if instance.state is not State.RUNNING:
            return
        report = self._reports.latest(instance.instance_id)
        if report.activity is not Activity.UNKNOWN and (
            self._clock.monotonic() - report.received_at < REPORT_MAX_AGE_SECONDS
        ):
            return
        await self._guests.status(self._runtimes.of(instance), self._lifecycle.machine(instance))

    # Memory

    def _relieve_memory(self) -> None:
        """While memory is short, put the coldest idle instance of the host to sleep, one after the other."""
        if self._memory is None or (why := policy.memory_pressure(self._memory())) is None:
            return
        now = self._clock.monotonic()
        if self._evicted_at is not None and now - self._evicted_at < RELIEF_SECONDS:
            return  # the last one's memory is only just coming back
        candidates = [
            policy.Candidate(
                instance=instance,
                pool=self._catalog.pool(instance.tenant_id, instance.pool_id),
                observation=self._observer.observe(instance),
            )
            for instance in self._catalog.instances.values()
            if instance.state.has_process and self._may_be_relieved_of(instance)
        ]
        up = frozenset({State.RUNNING, State.WARM})
        for candidate in policy.choose_eviction(candidates, now=self._clock.now(), states=up)[:1]:
            self._evicted_at = now
            log.warning("memory is short", why=why, instance=str(candidate.instance.ref))
            self._act(candidate.instance, self._evict(candidate.instance, why))

    def _may_be_relieved_of(self, instance: Instance) -> bool:
        by_hand = instance.manual_until is not None and self._clock.now() < instance.manual_until
        under_way = instance.instance_id in self._acting or self._lifecycle.busy(instance.instance_id)
        if by_hand or under_way or self._wakes.is_wanted(instance.instance_id):
            return False
        return self._retries.may_try(sleep_of(instance.ref))  # one that refuses must not be in the others' way

    async def _evict(self, instance: Instance, why: str) -> None:
        with self._retries.attempt(sleep_of(instance.ref)):
            await self._lifecycle.sleep(instance.ref, actor=f"memory pressure: {why}", by_policy=True)

    # Alarms

    def _alarm_is_due(self, instance: Instance) -> bool:
        """Asleep (or paused, its own timers stopped) with an alarm so near that the wake must begin."""
        if instance.next_alarm_at is None or instance.held or not instance.role.runs_openclaw:
            return False
        if instance.state not in (State.SLEEPING, State.WARM, State.STOPPED) or policy.alarm_was_served(instance):
            return False
        return self._clock.now() >= self.alarm_wake_at(instance)

    def alarm_wake_at(self, instance: Instance) -> datetime:
        """When the wake for its alarm begins."""
        assert instance.next_alarm_at is not None
        keeps_memory = self._runtimes.of(instance).capabilities.memory_snapshot or instance.state is State.WARM
        lead = policy.ALARM_LEAD_SECONDS
        if instance.last_wake is not None and not keeps_memory:
            lead = max(lead, 2 * instance.last_wake.total_ms / 1000)
        # Seeded by instance and alarm: the same at every look, another one for each person.
        chance = random.Random(f"{instance.instance_id} {instance.next_alarm_at.isoformat()}")  # noqa: S311
        return policy.alarm_wake_at(instance.next_alarm_at, chance, lead_seconds=lead)

    async def _wake_for_alarm(self, instance: Instance) -> None:
        try:
            await self._wakes.wake(instance.ref, actor="alarm", for_user=True)
        except MvmError:
            # Tried again with growing pauses: one that cannot start must not fill the audit with attempts.
            self._retries.tried(str(instance.ref))
            raise

    # Staying up

    def _should_be_up(self, instance: Instance) -> bool:
        """An always-on gateway comes back by itself; what a person stopped stays stopped."""
        return (
            instance.role is Role.GATEWAY
            and instance.state in (State.STOPPED, State.SLEEPING, State.WARM)
            and not instance.held
            and instance.entered_running_at is not None
            and self._retries.may_try(str(instance.ref))
        )

    async def _keep_up(self, instance: Instance) -> None:
        self._retries.tried(str(instance.ref))
        await self._wakes.wake(instance.ref, actor="always-on")

    async def _revive_for_ever(self, group: asyncio.TaskGroup) -> None:
        while True:
            ref = await self._attachments.ended.get()
            # Each by itself: one whose lock is held for minutes must not keep a gateway from coming back.
            group.create_task(self._revive(ref), name=f"revive {ref}")

    async def _revive(self, ref: InstanceRef) -> None:
        try:
            await self.process_ended(ref)
        except Exception:
            log.exception("the end of a process could not be handled", instance=str(ref))

    async def process_ended(self, ref: InstanceRef) -> None:
        """A process ended although nobody asked: note it, and start again who was in the middle of something."""
        was_idle = self._reports.latest(ref.instance_id).activity in (Activity.IDLE, Activity.READY)
        instance = await self._lifecycle.process_ended(ref, actor=ACTOR)
        if instance is None:
            return
        log.warning("instance died", instance=str(ref), was_idle=was_idle)
        # An idle worker that died needs no process now: the next message or alarm boots it from its data.
        if (instance.role is Role.GATEWAY or not was_idle) and self._retries.may_try(str(ref)):
            self._act(instance, self._keep_up(instance))
        self.on_death()
