"""The stand-ins as a process of their own that outlives the command that started it.

The lock beside the state file tells whether they run, and its text which process it is.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import aiohttp

from mvm.demo.standins import StandInState, lock_path
from mvm.model.errors import InvalidInput, NotFound, TimedOut, Unavailable

START_LIMIT = 30.0
"""Seconds for both to answer after their start."""
STOP_LIMIT = 15.0
_POLL_SECONDS = 0.05
_LOG_TAIL_BYTES = 2000


def running_pid(state_file: Path) -> int | None:
    """The process that serves from this state file, None when there is none."""
    try:
        handle = os.open(lock_path(state_file), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(handle, 32).decode().strip()
        return int(text) if text else None
    finally:
        os.close(handle)
    return None


async def ensure(state_file: Path) -> StandInState:
    """The stand-ins of this state file, started when they do not run; `Unavailable` or `TimedOut` when they fail to."""
    state = await _answering(state_file)
    if state is not None:
        return state
    state_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = state_file.with_suffix(".log")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mvm.demo", "--state-file", str(state_file)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    try:
        async with asyncio.timeout(START_LIMIT):
            while (state := await _answering(state_file)) is None:
                if process.returncode is not None:
                    raise Unavailable(
                        f"the stand-ins ended with status {process.returncode} at their start: {_last_line(log)}",
                        hint=f"their log is {log}",
                    )
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise TimedOut(
            f"the stand-ins did not answer within {START_LIMIT:g} s of their start", hint=f"their log is {log}"
        ) from None
    return state


async def stop(state_file: Path) -> bool:
    """End the stand-ins of this state file; False when none ran. `TimedOut` when they do not end."""
    pid = await asyncio.to_thread(running_pid, state_file)
    if pid is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_LIMIT):
            while True:
                if await asyncio.to_thread(running_pid, state_file) != pid:
                    return True
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise TimedOut(
            f"the stand-ins (process {pid}) did not end within {STOP_LIMIT:g} s", hint=f"end it with `kill -9 {pid}`"
        ) from None


async def _answering(state_file: Path) -> StandInState | None:
    """The state of stand-ins that run and answer, else None."""
    pid = await asyncio.to_thread(running_pid, state_file)
    if pid is None:
        return None
    try:
        state = StandInState.read(state_file)
    except (NotFound, InvalidInput):
        return None
    if state.pid != pid:
        return None
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
            for url in (state.telegram.url, state.model.url):
                async with http.get(f"{url}/-/about") as answer:
                    if (await answer.json()).get("standin") is not True:
                        return None
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
    return state


def _last_line(log: Path) -> str:
    with suppress(OSError):
        lines = log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "it said nothing"
