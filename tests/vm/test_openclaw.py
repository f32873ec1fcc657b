"""The real OpenClaw in virtual machines, of the sizes of the example manifest."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.vm.machines import ALICE, LONGEST_SECONDS, Machines, as_many, openclaw_machines
from tests.vm.memory import had_enough, memory, restarts
from tests.vm.path import the_whole_path

pytestmark = [
    pytest.mark.vm,
    pytest.mark.openclaw,
    pytest.mark.slow,
    pytest.mark.timeout(LONGEST_SECONDS),
    pytest.mark.asyncio(loop_scope="module"),
]

MESSAGES = 60
MESSAGES_EMULATED = 3
"""A turn takes two minutes there. The whole conversation is had natively: `tests/e2e/test_sizes.py`."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machines(private_network: None) -> AsyncIterator[Machines]:
    async with openclaw_machines({"alice": ALICE}) as machines:
        yield machines


async def test_it_is_woken_from_memory_by_a_message(machines: Machines) -> None:
    await the_whole_path(machines)
    print(f"\nwake of the real OpenClaw, ms: {await machines.stages(await machines.worker())}")


async def test_a_worker_of_2048_mib_survives_a_long_conversation(machines: Machines) -> None:
    worker = await machines.worker()
    before = await restarts(machines, worker)
    print(f"\nbefore: {await memory(machines, worker)}")
    for number in range(await as_many(MESSAGES, MESSAGES_EMULATED)):
        words = f"message {number}: " + "all work and no play " * 50
        assert await machines.say(ALICE, words) == [f"You said: {words}".strip()]
        if number % 20 in (2, 19):
            print(f"{number + 1} messages: {await memory(machines, worker)}")
    await had_enough(machines, worker, before=before)
