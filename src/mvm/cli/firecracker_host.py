"""Firecracker's checklist for production hosts, line by line.

Everything is read from files below a root, so that tests can have a host of their own.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mvm.cli.checks import Finding, Verdict
from mvm.runtime.firecracker import jail

KERNELS = ((5, 10), (6, 1), (6, 18))
"""Host kernels that Firecracker supports (facts/FIRECRACKER.md)."""
MANY_MOUNTS = 200
"""From here on making a jail takes noticeably longer; with 500 it was seen to take ten times as long."""
_CONTROLLERS = ("cpu", "memory", "pids")


@dataclass(frozen=True, kw_only=True)
class Host:
    """The host as its kernel describes it."""

    root: Path = Path("/")
    release: str = os.uname().release

    def path(self, name: str) -> Path:
        return self.root / name

    def text(self, name: str) -> str | None:
        """Content of a file; None where there is none."""
        with suppress(OSError):
            return self.path(name).read_text(errors="replace").strip()
        return None

    @property
    def kernel(self) -> tuple[int, int]:
        """Major and minor number."""
        found = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(found[1]), int(found[2])) if found else (0, 0)


def kernel(host: Host) -> Finding:
    fits = host.kernel in KERNELS
    listed = ", ".join(f"{major}.{minor}" for major, minor in KERNELS)
    return Finding(
        name="host kernel",
        verdict=Verdict.OK if fits else Verdict.WARNING,
        found=f"{host.release}" if fits else f"{host.release}, which Firecracker is not tested on ({listed})",
        matters="Firecracker's isolation, and what a snapshot keeps, are promised on the kernels it is tested on",
        remedy=None if fits else f"boot one of the kernels {listed} on a host for production",
    )


def kvm_access(host: Host) -> Finding:
    """Who may make machines. Whether it can be done at all is the line 'kvm'."""
    matters = "whoever may open it can make machines of their own; the jailer gives each Firecracker its own"
    device = host.path("dev/kvm")
    try:
        mode = device.stat().st_mode
    except OSError:
        return Finding(
            name="kvm device",
            verdict=Verdict.PROBLEM,
            found="there is no /dev/kvm",
            matters="Firecracker does nothing without it",
            remedy="use a machine with hardware virtualisation, or MVM_RUNTIME=qemu",
        )
    opened = bool(mode & (stat.S_IROTH | stat.S_IWOTH))
    return Finding(
        name="kvm device",
        verdict=Verdict.WARNING if opened else Verdict.OK,
        found=f"mode {stat.S_IMODE(mode):04o}" + (", open to every user" if opened else ""),
        matters=matters,
        # Its group as well: machines of QEMU, which has no jailer, may open it by that and by nothing else.
        remedy='chgrp kvm /dev/kvm && chmod 0660 /dev/kvm (and the udev rule that does it: MODE="0660", GROUP="kvm")'
        if opened
        else None,
    )


def smt(host: Host) -> Finding:
    matters = "two threads of one core share caches: a guest can read from its neighbour what the other thread does"
    active = host.text("sys/devices/system/cpu/smt/active")
    if active != "1":
        return Finding(
            name="smt", verdict=Verdict.OK, found="off" if active == "0" else "there is none", matters=matters
        )
    return Finding(
        name="smt",
        verdict=Verdict.WARNING,
        found="on",
        matters=matters,
        remedy="echo off > /sys/devices/system/cpu/smt/control, and the kernel parameter nosmt for good",
    )


def same_pages(host: Host) -> Finding:
    matters = "merged pages tell a guest, by the time a write takes, what its neighbour has in memory"
    if host.text("sys/kernel/mm/ksm/run") in (None, "0"):
        return Finding(name="ksm", verdict=Verdict.OK, found="off", matters=matters)
    return Finding(
        name="ksm",
        verdict=Verdict.WARNING,
        found="on: pages of equal content are merged",
        matters=matters,
        remedy="echo 2 > /sys/kernel/mm/ksm/run (2 also takes merged pages apart)",
    )


def swap(host: Host) -> Finding:
    matters = "what a guest has in memory, keys among it, is written to the disk by swapping; and a wake becomes slow"
    used = [line.split()[0] for line in (host.text("proc/swaps") or "").splitlines()[1:]]
    if not used:
        return Finding(name="swap", verdict=Verdict.OK, found="none", matters=matters)
    return Finding(
        name="swap",
        verdict=Verdict.WARNING,
        found=", ".join(used),
        matters=matters,
        remedy="swapoff -a, and take it out of /etc/fstab",
    )


def processor_flaws(host: Host) -> Finding:
    """Known flaws that nothing is done about, and the microcode that would."""
    matters = "through such a flaw of the processor a guest reads memory of its neighbours or of the host"
    place = host.path("sys/devices/system/cpu/vulnerabilities")
    try:
        flaws = {entry.name: entry.read_text(errors="replace") for entry in sorted(place.iterdir())}
    except OSError:
        return Finding(
            name="processor flaws",
            verdict=Verdict.WARNING,
            found=f"this kernel does not say ({place})",
            matters=matters,
            remedy="boot a kernel that lists /sys/devices/system/cpu/vulnerabilities",
        )
    bad = [name for name, state in flaws.items() if state.startswith("Vulnerable")]
    microcode = re.search(r"^microcode\s*: (\S+)", host.text("proc/cpuinfo") or "", re.MULTILINE)
    loaded = f"microcode {microcode[1]}" if microcode else "microcode unknown (a virtual host does not say)"
    if not bad:
        return Finding(name="processor flaws", verdict=Verdict.OK, found=f"all dealt with, {loaded}", matters=matters)
    return Finding(
        name="processor flaws",
        verdict=Verdict.WARNING,
        found=f"open: {', '.join(bad)}; {loaded}",
        matters=matters,
        remedy="apt-get install intel-microcode (or amd64-microcode) and restart; no mitigations=off in the parameters",
    )


def start_of_machines(host: Host) -> Finding:
    """Kernels since 6.1 make each new machine wait for a grace period, unless told otherwise."""
    matters = "without one of the two every start and wake waits tens of milliseconds for the kernel"
    if host.kernel < (6, 1):
        return Finding(name="start of machines", verdict=Verdict.OK, found="not slowed by this kernel", matters=matters)
    favoured = any("favordynmods" in line.split()[3].split(",") for line in _mounts(host) if " cgroup" in line)
    never = host.text("sys/module/kvm/parameters/nx_huge_pages") == "never"
    if favoured or never:
        found = "cgroups are mounted with favordynmods" if favoured else "kvm.nx_huge_pages=never"
        return Finding(name="start of machines", verdict=Verdict.OK, found=found, matters=matters)
    return Finding(
        name="start of machines",
        verdict=Verdict.WARNING,
        found="neither favordynmods nor kvm.nx_huge_pages=never",
        matters=matters,
        remedy="mount -o remount,favordynmods /sys/fs/cgroup (kvm.nx_huge_pages=never only where "
        "vulnerabilities/itlb_multihit says 'Not affected')",
    )


def groups(host: Host) -> Finding:
    """Which control groups bound a machine."""
    matters = "they bound what one machine takes of memory, processors and processes; version 2 counts memory honestly"
    found = jail.control_groups(host.path("proc/self/mountinfo"))
    if not found.bases:
        return Finding(
            name="machine cgroups",
            verdict=Verdict.WARNING,
            found=f"not all of {', '.join(_CONTROLLERS)} are there: machines are not bounded",
            matters=matters,
            remedy="mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1",
        )
    old = found.version == 1
    return Finding(
        name="machine cgroups",
        verdict=Verdict.WARNING if old else Verdict.OK,
        found=f"version {found.version}" + (", which is all there is: it will do" if old else ""),
        matters=matters,
        remedy="boot with systemd.unified_cgroup_hierarchy=1 (cgroup_no_v1=all)" if old else None,
    )


def timer_threads(host: Host) -> Finding:
    """Where the kernel's threads are that keep the timers of machines: it makes them outside of any machine's group."""
    matters = "in the root group what a guest makes its timer do is taken from the host and counts for no machine"
    name = "kvm-pit threads"
    threads = list(_timer_threads(host))
    free = [thread for thread in threads if _is_in_root_group(host, thread)]
    if not free:
        found = f"{len(threads)}, all in a group" if threads else "none: no machine runs, or this kernel makes none"
        return Finding(name=name, verdict=Verdict.OK, found=found, matters=matters)
    return Finding(
        name=name,
        verdict=Verdict.WARNING,
        found=f"{len(free)} of {len(threads)} in the root group: {', '.join(free[:5])}",
        matters=matters,
        # Not into the machine's own: in a process namespace of its own each of them is called kvm-pit/1.
        remedy="mkdir -p /sys/fs/cgroup/kvm-pit && for t in $(pgrep '^kvm-pit/'); do "
        "echo $t > /sys/fs/cgroup/kvm-pit/cgroup.procs; done, and cpu.max in that group",
    )


def _timer_threads(host: Host) -> Iterator[str]:
    for entry in sorted(host.path("proc").glob("[0-9]*")):
        if (host.text(f"proc/{entry.name}/comm") or "").startswith("kvm-pit/"):
            yield entry.name


def _is_in_root_group(host: Host, pid: str) -> bool:
    """Of version 2; of version 1 the groups that bound the processor count."""
    for line in (host.text(f"proc/{pid}/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if path == "/" and (not controllers or "cpu" in controllers.split(",")):
            return True
    return False


def lockup_watchdog(host: Host) -> Finding:
    """Whether the kernel notices that it hangs. A Firecracker that only does not answer is killed by the agent."""
    matters = "a machine that hangs inside the kernel is ended by no signal: only the kernel's own watchdog tells of it"
    name = "watchdog"
    if host.text("proc/sys/kernel/soft_watchdog") != "1" or host.text("proc/sys/kernel/watchdog") == "0":
        return Finding(
            name=name,
            verdict=Verdict.WARNING,
            found="soft lockups are not watched for",
            matters=matters,
            remedy="sysctl -w kernel.soft_watchdog=1 kernel.watchdog=1, and in /etc/sysctl.d; "
            "kernel.softlockup_panic=1 restarts a host that hangs",
        )
    hard = host.text("proc/sys/kernel/nmi_watchdog") == "1"
    return Finding(
        name=name,
        verdict=Verdict.OK if hard else Verdict.NOTE,
        found="it looks for soft and hard lockups" if hard else "it looks for soft lockups only (nmi_watchdog is off)",
        matters=matters,
        remedy=None if hard else "sysctl -w kernel.nmi_watchdog=1, where the processor has a counter for it",
    )


def mounts(host: Host) -> Finding:
    matters = "each jail copies the host's table of mounts: with hundreds a start takes many times as long"
    count = len(_mounts(host))
    many = count > MANY_MOUNTS
    return Finding(
        name="mounts",
        verdict=Verdict.WARNING if many else Verdict.OK,
        found=f"{count}",
        matters=matters,
        remedy="run the agent where containers do not mount: systemd-run, or another host" if many else None,
    )


def page_faults(host: Host) -> Finding:
    there = host.path("dev/userfaultfd").exists()
    return Finding(
        name="userfaultfd",
        verdict=Verdict.OK,
        found=f"not needed ({'there' if there else 'not there'}): machines wake from files",
        matters="only a handler of page faults would use it, and a guest stands still for ever when that dies",
    )


def _mounts(host: Host) -> list[str]:
    return (host.text("proc/mounts") or "").splitlines()


CHECKLIST: tuple[Callable[[Host], Finding], ...] = (
    kernel,
    kvm_access,
    smt,
    same_pages,
    swap,
    processor_flaws,
    start_of_machines,
    groups,
    timer_threads,
    lockup_watchdog,
    mounts,
    page_faults,
)
"""What is asked of the host, in the order of the report."""
