"""Limits for the processes of an instance: a control group where one can be made, else resource limits.

This is a guard against one instance taking the whole machine, not isolation. The address space (RLIMIT_AS) is never
limited: V8 and QEMU reserve far more than they use and die of it.

Version 2 lets no group with processes give controllers to groups in it, so those of instances cannot be in the agent's
own. Root makes them in `mvm` beside systemd's slices, where Firecracker's jailer has its own: systemd leaves groups
alone that it did not make, and cannot take a controller from the root that `mvm` hands on. They are not in the agent's
unit on purpose: a unit with groups that hand out controllers, and machines outlive their agent, cannot be started again
before systemd 254 (EBUSY). From then on `DelegateSubgroup=agent` puts the agent itself out of the way, which is how an
agent that is not root gets groups.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

MAX_PROCESSES = 2048
MAX_FILES = 65_536
V1_SHARES_PER_CPU = 1024
V2_WEIGHT_PER_CPU = 100
CONTROLLERS = ("memory", "pids", "cpu")
V2_PLACE = "mvm"
"""Group of root's that has those of instances in it, under version 2."""
V2_SUBGROUP = "agent"
"""Where `DelegateSubgroup=` of a unit puts the agent; those of instances are then beside it."""
PROC = Path("/proc/self")
REMOVE_SECONDS = 3.0
PREFIX = "mvm-"
UNBOUND = "no control group can be made here: only the number of open files and core dumps are limited"
ABANDONED_SECONDS = 60.0
"""An empty group this old belongs to nobody: a group is filled right after it was made."""


@dataclass(frozen=True)
class Bounds:
    """What holds an instance, and what to tell the operator about it."""

    groups: tuple[Path, ...]
    """Control groups made for it; empty when only resource limits hold."""
    note: str


def apply(pid: int, *, name: str, vcpus: int, memory_bytes: int, proc: Path = PROC) -> Bounds:
    """Bound a process that was just started and whatever it will start, all together at `memory_bytes`.

    Never raises: an instance runs without bounds, too.
    """
    groups = [place / (PREFIX + name) for place in _v1_places(proc) or _v2_places(proc)[:1]]
    for group in groups:
        _sweep(group.parent)
    held: list[Path] = []
    for group in groups:
        try:
            group.mkdir(exist_ok=True)
            _set_limits(group, vcpus=vcpus, memory_bytes=memory_bytes)
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            log.debug("control group %s cannot be used: %s", group, error)
            with suppress(OSError):
                group.rmdir()
        else:
            held.append(group)
    if held:
        kinds = ", ".join(sorted({kind for group in held for kind in _kinds(group)}))
        return Bounds(tuple(held), f"bounded by a control group ({kinds}; memory {memory_bytes >> 20} MiB)")
    _limit_resources(pid)
    _warn_once()
    return Bounds((), UNBOUND)


@cache
def _warn_once() -> None:
    log.warning("instances are not bounded: %s; `mvm doctor` says more", UNBOUND)


def obtainable(proc: Path = PROC) -> tuple[str, ...]:
    """What an instance that is started from here is bounded in, found out by making a group and removing it again."""
    kinds: set[str] = set()
    for place in _v1_places(proc) or _v2_places(proc)[:1]:
        group = place / f"{PREFIX}trial-{os.getpid()}"
        with suppress(OSError):
            group.mkdir()
            kinds.update(_kinds(group))
            group.rmdir()
    return tuple(kind for kind in CONTROLLERS if kind in kinds)


def processes(groups: Sequence[Path]) -> list[int]:
    """Pids of everything in these groups."""
    found: set[int] = set()
    for group in groups:
        with suppress(OSError):
            found.update(map(int, (group / "cgroup.procs").read_text().split()))
    return sorted(found)


def groups_of(pid: int, proc: Path = PROC) -> tuple[Path, ...]:
    """The groups that were made for a process, for when nobody wrote them down."""
    return tuple(group for place in _v1_places(proc) or _v2_places(proc) for group in place.glob(f"{PREFIX}*-{pid}"))


async def remove(groups: Sequence[Path]) -> None:
    """Remove empty groups; the kernel needs a moment after the last process of one ended."""
    deadline = time.monotonic() + REMOVE_SECONDS
    for group in groups:
        while group.exists():
            try:
                group.rmdir()
            except OSError as error:
                if time.monotonic() > deadline:
                    log.warning("control group %s could not be removed: %s", group, error)
                    break
                await asyncio.sleep(0.02)


