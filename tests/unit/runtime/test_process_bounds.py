"""Limits of an instance: found where the kernel offers them, harmless where it does not."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.standins.unified_groups import UnifiedGroups

from mvm.runtime import bounds
from mvm.runtime.process.runtime import process_memory

MIB = 1024 * 1024


def test_memory_is_bounded_well_above_the_machines_size() -> None:
    assert process_memory(2048) == 4096 * MIB
    assert process_memory(256) == 2048 * MIB


def test_a_machine_without_control_groups_limits_files_only(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text("22 1 0:20 / /proc rw - proc proc rw\n")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held = bounds.apply(child.pid, name="test", vcpus=2, memory_bytes=1024 * MIB, proc=tmp_path)
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


UNIT = "/system.slice/mvm-agent.service"
CHILD = 2**22 + 5
"""A pid that no process can have: the kernel's own limit is 2**22."""


def bounded(groups: UnifiedGroups) -> bounds.Bounds:
    return bounds.apply(CHILD, name=f"i-1-{CHILD}", vcpus=2, memory_bytes=1024 * MIB, proc=groups.proc)


async def test_under_version_2_root_bounds_instances_beside_the_agents_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    groups = UnifiedGroups(tmp_path, monkeypatch)
    unit = groups.enter(UNIT)
    held = bounded(groups)
    (group,) = held.groups
    assert group == groups.mount / "mvm" / f"mvm-i-1-{CHILD}"
    assert bounds.processes(held.groups) == [CHILD]
    assert (group / "memory.max").read_text() == str(1024 * MIB)
    assert (group / "pids.max").read_text() == str(bounds.MAX_PROCESSES)
    assert (group / "cpu.weight").read_text() == "200"
    assert "cpu, memory, pids" in held.note
    assert bounds.groups_of(CHILD, groups.proc) == held.groups
    assert (unit / "cgroup.subtree_control").read_text() == "", "systemd can start the agent in its unit again"


async def test_an_agent_that_is_not_root_bounds_instances_beside_its_subgroup_of_a_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    groups = UnifiedGroups(tmp_path, monkeypatch)
    hand_down(groups, UNIT)
    held = bounded(groups)
    assert held.groups == (groups.mount / UNIT[1:] / f"mvm-i-1-{CHILD}",)
    assert (held.groups[0] / "memory.max").read_text() == str(1024 * MIB)
    assert bounds.groups_of(CHILD, groups.proc) == held.groups


def hand_down(groups: UnifiedGroups, unit: str) -> None:
    """As systemd makes a unit with DelegateSubgroup=agent."""
    groups.enter(f"{unit}/{bounds.V2_SUBGROUP}")
    group = groups.mount
    for name in unit[1:].split("/"):
        (group / "cgroup.subtree_control").write_text("+memory +pids +cpu")
        group /= name


@pytest.mark.parametrize(("user", "real_root"), [(1000, True), (0, False)], ids=["a person", "root of a container"])
async def test_where_the_agent_is_in_the_group_that_would_be_divided_nothing_is_bounded_and_that_is_a_warning_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    user: int,
    real_root: bool,
) -> None:
    bounds._warn_once.cache_clear()
    monkeypatch.setattr(os, "geteuid", lambda: user)
    groups = UnifiedGroups(tmp_path, monkeypatch, real_root=real_root)
    groups.enter(UNIT if real_root else "/")
    with caplog.at_level(logging.WARNING):
        assert (bounded(groups).groups, bounded(groups).note) == ((), bounds.UNBOUND)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert bounds.obtainable(groups.proc) == ()


async def test_a_controller_that_the_host_lacks_keeps_the_others_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    groups = UnifiedGroups(tmp_path, monkeypatch)
    (groups.mount / "cgroup.controllers").write_text("memory pids")
    groups.enter(UNIT)
    assert bounds.obtainable(groups.proc) == ("memory", "pids")
    assert [group.name for group in (groups.mount / "mvm").iterdir() if group.is_dir()] == [], "nothing is left of it"
