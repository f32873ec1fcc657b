"""The supervisor's control socket where systemd supervises: the same requests and answers, done by `systemctl`.

Neither the agent nor the host (guest port 51) knows the difference. Services also cannot fill the disk with what they
say here: their logs are cut when they have become too long.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from mvm.guest import logfiles, processes
from mvm.guest.paths import GuestPaths
from mvm.guest.stopping import in_ranks, told_to_end
from mvm.guest.supervised import ServiceState, describe_exit
from mvm.guest.supervisor_socket import OperationRefused, SupervisorSocket, seconds_of
from mvm.guest.units import UNITS, Unit

log = logging.getLogger(__name__)

SYSTEMCTL = "systemctl"
DEFAULT_GRACE_SECONDS = 15.0
LOG_LOOK_SECONDS = 1.0
MAX_SAID = 300
_PROPERTIES = "Id,LoadState,ActiveState,SubState,MainPID,NRestarts,ExecMainCode,ExecMainStatus"
_EXITED = 1
"""`CLD_EXITED`; other codes are signals."""


class SystemdSupervisor:
    """Serves the control socket until it is told to end, or has ended the machine."""

    def __init__(self, paths: GuestPaths, units: Sequence[Unit] = UNITS) -> None:
        self._paths = paths
        self._units = {unit.short: unit for unit in units}
        self._socket = SupervisorSocket(paths.supervisor_socket, self._operate)
        self._killed: set[str] = set()
        self._shutdown: asyncio.Task[None] | None = None
        self._restarting_machine = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises `OSError` when the socket cannot be served."""
        await self._socket.listen()
        tasks = [
            asyncio.create_task(self._watch_logs(), name="logs"),
            asyncio.create_task(stop.wait(), name="stop"),
            asyncio.create_task(self._end_machine(), name="end of the machine"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # raises what ended it
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._socket.close()

    async def _end_machine(self) -> None:
        await self._restarting_machine.wait()
        await self._socket.finish()  # whoever asked is told first
        await _systemctl("--no-block", "reboot")

    async def _watch_logs(self) -> None:
        while True:
            for unit in self._units.values():
                with suppress(OSError):
                    logfiles.cut(self._paths.log(unit.short))
            await asyncio.sleep(LOG_LOOK_SECONDS)

    async def _operate(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if operation == "status":
            return await self._status()
        if operation == "shutdown":
            await asyncio.shield(self._begin_shutdown(seconds_of(request, "grace_seconds", DEFAULT_GRACE_SECONDS)))
            return {"killed": sorted(self._killed)}
        if self._shutdown is not None:
            raise OperationRefused("the guest is shutting down")
        if operation not in ("start", "stop", "restart"):
            raise OperationRefused(f"unknown operation {operation[:40]!r}")
        unit = self._units.get(str(request.get("service", "")))
        if unit is None:
            raise OperationRefused(f"there is no such service; the services are {', '.join(self._units)}")
        if operation in ("stop", "restart"):
            await self._stop(unit, seconds_of(request, "grace_seconds", unit.stop_seconds))
        if operation in ("start", "restart"):
            await _systemctl("reset-failed", unit.service, may_fail=True)
            await _systemctl("start", unit.service)
        return {}

    async def _stop(self, unit: Unit, grace: float) -> None:
        """Have nothing of it run, after at most `grace` seconds and a SIGKILL."""
        stopping = asyncio.create_task(_systemctl("stop", unit.service), name=f"stop {unit.name}")
        await asyncio.wait([stopping], timeout=grace)
        if not stopping.done():
            self._killed.add(unit.short)
            await _systemctl("kill", "--signal=SIGKILL", unit.service, may_fail=True)
        await stopping

    def _begin_shutdown(self, grace: float) -> asyncio.Task[None]:
        if self._shutdown is None:
            self._killed.clear()
            self._shutdown = asyncio.get_running_loop().create_task(self._shut_down(grace), name="shutdown")
            self._shutdown.add_done_callback(lambda _: self._restarting_machine.set())
        return self._shutdown

    async def _shut_down(self, grace: float) -> None:
        """Stop rank by rank, OpenClaw first, within about `grace` seconds."""
        present = await self._services()
        await in_ranks(
            (
                (unit.stop_rank, unit)
                for unit in self._units.values()
                if unit.stop_rank is not None and unit.short in present
            ),
            grace,
            self._stop_for_good,
        )

    async def _stop_for_good(self, unit: Unit, seconds: float) -> None:
        try:
            await self._stop(unit, min(seconds, unit.stop_seconds))
        except OperationRefused as error:  # the machine's end takes it along
            log.error("%s", error)

    async def _status(self) -> dict[str, Any]:
        return {
            "state": "stopping" if self._shutdown is not None else "running",
            "frozen": False,
            "services": await self._services(),
        }

    async def _services(self) -> dict[str, dict[str, Any]]:
        """The units that this image has, steps left out."""
        units = [unit for unit in self._units.values() if not unit.step]
        told = await _systemctl("show", f"--property={_PROPERTIES}", *(unit.service for unit in units))
        found = {block["Id"]: block for block in map(_properties, told.strip().split("\n\n")) if "Id" in block}
        present = {unit: found[unit.service] for unit in units if unit.service in found}
        return {u.short: _describe(block) for u, block in present.items() if block.get("LoadState") == "loaded"}


def _properties(block: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in block.splitlines())}


def _describe(block: Mapping[str, str]) -> dict[str, Any]:
    pid = int(block.get("MainPID") or 0) or None
    identity = None if pid is None else processes.identity_of(pid)
    return {
        "state": _state(block.get("ActiveState", ""), block.get("SubState", "")).value,
        "pid": None if identity is None else identity.pid,
        "start_time": None if identity is None else identity.start_time,
        "restarts": int(block.get("NRestarts") or 0),
        "last_exit": _last_exit(int(block.get("ExecMainCode") or 0), int(block.get("ExecMainStatus") or 0)),
    }


def _state(active: str, sub: str) -> ServiceState:
    if active == "activating" and sub.startswith("auto-restart"):
        return ServiceState.WAITING
    if active == "deactivating":
        return ServiceState.STOPPING
    return ServiceState.RUNNING if active in ("active", "activating", "reloading") else ServiceState.STOPPED


def _last_exit(code: int, status: int) -> str | None:
    """Words for how the main process ended; None while it has not (systemd says code 0 then)."""
    if code == 0:
        return None
    return describe_exit(status if code == _EXITED else -status)


async def _systemctl(*arguments: str, may_fail: bool = False) -> str:
    """What `systemctl` prints. Raises `OperationRefused` with what it says when it fails, unless it `may_fail`."""
    try:
        process = await asyncio.create_subprocess_exec(
            SYSTEMCTL,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""},
        )
    except OSError as error:
        raise OperationRefused(f"{SYSTEMCTL} cannot be started: {error.strerror or error}") from error
    output, said = await process.communicate()
    if process.returncode and not may_fail:
        reason = said[-MAX_SAID:].decode(errors="replace").strip()
        raise OperationRefused(f"systemctl {' '.join(arguments)}: {reason or f'status {process.returncode}'}")
    return output.decode(errors="replace")


async def serve(environment: Mapping[str, str]) -> None:
    """Run until SIGTERM or SIGINT. Raises `OSError` or `ValueError` when it cannot."""
    stop = told_to_end()
    paths = GuestPaths.from_environment(environment)
    paths.prepare()
    await SystemdSupervisor(paths).run(stop)
