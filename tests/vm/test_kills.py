"""Whatever dies at whatever moment of a sleep or a wake, in machines: nothing is lost, and the data is whole.

The walk goes through a sleep and a wake in steps of time, ending the agent, the machine or both at each: afterwards the
next message is answered once, what was written to the data drive is there, and what was asked for meanwhile is too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.e2e.operator import CommandFailed, eventually
from tests.vm.machines import ALICE, PATIENCE, Machines, standin_machines

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


async def how_long(machines: Machines) -> tuple[float, float]:
    """Seconds that a sleep and a wake take here."""
    began = time.monotonic()
    worker = await machines.sleep()
    asleep = time.monotonic()
    await machines.operator.mvm("instance", "wake", machines.operator.address(worker))
    return asleep - began, time.monotonic() - asleep


async def is_whole(machines: Machines, number: int) -> None:
    """The next message is answered once; what was on the data drive before is there; nothing is left over."""
    words = f"after number {number}"
    assert await machines.say(ALICE, words) == [f"You said: {words}"]
    worker = await machines.worker()
    written = await machines.inside(worker, "sh", "-c", "cat /data/walk && dmesg | grep -c 'EXT4-fs error' || true")
    assert written.split()[:number] == [str(n) for n in range(number)]
    assert written.split()[-1] == "0", "the file system is clean"
    await machines.inside(worker, "sh", "-c", f"echo {number} >> /data/walk && sync")


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
async def test_a_walk_through_a_sleep(machines: Machines, victim: str) -> None:
    await machines.inside(await machines.worker(), "rm", "-f", "/data/walk")
    await machines.inside(await machines.worker(), "touch", "/data/walk")
    seconds, _ = await how_long(machines)
    for step in range(STEPS):
        await machines.remember()
        address = machines.operator.address(machines.known)
        sleeping = asyncio.create_task(machines.operator.mvm("instance", "sleep", address, "--force"))
        await asyncio.sleep(seconds * step / STEPS)
        await end(machines, victim)
        await asyncio.gather(sleeping, return_exceptions=True)
        await machines.start_agent()
        await is_whole(machines, step)


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
async def test_a_walk_through_a_wake(machines: Machines, victim: str) -> None:
    await machines.inside(await machines.worker(), "rm", "-f", "/data/walk")
    await machines.inside(await machines.worker(), "touch", "/data/walk")
    _, seconds = await how_long(machines)
    for step in range(STEPS):
        await machines.remember()
        await eventually(machines.sleep, PATIENCE, CommandFailed)
        sent = await machines.operator.telegram.say(ALICE, f"wake at step {step}")
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
    assert await machines.say(ALICE, "are you there") == ["You said: are you there"]
    assert (await machines.inside(await machines.worker(), "cat", "/data/note")).strip() == "kept"


async def test_a_memory_file_that_was_changed_is_noticed_and_the_message_answered(machines: Machines) -> None:
    worker = await machines.sleep()
    memory = machines.state_dir / "instances" / worker["instance_id"] / "memory/ram"
    with memory.open("r+b") as file:
        file.truncate(memory.stat().st_size // 2)
    assert await machines.say(ALICE, "cut off") == ["You said: cut off"]
    assert await machines.events("SnapshotRejected")


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
