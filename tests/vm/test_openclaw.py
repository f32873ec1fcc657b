"""The real OpenClaw in virtual machines."""

from __future__ import annotations

import pytest
from tests.vm.machines import ALICE, openclaw_machines
from tests.vm.path import the_whole_path

pytestmark = [pytest.mark.vm, pytest.mark.openclaw, pytest.mark.slow, pytest.mark.timeout(3000)]


async def test_it_is_woken_from_memory_by_a_message(private_network: None) -> None:
    async with openclaw_machines({"alice": ALICE}) as machines:
        await the_whole_path(machines)
