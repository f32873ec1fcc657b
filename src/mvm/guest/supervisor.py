"""The supervisor: first process of a guest that has no init of its own. Runs the services of `mvm.guest.services`.

Whatever dies: a service that ends is started again; SIGTERM here stops everything in order, OpenClaw first; SIGKILL
here ends the services too (the kernel tells them), and the next supervisor clears up what did not listen before it
starts anything. It is single-threaded and does little, so that there is little in it to fail.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mvm.guest import processes, services
from mvm.guest.config import memory_of, role_of
from mvm.guest.logfiles import LogFile
from mvm.guest.paths import GuestPaths, real, write_atomically
from mvm.guest.services import Programs, Role, Service
from mvm.guest.stopping import in_ranks
from mvm.guest.supervised import SupervisedService
from mvm.guest.supervisor_socket import OperationRefused, SupervisorSocket, seconds_of

log = logging.getLogger(__name__)

DEFAULT_GRACE_SECONDS = 15.0
LEFTOVER_GRACE_SECONDS = 10.0
LOCK_SECONDS = 2.0
FREEZE_SECONDS = 5.0


class AlreadyRunning(Exception):
    """Another supervisor runs this guest."""


class Supervisor:
    """Runs one guest's services until it is told to shut down."""

    def __init__(
        self,
        paths: GuestPaths,
        programs: Programs,
        environment: Mapping[str, str],
        available: tuple[Service, ...] = services.SERVICES,
    ) -> None:
        self._paths = paths
        self._programs = programs
        self._environment = dict(environment)
        self._frozen = False
        self._shutdown: asyncio.Task[None] | None = None
        self._finished = asyncio.Event()
        self._lock_descriptor: int | None = None
        self._own = LogFile(paths.log("supervisor"))
        self._services = {
            service.name: self._supervised(service)
            for service in available
            if paths.owns_machine or not service.needs_own_machine
        }
        self._socket = SupervisorSocket(paths.supervisor_socket, self._operate)

    def _supervised(self, service: Service) -> SupervisedService:
        return SupervisedService(
            service,
            lambda: services.launch(
                service, self._paths, self._programs, self._environment, mem_mib=memory_of(self._paths.config)
            ),
            LogFile(self._paths.log(service.name)),
            self._record,
            lambda: {each.pid for each in self._services.values() if each.pid is not None},
        )

    async def run(self) -> None:
        """Run until everything has been shut down. Raises `AlreadyRunning` or `OSError` before anything is started."""
        self._lock_descriptor = await take_lock(self._paths)
        loop = asyncio.get_running_loop()
        processes.become_subreaper()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_shutdown, DEFAULT_GRACE_SECONDS)
        # A handler, not "ignore": what is ignored would be inherited by every service.
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        try:
            await self._socket.listen()
            self._record()
            self._own.note(f"supervisor started as process {os.getpid()}")
            await self._clear_leftovers()
            await self._start_services()
            await self._finished.wait()
            await self._socket.finish()
            await asyncio.gather(*(supervised.stop() for supervised in self._outliving()))
        finally:
            await self._leave()

    async def _clear_leftovers(self) -> None:
        """End what a former supervisor's sudden death left running; nothing of it may meet the new services."""
        ended, left = await clear_leftovers(self._paths)
        if ended or left:
            self._own.note(f"{ended} processes of a former supervisor were ended, {left} do not end")

    async def _start_services(self) -> None:
        try:
            role = None if self._paths.boot_problem.exists() else role_of(self._paths.config)
        except (OSError, ValueError) as error:
            # The agent says to the host what is wrong; there is nobody else who could.
            self._own.note(f"only the agent is started: {error}")
            role = None
        for supervised in self._services.values():
            if self._shutdown is None and self._starts_by_itself(supervised.service, role):
                try:
                    await supervised.start()
                except (OSError, ValueError) as error:
                    self._own.note(f"{supervised.service.name} cannot be started: {error}")
                    supervised.retry()

    @staticmethod
    def _starts_by_itself(service: Service, role: Role | None) -> bool:
        if role is None:
            return service.roles == services.ALL_ROLES and service.starts_by_itself
        return role in service.roles and service.starts_by_itself

    def _reap(self) -> None:
        """Take in every child that ended, also the orphans that came to us."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            any(supervised.child_ended(pid, status) for supervised in self._services.values())

    async def _operate(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if operation == "status":
            return self._status()
        if operation == "shutdown":
            grace = seconds_of(request, "grace_seconds", DEFAULT_GRACE_SECONDS)
            await asyncio.shield(self._begin_shutdown(grace))
            return {"killed": [name for name, each in self._services.items() if each.killed]}
        if self._shutdown is not None:
            raise OperationRefused("the guest is shutting down")
        if operation == "freeze":
            await self._freeze()
        elif operation == "thaw":
            self._thaw()
        elif operation in ("start", "stop", "restart"):
            await self._change(operation, request)
        else:
            raise OperationRefused(f"unknown operation {operation[:40]!r}")
        return {}

    async def _change(self, operation: str, request: Mapping[str, Any]) -> None:
        supervised = self._services.get(str(request.get("service", "")))
        if supervised is None:
            raise OperationRefused(f"there is no such service; the services are {', '.join(self._services)}")
        if self._frozen:
            raise OperationRefused("the guest is frozen")
        grace = seconds_of(request, "grace_seconds", supervised.service.stop_seconds)
        if operation in ("stop", "restart"):
            await supervised.stop(grace)
        if operation in ("start", "restart"):
            if self._shutdown is not None:
                raise OperationRefused("the guest is shutting down")
            try:
                await supervised.start()
            except (OSError, ValueError) as error:
                raise OperationRefused(f"{supervised.service.name} cannot be started: {error}") from error

    async def _freeze(self) -> None:
        """SIGSTOP every process of every service, also one that is being forked meanwhile."""
        self._frozen = True
        for supervised in self._services.values():
            supervised.hold_restart()
        deadline = time.monotonic() + FREEZE_SECONDS
        while moving := [p for p in processes.descendants(os.getpid()) if p.state != "T"]:
            if time.monotonic() > deadline:
                self._thaw()
                raise OperationRefused(f"{len(moving)} processes do not stop within {FREEZE_SECONDS:g} s")
            for process in moving:
                processes.send(process.identity, signal.SIGSTOP)
            await asyncio.sleep(0.002)
        self._record()

    def _thaw(self) -> None:
        for process in processes.descendants(os.getpid()):
            processes.send(process.identity, signal.SIGCONT)
        self._frozen = False
        for supervised in self._services.values():
            supervised.allow_restart()
        self._record()

    def _begin_shutdown(self, grace: float) -> asyncio.Task[None]:
        if self._shutdown is None:
            self._shutdown = asyncio.get_running_loop().create_task(self._shut_down(grace), name="shutdown")
            self._shutdown.add_done_callback(lambda _: self._finished.set())
        return self._shutdown

    async def _shut_down(self, grace: float) -> None:
        """Stop service by service, OpenClaw first, within about `grace` seconds; then nothing is left."""
        self._own.note(f"shutting down, {grace:g} s at most")
        for supervised in self._services.values():
            supervised.hold_restart()
        stopped_now = [each for each in self._services.values() if not each.service.outlives_shutdown]
        await in_ranks(
            ((supervised.service.stop_rank, supervised) for supervised in stopped_now),
            grace,
            lambda supervised, seconds: supervised.stop(min(seconds, supervised.service.stop_seconds)),
        )
        await processes.kill_all(self._not_outliving)
        self._own.note("shut down")

    def _outliving(self) -> list[SupervisedService]:
        return [each for each in self._services.values() if each.service.outlives_shutdown]

    def _not_outliving(self) -> list[processes.Process]:
        kept = {process.identity for supervised in self._outliving() for process in supervised.members()}
        return [process for process in processes.descendants(os.getpid()) if process.identity not in kept]

    async def _leave(self) -> None:
        """Whatever happened, leave nothing running."""
        await processes.kill_all(lambda: processes.descendants(os.getpid()))
        self._reap()
        self._socket.close()
        for supervised in self._services.values():
            supervised.close()
        self._own.close()
        self._paths.supervisor_record.unlink(missing_ok=True)
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)

    def _status(self) -> dict[str, Any]:
        return {
            "state": "stopping" if self._shutdown is not None else "running",
            "frozen": self._frozen,
            "services": {
                name: {
                    "state": supervised.state.value,
                    "pid": supervised.pid,
                    "start_time": supervised.identity.start_time if supervised.identity else None,
                    "restarts": supervised.restarts,
                    "last_exit": supervised.last_exit,
                }
                for name, supervised in self._services.items()
            },
        }

    def _record(self) -> None:
        """Write down who we and our services are, for whoever has to find us again."""
        own = processes.identity_of(os.getpid())
        assert own is not None
        record = {
            "supervisor": {"pid": own.pid, "start_time": own.start_time},
            "frozen": self._frozen,
            "services": {
                name: {"pid": supervised.identity.pid, "start_time": supervised.identity.start_time}
                for name, supervised in self._services.items()
                if supervised.identity is not None
            },
        }
        try:
            write_atomically(self._paths.supervisor_record, json.dumps(record).encode())
        except OSError as error:  # a full disk must not stop the services
            self._own.note(f"{self._paths.supervisor_record} cannot be written: {error}")


async def take_lock(paths: GuestPaths) -> int:
    """Become the only supervisor of this guest; returns the descriptor to keep open. Raises `AlreadyRunning`."""
    descriptor = os.open(paths.supervisor_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A supervisor that has just been killed may have left a half-made child that still holds it.
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise AlreadyRunning(f"another supervisor runs the guest in {paths.root}") from None
            await asyncio.sleep(0.02)
        else:
            return descriptor


async def clear_leftovers(paths: GuestPaths) -> tuple[int, int]:
    """End every process that a supervisor of this guest started: SIGTERM, time to end, SIGKILL.

    Returns how many were ended and how many are left all the same (in an uninterruptible wait).
    """
    root = real(paths.root)

    def find() -> list[processes.Process]:
        return processes.marked(root)

    found = find()
    for process in found:
        with suppress(PermissionError):
            processes.send(process.identity, signal.SIGTERM)
            processes.send(process.identity, signal.SIGCONT)
    await processes.wait_until_ended([process.identity for process in found], LEFTOVER_GRACE_SECONDS)
    left = len(await processes.kill_all(find))
    return len(found) - left, left


def main(environment: Mapping[str, str]) -> int:
    """Run the supervisor; returns the exit status."""
    try:
        processes.require_linux()
        paths = GuestPaths.from_environment(environment)
        paths.prepare()
        asyncio.run(Supervisor(paths, Programs.from_environment(environment), environment).run())
    except (OSError, ValueError, AlreadyRunning) as error:
        print(f"supervisor: {error}", file=sys.stderr)
        return 1
    return 0


def clear(environment: Mapping[str, str]) -> int:
    """End what is left of a guest whose supervisor is gone, without starting anything; 1 when something stays."""
    try:
        processes.require_linux()
        return asyncio.run(_clear(GuestPaths.from_environment(environment)))
    except (OSError, ValueError, AlreadyRunning) as error:
        print(f"clear: {error}", file=sys.stderr)
        return 1


async def _clear(paths: GuestPaths) -> int:
    if not paths.mvm_run.is_dir():
        return 0
    descriptor = await take_lock(paths)
    try:
        _, left = await clear_leftovers(paths)
        if not left:
            paths.supervisor_record.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return 1 if left else 0