def _sweep(parent: Path) -> None:
    """Remove groups of instances whose end nobody saw; the kernel refuses it for one that has processes."""
    oldest = time.time() - ABANDONED_SECONDS
    for group in parent.glob(f"{PREFIX}i-*"):
        with suppress(OSError):
            if group.stat().st_mtime < oldest:
                group.rmdir()


def _v1_places(proc: Path) -> list[Path]:
    """Where groups of each controller can be made."""
    own = _own_groups(proc)
    places = []
    for controller in CONTROLLERS:
        for mount, root, kind, options in mounts_of_groups(proc / "mountinfo"):
            if kind == "cgroup" and controller in options.split(","):
                place = _below(mount, root, own.get(controller, "/"))
                if place is not None:
                    places.append(place)
                break
    return places


def _v2_places(proc: Path) -> list[Path]:
    """Groups that hand out controllers to groups in them, the best first."""
    own = _own_groups(proc).get("", "/")
    places: list[Path] = []
    for mount, root, kind, _ in mounts_of_groups(proc / "mountinfo"):
        if kind != "cgroup2":
            continue
        if os.geteuid() == 0 and _hands_out(mount):
            with suppress(OSError):
                (mount / V2_PLACE).mkdir(exist_ok=True)
                places.append(mount / V2_PLACE)
        if (group := _below(mount, root, own)) is not None:
            places += [group.parent] if group.name == V2_SUBGROUP and group != mount else [group]
    return [place for place in places if _hands_out(place)]


def _hands_out(group: Path) -> bool:
    """Have a group give what it can to groups in it; true when memory is among that."""
    for controller in CONTROLLERS:  # one by one: the kernel takes all or nothing of what is written at once
        with suppress(OSError):
            (group / "cgroup.subtree_control").write_text(f"+{controller}")
    with suppress(OSError):
        return "memory" in (group / "cgroup.subtree_control").read_text().split()
    return False


def _own_groups(proc: Path) -> dict[str, str]:
    """Controller -> path of this process's group; v2 has the name ""."""
    found: dict[str, str] = {}
    with suppress(OSError, ValueError):
        for line in (proc / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            found.update(dict.fromkeys(controllers.split(","), path))
    return found


def mounts_of_groups(mounts: Path) -> list[tuple[Path, str, str, str]]:
    """Mount point, root, type and options of each control group mount."""
    found = []
    with suppress(OSError):
        for line in mounts.read_text().splitlines():
            before, _, after = line.partition(" - ")
            kind, _, rest = after.partition(" ")
            if kind in ("cgroup", "cgroup2"):
                fields = before.split(" ")
                found.append((Path(fields[4]), fields[3], kind, rest.partition(" ")[2]))
    return found


def _below(mount: Path, root: str, own: str) -> Path | None:
    """Directory of this process's own group, None when it is not in this mount's view."""
    relative = own if root == "/" else own.removeprefix(root) if own.startswith(root) else None
    if relative is None:
        return None
    directory = mount / relative.lstrip("/")
    return directory if directory.is_dir() and os.access(directory, os.W_OK) else None


def limits(version: int, *, vcpus: int, memory_bytes: int) -> dict[str, int]:
    """File of a control group -> value, for that version of control groups."""
    pids = {"pids.max": MAX_PROCESSES}
    if version == 1:
        return pids | {"memory.limit_in_bytes": memory_bytes, "cpu.shares": V1_SHARES_PER_CPU * vcpus}
    return pids | {"memory.max": memory_bytes, "cpu.weight": min(V2_WEIGHT_PER_CPU * vcpus, 10_000)}


def _set_limits(group: Path, *, vcpus: int, memory_bytes: int) -> None:
    for file, value in {
        **limits(1, vcpus=vcpus, memory_bytes=memory_bytes),
        **limits(2, vcpus=vcpus, memory_bytes=memory_bytes),
    }.items():
        if (group / file).exists():
            (group / file).write_text(str(value))


def _kinds(group: Path) -> list[str]:
    return [kind for kind in CONTROLLERS if any(group.glob(f"{kind}.*"))]


def _limit_resources(pid: int) -> None:
    with suppress(OSError, ValueError, AttributeError):  # prlimit is Linux only
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        files = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (files, files))
