"""Whatever dies at whatever moment of a sleep or a wake, in machines: nothing is lost, and the data is whole.

The walk goes through a sleep and a wake in steps of time, ending the agent, the machine or both at each: afterwards the
next message is answered once, what was written to the data drive is there, and what was asked for meanwhile is too.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio
from tests.e2e.operator import eventually, kill
from tests.vm.leftovers import nothing_is_left_over
from tests.vm.machines import ALICE, BOB, PATIENCE, TENANT, Machines, standin_machines

from mvm.demo.model_provider import Reply
from mvm.host.client import AgentClient

pytestmark = [
    pytest.mark.vm,
    pytest.mark.node,
    pytest.mark.timeout(3000),
    pytest.mark.asyncio(loop_scope="module"),
]

STEPS = 8
"""Moments of each sleep and wake at which something is killed."""
VICTIMS = ("agent", "machine", "both")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machines(private_network: None) -> AsyncIterator[Machines]:
    async with standin_machines({"alice": ALICE}) as machines:
        yield machines


async def end(machines: Machines, victim: str) -> None:
    """`kill -9`."""
    if victim in ("agent", "both"):
        await machines.operator.kill_agent()
    if victim in ("machine", "both"):
        await machines.kill_machine(machines.known)


async def begin_walk(machines: Machines) -> tuple[float, float]:
    """An empty diary on the data drive; returns the seconds that a sleep and a wake take here once they have begun."""
    worker = await machines.worker()
    await machines.inside(worker, "sh", "-c", "rm -f /data/walk && touch /data/walk")
    await machines.sleep()
    await machines.operator.mvm("instance", "wake", machines.operator.address(worker))
    timelines = await machines.info(worker)
    sleep, wake = (
        sum(stage["milliseconds"] for stage in timelines[name]["stages"]) / 1000 for name in ("last_sleep", "last_wake")
    )
    return sleep, wake


async def until_begun(machines: Machines, kind: str, task: asyncio.Task[object] | None = None) -> None:
    """Return when the agent has begun that transition of alice's worker, or `task` is done without it."""
    client = AgentClient(machines.operator.directory / "run/agent.sock")
    address = machines.operator.address(machines.known)
    deadline = time.monotonic() + PATIENCE
    while task is None or not task.done():
        instance = (await client.call("InstanceInfo", {"address": address}))["instance"]
        if instance["transition"] is not None and instance["transition"]["kind"] == kind:
            return
        assert time.monotonic() < deadline, f"no {kind} began"
        await asyncio.sleep(0.005)


async def is_whole(machines: Machines, number: int) -> None:
    """The next message is answered once; what was on the data drive before is there; nothing is left over."""
    words = f"after number {number}"
    assert await machines.say(ALICE, words) == [f"You said: {words}"]
    worker = await machines.worker()
    written = await machines.inside(worker, "sh", "-c", "cat /data/walk && dmesg | grep -c 'EXT4-fs error' || true")
    assert written.split()[:number] == [str(n) for n in range(number)]
    assert written.split()[-1] == "0", "the file system is clean"
    await machines.inside(worker, "sh", "-c", f"echo {number} >> /data/walk && sync")
    await nothing_is_left_over(machines)


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
async def test_a_walk_through_a_sleep(machines: Machines, victim: str) -> None:
    seconds, _ = await begin_walk(machines)
    for step in range(STEPS):
        await machines.remember()
        address = machines.operator.address(machines.known)
        sleeping = asyncio.create_task(machines.operator.mvm("instance", "sleep", address, "--force"))
        await until_begun(machines, "sleep", sleeping)
        await asyncio.sleep(seconds * step / STEPS)
        await end(machines, victim)
        await asyncio.gather(sleeping, return_exceptions=True)
        await machines.start_agent()
        await is_whole(machines, step)


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
async def test_a_walk_through_a_wake(machines: Machines, victim: str) -> None:
    _, seconds = await begin_walk(machines)
    for step in range(STEPS):
        await machines.remember()
        await machines.sleep()
        sent = await machines.operator.telegram.say(ALICE, f"wake at step {step}")
        await until_begun(machines, "wake")
        await asyncio.sleep(seconds * step / STEPS)
        await end(machines, victim)
        await machines.start_agent()
        (answer,) = await machines.operator.telegram.wait_for_answers(ALICE, 1, after=sent.number, timeout=PATIENCE)
        assert answer.text == f"You said: wake at step {step}"
        await is_whole(machines, step)


