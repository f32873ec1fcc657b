"""The sizes of the example manifest are enough for the real OpenClaw in machines, for longer than a moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from tests.e2e.operator import operator
from tests.standins.mixed_openclaw import mixed_openclaw
from tests.vm.images import cache
from tests.vm.machines import (
    FIRST_START_SECONDS,
    LONGEST_SECONDS,
    PATIENCE,
    TENANT,
    Machines,
    as_many,
    overrides,
)
from tests.vm.memory import had_enough, memory, restarts

pytestmark = [pytest.mark.vm, pytest.mark.openclaw, pytest.mark.slow, pytest.mark.timeout(LONGEST_SECONDS)]

USERS = {f"user{number:02}": 6001 + number for number in range(20)}
MESSAGES_EACH = 10
MESSAGES_EACH_EMULATED = 1
"""The gateway alone takes the better part of a minute for each. All are sent natively: `tests/e2e/test_sizes.py`."""
AT_ONCE = 4
"""People who write at the same time: an emulated gateway takes some seconds for each."""


PAUSED_SOON = "runtime_policy = { warm_after_idle_seconds = 5, min_running_seconds = 0 }\n"


@pytest_asyncio.fixture
async def crowd(private_network: None, tmp_path: Path) -> AsyncIterator[Machines]:
    """A real gateway of 1024 MiB for 20 people, whose workers are stand-ins."""
    package = mixed_openclaw(tmp_path / "mixed")
    async with operator(MVM_RUNTIME="qemu", MVM_IMAGE_CACHE=str(cache()), MVM_OPENCLAW_DIR=str(package)) as someone:
        sizes = overrides(someone, gateway_mib=1024, worker_mib=1024).replace("vcpus = 1", "vcpus = 2", 1)
        # An emulated machine costs the host something also while it does nothing; one that is paused does not.
        extra = f"{sizes}{PAUSED_SOON}\n[quotas]\nmax_running = 32\nmax_warm = 32\n"
        await someone.new(TENANT, USERS, extra=extra, seconds=FIRST_START_SECONDS)
        yield Machines(someone)


async def ask(crowd: Machines, number: int, senders: Sequence[int]) -> None:
    """These people write at once; each gets an answer, which is theirs."""
    telegram = crowd.operator.telegram
    sent = {sender: await telegram.say(sender, f"message {number} of {sender}") for sender in senders}
    for sender, message in sent.items():
        answers = await telegram.wait_for_answers(sender, 1, after=message.number, timeout=2 * PATIENCE)
        assert [answer.text for answer in answers] == [f"You said: message {number} of {sender}"]


async def test_a_gateway_of_1024_mib_survives_200_messages_of_20_users(crowd: Machines) -> None:
    gateway, telegram = await crowd.gateway(), crowd.operator.telegram
    senders = list(USERS.values())
    before = await restarts(crowd, gateway)
    print(f"\nbefore: {await memory(crowd, gateway)}")
    each = await as_many(MESSAGES_EACH, MESSAGES_EACH_EMULATED)
    for number in range(each):
        for first in range(0, len(senders), AT_ONCE):
            await ask(crowd, number, senders[first : first + AT_ONCE])
        print(f"{20 * (number + 1)} messages: {await memory(crowd, gateway)}")
    await had_enough(crowd, gateway, before=before)
    for sender in USERS.values():
        said = [entry.text for entry in telegram.transcript.answers(sender, after=0)]
        assert sorted(said) == sorted(f"You said: message {number} of {sender}" for number in range(each))
