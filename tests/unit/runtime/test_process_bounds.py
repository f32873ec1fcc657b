"""Limits of an instance: found where the kernel offers them, harmless where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from mvm.runtime import bounds
from mvm.runtime.process.runtime import process_memory

MIB = 1024 * 1024


def test_memory_is_bounded_well_above_the_machines_size() -> None:
    assert process_memory(2048) == 4096 * MIB
    assert process_memory(256) == 2048 * MIB


def test_a_machine_without_control_groups_limits_files_only(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text("22 1 0:20 / /proc rw - proc proc rw\n")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held = bounds.apply(child.pid, name="test", vcpus=2, memory_bytes=1024 * MIB, mounts=mounts)
    limits = Path(f"/proc/{child.pid}/limits").read_text()
    child.communicate(b"\n", timeout=10)
    assert held.groups == ()
    assert "no control group" in held.note
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    address_space = next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert address_space.split()[3] == "unlimited"


async def test_groups_hold_the_process_and_are_removed_after_it() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held = bounds.apply(child.pid, name=f"test-{child.pid}", vcpus=2, memory_bytes=1024 * MIB)
    try:
        assert held.note
        if held.groups:
            assert bounds.processes(held.groups) == [child.pid]
    finally:
        child.communicate(b"\n", timeout=10)
        await bounds.remove(held.groups)
    assert not [group for group in held.groups if group.exists()]


async def test_a_missing_group_is_no_error(tmp_path: Path) -> None:
    assert bounds.processes([tmp_path / "gone"]) == []
    await bounds.remove([tmp_path / "gone"])


def test_empty_groups_that_nobody_removed_are_swept(tmp_path: Path) -> None:
    for name, age in (("mvm-i-00000001-5", 3600), ("mvm-i-00000002-6", 0), ("else", 3600)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    bounds._sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["else", "mvm-i-00000002-6"]
