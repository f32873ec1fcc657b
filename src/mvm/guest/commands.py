"""Running commands on somebody's behalf: argument lists, time limits, bounded output, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mvm.guest import processes

CHUNK_BYTES = 64 * 1024
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
) -> Outcome:
    """Run a command to its end, or end it (and every process of its session) after `seconds`.

    At most `keep_bytes` of each output are kept; the rest is read and dropped, so that a talkative command does not
    hang. Raises `CommandError` when it cannot be started.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(environment),
            cwd=directory,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise CommandError(f"{argv[0]!r} cannot be started: {getattr(error, 'strerror', None) or error}") from error
    leader = processes.identity_of(process.pid)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    readers = [asyncio.create_task(_read(stream, keep_bytes)) for stream in (process.stdout, process.stderr)]
    feeder = asyncio.create_task(_feed(process.stdin, stdin))
    timed_out = False
    try:
        async with asyncio.timeout(seconds):
            await process.wait()
            await asyncio.wait(readers)
    except TimeoutError:
        timed_out = True
    finally:
        await _end(process, leader)
        feeder.cancel()
        # What still holds the pipes open ended just now, so the readers do too.
        await asyncio.wait([feeder, *readers], timeout=END_SECONDS)
        for task in readers:
            task.cancel()
        await asyncio.gather(feeder, *readers, return_exceptions=True)
    outputs = [(b"", True) if task.cancelled() else task.result() for task in readers]
    return Outcome(
        status=process.returncode if process.returncode is not None else -int(signal.SIGKILL),
        stdout=outputs[0][0],
        stderr=outputs[1][0],
        truncated=outputs[0][1] or outputs[1][1],
        timed_out=timed_out,
    )


async def _read(stream: asyncio.StreamReader, keep_bytes: int) -> tuple[bytes, bool]:
    kept, more = bytearray(), False
    while data := await stream.read(CHUNK_BYTES):
        more = more or len(kept) + len(data) > keep_bytes
        kept += data[: keep_bytes - len(kept)]
    return bytes(kept), more


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
            await asyncio.wait_for(process.wait(), END_SECONDS)
    await processes.kill_all(session)
    if process.returncode is None:
        await process.wait()


def own_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a command run in the guest gets of the agent's own environment: nothing that speaks for the agent."""
    hidden = ("MVM_CHANNEL_DIR",)
    return {name: value for name, value in environment.items() if name not in hidden}
