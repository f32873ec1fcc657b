"""After a start of the agent: adopt what runs, finish or undo what was interrupted (DESIGN, "One daemon writes").

| found | done |
|---|---|
| running or warm, its process lives | adopted: host port, watch, status |
| running or warm, its process is gone | stopped, with the reason; always-on ones are started again by policy |
| start or wake interrupted, its process was not told to run yet | taken back: it sleeps as before |
| start, wake or resume interrupted | finished when the process and its agent answer and may run here, else undone |
| draining for warm, or sleep interrupted, process lives | undone: when in doubt, stay awake; ended if it cannot be |
| sleep interrupted, process gone | asleep when what a wake needs is complete, else stopped (cold boot from its data) |
| stop or destroy interrupted | finished |

No state is without an exit, and nothing here asks a person.
"""

from __future__ import annotations

import asyncio

import structlog

from mvm.host.attachments import Attachments
from mvm.host.bring_up import BringUp
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.guests import Guests
from mvm.host.lifecycle import KILL_GRACE_SECONDS, Lifecycle
from mvm.host.records import Records, describe
from mvm.host.rest import Rest
from mvm.host.runtimes import Runtimes
from mvm.model.entities import Instance, ProcessIdentity, TransitionKind
from mvm.model.errors import MvmError
from mvm.model.states import State
from mvm.telemetry.timings import Stages

log = structlog.get_logger(__name__)

ACTOR = "recovery"
AT_ONCE = 16
"""Instances looked after at the same time."""
ADOPTION_LIMIT_SECONDS = 10.0
"""How long a process that lives may leave its agent silent before it is not adopted."""


