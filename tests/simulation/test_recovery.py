"""An agent that is killed, at every single step of every operation, and the next one that puts things right.

The kill is a `BaseException` out of the step, so that no handler of the dying agent runs; what is left is the database
and the machines, as after `kill -9`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.simulation.world import GATEWAYS, World

from mvm.host.reports import Activity
from mvm.model.errors import Unavailable
from mvm.model.ids import InstanceRef
from mvm.model.states import State
from mvm.runtime.base import Connection, Machine, Probe


class Killed(BaseException):
    """The agent got SIGKILL."""


Operation = Callable[[World, InstanceRef], Awaitable[object]]

OPERATIONS: dict[str, tuple[State, Operation]] = {
    "start": (State.READY, lambda w, ref: w.lifecycle.start(ref, actor="test")),
    "warm": (State.RUNNING, lambda w, ref: w.lifecycle.warm(ref, actor="test")),
    "resume": (State.WARM, lambda w, ref: w.lifecycle.resume(ref, actor="test")),
    "sleep": (State.RUNNING, lambda w, ref: w.lifecycle.sleep(ref, actor="test")),
    "sleep from warm": (State.WARM, lambda w, ref: w.lifecycle.sleep(ref, actor="test")),
    "wake": (State.SLEEPING, lambda w, ref: w.lifecycle.wake(ref, actor="test")),
    "stop": (State.RUNNING, lambda w, ref: w.lifecycle.stop(ref, actor="test", hold=False)),
    "stop asleep": (State.SLEEPING, lambda w, ref: w.lifecycle.stop(ref, actor="test", hold=False)),
    "refresh": (State.RUNNING, lambda w, ref: w.lifecycle.refresh(ref, actor="test")),
    "destroy": (State.RUNNING, lambda w, ref: w.lifecycle.destroy(ref, actor="test")),
}


class KillSwitch:
    """Kills at the n-th step; counts the steps."""

    def __init__(self) -> None:
        self.at: int | None = None
        self.steps: list[str] = []

    def step(self, name: str) -> None:
        if self.at is None:
            return
        self.steps.append(name)
        if len(self.steps) == self.at:
            raise Killed(name)

    def arm(self, world: World, at: int) -> None:
        self.at, self.steps = at, []
        world.runtime.on_step = self.step
        store = world.store
        put, delete = store.put, store.delete

        async def killing_put(*args: object, **kwargs: object) -> int:
            self.step("before put")
            revision = await put(*args, **kwargs)  # type: ignore[arg-type]
            self.step("after put")
            return revision

        async def killing_delete(*args: object, **kwargs: object) -> bool:
            self.step("before delete")
            gone = await delete(*args, **kwargs)  # type: ignore[arg-type]
            self.step("after delete")
            return gone

        store.put, store.delete = killing_put, killing_delete  # type: ignore[method-assign]


@pytest.mark.parametrize("memory_snapshot", [True, False], ids=["memory-snapshots", "restart-on-wake"])
@pytest.mark.parametrize("name", OPERATIONS)
async def test_killed_anywhere_the_next_agent_puts_it_right(tmp_path: Path, name: str, memory_snapshot: bool) -> None:
    before, operation = OPERATIONS[name]
    killed_at = 0
    for at in range(1, 60):
        directory = tmp_path / f"{at}"
        directory.mkdir()
        world = await World(directory, memory_snapshot=memory_snapshot).open()
        await world.tenant()
        ref = await world.worker(state=before)
        world.drives.version += 1
        switch = KillSwitch()
        switch.arm(world, at)
        try:
            await operation(world, ref)
        except Killed:
            killed_at += 1
        switch.at = None
        finished = len(switch.steps) < at
        where = f"{name} killed at step {at} {switch.steps}"
        await world.restart_agent()
        _check_consistent(world, ref, where)
        if name != "destroy" or ref.instance_id in world.catalog.instances:
            await world.wakes.wake(ref, actor="writer")
            assert world.state(ref) is State.RUNNING, where
            assert world.has_process(ref), where
        else:
            assert not world.has_process(ref), where
        await world.close()
        if finished:
            break
    else:
        pytest.fail(f"{name} never ended: {switch.steps}")
    assert killed_at >= 2, "the switch was never reached"


def _check_consistent(world: World, ref: InstanceRef, where: str) -> None:
    """What is recorded is true of the machine, nothing is half-way, nobody was left drained."""
    instance = world.catalog.instances.get(ref.instance_id)
    if instance is None:
        assert not world.has_process(ref), where
        return
    assert instance.transition is None, where
    assert instance.state.has_process == world.has_process(ref), f"{where}: {instance.state}"
    if instance.state is State.SLEEPING and world.runtime.capabilities.memory_snapshot:
        assert ref.instance_id in world.runtime.snapshots, f"{where}: asleep without a snapshot"
    if instance.state in (State.READY, State.STOPPED):
        kept = ref.instance_id in world.runtime.memory - world.runtime.snapshots.keys()
        assert not kept, f"{where}: memory that nothing will go on from is kept"
    if instance.state is State.STOPPED:
        assert ref.instance_id not in world.runtime.snapshots, f"{where}: stopped with a snapshot"
    if instance.state.has_process:
        process = world.runtime.processes[ref.instance_id]
        assert process.identity == instance.process, where
        assert process.paused == (instance.state is State.WARM), where
    if instance.state is State.RUNNING:
        assert world.guest(ref).last != "SleepPrep", f"{where}: left drained"


async def test_killed_anywhere_in_the_first_start_of_a_copy_nothing_is_left_and_it_starts(tmp_path: Path) -> None:
    for at in range(1, 60):
        directory = tmp_path / f"{at}"
        directory.mkdir()
        world = await World(directory, clone=True).open()
        await world.tenant()
        ref = await world.worker(state=State.READY)
        switch = KillSwitch()
        switch.arm(world, at)
        with contextlib.suppress(Killed):
            await world.lifecycle.start(ref, actor="test")
        switch.at = None
        where = f"killed at step {at} {switch.steps}"
        await world.restart_agent()
        _check_consistent(world, ref, where)
        await world.lifecycle.start(ref, actor="test")
        assert world.guest(ref).wakes >= 1, f"{where}: it is no copy"
        assert set(world.runtime.processes) == {ref.instance_id}, where
        await world.close()
        if len(switch.steps) < at:
            return
    pytest.fail(f"it never ended: {switch.steps}")


async def killed_at(world: World, step: str, operation: Awaitable[object]) -> None:
    """The agent is killed at that step of the operation."""

    def die(at: str) -> None:
        if at == step:
            raise Killed

    world.runtime.on_step = die
    with pytest.raises(Killed):
        await operation
    world.runtime.on_step = lambda at: None


async def test_a_wake_that_had_not_touched_the_memory_is_taken_back(tmp_path: Path) -> None:
    world = await World(tmp_path).open()
    await world.tenant()
    ref = await world.worker(state=State.SLEEPING)
    await killed_at(world, "before load", world.lifecycle.wake(ref, actor="test"))
    await world.restart_agent()
    assert world.state(ref) is State.SLEEPING
    await world.wakes.wake(ref, actor="writer")
    assert world.runtime.starts == 1, "it went on from its memory"


async def test_a_machine_that_was_paused_and_cannot_go_on_is_ended_and_boots_again(tmp_path: Path) -> None:
    world = await World(tmp_path).open()
    await world.tenant()
    ref = await world.worker()
    await killed_at(world, "after snapshot", world.lifecycle.sleep(ref, actor="test"))
    world.runtime.fail["resume"] = Unavailable("its monitor is silent")
    await world.restart_agent()
    _check_consistent(world, ref, "it could not go on")
    assert world.state(ref) is State.STOPPED
    assert world.catalog.instance(ref).last_error == "its monitor is silent"
    await world.wakes.wake(ref, actor="writer")
    assert world.state(ref) is State.RUNNING
    await world.close()


async def test_how_slow_a_runtime_is_here_is_known_before_its_guests_are_waited_for(tmp_path: Path) -> None:
    world = await World(tmp_path).open()
    await world.tenant()
    await world.worker()
    order: list[str] = []
    probe, connect = world.runtime.probe, world.runtime.connect

    async def probing() -> Probe:
        order.append("probe")
        return await probe()

    async def connecting(machine: Machine, port: int) -> Connection:
        order.append("connect")
        return await connect(machine, port)

    world.runtime.probe, world.runtime.connect = probing, connecting  # type: ignore[method-assign]
    await world.restart_agent()
    assert order.index("probe") < order.index("connect")


async def test_what_a_machine_that_died_left_is_cleared_away(tmp_path: Path) -> None:
    world = await World(tmp_path).open()
    await world.tenant()
    ref = await world.worker()
    cleared: list[str] = []
    world.runtime.end(ref.instance_id)
    world.runtime.on_step = cleared.append
    await world.lifecycle.process_ended(ref, actor="policy")
    assert cleared == ["before stop", "after stop"]
    assert ref.instance_id not in world.runtime.memory


async def test_after_a_reboot_sleepers_sleep_gateways_come_back_and_the_rest_is_stopped(tmp_path: Path) -> None:
    world = await World(tmp_path).open()
    await world.tenant()
    sleeper = await world.worker(state=State.SLEEPING)
    runner = await world.worker()
    gateway = await world.worker(pool=GATEWAYS)
    for ref in (runner, gateway):
        world.runtime.processes.pop(ref.instance_id)
    await world.restart_agent()
    assert world.state(sleeper) is State.SLEEPING
    assert world.state(runner) is State.STOPPED
    await world.policy.tick_and_wait()
    assert world.state(gateway) is State.RUNNING
    await world.wakes.wake(sleeper, actor="writer")
    assert world.runtime.restores == 1, "the sleeper came back from its snapshot"
    await world.close()


async def test_an_adopted_instance_is_watched_again(tmp_path: Path) -> None:
    world = await World(tmp_path).open()
    await world.tenant()
    ref = await world.worker()
    await world.restart_agent()
    assert world.state(ref) is State.RUNNING
    assert world.reports.latest(ref.instance_id).activity is Activity.IDLE
    world.runtime.end(ref.instance_id)
    assert await asyncio.wait_for(world.attachments.ended.get(), 5) == ref
    await world.close()


async def test_one_instance_that_cannot_be_recovered_does_not_stop_the_others(tmp_path: Path) -> None:
    world = await World(tmp_path).open()
    await world.tenant()
    broken, fine = await world.worker(), await world.worker()
    world.guest(broken).answer_gate = asyncio.Event()
    await world.close()
    await world.open()
    recovering = asyncio.create_task(world.recovery.run())
    while world.reports.latest(fine.instance_id).activity is Activity.UNKNOWN:
        await asyncio.sleep(0.01)
    world.guest(broken).answer_gate.set()
    await recovering
    assert world.state(fine) is State.RUNNING
    await world.close()
