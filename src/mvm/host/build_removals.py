"""How machines to build in go (`mvm.host.build_machines`): as far as they can, and the rest before the next is made.

A build has a result of its own, so what goes wrong afterwards is logged. But the next machine would have the same
address, and so there is none while the one before it runs on.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from mvm.host.reports import Reports
from mvm.model.errors import MvmError, Unavailable
from mvm.model.ids import InstanceId
from mvm.runtime.base import Machine, Runtime

log = structlog.get_logger(__name__)

_Step = Callable[[Machine, Runtime], Awaitable[None]]


class BuildRemovals:
    """Removes them, and remembers those that could not be."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self._left: dict[InstanceId, tuple[Machine, Runtime]] = {}

    async def remove(self, machine: Machine, runtime: Runtime) -> None:
        """Nothing is left of a machine; what fails is logged. Idempotent."""
        instance = machine.ref.instance_id
        self._left[instance] = machine, runtime
        # Each is tried whatever becomes of those before it: what destroys a machine ends it in other ways, too.
        if all([await self._done(step, machine, runtime) for step in (_stop, _destroy, self._clear)]):
            del self._left[instance]

    async def remove_left(self) -> None:
        """Try again what could not be removed. Raises `Unavailable` while such a machine runs on."""
        for machine, runtime in list(self._left.values()):
            await self.remove(machine, runtime)
            if machine.ref.instance_id in self._left and await runtime.find(machine) is not None:
                raise Unavailable(
                    f"the machine of an earlier build, {machine.ref.instance_id}, cannot be ended",
                    hint="the agent's log says why; end its process, then try again",
                )

    async def _done(self, step: _Step, machine: Machine, runtime: Runtime) -> bool:
        try:
            await step(machine, runtime)
        except (MvmError, OSError, ValueError) as error:
            instance = machine.ref.instance_id
            log.error("a machine that was built in could not be removed", instance=instance, reason=str(error))
            return False
        return True

    async def _clear(self, machine: Machine, runtime: Runtime) -> None:
        self._reports.forget(machine.ref.instance_id)
        if await runtime.find(machine) is not None:
            return  # by its files it is found again
        for directory in (machine.state_dir.parent, machine.run_dir):
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


async def _stop(machine: Machine, runtime: Runtime) -> None:
    if (process := await runtime.find(machine)) is not None:
        await runtime.stop(machine, process, grace_seconds=0)


async def _destroy(machine: Machine, runtime: Runtime) -> None:
    with suppress(FileNotFoundError):
        await runtime.destroy(machine)
