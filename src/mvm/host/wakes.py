"""Wakes: at most one per instance at a time, whoever asks and however often (CONTRACT 9).

Every caller of a wake under way gets its result; a caller that hangs up does not cancel it. When the tenant's running
places are taken, the coldest idle instance is put to sleep to make room, and until one can be, the wake waits in line.
"""

from __future__ import annotations

import asyncio

from mvm.host.audit import AuditAction
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.lifecycle import Lifecycle
from mvm.host.quotas import QuotaKeeper, counts_as_running
from mvm.host.reports import Activity, Reports
from mvm.model.entities import Instance
from mvm.model.errors import MvmError, QuotaExceeded, Refused
from mvm.model.ids import InstanceId, InstanceRef
from mvm.model.states import State

ROOM_RETRY_SECONDS = 1.0
"""How often a wake that waits for room looks again by itself; a report of any instance makes it look at once."""


class Wakes:
    """The one way by which messages, alarms and commands bring an instance up."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        lifecycle: Lifecycle,
        quotas: QuotaKeeper,
        reports: Reports,
        chronicle: Chronicle,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._quotas = quotas
        self._reports = reports
        self._chronicle = chronicle
        self._clock = clock
        self._under_way: dict[InstanceId, asyncio.Task[Instance]] = {}
        self._wanted_at: dict[InstanceId, float] = {}
        lifecycle.wake_wanted = self.is_wanted

    def is_wanted(self, instance: InstanceId) -> bool:
        """True while somebody waits for that instance."""
        return instance in self._under_way

    def wanted_seconds_ago(self, instance: InstanceId) -> float | None:
        """Seconds since somebody last asked for it, awake or not; None when nobody has since the agent started."""
        at = self._wanted_at.get(instance)
        return None if at is None else self._clock.monotonic() - at

    async def wake(self, ref: InstanceRef, *, actor: str) -> Instance:
        """Return when the instance is running. Raises what kept it from running; `Refused` when it is held."""
        instance = self._catalog.instance(ref)
        self._wanted_at[ref.instance_id] = self._clock.monotonic()
        if instance.state is State.RUNNING and instance.transition is None:
            return instance
        task = self._under_way.get(ref.instance_id)
        if task is None:
            task = asyncio.create_task(self._bring_back(ref, actor=actor), name=f"wake {ref}")
            self._under_way[ref.instance_id] = task
            task.add_done_callback(lambda done: self._done(ref.instance_id, done))
        return await asyncio.shield(task)

    def _done(self, instance: InstanceId, task: asyncio.Task[Instance]) -> None:
        self._under_way.pop(instance, None)
        if not task.cancelled():
            task.exception()  # retrieved: every caller that still waits gets it, and none may be left

    async def _bring_back(self, ref: InstanceRef, *, actor: str) -> Instance:
        instance = self._catalog.instance(ref)
        if instance.held:
            raise Refused(f"{ref} was stopped by its operator", hint=f"`mvm instance start {ref}` lets it run again")
        await self._chronicle.record(instance, AuditAction.WAKE_REQUESTED, actor=actor)
        while True:
            try:
                return await self._lifecycle.start(ref, actor=actor)
            except QuotaExceeded as full:
                if not self._may_find_room(instance, full):
                    raise
                await self._make_room(instance, actor=actor)

    def _may_find_room(self, instance: Instance, full: QuotaExceeded) -> bool:
        """Putting somebody to sleep helps only where somebody else is up."""
        return any(
            counts_as_running(other) or other.state is State.WARM
            for other in self._catalog.instances_of(instance.tenant_id)
            if other.instance_id != instance.instance_id
        )

    async def _make_room(self, instance: Instance, *, actor: str) -> None:
        """Put the tenant's coldest idle instance to sleep, or wait for one to become idle."""
        for candidate in self._coldest_first(instance):
            try:
                await self._lifecycle.sleep(
                    candidate.ref, actor=f"{actor} (room for {instance.instance_id})", by_policy=True
                )
            except MvmError:
                continue  # it became busy meanwhile, or may not sleep yet: the next one
            return
        await asyncio.sleep(ROOM_RETRY_SECONDS)

    def _coldest_first(self, instance: Instance) -> list[Instance]:
        """Instances that may give up their place, the longest idle first."""
        now = self._clock.monotonic()

        def idle_seconds(candidate: Instance) -> float:
            if candidate.state is State.WARM:
                return float("inf")
            since = self._reports.latest(candidate.instance_id).idle_since
            return -1.0 if since is None else now - since

        candidates = [
            other
            for other in self._catalog.instances_of(instance.tenant_id)
            if other.instance_id != instance.instance_id
            and other.state.has_process
            and other.transition is None
            and other.role.may_sleep_by_policy
            and not self._catalog.pool(other.tenant_id, other.pool_id).pinned
            and not self.is_wanted(other.instance_id)
            and (other.state is State.WARM or self._reports.latest(other.instance_id).activity is not Activity.UNKNOWN)
            and idle_seconds(other) >= 0
        ]
        return sorted(candidates, key=idle_seconds, reverse=True)
