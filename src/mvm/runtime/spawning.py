"""Starting a process that outlives the agent, and noticing its end."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mvm.guest import processes
from mvm.guest.processes import Identity
from mvm.model.entities import ProcessIdentity
from mvm.model.errors import Unavailable

OUTPUT_LIMIT = 256 * 1024
"""Bytes of a process's own output that are kept: over starts, and while `bound_output` is called now and then."""

OOM_SCORE = 300
"""Rather than the agent, which would lose sight of everybody, one instance ends when the host is out of memory."""

_children: set[Identity] = set()
"""What this process started and has not taken in yet."""


def spawn(
    argv: Sequence[str], *, environment: Mapping[str, str], directory: Path, output: Path, held: Sequence[int]
) -> Identity:
    """Start a program in a session of its own, with these open files passed on. Raises `Unavailable`."""
    with suppress(OSError):
        if output.stat().st_size > OUTPUT_LIMIT:
            output.unlink()
    with output.open("ab") as log:
        output.chmod(0o600)
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(environment),
                cwd=directory,
                start_new_session=True,
                pass_fds=held,
            )
        except OSError as error:
            raise Unavailable(f"'{argv[0]}' cannot be started: {error.strerror or error}") from error
    child.returncode = 0  # it outlives this object, which must therefore not wait for it; `reap` does
    identity = processes.identity_of(child.pid)
    if identity is None:  # not even a zombie: somebody else took it in
        raise Unavailable(f"'{argv[0]}' ended at once")
    _children.add(identity)
    return identity


def limit(pid: int, *, open_files: int, file_bytes: int | None = None) -> None:
    """Limits for a machine's process besides those of its control group; where they cannot be had it does without.

    `file_bytes` is how long it may make a file: a guest that took its machine over cannot fill the host's disk.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, ValueError):
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_files, open_files))
        if file_bytes is not None:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE))


def identity_of(process: ProcessIdentity) -> Identity:
    """A process as it is recorded, as the kernel knows it."""
    return Identity(process.pid, process.start_time)


def recorded(identity: Identity) -> ProcessIdentity:
    """A process as the kernel knows it, as it is recorded."""
    return ProcessIdentity(pid=identity.pid, start_time=identity.start_time)


def alive(process: ProcessIdentity) -> bool:
    """Whether that very process runs; one that was started here and has ended is taken in."""
    identity = identity_of(process)
    reap(identity)
    return processes.alive(identity)


def reap(identity: Identity) -> None:
    """Take in a process that was started here and has ended; nothing happens for any other."""
    if identity not in _children or processes.alive(identity):
        return
    with suppress(ChildProcessError):
        if os.waitpid(identity.pid, os.WNOHANG) == (0, 0):
            return  # its end is not complete yet
    _children.discard(identity)


async def wait_for_end(identity: Identity) -> None:
    """Return when that process has ended, whoever started it."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    try:
        if processes.alive(identity):
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            loop.add_reader(descriptor, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)
        reap(identity)


def bound_output(output: Path) -> None:
    """Begin the output of a program that runs on anew once it is too long; what it prints next is then its first."""
    with suppress(OSError):
        if output.stat().st_size > OUTPUT_LIMIT:
            os.truncate(output, 0)


def last_words(output: Path) -> str:
    """The last line that the program printed."""
    with suppress(OSError):
        lines = output.read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1][:300]
    return "it said nothing"
