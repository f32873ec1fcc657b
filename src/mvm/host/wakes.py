"""Wakes: at most one per instance at a time, whoever asks and however often (CONTRACT 9).

Every caller of a wake under way gets its result; a caller that hangs up does not cancel it. When the tenant's running
places are taken, the coldest idle instance is put to sleep to make room, and until one can be, the wake waits in line.
"""

from __future__ import annotations

import asyncio

from mvm.host.audit import AuditAction
from mvm.host.budgets import Budgets
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.lifecycle import Lifecycle
from mvm.host.observation import Observer
from mvm.host.quotas import QuotaKeeper, counts_as_running
from mvm.host.records import refuse_held
from mvm.host.retries import Retries, sleep_of
from mvm.model import policy
from mvm.model.entities import Instance
from mvm.model.errors import MvmError, QuotaExceeded
from mvm.model.ids import InstanceId, InstanceRef
from mvm.model.states import State

ROOM_RETRY_SECONDS = 1.0
"""How often a wake that waits for room looks again whether somebody became idle."""


class Wakes:
    """The one way by which messages, alarms and commands bring an instance up."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        lifecycle: Lifecycle,
        quotas: QuotaKeeper,
        observer: Observer,
        budgets: Budgets,
        chronicle: Chronicle,
        retries: Retries,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._quotas = quotas
        self._observer = observer
        self._budgets = budgets
        self._chronicle = chronicle
        self._retries = retries
        self._clock = clock
        self._under_way: dict[InstanceId, asyncio.Task[Instance]] = {}
        lifecycle.wake_wanted = self.is_wanted

    def is_wanted(self, instance: InstanceId) -> bool:
        """True while somebody waits for that instance."""
        return instance in self._under_way

    async def wake(self, ref: InstanceRef, *, actor: str, trace: str | None = None, for_user: bool = False) -> Instance:
        """Return when the instance is running. Raises what kept it from running; `Refused` when it is held.

        `trace` names the message that it is for, in the logs and the audit. A wake `for_user` (their message, their
        alarm) is one of their budget's; it is refused as `OverBudget` when that is used up.
        """
        instance = self._catalog.instance(ref)
        self._observer.wanted(ref.instance_id)
        if instance.state is State.RUNNING and instance.transition is None:
            return instance
        task = self._under_way.get(ref.instance_id)
        if task is None:
            task = asyncio.create_task(
                self._bring_back(ref, actor=actor, trace=trace, for_user=for_user), name=f"wake {ref}"
            )
            self._under_way[ref.instance_id] = task
            task.add_done_callback(lambda done: self._done(ref.instance_id, done))
        return await asyncio.shield(task)

    def _done(self, instance: InstanceId, task: asyncio.Task[Instance]) -> None:
        self._under_way.pop(instance, None)
        if not task.cancelled():
            task.exception()  # retrieved: every caller that still waits gets it, and none may be left

    async def _bring_back(self, ref: InstanceRef, *, actor: str, trace: str | None, for_user: bool) -> Instance:
        instance = self._catalog.instance(ref)
        refuse_held(instance)
        if for_user:
            await self._budgets.check(instance)
        detail = f"trace {trace}" if trace else None
        self._chronicle.record(instance, AuditAction.WAKE_REQUESTED, actor=actor, detail=detail)
        while True:
            try:
                awake = await self._lifecycle.start(ref, actor=actor, unless_held=True)
            except QuotaExceeded:
                if not self._may_find_room(instance):
                    raise
                await self._find_room(instance, actor=actor)
            else:
                if for_user:
                    await self._budgets.woken(instance)
                return awake

    def _may_find_room(self, instance: Instance) -> bool:
        """Putting somebody to sleep helps only where somebody else is up."""
        return any(
            counts_as_running(other) or other.state is State.WARM
            for other in self._catalog.instances_of(instance.tenant_id)
            if other.instance_id != instance.instance_id
        )

    async def _find_room(self, instance: Instance, *, actor: str) -> None:
        """Return when the instance may be started, or nothing can be done for that; who waits is told of once.

        Raises `NotFound` when it was destroyed meanwhile: nobody is put to sleep for nobody.
        """
        while True:
            await self._make_room(instance, actor=actor)
            instance = self._catalog.instance(instance.ref)
            if instance.state is State.RUNNING or instance.held:
                return
            pool = self._catalog.pool(instance.tenant_id, instance.pool_id)
            try:
                self._quotas.check_run(instance, pool)
            except QuotaExceeded:
                if self._may_find_room(instance):
                    continue
            return

    async def _make_room(self, instance: Instance, *, actor: str) -> None:
        """Put the tenant's coldest idle instance to sleep, or wait for one to become idle."""
        candidates = [
            policy.Candidate(
                instance=other,
                pool=self._catalog.pool(other.tenant_id, other.pool_id),
                observation=self._observer.observe(other),
            )
            for other in self._catalog.instances_of(instance.tenant_id)
            if other.instance_id != instance.instance_id
            and not self.is_wanted(other.instance_id)
            and self._retries.may_try(sleep_of(other.ref))
        ]
        up = {State.RUNNING} if self._quotas.places_are_short(instance) else {State.RUNNING, State.WARM}
        for candidate in policy.choose_eviction(candidates, now=self._clock.now(), states=frozenset(up)):
            reason = f"{actor} (room for {instance.instance_id})"
            try:
                with self._retries.attempt(sleep_of(candidate.instance.ref)):
                    await self._lifecycle.sleep(candidate.instance.ref, actor=reason, by_policy=True)
            except MvmError:
                continue  # it became busy meanwhile: the next one
            return
        await asyncio.sleep(ROOM_RETRY_SECONDS)
