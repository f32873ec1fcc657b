"""How much memory a machine and its OpenClaw use, as seen from inside."""

from __future__ import annotations

from tests.e2e.operator import Json
from tests.vm.machines import Machines


async def openclaw_of(machines: Machines, instance: Json) -> Json:
    """What the supervisor says of an instance's OpenClaw."""
    stats = await machines.operator.ask("instance", "stats", machines.operator.address(instance))
    (openclaw,) = [service for service in stats["services"] if service["service"] == "openclaw"]
    return openclaw


async def memory(machines: Machines, instance: Json) -> str:
    """How the machine's memory is used, for whoever reads the test's output."""
    text = await machines.inside(instance, "cat", "/proc/meminfo", "/sys/block/zram0/mm_stat")
    wanted = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return "; ".join([line for line in lines if line.startswith(wanted)] + [f"zram {lines[-1]}"])


async def never_restarted(machines: Machines, instance: Json, before: Json) -> None:
    """Its OpenClaw is still the process that it was, and the kernel had to end nothing for want of memory."""
    after = await openclaw_of(machines, instance)
    assert (after["pid"], after["restarts"]) == (before["pid"], before["restarts"])
    assert "Out of memory" not in await machines.inside(instance, "dmesg")
