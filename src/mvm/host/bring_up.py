"""How an instance comes up: drives rebuilt, process started or restored, agent, guest, service. Every stage is timed.

Used by `mvm.host.lifecycle` for a start, a wake and a resume, and by `mvm.host.recovery` to finish one that was
interrupted. Nothing here decides; the caller holds the instance's lock and has recorded the intent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Protocol, TypeVar

from mvm.host import progress
from mvm.host.attachments import Attachments
from mvm.host.audit import AuditAction
from mvm.host.bases import Bases
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.drive_preparation import DrivePreparer
from mvm.host.guests import Guests
from mvm.host.last_logs import keep_last_logs
from mvm.host.machines import InstanceDirectories
from mvm.host.progress import Progress
from mvm.host.records import describe
from mvm.host.reports import Reports
from mvm.host.runtimes import Runtimes
from mvm.host.slots import Slots
from mvm.model.entities import Instance, Pool, ProcessIdentity, TransitionKind
from mvm.model.errors import Conflict, MvmError, SnapshotRejected
from mvm.model.ids import InstanceId
from mvm.model.states import State
from mvm.runtime.base import Machine, Runtime, Snapshot
from mvm.telemetry.timings import Stages

AGENT_LIMIT_SECONDS = 120.0
UNDO_GRACE_SECONDS = 2.0
"""What a start that failed gets to end by itself: an OpenClaw that is killed counts an unclean start."""
SERVICE_LIMIT_SECONDS = 300.0
"""OpenClaw was seen to need 9-19 s natively and 168 s in an emulated VM for a cold start (facts/OPENCLAW.md)."""


T = TypeVar("T")


class ImageSource(Protocol):
    """Where the images of pools come from (`mvm.host.images`)."""

    async def ensure(self, pool: Pool, progress: Progress) -> Pool:
        """Build the pool's image when it has none; returns the pool with its revision. May be cancelled."""


class NetworkSource(Protocol):
    """Who keeps the tenants' networks (`mvm.host.networks`)."""

    async def ready(self, instance: Instance) -> None:
        """The instance's bridge and rules are in force."""


