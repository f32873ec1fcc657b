"""What is on this host and belongs to no instance any more: processes, files and network devices.

A kill of the agent at the wrong moment, a database that was restored from a backup or a hand in the state directory
leave such things. They are found by their marks and places only, and nothing is taken for an orphan that an instance,
a base or another agent could still need. What holds somebody's data is never removed here but put aside
(`<state>/orphans`), from where `mvm node gc` removes it.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import structlog

from mvm.guest import processes
from mvm.guest.processes import Identity, Process
from mvm.host.catalog import Catalog
from mvm.host.lifecycle import Lifecycle
from mvm.host.machines import InstanceDirectories, base_id
from mvm.model.errors import MvmError
from mvm.model.ids import InstanceId
from mvm.runtime.firecracker import launching

log = structlog.get_logger(__name__)

ASIDE = "orphans"
"""Directory below the state directory for drives of instances that nobody knows."""
MARKERS = ("MVM_MACHINE", "MVM_GUEST_ROOT", processes.ROOT_MARKER)
"""Variables by which the processes of instances are known, whoever started them: each holds a path below the instance's
run directory."""
GRACE_SECONDS = 10.0
_INSTANCE = re.compile(r"i-[0-9a-f]{8}")
_BASES_AT_WORK = "bases/.work"


class OrphanKind(StrEnum):
    """What is left over, in the words that a person reads."""

    PROCESS = "process"
    DRIVE = "data drive"
    SOCKETS = "run directory"
    SECRETS = "secrets"
    DEVICE = "network device"


_WHILE_UP = (OrphanKind.PROCESS, OrphanKind.SECRETS)
"""What an instance has only while it is up; drive and run directory are its own for life."""


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """One thing that belongs to nobody."""

    kind: OrphanKind
    name: str
    """Path, name of a device, or `pid 123`."""
    why: str
    bytes: int = 0
    identity: Identity | None = None
    instance: InstanceId | None = None


class Devices(Protocol):
    """The network devices of tenants (`mvm.host.networks`)."""

    def strays(self) -> Awaitable[tuple[str, ...]]: ...
    def remove_strays(self, names: tuple[str, ...]) -> Awaitable[None]: ...


class Orphans:
    """Finds what belongs to nobody, and clears it away when it is told to."""

    def __init__(
        self, *, catalog: Catalog, lifecycle: Lifecycle, directories: InstanceDirectories, devices: Devices
    ) -> None:
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._directories = directories
        self._devices = devices

    @property
    def aside(self) -> Path:
        """Where drives of instances that nobody knows are put."""
        return self._directories.state_dir / ASIDE

    async def find(self) -> list[Orphan]:
        """Everything that belongs to nobody now. Looks first and asks who is known afterwards: what is just being made
        has its record before it has anything else."""
        found = await asyncio.to_thread(lambda: [*self._processes(), *self._files()])
        orphans = await asyncio.to_thread(_measured, [orphan for orphan in found if self._is_nobodys(orphan)])
        for name in await self._devices.strays():
            orphans.append(Orphan(kind=OrphanKind.DEVICE, name=name, why="no instance uses it"))
        return orphans

    async def clear(self, orphans: list[Orphan], *, actor: str) -> list[tuple[Orphan, str]]:
        """Clear these away; returns what could not be, with why. Processes first: they hold the rest."""
        failed = []
        for orphan in sorted(orphans, key=lambda orphan: list(OrphanKind).index(orphan.kind)):
            try:
                await self._clear(orphan)
            except (MvmError, OSError) as error:
                failed.append((orphan, str(error)))
            else:
                log.warning("orphan cleared away", kind=str(orphan.kind), name=orphan.name, why=orphan.why, actor=actor)
        return failed

    def set_aside(self) -> dict[Path, int]:
        """Drives that were put aside, with the bytes that each takes."""
        found = sorted(self.aside.iterdir()) if self.aside.is_dir() else []
        return {path: _disk_use(path) for path in found}

    def discard(self, paths: list[Path]) -> None:
        """Remove drives that were put aside, for good. Others are not touched."""
        for path in paths:
            if path.parent == self.aside:
                shutil.rmtree(path)
        with suppress(OSError):
            self.aside.rmdir()

    # Finding

    def _is_nobodys(self, orphan: Orphan) -> bool:
        instance = self._catalog.instances.get(orphan.instance) if orphan.instance is not None else None
        if instance is None:
            return True
        if orphan.kind not in _WHILE_UP:
            return False
        under_way = instance.transition is not None or self._lifecycle.busy(instance.instance_id)
        return not (instance.state.has_process or under_way)

    def _processes(self) -> Iterator[Orphan]:
        """Processes of instances of ours: by their marks, or in jails by where they are."""
        for owner, process in {*self._marked(), *self._jailed()}:
            yield Orphan(
                kind=OrphanKind.PROCESS,
                name=f"pid {process.identity.pid}",
                why=f"it runs for {owner}, which does not",
                bytes=process.memory_bytes,
                identity=process.identity,
                instance=owner,
            )

    def _jailed(self) -> Iterator[tuple[InstanceId, Process]]:
        for name, process in launching.inhabitants(self._directories.state_dir / "instances"):
            if owner := _id(name):
                yield owner, process

    def _marked(self) -> Iterator[tuple[InstanceId, Process]]:
        """Those whose marks lie below our run directory."""
        root = os.path.realpath(self._directories.run_dir / "i") + "/"
        for name in os.listdir("/proc"):
            if not name.isdecimal() or (process := processes.read(int(name))) is None or process.ended:
                continue
            places = (processes.variable_of(int(name), marker) for marker in MARKERS)
            place = next((os.path.realpath(p) for p in places if p), "")
            if place.startswith(root) and (owner := _id(place.removeprefix(root).split("/")[0])):
                yield owner, process

    def _files(self) -> Iterator[Orphan]:
        """Files under the names of instances. Bases in the making have such names too, and their directory first."""
        places = (
            (OrphanKind.DRIVE, self._directories.state_dir / "instances"),
            (OrphanKind.SOCKETS, self._directories.run_dir / "i"),
            (OrphanKind.SECRETS, self._directories.secrets_dir),
        )
        listed = [(kind, path) for kind, place in places if place.is_dir() for path in sorted(place.iterdir())]
        bases = {base_id(path.name) for path in self._directories.state_dir.glob(f"{_BASES_AT_WORK}/*")}
        for kind, path in listed:
            if (owner := _id(path.name.split(".")[0])) and owner not in bases:
                what = "which needs none now" if kind is OrphanKind.SECRETS else "which does not exist"
                yield Orphan(kind=kind, name=str(path), why=f"of {owner}, {what}", instance=owner)

    # Clearing away

    async def _clear(self, orphan: Orphan) -> None:
        instance = self._catalog.instances.get(orphan.instance) if orphan.instance is not None else None
        if instance is None:
            return await self._carry_out(orphan)
        if orphan.kind not in _WHILE_UP:
            return  # it was imported meanwhile
        async with self._lifecycle.locked(instance.ref):  # nobody starts it meanwhile
            instance = self._catalog.instances.get(instance.instance_id)
            if instance is None or not (instance.state.has_process or instance.transition is not None):
                await self._carry_out(orphan)

    async def _carry_out(self, orphan: Orphan) -> None:
        match orphan.kind:
            case OrphanKind.PROCESS:
                assert orphan.identity is not None
                await _end(orphan.identity)
            case OrphanKind.DRIVE:
                await asyncio.to_thread(self._put_aside, Path(orphan.name))
            case OrphanKind.SOCKETS | OrphanKind.SECRETS:
                await asyncio.to_thread(_remove, Path(orphan.name))
            case OrphanKind.DEVICE:
                await self._devices.remove_strays((orphan.name,))

    def _put_aside(self, path: Path) -> None:
        self.aside.mkdir(mode=0o700, exist_ok=True)
        place = self.aside / path.name
        number = 1
        while place.exists():
            number += 1
            place = self.aside / f"{path.name}.{number}"
        with suppress(FileNotFoundError):
            path.rename(place)


def _id(name: str) -> InstanceId | None:
    return InstanceId(name) if _INSTANCE.fullmatch(name) else None


async def _end(identity: Identity) -> None:
    """End that very process: asked first, then killed. Raises `MvmError` when it cannot be ended."""
    processes.send(identity, signal.SIGTERM)
    if not await processes.wait_until_ended([identity], GRACE_SECONDS):
        return
    processes.send(identity, signal.SIGKILL)
    if await processes.wait_until_ended([identity], GRACE_SECONDS):
        raise MvmError(f"process {identity.pid} cannot be ended", hint="is it waiting for a disk that does not answer?")


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _measured(orphans: list[Orphan]) -> list[Orphan]:
    """With the bytes that files take; of all instances that would be far too much to look at."""
    return [o if o.bytes else replace(o, bytes=_disk_use(Path(o.name))) for o in orphans]


def _disk_use(path: Path) -> int:
    """Bytes that a file, or a directory with all in it, takes; what goes away meanwhile counts for nothing."""
    total = 0
    for each in (path, *path.rglob("*")):
        with suppress(OSError):
            total += each.lstat().st_blocks * 512
    return total
