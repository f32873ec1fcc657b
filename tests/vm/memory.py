"""How much memory a machine and its OpenClaw use, as seen from inside."""

from __future__ import annotations

from tests.e2e.operator import Json
from tests.vm.machines import Machines


async def restarts(machines: Machines, instance: Json) -> int:
    """How often an instance's OpenClaw was started again."""
    stats = await machines.operator.ask("instance", "stats", machines.operator.address(instance))
    return int(stats["openclaw_restarts"])


async def memory(machines: Machines, instance: Json) -> str:
    """How the machine's memory is used, for whoever reads the test's output."""
    text = await machines.inside(instance, "cat", "/proc/meminfo", "/sys/block/zram0/mm_stat")
    wanted = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return "; ".join([line for line in lines if line.startswith(wanted)] + [f"zram {lines[-1]}"])


async def had_enough(machines: Machines, instance: Json, *, before: int) -> None:
    """Its OpenClaw was not started again, and the kernel had to end nothing for want of memory."""
    assert await restarts(machines, instance) == before
    assert "Out of memory" not in await machines.inside(instance, "dmesg")