class BringUp:
    """From a recorded intent to a running instance."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        runtimes: Runtimes,
        directories: InstanceDirectories,
        preparer: DrivePreparer,
        guests: Guests,
        reports: Reports,
        chronicle: Chronicle,
        attachments: Attachments,
        images: ImageSource,
        networks: NetworkSource,
        bases: Bases,
        slots: Slots,
        clock: Clock,
        environment: dict[str, str],
    ) -> None:
        self._catalog = catalog
        self._runtimes = runtimes
        self._directories = directories
        self._preparer = preparer
        self._guests = guests
        self._reports = reports
        self._chronicle = chronicle
        self._attachments = attachments
        self._images = images
        self._networks = networks
        self._bases = bases
        self._clock = clock
        self._environment = environment
        self._slots = slots
        self._waits: dict[InstanceId, asyncio.Task[object]] = {}
        """What comes before an instance has a process, and may take minutes: an image, a base that is made, a place."""

        self._given_up: dict[InstanceId, bool] = {}
        """Of each start under way: whether it was given up."""

    def machine(self, instance: Instance) -> Machine:
        """What the instance's runtime is given for it."""
        pool = self._catalog.pool(instance.tenant_id, instance.pool_id)
        network = self._catalog.tenant(instance.tenant_id).network
        return self._directories.machine(instance, pool, network, self._environment)

    async def __call__(self, instance: Instance, kind: TransitionKind, stages: Stages, *, actor: str) -> Instance:
        """Start or wake: returns the running instance, recorded. On an error the caller undoes.

        Raises `Conflict` when it was given up, however that made it fail.
        """
        self._given_up[instance.instance_id] = False
        try:
            return await self._rise(instance, kind, stages, actor=actor)
        except MvmError as error:
            if self._given_up[instance.instance_id]:
                raise Conflict(f"the start of {instance.ref} was given up: it is being stopped or destroyed") from error
            raise
        finally:
            del self._given_up[instance.instance_id]

    async def _rise(self, instance: Instance, kind: TransitionKind, stages: Stages, *, actor: str) -> Instance:
        runtime = self._runtimes.of(instance)
        self._runtimes.require_isolated(runtime)  # before anything is done: what sleeps is left as it is
        instance = await self._give_image(instance, runtime, kind, stages)
        saved = await self._unless_given_up(instance, self._find_memory(instance, runtime, kind, stages))
        slowness = 1.0 if saved else runtime.capabilities.slowness
        async with AsyncExitStack() as places:
            with stages("queue"):
                boot, place = self._slots.boot(slowness=slowness), self._slots.place()
                await self._unless_given_up(instance, places.enter_async_context(boot))
                await self._unless_given_up(instance, places.enter_async_context(place))
            instance = await self._give_drives(instance, runtime, stages)
            instance, restored = await self._start_process(instance, runtime, saved, kind, stages, actor=actor)
            return await self.finish(instance, kind, stages, restored=restored, actor=actor)

    def give_up(self, instance_id: InstanceId) -> None:
        """Nobody wants a start under way any more: it fails now, or, when it has a process, as soon as that ends."""
        if instance_id in self._given_up:
            self._given_up[instance_id] = True
        if (waiting := self._waits.get(instance_id)) is not None:
            waiting.cancel()

    async def _unless_given_up(self, instance: Instance, work: Coroutine[object, object, T]) -> T:
        """Do something that `give_up` can end. Raises `Conflict` then."""
        task = asyncio.create_task(work)
        self._waits[instance.instance_id] = task
        try:
            return await task
        except asyncio.CancelledError:
            if (current := asyncio.current_task()) is not None and current.cancelling():
                raise
            raise Conflict(f"what the start of {instance.ref} waits for is not waited for any more") from None
        finally:
            del self._waits[instance.instance_id]

    async def _give_image(self, instance: Instance, runtime: Runtime, kind: TransitionKind, stages: Stages) -> Instance:
        """The image that it runs: what is asleep goes on with its own, whatever boots gets its pool's."""
        asleep = kind is TransitionKind.WAKE and instance.image_revision
        if not runtime.capabilities.images or asleep:
            return instance
        pool = self._catalog.pool(instance.tenant_id, instance.pool_id)
        with stages("image"):
            # The build itself goes on, for whoever else waits for it and for the next start.
            pool = await self._unless_given_up(instance, self._images.ensure(pool, progress.current()))
        return await self._catalog.save_instance(instance.model_copy(update={"image_revision": pool.revision}))

    async def _find_memory(
        self, instance: Instance, runtime: Runtime, kind: TransitionKind, stages: Stages
    ) -> Snapshot | None:
        """The memory that it goes on with: its own when it sleeps, a copy of its base's when it never ran."""
        if not runtime.capabilities.memory_snapshot:
            return None
        machine = self.machine(instance)
        if kind is TransitionKind.WAKE:
            return await runtime.saved_snapshot(machine)
        if instance.state is not State.READY:
            return None
        pool = self._catalog.pool(instance.tenant_id, instance.pool_id)
        with stages("base"):
            if (copied := await runtime.saved_snapshot(machine)) is not None:
                return copied  # for a start that an agent did not live to finish
            await asyncio.to_thread(self._directories.prepare, machine)
            return await self._bases.clone(instance, pool, machine, runtime)

    async def _give_drives(self, instance: Instance, runtime: Runtime, stages: Stages) -> Instance:
        """Fresh config and secrets, and an address that is free, before anything of the guest runs."""
        machine = self.machine(instance)
        with stages("network"):
            if runtime.capabilities.networks:
                await self._networks.ready(instance)
            address = await runtime.assign_address(instance.network.guest_ip)
            if address != instance.network.guest_ip:
                network = instance.network.model_copy(update={"guest_ip": address})
                instance = instance.model_copy(update={"network": network})
                machine = self.machine(instance)
        with stages("drives"):
            await asyncio.to_thread(self._directories.prepare, machine)
            layout = await runtime.layout(machine)
            instance = await self._preparer.prepare(instance, machine, layout)
            await runtime.publish_drives(machine)
        return instance

    async def _start_process(
        self,
        instance: Instance,
        runtime: Runtime,
        saved: Snapshot | None,
        kind: TransitionKind,
        stages: Stages,
        *,
        actor: str,
    ) -> tuple[Instance, bool]:
        """Restore or boot; returns the instance with its process, and whether it was restored."""
        machine = self.machine(instance)
        self._reports.forget(instance.instance_id)
        with stages("restore" if kind is TransitionKind.WAKE or saved else "boot"):
            await self._attachments.listen(instance, runtime, machine)
            process = await self._restore(instance, saved, runtime, machine, actor=actor) if saved else None
            restored = process is not None
            if process is None:
                if runtime.capabilities.memory_snapshot:
                    await runtime.discard_snapshot(machine)
                process = await runtime.start(machine)
        instance = instance.model_copy(update={"process": process})
        # Not yet the new state: only enough for a restarted agent to find the process again. `find` would do as well,
        # so this needs no disk flush.
        await self._catalog.save_instance(instance, durable=False)
        return instance, restored

    async def _restore(
        self, instance: Instance, saved: Snapshot, runtime: Runtime, machine: Machine, *, actor: str
    ) -> ProcessIdentity | None:
        """The restored process; None when the snapshot does not fit, and it has to boot from its data."""
        try:
            process = await runtime.restore(machine, saved)
        except SnapshotRejected as rejected:
            self._chronicle.record(instance, AuditAction.SNAPSHOT_REJECTED, actor=actor, detail=rejected.message)
            return None
        self._chronicle.record(instance, AuditAction.SNAPSHOT_RESTORED, actor=actor)
        return process

    async def finish(
        self, instance: Instance, kind: TransitionKind, stages: Stages, *, restored: bool = True, actor: str
    ) -> Instance:
        """From an existing process to a recorded running instance: agent, wake, service.

        `restored`: the guest went on from memory and has to be told so. One that booted takes no harm from it.
        """
        runtime, machine, process = self._runtimes.of(instance), self.machine(instance), instance.process
        assert process is not None
        slowness = runtime.capabilities.slowness
        with stages("agent"):
            await self._guests.wait_for_agent(runtime, machine, process, limit=AGENT_LIMIT_SECONDS * slowness)
        if restored or kind is TransitionKind.WAKE:
            with stages("guest"):
                await self._guests.wake(
                    runtime, machine, secrets_epoch=instance.secrets_epoch, config_version=instance.config_version
                )
        with stages("service"):
            report = await self._guests.wait_for_service(
                runtime, machine, process, limit=SERVICE_LIMIT_SECONDS * slowness
            )
        return await self._running(
            instance.model_copy(update={"next_alarm_at": report.next_alarm_at}), kind, stages, actor=actor
        )

    async def undo(self, instance: Instance, error: Exception, *, actor: str) -> None:
        """Nothing may be left of a start that failed; its data is as it was."""
        latest = self._catalog.instance(instance.ref)
        machine = self.machine(latest)
        runtime = self._runtimes.of(latest)
        await self._attachments.detach(latest.instance_id)
        process = await runtime.find(machine) or latest.process
        if process is not None:
            if await runtime.alive(process):
                await keep_last_logs(self._guests, runtime, machine)
            await runtime.stop(machine, process, grace_seconds=UNDO_GRACE_SECONDS)
        self._reports.forget(latest.instance_id)
        self._directories.remove_secrets(latest.ref)
        # A consumed memory snapshot cannot be used twice: what was asleep can only boot cold from its data now.
        asleep = instance.state is State.SLEEPING
        kept = not runtime.capabilities.memory_snapshot or await runtime.saved_snapshot(machine) is not None
        state = State.STOPPED if asleep and not kept else instance.state
        await self._catalog.save_instance(
            latest.model_copy(
                update={"state": state, "transition": None, "process": None, "last_error": describe(error)}
            )
        )
        if not kept:
            await runtime.discard_snapshot(machine)
        self._chronicle.event(latest, "StartFailed", actor=actor, detail=describe(error))

    async def resume(self, instance: Instance, stages: Stages, *, actor: str) -> Instance:
        """From a paused process to a recorded running instance."""
        runtime, machine, process = self._runtimes.of(instance), self.machine(instance), instance.process
        assert process is not None
        with stages("drives"):
            if runtime.capabilities.hot_drive_change:
                instance = await self._preparer.prepare(instance, machine, None)
                await runtime.publish_drives(machine)
        with stages("restore"):
            self._reports.forget(instance.instance_id)
            await runtime.resume(machine, process)
        with stages("guest"):
            await self._guests.wake(
                runtime, machine, secrets_epoch=instance.secrets_epoch, config_version=instance.config_version
            )
        with stages("service"):
            limit = SERVICE_LIMIT_SECONDS * runtime.capabilities.slowness
            await self._guests.wait_for_service(runtime, machine, process, limit=limit)
        return await self._running(instance, TransitionKind.RESUME, stages, actor=actor)

    async def refresh(self, instance: Instance, *, actor: str) -> Instance:
        """New config and secrets for a running instance. Does nothing when nothing changed."""
        runtime, machine = self._runtimes.of(instance), self.machine(instance)
        fresh = await self._preparer.prepare(instance, machine, None)
        if (fresh.secrets_epoch, fresh.config_version) == (instance.secrets_epoch, instance.config_version):
            return instance
        await runtime.publish_drives(machine)
        await self._guests.refresh(
            runtime, machine, secrets_epoch=fresh.secrets_epoch, config_version=fresh.config_version
        )
        latest = self._catalog.instance(instance.ref)
        instance = await self._catalog.save_instance(
            latest.model_copy(update={"secrets_epoch": fresh.secrets_epoch, "config_version": fresh.config_version})
        )
        self._chronicle.event(instance, "InstanceRefreshed", actor=actor)
        return instance

    async def _running(self, instance: Instance, kind: TransitionKind, stages: Stages, *, actor: str) -> Instance:
        now = self._clock.now()
        timeline = stages.timeline(now, actor)
        instance = await self._catalog.save_instance(
            instance.model_copy(
                update={
                    "state": State.RUNNING,
                    "transition": None,
                    "entered_running_at": now,
                    "rested_by_policy": False,
                    "held": False,
                    "last_error": None,
                    "last_wake": timeline,
                }
            )
        )
        runtime, machine = self._runtimes.of(instance), self.machine(instance)
        self._attachments.watch(instance, runtime, machine)
        action = {
            TransitionKind.START: AuditAction.INSTANCE_STARTED,
            TransitionKind.WAKE: AuditAction.INSTANCE_WOKEN,
            TransitionKind.RESUME: AuditAction.INSTANCE_RESUMED,
        }[kind]
        self._chronicle.record(instance, action, actor=actor, detail=f"{timeline.total_ms:.0f} ms")
        return instance