class Recovery:
    """Puts right what the end of the last agent left behind."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        runtimes: Runtimes,
        lifecycle: Lifecycle,
        bring_up: BringUp,
        rest: Rest,
        records: Records,
        guests: Guests,
        attachments: Attachments,
        chronicle: Chronicle,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._runtimes = runtimes
        self._lifecycle = lifecycle
        self._bring_up = bring_up
        self._rest = rest
        self._records = records
        self._guests = guests
        self._attachments = attachments
        self._chronicle = chronicle
        self._clock = clock

    async def run(self, *, holding: asyncio.Event | None = None) -> None:
        """Recover every instance; one that cannot be recovered keeps its reason and never stops the others.

        `holding` is set once every instance that needs it is locked: from then on the agent may take requests, and one
        about such an instance waits for its recovery.
        """
        concerned = [i for i in self._catalog.instances.values() if i.transition is not None or i.state.has_process]
        places = asyncio.Semaphore(AT_ONCE)
        locked = 0

        async def one(instance: Instance) -> None:
            nonlocal locked
            async with self._lifecycle.locked(instance.ref):
                locked += 1
                if holding is not None and locked == len(concerned):
                    holding.set()
                async with places:
                    try:
                        await self.recover(instance)
                    except Exception as error:
                        log.exception("recovery failed", instance=str(instance.ref))
                        self._chronicle.event(instance, "RecoveryFailed", actor=ACTOR, detail=describe(error))

        if holding is not None and not concerned:
            holding.set()
        async with asyncio.TaskGroup() as group:
            for instance in concerned:
                group.create_task(one(instance), name=f"recover {instance.ref}")

    async def recover(self, instance: Instance) -> None:
        """Bring one instance to a state that is true of it; the caller holds its lock."""
        await self._runtimes.probe(instance.runtime)  # how slow it is here, and so how long its guests may take
        process = await self._living(instance)
        kind = instance.transition.kind if instance.transition else None
        log.info(
            "recovering",
            instance=str(instance.ref),
            state=instance.state.value,
            interrupted=kind,
            alive=bool(process),
        )
        match kind:
            case TransitionKind.DESTROY:
                await self._lifecycle.remove(instance)
            case TransitionKind.STOP:
                await self._lifecycle.end_process(instance, grace_seconds=KILL_GRACE_SECONDS)
                await self._runtimes.of(instance).discard_snapshot(self._bring_up.machine(instance))
                await self._records.settle(instance, State.STOPPED, held=instance.held)
            case _ if process is None:
                await self._without_process(instance)
            case None:
                await self._adopt(instance.model_copy(update={"process": process}))
            case TransitionKind.START | TransitionKind.WAKE if await self._retract(instance, process):
                await self._without_process(instance)
            case TransitionKind.START | TransitionKind.WAKE | TransitionKind.RESUME:
                await self._finish(instance.model_copy(update={"process": process}), kind)
            case TransitionKind.WARM | TransitionKind.SLEEP:
                await self._undo_rest(instance.model_copy(update={"process": process}))

    async def _living(self, instance: Instance) -> ProcessIdentity | None:
        runtime = self._runtimes.of(instance)
        if instance.process is not None and await runtime.alive(instance.process):
            return instance.process
        return await runtime.find(self._bring_up.machine(instance))

    async def _retract(self, instance: Instance, process: ProcessIdentity) -> bool:
        return await self._runtimes.of(instance).retract(self._bring_up.machine(instance), process)

    async def _without_process(self, instance: Instance) -> None:
        """Its process is gone (also after a reboot of the host): what is on disk decides."""
        runtime = self._runtimes.of(instance)
        kind = instance.transition.kind if instance.transition else None
        # Clears whatever else a dead supervisor may have left of it.
        await self._lifecycle.end_process(instance, grace_seconds=KILL_GRACE_SECONDS)
        if not instance.state.has_process:
            # A start or wake that had not got as far as a process: as if it had never begun.
            await self._settle_at_rest(instance, await self._resting_state(instance), error=None)
        elif kind is TransitionKind.SLEEP and (
            not runtime.capabilities.memory_snapshot
            or await runtime.saved_snapshot(self._bring_up.machine(instance)) is not None
        ):
            await self._records.settle(instance, State.SLEEPING, by_policy=instance.rested_by_policy)
        else:
            error = MvmError("its process was gone when the agent started")
            await self._settle_at_rest(instance, State.STOPPED, error=error)
            self._chronicle.event(instance, "InstanceDied", actor=ACTOR, detail=error.message)

    async def _resting_state(self, instance: Instance) -> State:
        """Where an instance without a process rests: asleep only when what its wake needs is still there."""
        runtime = self._runtimes.of(instance)
        if instance.state is not State.SLEEPING or not runtime.capabilities.memory_snapshot:
            return instance.state
        saved = await runtime.saved_snapshot(self._bring_up.machine(instance))
        return State.SLEEPING if saved is not None else State.STOPPED

    async def _settle_at_rest(self, instance: Instance, state: State, *, error: MvmError | None) -> None:
        """Record where it rests, without the memory that nothing will go on from."""
        await self._records.settle(instance, state, error=error)
        runtime, machine = self._runtimes.of(instance), self._bring_up.machine(instance)
        if state is State.STOPPED or await runtime.saved_snapshot(machine) is None:
            await runtime.discard_snapshot(machine)

    async def _adopt(self, instance: Instance) -> None:
        """Its process lives: listen and watch first, so that a guest agent that is slow to answer loses nothing."""
        runtime, machine = self._runtimes.of(instance), self._bring_up.machine(instance)
        assert instance.process is not None
        await self._attachments.listen(instance, runtime, machine)
        process = instance.process
        instance = await self._catalog.save_instance(instance, durable=False)
        self._attachments.watch(instance, runtime, machine)
        if instance.state is State.RUNNING:
            await self._guests.wait_for_agent(runtime, machine, process, limit=ADOPTION_LIMIT_SECONDS)
            await self._guests.status(runtime, machine)

    async def _finish(self, instance: Instance, kind: TransitionKind) -> None:
        """A start, wake or resume got as far as a process: go on from there; if that fails, undo it."""
        runtime, machine = self._runtimes.of(instance), self._bring_up.machine(instance)
        stages = Stages(kind, clock=self._clock.monotonic)
        try:
            self._runtimes.require_isolated(runtime)
            await self._attachments.listen(instance, runtime, machine)
            if kind is TransitionKind.RESUME:
                await self._bring_up.resume(instance, stages, actor=ACTOR)
            else:
                await self._bring_up.finish(instance, kind, stages, actor=ACTOR)
        except MvmError as error:
            await self._lifecycle.end_process(instance, grace_seconds=KILL_GRACE_SECONDS)
            state = State.STOPPED if instance.state.has_process else await self._resting_state(instance)
            await self._settle_at_rest(instance, state, error=error)

    async def _undo_rest(self, instance: Instance) -> None:
        runtime, machine = self._runtimes.of(instance), self._bring_up.machine(instance)
        await self._attachments.listen(instance, runtime, machine)
        assert instance.process is not None
        try:
            await runtime.discard_snapshot(machine)
            await runtime.resume(machine, instance.process)
        except MvmError as error:
            # Nobody would ever let it go on: its data boots cold.
            await self._lifecycle.end_process(instance, grace_seconds=KILL_GRACE_SECONDS)
            await self._settle_at_rest(instance, State.STOPPED, error=error)
            self._chronicle.event(instance, "InstanceDied", actor=ACTOR, detail=error.message)
            return
        await self._rest.stay_awake(instance, MvmError("the agent ended in the middle of it"), actor=ACTOR)
        latest = self._catalog.instance(instance.ref)
        self._attachments.watch(latest, runtime, machine)