async def test_a_machine_that_is_killed_asleep_in_the_night_boots_from_its_data(machines: Machines) -> None:
    await machines.inside(await machines.worker(), "sh", "-c", "echo kept > /data/note && sync")
    worker = await machines.worker()
    await machines.kill_machine(worker)
    await machines.until_state(worker, "stopped")
    await nothing_is_left_over(machines)
    assert await machines.say(ALICE, "are you there") == ["You said: are you there"]
    assert (await machines.inside(await machines.worker(), "cat", "/data/note")).strip() == "kept"
    await nothing_is_left_over(machines)


async def test_a_machine_that_is_killed_while_it_thinks_is_woken_and_answers_once(machines: Machines) -> None:
    assert await machines.say(ALICE, "good evening") == ["You said: good evening"]
    machines.operator.model.script(Reply("done thinking", delay=8.0), contains="think hard")
    saying = asyncio.create_task(machines.say(ALICE, "think hard"))
    await machines.operator.model.wait_for_turns(1, containing="think hard", timeout=PATIENCE)
    # Its machine closes no connection: only who asks after it finds out.
    await machines.kill_machine(await machines.worker())
    assert await saying == ["done thinking"]
    await nothing_is_left_over(machines)


async def test_a_memory_file_that_was_changed_is_noticed_and_the_message_answered(machines: Machines) -> None:
    worker = await machines.sleep()
    memory = machines.state_dir / "instances" / worker["instance_id"] / "memory/ram"
    with memory.open("r+b") as file:
        file.truncate(memory.stat().st_size // 2)
    assert await machines.say(ALICE, "cut off") == ["You said: cut off"]
    assert await machines.events("SnapshotRejected")


async def test_everybody_who_wakes_a_sleeper_at_once_gets_the_same_machine(machines: Machines) -> None:
    worker = await machines.sleep()
    await nothing_is_left_over(machines)
    address = machines.operator.address(worker)
    wakes = [asyncio.create_task(machines.operator.mvm("instance", "wake", address)) for _ in range(3)]
    saying = asyncio.create_task(machines.say(ALICE, "all at once"))
    seen: set[int] = set()
    while not all(task.done() for task in (*wakes, saying)):
        seen |= {process.pid for owner, process in machines.all() if owner == worker["instance_id"]}
        await asyncio.sleep(0.05)
    await asyncio.gather(*wakes)
    assert await saying == ["You said: all at once"]
    assert len(seen) == 1
    await nothing_is_left_over(machines)


async def test_after_a_power_cut_the_gateway_is_back_by_itself_and_sleepers_wake_from_memory(
    machines: Machines,
) -> None:
    worker = await machines.sleep()
    rejected = len(await machines.events("SnapshotRejected"))
    await machines.lose_power()
    sent = await machines.operator.telegram.say(ALICE, "good morning")
    await machines.start_agent()
    (answer,) = await machines.operator.telegram.wait_for_answers(ALICE, 1, after=sent.number, timeout=PATIENCE)
    assert answer.text == "You said: good morning"
    stages = await machines.stages(worker)
    assert "restore" in stages
    assert len(await machines.events("SnapshotRejected")) == rejected


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["agent", "machine"])
async def test_a_base_whose_making_is_cut_short_leaves_nothing_and_the_new_user_is_answered(
    machines: Machines, victim: str
) -> None:
    for base in (machines.state_dir / "bases").iterdir():
        shutil.rmtree(base)
    user, sender = {"agent": ("bob", BOB), "machine": ("carol", BOB + 1)}[victim]
    await machines.operator.mvm("user", "add", TENANT, user, "--telegram", str(sender))
    sent = await machines.operator.telegram.say(sender, "hello, I am new")

    async def being_made() -> psutil.Process:
        base = machines.base()
        assert base is not None, "no base is being made"
        return base

    base = await eventually(being_made, PATIENCE, AssertionError)
    await asyncio.sleep(3)
    if victim == "agent":
        await machines.operator.kill_agent()
        await machines.start_agent()
    else:
        await kill(base)
    (answer,) = await machines.operator.telegram.wait_for_answers(sender, 1, after=sent.number, timeout=2 * PATIENCE)
    assert answer.text == "You said: hello, I am new"
    made = [path for path in (machines.state_dir / "bases").iterdir() if path.name != ".work"]
    assert bool(made) == (victim == "agent"), "the next agent makes it again; this one had its chance"
    assert not any((machines.state_dir / "bases/.work").iterdir())
    await nothing_is_left_over(machines)
