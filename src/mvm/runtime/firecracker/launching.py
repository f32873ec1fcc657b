"""Starting a Firecracker, jailed or not; finding the one of an instance, and leaving none behind.

A Firecracker is known by its working directory, which is its room: no other process is in there, and no record of it
can be lost. The process identity is the one that the host sees, whatever number it has in its own namespace.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

from mvm.guest import processes
from mvm.guest.processes import Identity, Process
from mvm.model.errors import Conflict, MvmError, Unavailable
from mvm.runtime import bounded_log, bounds, spawning
from mvm.runtime.firecracker import jail, room
from mvm.runtime.firecracker.files import API_SOCKET, Files
from mvm.runtime.firecracker.jail import ControlGroups, Jail
from mvm.runtime.records import Record

log = logging.getLogger(__name__)

JAIL_SECONDS = 30.0
"""How long the jailer may take; many mounts make it slow."""
KILL_SECONDS = 10.0


@contextmanager
def alone(data: Path) -> Iterator[None]:
    """Be the only one who starts a machine on a data drive, or clears up after one. Raises `Conflict`."""
    try:
        descriptor = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # nobody can have started anything on it
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(data) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def held(data: Path) -> Iterator[None]:
    """Have a data drive to oneself while a machine is started on it. Raises `Conflict` when another one has it.

    From the moment that Firecracker has opened it, `in_use` says so.
    """
    with alone(data):
        if in_use(data):
            raise _taken(data)
        yield


def _taken(data: Path) -> Conflict:
    return Conflict(f"another machine uses '{data}'", hint="end it: `fuser -v` with that path names it")


def in_use(data: Path) -> bool:
    """Whether some process has the data drive open for writing, also one of which all other traces were lost.

    Firecracker locks nothing, so the kernel is asked: it grants a lease on what nobody may write only.
    """
    try:
        descriptor = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Whoever opens it for writing right now breaks the lease, and the signal that tells so must not end the agent.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
            return True
        return bool(_holders(os.fstat(descriptor)))  # no leases here: another file system, or another user's file
    finally:
        os.close(descriptor)
    return False


def holders(data: Path) -> list[Process]:
    """The processes that have a data drive open."""
    try:
        return _holders(data.stat())
    except FileNotFoundError:
        return []


def _holders(wanted: os.stat_result) -> list[Process]:
    own = os.getpid()
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != own and _has_open(int(name), wanted):
            process = processes.read(int(name))
            if process is not None and not process.ended:
                found.append(process)
    return found


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    with suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), wanted):
                    return True
    return False


async def launch_jailed(files: Files, made: Jail) -> Identity:
    """Have the jailer start Firecracker in its room. Raises `Unavailable`; then nothing runs."""
    arguments = jail.command(made)
    with files.output.open("wb") as output:
        files.output.chmod(0o600)
        try:
            # In this process's own session: the jailer begins one, which the leader of one cannot.
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={"PATH": os.defpath},
                cwd="/",
            )
        except OSError as error:
            raise Unavailable(f"'{arguments[0]}' cannot be started: {error.strerror or error}") from error
    try:
        async with asyncio.timeout(JAIL_SECONDS):
            status = await process.wait()
    except BaseException as error:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise Unavailable(f"the jailer does not end within {JAIL_SECONDS:g} s") from None
        raise
    identity = _jailed(files) if status == 0 else None
    if identity is None:
        raise Unavailable(
            f"the jailer ended with status {status}: {bounded_log.last_words(files.output)}",
            hint=f"see '{files.output}'",
        )
    spawning.limit(identity.pid, open_files=jail.MAX_OPEN_FILES)
    Record(identity=identity).write(files.record)
    return identity


def _jailed(files: Files) -> Identity | None:
    """The process that the jailer names, if it is in the room and nowhere else."""
    directory = files.room
    if directory is None:
        return None
    for path in directory.glob("*.pid"):
        with suppress(OSError, ValueError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor) as file:
                pid = int(file.read(32))
            if _is_in(pid, directory.stat()):
                return processes.identity_of(pid)
    return None


def launch_bare(files: Files, executable: Path, directory: Path) -> Identity:
    """Start Firecracker without a jail, in its room. Raises `Unavailable`; then nothing runs."""
    identity = spawning.spawn(
        [str(executable), "--id", files.instance, "--api-sock", API_SOCKET],
        environment={"PATH": os.defpath},
        directory=directory,
        output=files.output,
        held=(),
    )
    spawning.limit(identity.pid, open_files=jail.MAX_OPEN_FILES)
    Record(identity=identity).write(files.record)
    return identity


def bound_bare(files: Files, identity: Identity, *, vcpus: int, mem_mib: int) -> None:
    """Put one without a jail into a control group of its own."""
    found = bounds.apply(
        identity.pid,
        name=f"{files.instance}-{identity.pid}",
        vcpus=vcpus,
        memory_bytes=jail.memory_bytes(mem_mib),
    )
    log.debug("%s: Firecracker is %s", files.instance, found.note)
    Record(identity=identity, groups=found.groups).write(files.record)


def find(files: Files) -> Identity | None:
    """The Firecracker of this instance: by its record, else (the agent died right after starting it) by its room."""
    directory = files.room
    if directory is None:
        return None
    recorded = Record.process(files.record)
    with suppress(OSError):
        if recorded is not None and processes.alive(recorded) and _is_in(recorded.pid, directory.stat()):
            return recorded
    found = members(files)
    return found[0].identity if found else None


def members(files: Files) -> list[Process]:
    """Every process that is in the room of this instance, the oldest first."""
    directory = files.room
    if directory is None:
        return []
    try:
        wanted = directory.stat()
    except OSError:
        return []
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and _is_in(int(name), wanted):
            process = processes.read(int(name))
            if process is not None and not process.ended:
                found.append(process)
    return sorted(found, key=lambda process: (process.identity.start_time, process.identity.pid))


def inhabitants(instances: Path) -> Iterator[tuple[str, Process]]:
    """Every process that is in the room of an instance below a directory of state directories, with that instance."""
    rooms: dict[tuple[int, int], str] = {}
    for directory in instances.glob("*/jail/*/*/root"):
        with suppress(OSError):
            found = directory.stat()
            rooms[found.st_dev, found.st_ino] = directory.parent.name
    for name in os.listdir("/proc") if rooms else ():
        with suppress(OSError):
            where = os.stat(f"/proc/{name}/cwd") if name.isdecimal() else None
            instance = None if where is None else rooms.get((where.st_dev, where.st_ino))
            if instance is not None and (process := processes.read(int(name))) is not None and not process.ended:
                yield instance, process


def _is_in(pid: int, directory: os.stat_result) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.stat(f"/proc/{pid}/cwd"), directory)
    return False


def lost(files: Files) -> list[Process]:
    """A Firecracker of this instance that has its data drive and of which all other traces are gone."""
    if not in_use(files.data):
        return []
    return [process for process in holders(files.data) if _is_called(process.identity.pid, files.instance)]


def _is_called(pid: int, instance: str) -> bool:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return any(pair == (b"--id", instance.encode()) for pair in pairwise(words))
    return False


async def end_all(files: Files, groups: ControlGroups, *, who: str) -> None:
    """No process of the instance is left afterwards, nor its jail and control groups.

    Raises `MvmError` when a process cannot be ended.
    """
    record = Record.load(files.record)
    of_jail = [group for group in groups.of(files.instance) if group.is_dir()]
    bare = record.groups if record else ()
    if not bare:  # or its agent did not get as far as writing them down
        known = {record.identity} if record else {process.identity for process in members(files)}
        bare = tuple(group for identity in known for group in bounds.groups_of(identity.pid))

    def everything() -> list[Process]:
        return [*members(files), *_processes(of_jail), *lost(files)]

    left = await processes.kill_all(everything, KILL_SECONDS)
    if left:
        pids = ", ".join(str(process.identity.pid) for process in left)
        raise MvmError(f"the Firecracker of {who} cannot be ended: {pids}", hint="it waits for a device")
    if record is not None:
        spawning.reap(record.identity)
    await bounds.remove([*of_jail, *bare])
    await asyncio.to_thread(room.remove, files.jail)
    files.record.unlink(missing_ok=True)


def _processes(groups: Sequence[Path]) -> list[Process]:
    found = (processes.read(pid) for pid in bounds.processes(groups))
    return [process for process in found if process is not None and not process.ended]
