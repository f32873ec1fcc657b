"""One service under the supervisor: started, watched, started again after a pause, stopped to the last grandchild."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from mvm.guest import forked, processes
from mvm.guest.confinement import before_exec
from mvm.guest.logfiles import LogFile
from mvm.guest.processes import Identity, Process
from mvm.guest.services import Launch, Program, Service

log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
MAX_DRAIN_READS = 32
KILL_SECONDS = 5.0
"""How long processes that got SIGKILL may take to vanish before that is reported."""


class ServiceState(StrEnum):
    """What a service is doing."""

    STOPPED = "stopped"
    RUNNING = "running"
    WAITING = "waiting"
    """It ended unexpectedly and is started again after a pause."""
    STOPPING = "stopping"


class SupervisedService:
    """One service and its processes. All methods are called on the supervisor's event loop."""

    def __init__(
        self,
        service: Service,
        launch: Callable[[], Launch],
        output: LogFile,
        on_change: Callable[[], None],
        taken: Callable[[], set[int]] = set,
    ) -> None:
        """`launch` says how to start it now; `on_change` is called after each change of state; `taken` gives the
        sessions of all services.
        """
        self.service = service
        self._launch = launch
        self._output = output
        self._on_change = on_change
        self._lock = asyncio.Lock()
        self._taken = taken
        self._process: subprocess.Popen[bytes] | _Copy | None = None
        self._ended = asyncio.Event()
        self._ended.set()
        self._started_at = 0.0
        self._delay = service.first_delay
        self._again: asyncio.TimerHandle | None = None
        self._pipes: set[int] = set()
        self._session: int | None = None
        self.state = ServiceState.STOPPED
        self.identity: Identity | None = None
        """Its main process; None while there is none."""
        self.restarts = 0
        self.last_exit: str | None = None
        """How the former process ended, such as `status 1` or `signal SIGKILL`."""
        self.killed = False
        """True when the last stop had to end it by SIGKILL."""

    @property
    def pid(self) -> int | None:
        return None if self.identity is None else self.identity.pid

    def members(self) -> list[Process]:
        """Every process that belongs to this service, wherever it went."""
        own = set() if self._session is None else {self._session}
        found = []
        for process in processes.descendants(os.getpid()):  # parents come first
            pid = process.identity.pid
            if pid in own or process.parent in own or process.session in own or self._belongs_here(process):
                own.add(pid)
                found.append(process)
        return found

    def _belongs_here(self, process: Process) -> bool:
        mark = processes.variable_of(process.identity.pid, processes.SERVICE_MARKER)
        if mark is not None:
            return mark == self.service.name
        # An orphan in a session of its own and without an environment: only OpenClaw runs what people bring along.
        orphan = process.parent == os.getpid() and process.session not in self._taken()
        return orphan and self.service.program is Program.OPENCLAW

    async def start(self) -> None:
        """Have it run. Nothing happens when it does; raises `OSError` or `ValueError` when it cannot be started."""
        async with self._lock:
            if self.state is ServiceState.RUNNING:
                return
            self._cancel_restart()
            self._delay = self.service.first_delay
            try:
                self._spawn()
            except (OSError, ValueError):
                self._set(ServiceState.STOPPED)
                raise

    async def stop(self, grace: float | None = None) -> None:
        """Have nothing of it run: SIGTERM to the main process, its time to end, SIGKILL for whatever is left.

        `grace` is in seconds, None for what the service is given. It may be frozen; it is then let go on to end.
        """
        async with self._lock:
            self._cancel_restart()
            if self._process is not None:
                self._set(ServiceState.STOPPING)
                await self._end_main(self.service.stop_seconds if grace is None else grace)
            left = await processes.kill_all(self.members, KILL_SECONDS)
            if left:
                log.error("%s: %d processes do not end even by SIGKILL", self.service.name, len(left))
            self._set(ServiceState.STOPPED)

    async def _end_main(self, grace: float) -> None:
        self._note(f"stopping, {grace:g} s at most")
        # Terminated before it is let go on, so that one that was frozen does nothing else first.
        self._signal(signal.SIGTERM)
        self.signal_members(signal.SIGCONT)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._ended.wait()
            return
        self._note(f"did not end within {grace:g} s: killed")
        self.killed = True
        self._signal(signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(KILL_SECONDS):
                await self._ended.wait()

    def signal_members(self, number: signal.Signals) -> list[Process]:
        """Signal every process of the service; returns them."""
        found = self.members()
        for process in found:
            with suppress(PermissionError):
                processes.send(process.identity, number)
        return found

    def child_ended(self, pid: int, status: int) -> bool:
        """Take in that a child of the supervisor ended, with its wait status. False when it is not this service's."""
        process = self._process
        if process is None or process.pid != pid:
            return False
        process.returncode = os.waitstatus_to_exitcode(status)
        self.last_exit = describe_exit(process.returncode)
        self._process = None
        self.identity = None
        self._ended.set()
        self._drain()
        self._note(f"ended with {self.last_exit}")
        if self.state is ServiceState.STOPPING:
            self._on_change()
        else:
            self._restart_later()
        return True

    def close(self) -> None:
        """Let go of the log and its pipes; no process may be left."""
        self._cancel_restart()
        self._drain()
        for descriptor in list(self._pipes):
            self._close_pipe(descriptor)
        self._output.close()

    def _spawn(self) -> None:
        launch = self._launch()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            process = _start(self.service.name, launch, writing)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        os.set_blocking(reading, False)
        self._pipes.add(reading)
        asyncio.get_running_loop().add_reader(reading, self._read, reading)
        self._process = process
        self.killed = False
        self._session = process.pid
        self.identity = processes.identity_of(process.pid)
        self._ended.clear()
        self._started_at = asyncio.get_running_loop().time()
        self._note(f"started as process {process.pid}")
        self._set(ServiceState.RUNNING)

    def _drain(self) -> None:
        """Take in what is in the pipes already, so that last words come before what follows."""
        for descriptor in list(self._pipes):
            for _ in range(MAX_DRAIN_READS):
                if not self._read(descriptor):
                    break

    def _read(self, descriptor: int) -> bool:
        """Move one piece from a pipe to the log; False when there is nothing to be had right now."""
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._output.write(data)
        else:
            self._close_pipe(descriptor)
        return bool(data)

    def _close_pipe(self, descriptor: int) -> None:
        self._pipes.discard(descriptor)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)

    def _restart_later(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() - self._started_at >= self.service.settled_after:
            self._delay = self.service.first_delay
        self._note(f"starting again in {self._delay:g} s")
        self._again = loop.call_later(self._delay, self._restart)
        self._delay = min(self._delay * 2, self.service.longest_delay)
        self._set(ServiceState.WAITING)

    def _restart(self) -> None:
        self._again = None
        # What the dead process left behind would hold its ports and files.
        self.signal_members(signal.SIGKILL)
        self.restarts += 1
        try:
            self._spawn()
        except (OSError, ValueError) as error:
            self._note(f"cannot be started: {error}")
            self._restart_later()

    def retry(self) -> None:
        """Try again later: it could not be started at first."""
        self._restart_later()

    def hold_restart(self) -> None:
        """Start nothing for now: the guest is frozen."""
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def allow_restart(self) -> None:
        """Take up what `hold_restart` put off."""
        if self.state is ServiceState.WAITING and self._again is None:
            self._again = asyncio.get_running_loop().call_later(self.service.first_delay, self._restart)

    def _cancel_restart(self) -> None:
        self.hold_restart()
        if self.state is ServiceState.WAITING:
            self.state = ServiceState.STOPPED

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:  # unreaped, so the pid is its own
            os.kill(self._process.pid, number)

    def _note(self, text: str) -> None:
        self._output.note(f"{self.service.name} {text}")

    def _set(self, state: ServiceState) -> None:
        self.state = state
        self._on_change()


@dataclass
class _Copy:
    """A main process that is a copy of this one."""

    pid: int
    returncode: int | None = None


def _start(name: str, launch: Launch, output: int) -> subprocess.Popen[bytes] | _Copy:
    dies = processes.die_with_parent()
    # Last: a change of user makes the kernel forget whose death matters.
    prepare = dies if launch.confinement is None else before_exec(launch.confinement.take, dies)
    if launch.copied is not None and os.getpid() == 1:
        arguments = launch.copied
        pid = forked.start(
            name,
            lambda: sub_command(arguments),
            environment=launch.environment,
            directory=launch.directory,
            output=output,
            prepare=prepare,
        )
        return _Copy(pid)
    return subprocess.Popen(
        launch.argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=launch.directory,
        env=launch.environment,
        start_new_session=True,
        preexec_fn=prepare,
    )


def sub_command(arguments: Sequence[str]) -> int:
    """Run a sub-command of the zipapp in this process."""
    from mvm.guest import __main__ as entry  # it imports what each sub-command needs, and this is one of them

    return entry.main(arguments)


def describe_exit(code: int) -> str:
    """Words for a return code as `subprocess` has it: negative for signals."""
    if code >= 0:
        return f"status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
