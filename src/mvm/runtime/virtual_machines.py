"""What the runtimes of virtual machines have in common, whatever program a machine is: its process, its images, and
its files while it sleeps.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

from mvm.guest.processes import Identity
from mvm.model.entities import ProcessIdentity
from mvm.model.errors import Conflict
from mvm.runtime import makeup, saved, shutdown, spawning
from mvm.runtime.base import Connection, Machine, Snapshot
from mvm.runtime.machine_files import MachineFiles
from mvm.runtime.saved import Snapshots

F = TypeVar("F", bound=MachineFiles)


class VirtualMachines(ABC, Generic[F]):
    """A part of `mvm.runtime.base.Runtime`; the rest is each runtime's own."""

    snapshots: ClassVar[Snapshots]

    @abstractmethod
    def _files(self, machine: Machine) -> F:
        """Where the files of a machine are."""

    @abstractmethod
    def _running(self, files: F) -> Identity | None:
        """The process that runs it."""

    @abstractmethod
    async def _end(self, machine: Machine, files: F) -> None:
        """Leave no process of it. Raises `MvmError` when one cannot be ended."""

    @abstractmethod
    async def _lets_shut_down(self, machine: Machine, files: F) -> bool:
        """Let a paused guest run for its end. False for one that is asleep: running on would spoil its snapshot."""

    @abstractmethod
    async def connect(self, machine: Machine, port: int) -> Connection:
        """Connect to a guest port."""

    async def publish_drives(self, machine: Machine) -> None:
        """Write both images in place. A running guest sees them when it mounts them next.

        Raises `Conflict`, and writes nothing, when they have outgrown the drives of a machine that runs.
        """
        await asyncio.to_thread(self._write_images, machine, self._files(machine))

    def _write_images(self, machine: Machine, files: F) -> None:
        runs = self._running(files) is not None
        running = makeup.remembered(files.memory, who=str(machine.ref)) if runs else None
        makeup.write_images(machine, files, running=running)

    async def saved_snapshot(self, machine: Machine) -> Snapshot | None:
        files = self._files(machine)
        found = saved.load(files.memory)  # a small file: sooner read than given to a thread
        if found is None and self._running(files) is None:
            return saved.untouched(files)
        return found

    async def compress_snapshot(self, machine: Machine, abandon: Callable[[], bool]) -> int | None:
        files = self._files(machine)
        self._refuse_running(machine, files)
        return await asyncio.to_thread(self.snapshots.compress, files, abandon)

    async def stop(self, machine: Machine, process: ProcessIdentity, *, grace_seconds: float) -> bool:
        """Have the guest shut down; one that is asleep already, or does not do it, is ended."""
        files = self._files(machine)
        clean = await shutdown.attempt(
            self, machine, process, grace_seconds=grace_seconds, running=lambda: self._lets_shut_down(machine, files)
        )
        await self._end(machine, files)
        spawning.reap(spawning.identity_of(process))
        return clean

    async def alive(self, process: ProcessIdentity) -> bool:
        return spawning.alive(process)

    async def find(self, machine: Machine) -> ProcessIdentity | None:
        identity = self._running(self._files(machine))
        return None if identity is None else spawning.recorded(identity)

    async def wait(self, process: ProcessIdentity) -> None:
        await spawning.wait_for_end(spawning.identity_of(process))

    def _refuse_running(self, machine: Machine, files: F) -> None:
        if self._running(files) is not None:
            raise Conflict(f"{machine.ref} runs already")
