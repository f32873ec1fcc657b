"""Lifecycle of instances: the only code that changes an instance's state (CONTRACT 4).

Every operation takes the instance's lock, checks the transition, records its intent, does the work, and records the new
state. An operation that fails puts the instance back where it was, with the reason kept in `last_error`. An agent that
is killed in between leaves the intent, and `mvm.host.recovery` finishes or undoes it at the next start.

The sleep path is `sleep` -> `Rest.drain` -> `Rest.save` -> `_put_down`; the wake path is `wake` -> `BringUp`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from mvm.host.attachments import Attachments
from mvm.host.audit import AuditAction
from mvm.host.bring_up import BringUp
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.drive_preparation import DrivePreparer
from mvm.host.machines import InstanceDirectories
from mvm.host.quotas import QuotaKeeper
from mvm.host.records import Records, describe, refuse_held
from mvm.host.reports import Activity, Reports
from mvm.host.rest import Rest
from mvm.host.runtimes import Runtimes
from mvm.model import addresses
from mvm.model.entities import Instance, TransitionKind
from mvm.model.errors import Conflict, MvmError, Refused
from mvm.model.ids import InstanceId, InstanceRef, PoolId, TenantId, UserId
from mvm.model.states import State
from mvm.runtime.base import Machine
from mvm.telemetry.logs import bound
from mvm.telemetry.timings import Stages

MANUAL_WINDOW_SECONDS = 300.0
CUT_SHORT_RETRY_SECONDS = 0.2
KILL_GRACE_SECONDS = 1.0
"""What an instance gets to end by itself when it is forced."""


class Lifecycle:
    """Operations on instances. All are idempotent where that makes sense, and safe to call at the same time."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        runtimes: Runtimes,
        directories: InstanceDirectories,
        preparer: DrivePreparer,
        reports: Reports,
        quotas: QuotaKeeper,
        chronicle: Chronicle,
        attachments: Attachments,
        bring_up: BringUp,
        rest: Rest,
        records: Records,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._runtimes = runtimes
        self._directories = directories
        self._preparer = preparer
        self._reports = reports
        self._quotas = quotas
        self._chronicle = chronicle
        self._attachments = attachments
        self._bring_up = bring_up
        self._rest = rest
        self._records = records
        self._clock = clock
        self._locks: dict[InstanceId, asyncio.Lock] = {}
        self.wake_wanted: Callable[[InstanceId], bool] = lambda _: False
        """Says whether somebody waits for a wake; a sleep that has not passed its last step back is then abandoned."""

    # Creating

    async def create_instance(
        self,
        tenant_id: TenantId,
        pool_id: PoolId,
        *,
        user: UserId | None = None,
        actor: str,
        runtime: str | None = None,
        wanted_id: InstanceId | None = None,
    ) -> Instance:
        """Make an instance of a pool: its id, its address, its place in the quotas. Nothing runs yet.

        It gets the id `wanted_id` unless another instance has it.
        """
        pool = self._catalog.pool(tenant_id, pool_id)
        tenant = self._catalog.tenant(tenant_id)
        chosen = (await self._runtimes.choose(runtime)).runtime
        async with self._quotas.lock(tenant_id):
            pool = self._catalog.pool(tenant_id, pool_id)  # it may have been destroyed meanwhile
            self._quotas.check_create_instance(pool)
            octets = {i.network.host_octet for i in self._catalog.instances_of(tenant_id)}
            instance_id = wanted_id or self._clock.new_instance_id()
            while instance_id in self._catalog.instances:
                instance_id = self._clock.new_instance_id()
            instance = await self._catalog.save_instance(
                Instance(
                    tenant_id=tenant_id,
                    pool_id=pool_id,
                    instance_id=instance_id,
                    role=pool.role,
                    state=State.READY,
                    runtime=chosen.name,
                    network=addresses.allocate_instance(tenant.network, used_octets=octets),
                    user=user,
                    created_at=self._clock.now(),
                )
            )
        self._chronicle.record(instance, AuditAction.INSTANCE_CREATED, actor=actor)
        return instance

    # Bringing up

    async def start(self, ref: InstanceRef, *, actor: str, unless_held: bool = False) -> Instance:
        """Boot a ready or stopped instance and wait until its service answers. A running one is returned as it is.

        `unless_held`: raises `Refused` when a person has stopped it, also one who did so a moment before.
        """
        async with self.locked(ref):
            instance = self._catalog.instance(ref)
            if unless_held:
                refuse_held(instance)
            if instance.state is State.RUNNING:
                return instance
            if instance.state is State.SLEEPING:
                return await self._come_up(instance, TransitionKind.WAKE, actor=actor)
            if instance.state is State.WARM:
                return await self._resume(instance, actor=actor)
            return await self._come_up(instance, TransitionKind.START, actor=actor)

    async def wake(self, ref: InstanceRef, *, actor: str) -> Instance:
        """Bring a sleeping or warm instance back; a running one succeeds at once (CONTRACT 4)."""
        async with self.locked(ref):
            instance = self._catalog.instance(ref)
            if instance.state is State.RUNNING:
                return instance
            if instance.state is State.WARM:
                return await self._resume(instance, actor=actor)
            if instance.state is not State.SLEEPING:
                raise Conflict(
                    f"Invalid state transition: {instance.state} -> {State.RUNNING} by a wake ({ref})",
                    hint=f"start it: mvm instance start {ref}",
                )
            return await self._come_up(instance, TransitionKind.WAKE, actor=actor)

    async def resume(self, ref: InstanceRef, *, actor: str) -> Instance:
        """Let a warm instance run again."""
        async with self.locked(ref):
            instance = self._catalog.instance(ref)
            if instance.state is State.RUNNING:
                return instance
            if instance.state is not State.WARM:
                raise Conflict(f"Invalid state transition: {instance.state} -> {State.RUNNING} by a resume ({ref})")
            return await self._resume(instance, actor=actor)

    async def _come_up(self, instance: Instance, kind: TransitionKind, *, actor: str) -> Instance:
        instance.state.require(State.RUNNING, who=str(instance.ref))
        stages = Stages(kind, clock=self._clock.monotonic)
        with stages("queue"):
            instance = await self._begin_running(instance, kind, actor=actor)
        try:
            return await self._bring_up(instance, kind, stages, actor=actor)
        except Exception as error:
            await self._bring_up.undo(instance, error, actor=actor)
            raise

    async def _begin_running(self, instance: Instance, kind: TransitionKind, *, actor: str) -> Instance:
        """Check the quota and record the intent as one step."""
        pool = self._catalog.pool(instance.tenant_id, instance.pool_id)
        async with self._quotas.lock(instance.tenant_id):
            try:
                self._quotas.check_run(instance, pool)
            except Refused as refusal:
                self._chronicle.record(instance, AuditAction.QUOTA_EXCEEDED, actor=actor, detail=refusal.message)
                raise
            if kind is not TransitionKind.RESUME:
                instance = instance.model_copy(update={"vcpus": pool.vcpus, "mem_mib": pool.mem_mib})
            return await self._records.begin(instance, kind, State.RUNNING, actor=actor)

    async def _resume(self, instance: Instance, *, actor: str) -> Instance:
        instance.state.require(State.RUNNING, who=str(instance.ref))
        self._runtimes.require_isolated(self._runtimes.of(instance))  # it stays paused, with all that it has in mind
        stages = Stages(TransitionKind.RESUME, clock=self._clock.monotonic)
        with stages("queue"):
            instance = await self._begin_running(instance, TransitionKind.RESUME, actor=actor)
        try:
            return await self._bring_up.resume(instance, stages, actor=actor)
        except Exception as error:
            # A warm machine that cannot be resumed is of no use; its data boots cold.
            await self.end_process(instance, grace_seconds=KILL_GRACE_SECONDS)
            await self._records.settle(instance, State.STOPPED, error=error)
            await self._runtimes.of(instance).discard_snapshot(self._bring_up.machine(instance))
            self._chronicle.event(instance, "StartFailed", actor=actor, detail=describe(error))
            raise

    # Resting

    async def warm(self, ref: InstanceRef, *, actor: str, by_policy: bool = False) -> Instance:
        """Drain a running instance and pause it; memory is kept. A refusal leaves it running."""
        async with self.locked(ref):
            instance = self._catalog.instance(ref)
            if instance.state is State.WARM:
                return instance
            instance.state.require(State.WARM, who=str(ref))
            async with self._quotas.lock(instance.tenant_id):
                self._quotas.check_warm(instance)
                instance = await self._records.begin(instance, TransitionKind.WARM, State.WARM, actor=actor)
            stages = Stages(TransitionKind.WARM, clock=self._clock.monotonic)
            try:
                instance = await self._rest.drain(instance, stages)
                await self._rest.pause(instance, stages)
            except Exception as error:
                await self._rest.stay_awake(instance, error, actor=actor)
                raise
            instance = await self._records.settle(instance, State.WARM, by_policy=by_policy)
        self._chronicle.record(instance, AuditAction.INSTANCE_WARMED, actor=actor)
        return instance

    async def sleep(self, ref: InstanceRef, *, actor: str, force: bool = False, by_policy: bool = False) -> Instance:
        """Put an instance to sleep: drain, pause, snapshot, verify, and only then end the process (CONTRACT 14).

        `force` overrides the pool's minimum running time, never a turn under way. Any refusal or failure before the
        process is ended leaves the instance running, with the reason kept. Afterwards it has no process.
        """
        async with self.locked(ref):
            instance = self._catalog.instance(ref)
            if instance.state is State.SLEEPING:
                return instance
            if instance.state is State.RUNNING:
                await self._check_min_running(instance, force=force, actor=actor)
            if instance.state is not State.WARM:
                instance.state.require(State.WARM, who=str(ref))
            instance = await self._records.begin(instance, TransitionKind.SLEEP, State.SLEEPING, actor=actor)
            stages = Stages(TransitionKind.SLEEP, clock=self._clock.monotonic)
            try:
                if instance.state is State.RUNNING:
                    instance = await self._rest.drain(instance, stages)
                self._abandon_if_wanted(instance)
                await self._rest.save(instance, stages, self._abandon_if_wanted)
            except Exception as error:
                await self._rest.stay_awake(instance, error, actor=actor)
                raise
            await self._put_down(instance, stages)
            instance = await self._records.settle(
                instance, State.SLEEPING, by_policy=by_policy, last_sleep=stages.timeline(self._clock.now(), actor)
            )
        self._chronicle.record(instance, AuditAction.INSTANCE_SLEPT, actor=actor)
        return instance

    async def compress(self, ref: InstanceRef) -> None:
        """Compress the saved memory of an instance that sleeps; given up as soon as somebody waits for its wake."""
        async with self.locked(ref):
            instance = self._catalog.instance(ref)
            if instance.state is State.SLEEPING and instance.transition is None:
                await self._rest.compress(instance, lambda: self.wake_wanted(ref.instance_id))

    async def _check_min_running(self, instance: Instance, *, force: bool, actor: str) -> None:
        pool = self._catalog.pool(instance.tenant_id, instance.pool_id)
        least = pool.runtime_policy.min_running_seconds
        since = instance.entered_running_at
        if not least or since is None:
            return
        ran = (self._clock.now() - since).total_seconds()
        if ran >= least:
            return
        if not force:
            raise Refused(
                f"{instance.ref} has been running for {max(ran, 0):.0f} s of at least {least} s",
                hint="wait, or use --force (a turn under way is never interrupted)",
            )
        self._chronicle.record(
            instance, AuditAction.MIN_RUNTIME_OVERRIDDEN, actor=actor, detail=f"after {ran:.0f} s of {least} s"
        )

    async def _put_down(self, instance: Instance, stages: Stages) -> None:
        """Past the last step back: end the process. One whose memory is saved must not move any more."""
        policy = self._catalog.pool(instance.tenant_id, instance.pool_id).runtime_policy
        saved = self._runtimes.of(instance).capabilities.memory_snapshot
        with stages("stop"):
            await self.end_process(instance, grace_seconds=0 if saved else policy.graceful_shutdown_seconds)

    def _abandon_if_wanted(self, instance: Instance) -> None:
        if self.wake_wanted(instance.instance_id):
            raise Conflict(f"{instance.ref} stays awake: somebody wrote to it meanwhile")

    # Ending

    async def stop(self, ref: InstanceRef, *, actor: str, force: bool = False, hold: bool = True) -> Instance:
        """Shut an instance down. Drains first; a refusal or a silent guest stops nothing unless `force`.

        `hold`: only a person starts it again, a message does not wake it; without it, one that is held stays so.
        `force` also cuts a start under way short.
        """
        async with self._ended_start(ref) if force else self.locked(ref):
            instance = self._catalog.instance(ref)
            if instance.state is State.STOPPED:
                return await self._catalog.save_instance(instance.model_copy(update={"held": hold or instance.held}))
            instance.state.require(State.STOPPED, who=str(ref))
            wanted = instance.model_copy(update={"held": hold})
            instance = await self._records.begin(wanted, TransitionKind.STOP, State.STOPPED, actor=actor)
            stages = Stages(TransitionKind.STOP, clock=self._clock.monotonic)
            if instance.state is State.RUNNING and not force:
                try:
                    instance = await self._rest.drain(instance, stages)
                except Exception as error:
                    await self._rest.stay_awake(instance, error, actor=actor)
                    raise
            await self._rest.keep_logs(instance)
            policy = self._catalog.pool(instance.tenant_id, instance.pool_id).runtime_policy
            await self.end_process(
                instance, grace_seconds=KILL_GRACE_SECONDS if force else policy.graceful_shutdown_seconds
            )
            await self._runtimes.of(instance).discard_snapshot(self._bring_up.machine(instance))
            instance = await self._records.settle(instance, State.STOPPED, held=hold)
        self._chronicle.record(instance, AuditAction.INSTANCE_STOPPED, actor=actor)
        return instance

    async def discard(self, ref: InstanceRef, *, actor: str) -> Instance:
        """Have an instance at rest boot anew at its next wake, with what its pool says then; a warm one sleeps first.

        Its data stays as it is. One that runs by now is left alone.
        """
        instance = self._catalog.instance(ref)
        if instance.state is State.WARM:
            await self.sleep(ref, actor=actor, by_policy=instance.rested_by_policy)
        async with self.locked(ref):
            instance = self._catalog.instance(ref)
            if instance.state is not State.SLEEPING:
                return instance
            await self._runtimes.of(instance).discard_snapshot(self._bring_up.machine(instance))
            anew = {"vcpus": 0, "mem_mib": 0, "image_revision": ""}
            instance = await self._catalog.save_instance(instance.model_copy(update=anew))
        self._chronicle.record(instance, AuditAction.SNAPSHOT_DISCARDED, actor=actor)
        return instance

    async def destroy(self, ref: InstanceRef, *, actor: str) -> None:
        """Remove an instance and everything of it: process, drives, secrets, addresses. Idempotent."""
        async with self._ended_start(ref):
            instance = self._catalog.instances.get(ref.instance_id)
            if instance is None or instance.ref != ref:
                return
            instance = await self._records.begin(instance, TransitionKind.DESTROY, State.DESTROYED, actor=actor)
            await self.remove(instance)
        self._locks.pop(ref.instance_id, None)
        self._chronicle.record(instance, AuditAction.INSTANCE_DESTROYED, actor=actor)

    async def remove(self, instance: Instance) -> None:
        """Remove every trace of an instance; the caller holds its lock. Idempotent."""
        runtime, machine = self._runtimes.of(instance), self._bring_up.machine(instance)
        await self.end_process(instance, grace_seconds=KILL_GRACE_SECONDS)
        await runtime.destroy(machine)
        await asyncio.to_thread(self._directories.remove, instance.ref)
        await self._preparer.forget(instance)
        await self._catalog.remove_instance(instance.ref)

    async def end_process(self, instance: Instance, *, grace_seconds: float) -> None:
        """No process is left afterwards, whatever it was doing, and its secrets are gone from memory."""
        runtime, machine = self._runtimes.of(instance), self._bring_up.machine(instance)
        await self._attachments.detach(instance.instance_id)
        process = instance.process if instance.process and await runtime.alive(instance.process) else None
        # Also one that has ended may have left something.
        process = process or await runtime.find(machine) or instance.process
        if process is not None:
            await runtime.stop(machine, process, grace_seconds=grace_seconds)
        self._reports.forget(instance.instance_id)
        self._directories.remove_secrets(instance.ref)

    # While it runs

    async def refresh(self, ref: InstanceRef, *, actor: str) -> None:
        """Have new config and secrets reach an instance: at once when it runs, at its wake or start otherwise."""
        async with self.locked(ref):
            instance = self._catalog.instance(ref)
            if instance.state is not State.RUNNING:
                return
            await self._bring_up.refresh(instance, actor=actor)

    async def process_ended(self, ref: InstanceRef, *, actor: str) -> Instance | None:
        """The process of an instance ended although nobody asked. Returns the instance as it is now, None when the
        end was somebody's doing after all."""
        async with self.locked(ref):
            instance = self._catalog.instances.get(ref.instance_id)
            if instance is None or not instance.state.has_process or instance.process is None:
                return None
            if await self._runtimes.of(instance).alive(instance.process):
                return None
            was_busy = self._reports.latest(instance.instance_id).activity is Activity.BUSY
            await self.end_process(instance, grace_seconds=KILL_GRACE_SECONDS)
            error = MvmError("its process ended unexpectedly" + (" in the middle of work" if was_busy else ""))
            instance = await self._records.settle(instance, State.STOPPED, error=error)
            # It boots anew: what it held in memory would only lie about.
            await self._runtimes.of(instance).discard_snapshot(self._bring_up.machine(instance))
        self._chronicle.event(instance, "InstanceDied", actor=actor, detail=error.message)
        return instance

    def busy(self, instance: InstanceId) -> bool:
        """True while an operation on that instance is under way."""
        return (lock := self._locks.get(instance)) is not None and lock.locked()

    # Records

    @asynccontextmanager
    async def locked(self, ref: InstanceRef) -> AsyncIterator[None]:
        """Hold the instance's lock: one operation on it at a time, whose log lines name it."""
        async with self._locks.setdefault(ref.instance_id, asyncio.Lock()):
            with bound(tenant=ref.tenant_id, pool=ref.pool_id, instance=ref.instance_id):
                yield

    @asynccontextmanager
    async def _ended_start(self, ref: InstanceRef) -> AsyncIterator[None]:
        """The instance's lock, without waiting for a start under way, which is made to fail now."""

        async def cut_short() -> None:
            while (instance := self._catalog.instances.get(ref.instance_id)) is not None:
                if instance.transition is not None and instance.transition.to is State.RUNNING:
                    self._bring_up.give_up(ref.instance_id)
                    runtime, machine = self._runtimes.of(instance), self.machine(instance)
                    if (process := await runtime.find(machine)) is not None:
                        await runtime.stop(machine, process, grace_seconds=KILL_GRACE_SECONDS)
                await asyncio.sleep(CUT_SHORT_RETRY_SECONDS)

        cutter = asyncio.create_task(cut_short(), name=f"cut short {ref}")
        try:
            async with self.locked(ref):
                cutter.cancel()
                await asyncio.gather(cutter, return_exceptions=True)
                yield
        finally:
            cutter.cancel()

    async def leave_alone(self, ref: InstanceRef) -> None:
        """A person has just dealt with it: policy keeps its hands off for a while (CONTRACT 12)."""
        async with self.locked(ref):
            if (instance := self._catalog.instances.get(ref.instance_id)) is not None:
                until = self._clock.now() + timedelta(seconds=MANUAL_WINDOW_SECONDS)
                await self._catalog.save_instance(instance.model_copy(update={"manual_until": until}), durable=False)

    def machine(self, instance: Instance) -> Machine:
        """What the instance's runtime is given for it."""
        return self._bring_up.machine(instance)
