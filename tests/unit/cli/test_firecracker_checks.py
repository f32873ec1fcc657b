"""What the doctor says of Firecracker, on hosts made of files."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from mvm.cli.checks import Finding, Verdict
from mvm.cli.firecracker_checks import firecracker_checks, is_static, jailer, metadata_address
from mvm.cli.firecracker_host import CHECKLIST, Host, processor_flaws
from mvm.host.locations import Locations, locate
from mvm.model.errors import Unavailable

GOOD = {
    "proc/swaps": "Filename Type Size Used Priority",
    "proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,favordynmods 0 0",
    "proc/cpuinfo": "processor\t: 0\nmicrocode\t: 0x2b000603\n",
    "sys/devices/system/cpu/smt/active": "0",
    "sys/devices/system/cpu/vulnerabilities/mds": "Mitigation: Clear CPU buffers; SMT disabled",
    "sys/devices/system/cpu/vulnerabilities/l1tf": "Not affected",
    "sys/kernel/mm/ksm/run": "0",
    "sys/module/kvm/parameters/nx_huge_pages": "Y",
    "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids",
    "dev/kvm": "",
    "proc/sys/kernel/watchdog": "1",
    "proc/sys/kernel/soft_watchdog": "1",
    "proc/sys/kernel/nmi_watchdog": "1",
    "proc/812/comm": "kvm-pit/1",
    "proc/812/cgroup": "0::/mvm/i-0a0b0c0d",
    "proc/813/comm": "kworker/0:1",
    "proc/813/cgroup": "0::/",
}
"""A host as Firecracker's checklist wants it."""


