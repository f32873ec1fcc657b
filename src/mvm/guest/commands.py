"""Running commands on somebody's behalf: argument lists, time limits, bounded output, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mvm.guest import processes
from mvm.guest.confinement import Confinement

CHUNK_BYTES = 64 * 1024
POLL_SECONDS = 0.01
END_SECONDS = 2.0
"""How long a command may take to end after SIGTERM."""


class CommandError(Exception):
    """A command that could not be started."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended."""

    status: int
    """Exit status, or minus the number of the signal that ended it."""
    stdout: bytes
    stderr: bytes
    truncated: bool
    """True when there was more output than was kept."""
    timed_out: bool


async def run(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: str,
    stdin: bytes = b"",
    seconds: float,
    keep_bytes: int,
    confinement: Confinement | None = None,
) -> Outcome:
    """Run a command to its end, or end it (and every process of its session) after `seconds`.

    At most `keep_bytes` of each output are kept; the rest is read and dropped, so that a talkative command does not
    hang. Raises `CommandError` when it cannot be started, `confinement` being what it may do.
    """
    process = await _spawn(argv, environment, directory, confinement)
    leader = processes.identity_of(process.pid)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    outputs = [_Output(keep_bytes), _Output(keep_bytes)]
    readers = [
        asyncio.create_task(output.read(stream))
        for output, stream in zip(outputs, (process.stdout, process.stderr), strict=True)
    ]
    feeder = asyncio.create_task(_feed(process.stdin, stdin))
    timed_out = False
    try:
        async with asyncio.timeout(seconds):
            await _exited(process)
    except TimeoutError:
        timed_out = True
    finally:
        await _end(process, leader)
        feeder.cancel()
        # Whoever else held the pipes open has just ended, unless it went into a session of its own.
        await asyncio.wait([feeder, *readers], timeout=END_SECONDS)
        for task in readers:
            task.cancel()
        await asyncio.gather(feeder, *readers, return_exceptions=True)
        process._transport.close()  # type: ignore[attr-defined]  # there is no public way to let go of the pipes
    return Outcome(
        status=process.returncode if process.returncode is not None else -int(signal.SIGKILL),
        stdout=bytes(outputs[0].kept),
        stderr=bytes(outputs[1].kept),
        truncated=outputs[0].truncated or outputs[1].truncated,
        timed_out=timed_out,
    )


async def _spawn(
    argv: Sequence[str], environment: Mapping[str, str], directory: str, confinement: Confinement | None
) -> asyncio.subprocess.Process:
    spawning = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(environment),
            cwd=directory,
            start_new_session=True,
            preexec_fn=None if confinement is None else confinement.take,
        )
    )
    try:
        # Cancelled half-way, asyncio would wait for everybody who holds the pipes, children of the command too.
        return await asyncio.shield(spawning)
    except asyncio.CancelledError:
        process = await spawning
        await _end(process, processes.identity_of(process.pid))
        process._transport.close()  # type: ignore[attr-defined]
        raise
    except (OSError, ValueError) as error:
        raise CommandError(f"{argv[0]!r} cannot be started: {getattr(error, 'strerror', None) or error}") from error


class _Output:
    """The beginning of what a command said."""

    def __init__(self, limit: int) -> None:
        self.kept = bytearray()
        self.truncated = False
        self._limit = limit

    async def read(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(CHUNK_BYTES):
            self.truncated = self.truncated or len(self.kept) + len(data) > self._limit
            self.kept += data[: self._limit - len(self.kept)]


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    with suppress(OSError):  # it need not read what it is given
        stream.write(data)
        await stream.drain()
        stream.close()


async def _end(process: asyncio.subprocess.Process, leader: processes.Identity | None) -> None:
    """End the command's whole session: those who stayed in the background too."""

    def session() -> list[processes.Process]:
        return processes.in_session(process.pid, leader)

    if process.returncode is None:
        for member in session():
            processes.send(member.identity, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await _exited(process)
    await processes.kill_all(session)
    await _exited(process)


async def _exited(process: asyncio.subprocess.Process) -> None:
    """Return when the command itself has ended; `Process.wait` waits for whoever else holds its pipes, too."""
    while process.returncode is None:  # noqa: ASYNC110 - asyncio has no event for this
        await asyncio.sleep(POLL_SECONDS)


def own_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a command run in the guest gets of the agent's own environment: nothing that speaks for the agent."""
    hidden = ("MVM_CHANNEL_DIR",)
    return {name: value for name, value in environment.items() if name not in hidden}
