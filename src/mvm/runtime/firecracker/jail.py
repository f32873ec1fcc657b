"""Firecracker's jailer: its command line, and the control groups that it makes.

It gives a Firecracker a root directory, a user, a process and a mount namespace of its own, and takes everything else
away. What it leaves behind when that Firecracker has ended is removed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mvm.runtime import bounds
from mvm.runtime.firecracker.files import API_SOCKET

PARENT = "mvm"
"""Control group that has those of all instances in it."""
CONTROLLERS = frozenset({"memory", "pids", "cpu"})
OVERHEAD_MIB = 256
"""Beside the guest's memory: Firecracker itself takes 5 MiB; the rest is for what it writes when its guest sleeps."""
MAX_OPEN_FILES = 1024
FILE_SLACK_MIB = 64


@dataclass(frozen=True, kw_only=True)
class ControlGroups:
    """What control groups this host has."""

    version: int
    """2 where it has all of `CONTROLLERS`, else 1, where the jailer looks for each by itself."""
    bases: tuple[Path, ...]
    """Where the groups of this version are; empty when nothing can be bounded."""

    def of(self, instance: str) -> tuple[Path, ...]:
        """The groups of an instance, by the jailer's convention."""
        return tuple(base / PARENT / instance for base in self.bases)


def control_groups(mounts: Path = Path("/proc/self/mountinfo")) -> ControlGroups:
    """Version 2 where it can be used, version 1 where that is all there is."""
    old: dict[str, Path] = {}
    for mount, _, kind, options in bounds.mounts_of_groups(mounts):
        if kind == "cgroup2" and set(_controllers(mount)) >= CONTROLLERS:
            return ControlGroups(version=2, bases=(mount,))
        if kind == "cgroup":
            old |= {controller: mount for controller in CONTROLLERS.intersection(options.split(","))}
    complete = old.keys() == CONTROLLERS
    return ControlGroups(version=1, bases=tuple(sorted(set(old.values()))) if complete else ())


def _controllers(mount: Path) -> Sequence[str]:
    try:
        return (mount / "cgroup.controllers").read_text().split()
    except OSError:
        return ()


@dataclass(frozen=True, kw_only=True)
class Jail:
    """One jail."""

    jailer: Path
    executable: Path
    instance: str
    uid: int
    """User and group, which nobody else has."""
    base: Path
    groups: ControlGroups
    vcpus: int
    mem_mib: int
    largest_file_mib: int


def memory_bytes(mem_mib: int) -> int:
    """What a machine of that size may use in all."""
    return (mem_mib + OVERHEAD_MIB) << 20


def command(jail: Jail) -> list[str]:
    """The arguments that start a Firecracker in its jail. The jailer ends when that runs."""
    # fmt: off
    arguments = [
        str(jail.jailer), "--id", jail.instance, "--exec-file", str(jail.executable),
        "--uid", str(jail.uid), "--gid", str(jail.uid), "--chroot-base-dir", str(jail.base),
        "--cgroup-version", str(jail.groups.version), "--parent-cgroup", PARENT,
    ]
    # fmt: on
    if jail.groups.bases:
        limits = bounds.limits(jail.groups.version, vcpus=jail.vcpus, memory_bytes=memory_bytes(jail.mem_mib))
        for file, value in sorted(limits.items()):
            arguments += ["--cgroup", f"{file}={value}"]
    largest = (max(jail.largest_file_mib, jail.mem_mib) + FILE_SLACK_MIB) << 20
    return [
        *arguments,
        *("--resource-limit", f"fsize={largest}", "--resource-limit", f"no-file={MAX_OPEN_FILES}"),
        *("--daemonize", "--new-pid-ns", "--", "--api-sock", API_SOCKET),
    ]