class FakeHost:
    def __init__(self, root: Path) -> None:
        self.root = root
        for name, content in GOOD.items():
            self.write(name, content)
        (root / "dev/kvm").chmod(0o660)
        self.write("proc/self/mountinfo", f"30 1 0:26 / {root}/sys/fs/cgroup rw - cgroup2 cgroup2 rw,favordynmods")

    def write(self, name: str, content: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")

    def host(self, release: str = "6.1.119") -> Host:
        return Host(root=self.root, release=release)

    def findings(self, release: str = "6.1.119") -> dict[str, Finding]:
        return {finding.name: finding for finding in (check(self.host(release)) for check in CHECKLIST)}


@pytest.fixture
def fake(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


@pytest.fixture
def locations(tmp_path: Path) -> Locations:
    return locate({"state_dir": str(tmp_path / "s"), "run_dir": "/tmp/mvm-none", "programs_dir": str(tmp_path / "p")})


async def no_rules() -> str:
    raise Unavailable("there is no such table")


def test_a_host_that_is_as_it_should_be_has_nothing_to_do(fake: FakeHost) -> None:
    for finding in fake.findings().values():
        assert finding.verdict is Verdict.OK, finding
        assert finding.remedy is None
        assert finding.matters


@pytest.mark.parametrize(
    ("name", "file", "content", "found", "typed"),
    [
        ("smt", "sys/devices/system/cpu/smt/active", "1", "on", "echo off > /sys/devices/system/cpu/smt/control"),
        ("ksm", "sys/kernel/mm/ksm/run", "1", "merged", "echo 2 > /sys/kernel/mm/ksm/run"),
        ("swap", "proc/swaps", "Filename Type\n/dev/sda2 partition", "/dev/sda2", "swapoff -a"),
        (
            "processor flaws",
            "sys/devices/system/cpu/vulnerabilities/mds",
            "Vulnerable: no microcode",
            "mds",
            "microcode",
        ),
        ("start of machines", "proc/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0", "neither", "favordynmods"),
        ("machine cgroups", "sys/fs/cgroup/cgroup.controllers", "cpuset", "not bounded", "unified_cgroup_hierarchy"),
        ("kvm-pit threads", "proc/812/cgroup", "0::/", "1 of 1 in the root group: 812", "cgroup.procs"),
        ("kvm-pit threads", "proc/812/cgroup", "5:memory:/x\n4:cpu,cpuacct:/", "812", "pgrep '^kvm-pit/'"),
        ("watchdog", "proc/sys/kernel/watchdog", "0", "not watched", "kernel.watchdog=1"),
        ("watchdog", "proc/sys/kernel/soft_watchdog", "0", "not watched", "kernel.soft_watchdog=1"),
        ("mounts", "proc/mounts", "tmpfs /x tmpfs rw,favordynmods 0 0\n" * 500, "500", "systemd-run"),
    ],
)
def test_what_is_not_as_it_should_be_is_said_with_what_to_type(
    fake: FakeHost, name: str, file: str, content: str, found: str, typed: str
) -> None:
    fake.write(file, content)
    finding = fake.findings()[name]
    assert finding.verdict is Verdict.WARNING
    assert found in finding.found
    assert typed in str(finding.remedy)


@pytest.mark.parametrize(
    ("release", "fits"),
    [("5.10.230-amazon", True), ("6.1.0-27-amd64", True), ("6.18.2", True), ("6.12.9", False), ("strange", False)],
)
def test_the_kernels_that_firecracker_is_tested_on_are_named(fake: FakeHost, release: str, fits: bool) -> None:
    finding = fake.findings(release)["host kernel"]
    assert (finding.verdict is Verdict.OK) == fits
    assert release in finding.found


def test_an_old_kernel_does_not_slow_starts(fake: FakeHost) -> None:
    fake.write("proc/mounts", "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0")
    assert fake.findings("5.10.1")["start of machines"].verdict is Verdict.OK


def test_huge_pages_that_are_never_split_do_as_well(fake: FakeHost) -> None:
    fake.write("proc/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0")
    fake.write("sys/module/kvm/parameters/nx_huge_pages", "never")
    assert "nx_huge_pages=never" in fake.findings()["start of machines"].found


def test_version_1_of_control_groups_is_said(fake: FakeHost) -> None:
    mounts = [
        f"{n} 1 0:{n} / {fake.root}/cg/{name} rw - cgroup cgroup rw,{name}"
        for n, name in enumerate(("cpu", "memory", "pids"), start=30)
    ]
    fake.write("proc/self/mountinfo", "\n".join(mounts))
    finding = fake.findings()["machine cgroups"]
    assert finding.found.startswith("version 1")
    assert finding.verdict is Verdict.WARNING


def test_a_kvm_that_everybody_may_open_is_told(fake: FakeHost) -> None:
    (fake.root / "dev/kvm").chmod(0o666)
    told = fake.findings()["kvm device"]
    assert told.verdict is Verdict.WARNING
    # Closed to others without a group of its own it would be closed to QEMU's machines.
    assert "chgrp kvm" in (told.remedy or "")
    (fake.root / "dev/kvm").unlink()
    assert fake.findings()["kvm device"].verdict is Verdict.PROBLEM


def test_flaws_that_a_kernel_does_not_list_are_not_taken_for_none(tmp_path: Path) -> None:
    assert processor_flaws(Host(root=tmp_path)).verdict is Verdict.WARNING


def test_threads_of_timers_in_a_group_of_version_1_are_in_their_place(fake: FakeHost) -> None:
    fake.write("proc/812/cgroup", "5:memory:/\n4:cpu,cpuacct:/kvm-pit")
    finding = fake.findings()["kvm-pit threads"]
    assert (finding.verdict, finding.found) == (Verdict.OK, "1, all in a group")


def test_where_no_machine_runs_there_is_no_thread_to_be_placed(fake: FakeHost) -> None:
    fake.write("proc/812/comm", "firecracker")
    fake.write("proc/812/cgroup", "0::/")
    assert fake.findings()["kvm-pit threads"].found.startswith("none")


def test_a_host_without_a_counter_for_hard_lockups_is_told_and_not_warned(fake: FakeHost) -> None:
    fake.write("proc/sys/kernel/nmi_watchdog", "0")
    finding = fake.findings()["watchdog"]
    assert finding.verdict is Verdict.NOTE
    assert "soft lockups only" in finding.found


def test_a_kernel_without_a_watchdog_is_not_taken_for_one_with_it(fake: FakeHost) -> None:
    (fake.root / "proc/sys/kernel/soft_watchdog").unlink()
    assert fake.findings()["watchdog"].verdict is Verdict.WARNING


async def test_rules_that_let_the_metadata_address_through_are_a_problem() -> None:
    async def closed() -> str:
        return "table inet mvm { chain from_guest { ip daddr { 127.0.0.0/8, 169.254.0.0/16 } drop } }"

    async def opened() -> str:
        return "table inet mvm { chain from_guest { accept } }"

    assert (await metadata_address(closed)).verdict is Verdict.OK
    assert (await metadata_address(opened)).verdict is Verdict.PROBLEM
    assert "yet" in (await metadata_address(no_rules)).found


def elf(*kinds: int) -> bytes:
    """An ELF with program headers of these kinds."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, 0, 0, 64, 56, len(kinds), 0, 0, 0
    )
    return header + b"".join(struct.pack("<I52x", kind) for kind in kinds)


def test_a_program_that_needs_shared_libraries_is_known(tmp_path: Path) -> None:
    program = tmp_path / "firecracker"
    for content, static in ((elf(1, 2), True), (elf(6, 3, 1), False), (b"#!/bin/sh\n", True)):
        program.write_bytes(content)
        assert is_static(program) == static


def test_without_a_jailer_there_is_no_production() -> None:
    assert jailer(None, "the jailer is not installed", production=True).verdict is Verdict.PROBLEM
    assert jailer(None, "the jailer is not installed", production=False).verdict is Verdict.WARNING
    assert jailer(Path("/x/jailer"), "", production=True).verdict is Verdict.OK


def put_programs(directory: Path, *, jailer_says: str = "v1.16.1") -> None:
    place = directory / "firecracker/1.16.1"
    place.mkdir(parents=True)
    for name, says in (("firecracker", "Firecracker v1.16.1"), ("jailer", f"Jailer {jailer_says}")):
        (place / name).write_text(f"#!/bin/sh\necho {says}\n")
        (place / name).chmod(0o755)


async def test_where_nobody_wants_it_there_is_one_line(locations: Locations, fake: FakeHost) -> None:
    (finding,) = await firecracker_checks(locations, fake.host(), {"PATH": "/nowhere"})
    assert finding.verdict is Verdict.OK
    assert "mvm setup firecracker" in finding.matters


async def test_where_it_is_wanted_and_missing_it_is_a_problem(locations: Locations, fake: FakeHost) -> None:
    for wanting in (replace(locations, runtime="firecracker"), replace(locations, production=True)):
        found = await firecracker_checks(wanting, fake.host(), {"PATH": "/nowhere"}, no_rules)
        assert found[0].verdict is Verdict.PROBLEM
        assert "mvm setup firecracker" in str(found[0].remedy)
        assert len(found) > len(CHECKLIST)


async def test_where_it_is_installed_every_line_is_there(locations: Locations, fake: FakeHost) -> None:
    put_programs(locations.programs_dir)
    found = await firecracker_checks(locations, fake.host(), {"PATH": "/nowhere"}, no_rules)
    assert [finding.name for finding in found[:2]] == ["firecracker", "jailer"]
    assert len(found) == len(CHECKLIST) + 3
    assert all(finding.verdict is Verdict.OK for finding in found)


async def test_a_jailer_of_another_version_is_none(locations: Locations, fake: FakeHost) -> None:
    put_programs(locations.programs_dir, jailer_says="v1.15.0")
    found = await firecracker_checks(locations, fake.host(), {"PATH": "/nowhere"}, no_rules)
    assert found[1].verdict is Verdict.WARNING
    assert "1.15.0" in found[1].found


async def test_a_variable_that_names_no_program_is_a_problem(locations: Locations, fake: FakeHost) -> None:
    environ = {"PATH": "/nowhere", "MVM_FIRECRACKER": "/nowhere/firecracker"}
    found = await firecracker_checks(locations, fake.host(), environ, no_rules)
    assert found[0].verdict is Verdict.PROBLEM
    assert "MVM_FIRECRACKER" in found[0].found
