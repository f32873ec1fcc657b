"""What the doctor says of virtual machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from mvm.cli.checks import Verdict
from mvm.cli.machine_checks import machine_checks, memory_files
from mvm.host.locations import Locations, locate
from mvm.runtime.base import Probe, Runtime


@dataclass
class Probed:
    """A runtime of which only its probe is asked."""

    result: Probe

    async def probe(self) -> Probe:
        return self.result


@pytest.fixture
def locations(tmp_path: Path) -> Locations:
    return locate({"state_dir": str(tmp_path), "run_dir": "/run/mvm-nowhere"})


async def verdict(locations: Locations, probe: Probe) -> Verdict:
    return (await machine_checks(locations, cast(Runtime, Probed(probe))))[0].verdict


async def test_hardware_is_fine_and_emulation_or_nothing_at_all_a_warning(locations: Locations) -> None:
    assert await verdict(locations, Probe(usable=True, reason="QEMU with kvm")) is Verdict.OK
    assert await verdict(locations, Probe(usable=True, reason="emulated", unasked=False)) is Verdict.WARNING
    assert await verdict(locations, Probe(usable=False, reason="no QEMU", remedy="make setup-vm")) is Verdict.WARNING


async def test_without_qemu_there_is_nothing_to_say_of_sleepers(locations: Locations) -> None:
    missing = Probe(usable=False, reason="no QEMU")
    assert len(await machine_checks(locations, cast(Runtime, Probed(missing)))) == 1


def test_a_memory_file_that_others_can_read_is_a_problem(locations: Locations) -> None:
    memory = locations.state_dir / "instances/i-00000001/memory"
    memory.mkdir(parents=True)
    ram = memory / "ram"
    ram.touch(mode=0o600)
    assert memory_files(locations).verdict is Verdict.OK
    ram.chmod(0o644)
    finding = memory_files(locations)
    assert finding.verdict is Verdict.PROBLEM
    assert str(ram) in finding.found
