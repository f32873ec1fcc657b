"""The sizes of the example manifest are enough for the real OpenClaw in machines, for longer than a moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.e2e.operator import operator
from tests.vm.images import cache
from tests.vm.machines import FIRST_START_SECONDS, PATIENCE, TENANT, Machines, overrides
from tests.vm.memory import had_enough, memory, restarts
from tests.vm.mixed import mixed_openclaw

from mvm.host.locations import locate
from mvm.openclaw.install import installed

pytestmark = [pytest.mark.vm, pytest.mark.openclaw, pytest.mark.slow, pytest.mark.timeout(4000)]

USERS = {f"user{number:02}": 6001 + number for number in range(20)}
MESSAGES_EACH = 10


@pytest_asyncio.fixture
async def crowd(private_network: None, tmp_path: Path) -> AsyncIterator[Machines]:
    """A real gateway of 1024 MiB for 20 people, whose workers are stand-ins."""
    installation = installed(locate({}).programs_dir)
    if installation is None:
        pytest.skip("OpenClaw is not installed: run `make setup`")
    package = mixed_openclaw(installation.openclaw_dir, tmp_path / "mixed")
    async with operator(MVM_RUNTIME="qemu", MVM_IMAGE_CACHE=str(cache()), MVM_OPENCLAW_DIR=str(package)) as someone:
        sizes = overrides(someone, gateway_mib=1024, worker_mib=1024)
        await someone.new(TENANT, USERS, extra=sizes, seconds=FIRST_START_SECONDS)
        yield Machines(someone)


async def test_a_gateway_of_1024_mib_survives_200_messages_of_20_users(crowd: Machines) -> None:
    gateway, telegram = await crowd.gateway(), crowd.operator.telegram
    before = await restarts(crowd, gateway)
    print(f"\nbefore: {await memory(crowd, gateway)}")
    for number in range(MESSAGES_EACH):
        sent = {sender: await telegram.say(sender, f"message {number} of {sender}") for sender in USERS.values()}
        for sender, message in sent.items():
            answers = await telegram.wait_for_answers(sender, 1, after=message.number, timeout=4 * PATIENCE)
            assert [answer.text for answer in answers] == [f"You said: message {number} of {sender}"]
        print(f"{20 * (number + 1)} messages: {await memory(crowd, gateway)}")
    await had_enough(crowd, gateway, before=before)
    for sender in USERS.values():
        said = [entry.text for entry in telegram.transcript.answers(sender, after=0)]
        assert sorted(said) == sorted(f"You said: message {number} of {sender}" for number in range(MESSAGES_EACH))
