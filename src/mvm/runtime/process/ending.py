"""Leaving no process of an instance behind, whatever it turned into."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mvm.guest import processes
from mvm.guest.paths import ROOT_VARIABLE
from mvm.guest.processes import ROOT_MARKER, Process
from mvm.model.errors import MvmError
from mvm.runtime import bounds

KILL_SECONDS = 10.0


def members(root: Path, groups: Sequence[Path]) -> list[Process]:
    """Every process of the instance with that guest root.

    Known by the variable that its supervisor and all services start with (children inherit it), and by the instance's
    control groups, which also hold what cleaned its environment.
    """
    own = os.getpid()
    pids = {int(name) for name in os.listdir("/proc") if name.isdecimal()}
    marks = tuple(os.fsencode(f"\0{variable}={root}\0") for variable in (ROOT_MARKER, ROOT_VARIABLE))
    marked = {pid for pid in pids if _bears_root(pid, marks)}
    found = []
    for pid in (marked | set(bounds.processes(groups))) - {own}:
        process = processes.read(pid)
        if process is not None and not process.ended:
            found.append(process)
    return found


def is_supervisor(identity: processes.Identity, root: Path) -> bool:
    """True when that process was started as the supervisor of this guest root."""
    return processes.variable_of(identity.pid, ROOT_VARIABLE) == str(root)


async def end_all(root: Path, groups: Sequence[Path], *, who: str, grace_seconds: float = 0.0) -> None:
    """End every process of the instance and remove its control groups. Raises `MvmError` when one cannot be ended.

    With a grace each is asked first: an OpenClaw whose supervisor was killed may be finishing a turn.
    """
    if grace_seconds > 0 and (found := members(root, groups)):
        for process in found:
            with suppress(PermissionError):
                processes.send(process.identity, signal.SIGTERM)
                processes.send(process.identity, signal.SIGCONT)
        await processes.wait_until_ended([process.identity for process in found], grace_seconds)
    left = await processes.kill_all(lambda: members(root, groups), KILL_SECONDS)
    if left:
        pids = ", ".join(str(process.identity.pid) for process in left)
        raise MvmError(
            f"processes of {who} cannot be ended: {pids}",
            hint="they wait for a device or a network file system; `ps -o pid,wchan,cmd -p <pid>` shows which",
        )
    await bounds.remove(groups)


def _bears_root(pid: int, marks: tuple[bytes, ...]) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = b"\0" + file.read() + b"\0"
    except OSError:  # it has ended, or is somebody else's
        return False
    return any(mark in environment for mark in marks)
