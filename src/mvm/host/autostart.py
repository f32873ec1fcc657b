"""Finding the agent, and starting one in the background for a person who has none running (CONTRACT 19)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from mvm.host.client import AgentClient
from mvm.host.locations import OFF, SYSTEM_SOCKET, Locations
from mvm.host.private_directories import make_private
from mvm.host.remote_client import remote_client
from mvm.model.errors import TimedOut, Unavailable

AGENT_COMMAND = (sys.executable, "-P", "-m", "mvm.cli.main", "agent", "serve")
"""`-P`: whatever lies in the directory that the person happens to be in is not imported."""
START_LIMIT = 30.0
"""Seconds for a new agent to answer; it only opens its database and its socket before it does."""
LOG_LIMIT = 10 * 1024 * 1024
"""Bytes after which the log of a background agent is rotated (once) when the next one is started."""
_POLL_SECONDS = 0.05
_LOG_TAIL_BYTES = 2000


def say_on_stderr(line: str) -> None:
    """Tell the person, without touching what programs read."""
    print(line, file=sys.stderr)


async def ensure_agent(
    locations: Locations,
    *,
    environment: Mapping[str, str] = os.environ,
    command: Sequence[str] = AGENT_COMMAND,
    system_socket: Path = SYSTEM_SOCKET,
    say: Callable[[str], None] = say_on_stderr,
) -> AgentClient:
    """A client of an agent: the one elsewhere that `MVM_AGENT` names; else one that answers, the system's if there is
    one, or this person's own, started when need be.

    Raises `Refused` when there is an agent that this person may not talk to (a second one is never started beside it),
    `Unavailable` when none runs and none may be started (`MVM_NO_AUTOSTART=1`) or it does not come up.
    """
    if locations.agent is not None:
        return remote_client(locations, locations.agent)
    if not locations.chosen and system_socket != locations.socket and is_there(system_socket):
        return await _the_systems(system_socket)
    client = AgentClient(locations.socket)
    if await client.answers():
        return client
    if not locations.autostart:
        raise Unavailable(
            f"no agent runs at '{locations.socket}', and none may be started"
            f" ({locations.origins.get('autostart', 'autostart = false')})",
            hint="start it with `mvm agent serve`",
        )
    await asyncio.to_thread(prepare_directories, locations)
    async with _one_starter(locations):
        if not await client.answers():  # the one who held the lock before may have started it
            await _start(locations, client, environment, command, say)
    return client


def prepare_directories(locations: Locations) -> None:
    """Make the agent's directories. Refuses one that belongs to someone else or that others may write to."""
    # The system's socket is reached by a group, so its run directory may be passed through; what is in it is 0700.
    run_mode = 0o755 if os.geteuid() == 0 else 0o700
    make_private(locations.state_dir)
    make_private(locations.run_dir, run_mode)


async def _the_systems(socket: Path) -> AgentClient:
    client = AgentClient(socket)
    if await client.answers():  # raises Refused, with whose it is, when this person may not
        return client
    raise Unavailable(
        f"this machine has a system agent, but it does not answer at '{socket}'",
        hint="start it with `systemctl start mvm-agent`, or set MVM_RUN_DIR and MVM_STATE_DIR to use one of your own",
    )


def is_there(socket: Path) -> bool:
    """Whether an agent has its socket there, also one that this person may not talk to."""
    try:
        return stat.S_ISSOCK(socket.stat().st_mode)
    except PermissionError:
        return True  # there is something that this person may not even look at: it is found out by connecting
    except OSError:
        return False


@contextlib.asynccontextmanager
async def _one_starter(locations: Locations) -> AsyncIterator[None]:
    """Held while an agent is being started, so that two commands at once start one."""
    descriptor = os.open(locations.run_dir / "agent.start", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = asyncio.get_running_loop().time() + START_LIMIT * 2
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if asyncio.get_running_loop().time() > deadline:
                    raise TimedOut(
                        "another command has been starting the agent for too long", hint="see whether it hangs"
                    ) from None
            await asyncio.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


async def _start(
    locations: Locations,
    client: AgentClient,
    environment: Mapping[str, str],
    command: Sequence[str],
    say: Callable[[str], None],
) -> None:
    log = log_path(locations)
    say(f"mvm: no agent runs; starting one in the background (log: {log})")
    descriptor = await asyncio.to_thread(_open_log, log)
    try:
        pid = _spawn(command, {**environment, **_settings(locations)}, output=descriptor)
    finally:
        os.close(descriptor)
    deadline = asyncio.get_running_loop().time() + START_LIMIT
    while not await client.answers():
        if (status := _ended(pid)) is not None:
            raise Unavailable(
                f"the agent ended with status {status} while it started: {_last_line(log)}",
                hint=f"its log is {log}; `mvm agent serve` starts it in the foreground",
            )
        if asyncio.get_running_loop().time() > deadline:
            raise TimedOut(
                f"the agent (process {pid}) did not answer within {START_LIMIT:g} s of its start",
                hint=f"its log is {log}",
            )
        await asyncio.sleep(_POLL_SECONDS)


def _spawn(command: Sequence[str], environment: Mapping[str, str], *, output: int) -> int:
    """Start a process in a session of its own, which outlives this one and is not waited for."""
    return os.posix_spawn(
        command[0],
        list(command),
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ],
        setsid=True,
    )


def _ended(pid: int) -> int | None:
    """Exit status (minus the signal) of a child that has ended, None of one that runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _settings(locations: Locations) -> dict[str, str]:
    """The settings of this invocation as environment: the agent must not find others where it is started."""
    return {
        "MVM_STATE_DIR": str(locations.state_dir),
        "MVM_RUN_DIR": str(locations.run_dir),
        "MVM_PROGRAMS_DIR": str(locations.programs_dir),
        "MVM_RUNTIME": locations.runtime,
        "MVM_PRODUCTION": "1" if locations.production else "0",
        "MVM_LOG": locations.log_level,
        "MVM_METRICS_PORT": OFF if locations.metrics_port is None else str(locations.metrics_port),
        "MVM_LISTEN": OFF if locations.listen is None else str(locations.listen),
    }


def log_path(locations: Locations) -> Path:
    """Log of an agent that runs in the background."""
    return locations.state_dir / "agent.log"


def _open_log(log: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > LOG_LIMIT:
            log.replace(log.with_name(log.name + ".1"))
    return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _last_line(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:500] if lines else "it said nothing"
