"""How an instance comes up: drives rebuilt, process started or restored, agent, service. Every stage is timed.

Used by `mvm.host.lifecycle` for a start, a wake and a resume, and by `mvm.host.recovery` to finish one that was
interrupted. Nothing here decides; the caller holds the instance's lock and has recorded the intent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mvm.host.attachments import Attachments
from mvm.host.audit import AuditAction
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.drive_preparation import DrivePreparer
from mvm.host.guests import Guests
from mvm.host.machines import InstanceDirectories
from mvm.host.records import describe
from mvm.host.reports import Reports
from mvm.host.runtimes import Runtimes
from mvm.model.entities import Instance, ProcessIdentity, TransitionKind
from mvm.model.errors import SnapshotRejected
from mvm.model.states import State
from mvm.runtime.base import Machine, Runtime
from mvm.telemetry.timings import Stages

SLOT_SECONDS = 30.0
"""How long one that comes up counts among those that do; longer than a cold start natively takes."""
AGENT_LIMIT_SECONDS = 120.0
UNDO_GRACE_SECONDS = 2.0
"""What a start that failed gets to end by itself: an OpenClaw that is killed counts an unclean start."""
SERVICE_LIMIT_SECONDS = 300.0
"""OpenClaw was seen to need 9-19 s natively and 168 s in an emulated VM for a cold start (facts/OPENCLAW.md)."""


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
        self._clock = clock
        self._environment = environment
        # Starts and restores are the heaviest thing a host does; more at once than cores only makes each one late.
        self._slots = asyncio.Semaphore(max(2, (len_cpus() or 2)))

    def machine(self, instance: Instance) -> Machine:
        """What the instance's runtime is given for it."""
        pool = self._catalog.pool(instance.tenant_id, instance.pool_id)
        return self._directories.machine(instance, pool, self._environment)

    async def __call__(self, instance: Instance, kind: TransitionKind, stages: Stages, *, actor: str) -> Instance:
        """Start or wake: returns the running instance, recorded. On an error the caller undoes."""
        runtime = self._runtimes.of(instance)
        async with self._slot(stages):
            instance = await self._give_drives(instance, runtime, stages)
            process = await self._start_process(instance, runtime, kind, stages, actor=actor)
            instance = instance.model_copy(update={"process": process})
            return await self.finish(instance, kind, stages, actor=actor)

    @asynccontextmanager
    async def _slot(self, stages: Stages) -> AsyncIterator[None]:
        """Wait for a place among those that come up. It is given back at the end of the block, or when that takes too
        long: guests that never become ready must not keep everybody else's asleep."""
        with stages("queue"):
            await self._slots.acquire()
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self._slots.release()

        timer = asyncio.get_running_loop().call_later(SLOT_SECONDS, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()

    async def _give_drives(self, instance: Instance, runtime: Runtime, stages: Stages) -> Instance:
        """Fresh config and secrets, and an address that is free, before anything of the guest runs."""
        machine = self.machine(instance)
        with stages("network"):
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
        self, instance: Instance, runtime: Runtime, kind: TransitionKind, stages: Stages, *, actor: str
    ) -> ProcessIdentity:
        machine = self.machine(instance)
        self._reports.forget(instance.instance_id)
        with stages("restore" if kind is TransitionKind.WAKE else "boot"):
            await self._attachments.listen(instance, runtime, machine)
            if kind is not TransitionKind.WAKE or not runtime.capabilities.memory_snapshot:
                process = await runtime.start(machine)
            else:
                process = await self._restore_or_boot(instance, runtime, machine, actor=actor)
        # Not yet the new state: only enough for a restarted agent to find the process again. `find` would do as well,
        # so this needs no disk flush.
        await self._catalog.save_instance(instance.model_copy(update={"process": process}), durable=False)
        return process

    async def _restore_or_boot(
        self, instance: Instance, runtime: Runtime, machine: Machine, *, actor: str
    ) -> ProcessIdentity:
        snapshot = await runtime.saved_snapshot(machine)
        if snapshot is not None:
            try:
                process = await runtime.restore(machine, snapshot)
            except SnapshotRejected as rejected:
                self._chronicle.record(instance, AuditAction.SNAPSHOT_REJECTED, actor=actor, detail=rejected.message)
            else:
                self._chronicle.record(instance, AuditAction.SNAPSHOT_RESTORED, actor=actor)
                return process
        await runtime.discard_snapshot(machine)
        return await runtime.start(machine)

    async def finish(self, instance: Instance, kind: TransitionKind, stages: Stages, *, actor: str) -> Instance:
        """From an existing process to a recorded running instance: agent, wake, service."""
        runtime, machine, process = self._runtimes.of(instance), self.machine(instance), instance.process
        assert process is not None
        with stages("agent"):
            await self._guests.wait_for_agent(runtime, machine, process, limit=AGENT_LIMIT_SECONDS)
            if kind is TransitionKind.WAKE:
                await self._guests.wake(
                    runtime, machine, secrets_epoch=instance.secrets_epoch, config_version=instance.config_version
                )
        with stages("service"):
            report = await self._guests.wait_for_service(runtime, machine, process, limit=SERVICE_LIMIT_SECONDS)
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
        if process is not None and await runtime.alive(process):
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
        with stages("agent"):
            await self._guests.wake(
                runtime, machine, secrets_epoch=instance.secrets_epoch, config_version=instance.config_version
            )
        with stages("service"):
            await self._guests.wait_for_service(runtime, machine, process, limit=SERVICE_LIMIT_SECONDS)
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


def len_cpus() -> int | None:
    """Cores of this host."""
    import os

    return os.cpu_count()
