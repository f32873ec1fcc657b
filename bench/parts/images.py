"""What must be there before virtual machines can be measured."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

from tests.vm.images import PLUGIN, STANDIN, build, builder

from mvm.host.locations import locate
from mvm.host.programs import expected_installation
from mvm.openclaw.programs import find_programs
from mvm.runtime.firecracker import FirecrackerRuntime


def why_no_machines(runtime: str = "qemu") -> str | None:
    """Why this host cannot run deployments in virtual machines; None when it can."""
    if os.geteuid() != 0:
        return "machines with networks of their own need root"
    if runtime == "firecracker":
        probe = asyncio.run(FirecrackerRuntime(programs_dir=locate({}).programs_dir).probe())
        if not probe.usable:
            return f"{probe.reason}; {probe.remedy}" if probe.remedy else probe.reason
    readiness = builder().probe()
    return None if readiness.usable else f"no image can be built: {readiness.reason}"


def have_image(*, standin: bool) -> None:
    """Build the image once, out of a network namespace from which nothing can be fetched: its parts are kept."""
    kind = "standin" if standin else "openclaw"
    openclaw = STANDIN if standin else expected_installation(locate({})).openclaw_dir
    with tempfile.TemporaryDirectory(prefix="mvm-bench-") as directory:
        build(kind, find_programs().node, openclaw, PLUGIN, Path(directory))
