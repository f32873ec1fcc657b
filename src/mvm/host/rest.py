"""How an instance goes to rest: drained, paused, its memory saved and verified; and the way back from each step.

Used by `mvm.host.lifecycle`, which records the intent and ends the process, and by `mvm.host.recovery`. Up to the end
of the process every step can be undone by `stay_awake`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from mvm.host.bring_up import BringUp
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.guests import Guests
from mvm.host.last_logs import keep_last_logs
from mvm.host.records import Records, describe
from mvm.host.runtimes import Runtimes
from mvm.model.entities import Instance
from mvm.model.errors import MvmError, NotFound, Refused
from mvm.model.states import State
from mvm.telemetry.timings import Stages


def _bytes_in(directory: Path) -> int:
    """Disk space that the files of a directory take; what was never written of a sparse one does not count."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


class Rest:
    """From running to drained, paused and saved, and back."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        runtimes: Runtimes,
        guests: Guests,
        bring_up: BringUp,
        records: Records,
        chronicle: Chronicle,
    ) -> None:
        self._catalog = catalog
        self._runtimes = runtimes
        self._guests = guests
        self._bring_up = bring_up
        self._records = records
        self._chronicle = chronicle

    async def drain(self, instance: Instance, stages: Stages) -> Instance:
        """Integrations checkpointed, then the guest drained. Raises `Refused` when it is busy; it goes on then."""
        pool = self._catalog.pool(instance.tenant_id, instance.pool_id)
        runtime, machine = self._runtimes.of(instance), self._bring_up.machine(instance)
        drain = pool.runtime_policy.drain_timeout_seconds
        names = [integration.name for integration in pool.integrations]
        if names:
            with stages("checkpoint"):
                result = await self._guests.checkpoint(runtime, machine, names, drain_seconds=drain)
            critical = {integration.name for integration in pool.integrations if integration.critical}
            if failed := sorted(critical & set(result.failed)):
                raise Refused(
                    f"{instance.ref} stays awake: integration {', '.join(failed)} could not be checkpointed"
                    f" ({result.detail or 'no reason given'})"
                )
        with stages("drain"):
            ack = await self._guests.sleep_prep(runtime, machine, drain_seconds=drain)
        if not ack.success:
            raise Refused(f"{instance.ref} stays awake: {ack.detail or 'it refused to be drained'}")
        return instance.model_copy(update={"next_alarm_at": ack.next_alarm_at})

    async def keep_logs(self, instance: Instance) -> None:
        """Before a running instance ends: what it has written stays readable."""
        if instance.state is State.RUNNING:
            await keep_last_logs(self._guests, self._runtimes.of(instance), self._bring_up.machine(instance))

    async def compress(self, instance: Instance, abandon: Callable[[], bool]) -> None:
        """Make less of what a sleeping instance takes on the disk, unless somebody wants it awake meanwhile."""
        runtime, machine = self._runtimes.of(instance), self._bring_up.machine(instance)
        if (size := await runtime.compress_snapshot(machine, abandon)) is not None:
            detail = f"{size >> 20} MiB are left of its memory"
            self._chronicle.event(instance, "SnapshotCompressed", actor="policy", detail=detail)

    async def pause(self, instance: Instance, stages: Stages) -> None:
        """Stop the vCPUs of a drained instance."""
        assert instance.process is not None
        with stages("pause"):
            await self._runtimes.of(instance).pause(self._bring_up.machine(instance), instance.process)

    async def save(self, instance: Instance, stages: Stages, abandon_if_wanted: Callable[[Instance], None]) -> None:
        """From drained to a verified snapshot on disk; the machine is still there and can be resumed."""
        runtime, machine = self._runtimes.of(instance), self._bring_up.machine(instance)
        if not runtime.capabilities.memory_snapshot:
            return
        if instance.state is State.RUNNING:
            await self.pause(instance, stages)
        assert instance.process is not None
        with stages("snapshot"):
            saved = await runtime.snapshot(machine, instance.process)
        if saved is not None:
            actor = instance.transition.actor if instance.transition else "mvm"
            self._chronicle.snapshot(instance, await asyncio.to_thread(_bytes_in, saved.directory), actor=actor)
        abandon_if_wanted(instance)

    async def stay_awake(self, instance: Instance, error: Exception, *, actor: str) -> None:
        """Undo an abandoned rest: resume if it was paused, tell the guest that it is awake, keep the reason."""
        runtime, machine = self._runtimes.of(instance), self._bring_up.machine(instance)
        reason = describe(error)
        try:
            if instance.process is None or not await runtime.alive(instance.process):
                raise NotFound(f"the process of {instance.ref} ended")
            # Before it runs on: from then its memory is no longer what was saved.
            await runtime.discard_snapshot(machine)
            if runtime.capabilities.memory_snapshot or instance.state is State.WARM:
                await runtime.resume(machine, instance.process)
            await self._guests.wake(
                runtime, machine, secrets_epoch=instance.secrets_epoch, config_version=instance.config_version
            )
        except MvmError as second:
            # The watcher of the process, or the next poll of its status, finds out what is true of it.
            reason = f"{reason}; and it could not be told to go on: {second.message}"
        await self._records.settle(instance, State.RUNNING, error=MvmError(reason), keep_since=True)
        self._chronicle.deferred(instance, reason, actor=actor)
