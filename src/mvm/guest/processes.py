"""Processes for certain: pid with start time, whole trees, and no survivors (Linux).

A pid alone may belong to somebody else a moment later; a pid with the start time that the kernel gives it may not.
Signals go through a pidfd, so that not even the moment between looking and signalling can hit a stranger.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

ROOT_MARKER = "MVM_SUPERVISED"
"""Variable that every supervised process inherits: the root of its guest, by which left-overs are known."""
SERVICE_MARKER = "MVM_SERVICE"
"""Variable that names the service to which a process belongs."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.01
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, order=True)
class Identity:
    """One process and no other: `start_time` is in kernel clock ticks since boot."""

    pid: int
    start_time: int


@dataclass(frozen=True, kw_only=True)
class Process:
    """What the kernel says of a process; times in seconds, memory in bytes."""

    identity: Identity
    parent: int
    session: int
    state: str
    threads: int
    cpu_seconds: float
    memory_bytes: int

    @property
    def ended(self) -> bool:
        """True for a zombie: it does nothing any more but wait for its parent's attention.

        The first thread of a process that was killed is one already while others still have its files and memory.
        """
        return self.state in "ZX" and self.threads < 2


def read(pid: int) -> Process | None:
    """Look a process up; None when there is none of that pid."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The name stands in parentheses and may hold anything, parentheses too.
    fields = text[text.rindex(b")") + 2 :].split()
    return Process(
        identity=Identity(pid, int(fields[19])),
        parent=int(fields[1]),
        session=int(fields[3]),
        state=fields[0].decode(),
        threads=int(fields[17]),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICK,
        memory_bytes=max(0, int(fields[21])) * _PAGE,
    )


def identity_of(pid: int) -> Identity | None:
    """Identity of the process that has this pid now."""
    process = read(pid)
    return None if process is None else process.identity


def alive(identity: Identity) -> bool:
    """True while that very process runs; a zombie does not."""
    process = read(identity.pid)
    return process is not None and process.identity == identity and not process.ended


def send(identity: Identity, number: signal.Signals) -> bool:
    """Signal that very process. False when it has ended; `PermissionError` when it is not ours."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        if identity_of(identity.pid) != identity:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def become_subreaper() -> None:
    """Have orphaned descendants become children of this process, however far they went to escape."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> Callable[[], None]:
    """For `preexec_fn`: the child gets SIGTERM when the calling process ends, even by SIGKILL."""
    parent = os.getpid()

    def prepare() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the line above
            os._exit(1)

    return prepare


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def descendants(pid: int) -> list[Process]:
    """Every process below this one, parents before children, zombies left out."""
    children_of = _children if os.path.exists(f"/proc/{pid}/task/{pid}/children") else _children_by_scan()
    found: list[Process] = []
    waiting = [pid]
    while waiting:
        for child in children_of(waiting.pop()):
            process = read(child)
            if process is not None:
                waiting.append(child)
                if not process.ended:
                    found.append(process)
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/task/{task}/children") as file:
                found.extend(map(int, file.read().split()))
    return found


def _children_by_scan() -> Callable[[int], list[int]]:
    """For kernels that do not list children: one look at every process."""
    children: dict[int, list[int]] = {}
    for process in _everything():
        children.setdefault(process.parent, []).append(process.identity.pid)
    return lambda pid: children.get(pid, [])


def _everything() -> Iterable[Process]:
    for name in os.listdir("/proc"):
        if name.isdecimal() and (process := read(int(name))) is not None:
            yield process


def in_session(session: int, leader: Identity | None) -> list[Process]:
    """Every process of a session that we began, zombies left out. `leader` is None when it was never seen alive.

    As long as a session has a member its number is nobody else's; a stranger who has it means that it is long empty.
    """
    now = identity_of(session)
    if now is not None and now != leader:
        return []
    return [process for process in _everything() if process.session == session and not process.ended]


def variable_of(pid: int, name: str) -> str | None:
    """A variable of the environment that a process was started with; None when unset or not ours to read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read()
    except OSError:
        return None
    start = name.encode() + b"="
    for entry in environment.split(b"\0"):
        if entry.startswith(start):
            return os.fsdecode(entry[len(start) :])
    return None


def marked(root: str) -> list[Process]:
    """Every process on this machine that some supervisor of this guest root started, itself excepted."""
    own = os.getpid()
    return [
        process
        for process in _everything()
        if process.identity.pid != own and not process.ended and variable_of(process.identity.pid, ROOT_MARKER) == root
    ]


async def wait_until_ended(identities: Iterable[Identity], seconds: float) -> list[Identity]:
    """Wait for processes that need not be children; returns those that still run after `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    remaining = [identity for identity in identities if alive(identity)]
    while remaining and loop.time() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
        remaining = [identity for identity in remaining if alive(identity)]
    return remaining


async def kill_all(find: Callable[[], list[Process]], seconds: float = 5.0) -> list[Process]:
    """SIGKILL whatever `find` finds until it finds nothing and all of that has ended, also what is forked meanwhile.

    Returns what is left after `seconds` (a process in an uninterruptible wait).
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    known: dict[Identity, Process] = {}
    while True:
        known |= {process.identity: process for process in find()}
        # One that is ending loses its environment, by which it may be found, before its files and the locks on them.
        left = [process for process in known.values() if alive(process.identity)]
        if not left or loop.time() > deadline:
            return left
        for process in left:
            with suppress(PermissionError):
                send(process.identity, signal.SIGKILL)
        await asyncio.sleep(_POLL_SECONDS)


def require_linux() -> None:
    """Raise `OSError` on a system whose processes cannot be told apart for certain."""
    if sys.platform != "linux" or read(os.getpid()) is None:
        raise OSError("the supervisor needs Linux with /proc mounted")
