"""What `mvm doctor` finds out about virtual machines, by trying them."""

from __future__ import annotations

from mvm.cli.checks import Finding, Verdict
from mvm.host.locations import Locations
from mvm.runtime.base import Runtime

MATTERS = "each person's OpenClaw in a machine of its own, kept apart from everybody else's"


async def machine_checks(locations: Locations, runtime: Runtime | None = None) -> list[Finding]:
    """Whether QEMU runs machines here and how fast, and what its sleepers leave on the disk."""
    if runtime is None:
        from mvm.runtime.qemu import QemuRuntime  # with its libraries only where it is looked at

        runtime = QemuRuntime()
    probe = await runtime.probe()
    usable = Finding(
        name="qemu",
        verdict=Verdict.OK if probe.usable and probe.unasked else Verdict.WARNING,
        found=probe.reason,
        matters=MATTERS,
        remedy=probe.remedy,
    )
    return [usable, memory_files(locations)] if probe.usable else [usable]


def memory_files(locations: Locations) -> Finding:
    """What the memory of sleeping machines is, and who can read it."""
    place = locations.state_dir / "instances"
    sleepers = list(place.glob("*/memory/snapshot.json"))
    # The memory of a base, which many have, is closed by its directories.
    readable = [
        path
        for path in place.glob("*/memory/ram*")
        if path.stat().st_mode & 0o077 and path.parent.stat().st_mode & 0o077
    ]
    if readable:
        return Finding(
            name="memory files",
            verdict=Verdict.PROBLEM,
            found=f"{readable[0]} can be read by others",
            matters="the memory of a sleeper holds whatever its guest held, keys and words of its person included",
            remedy=f"chmod -R go-rwx {place}",
        )
    return Finding(
        name="memory files",
        verdict=Verdict.OK,
        found=f"{len(sleepers)} asleep in {place}, not encrypted, readable by their owner only",
        matters="the memory of a sleeper holds whatever its guest held: give the disk to nobody, or encrypt it",
    )
