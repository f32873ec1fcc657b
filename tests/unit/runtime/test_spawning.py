"""The end of a process is its end as a whole, and nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from mvm.guest import processes
from mvm.runtime import spawning

FIRST_THREAD_ENDS = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).syscall(93 if platform.machine() == "aarch64" else 60, 0)
"""
"""Ends its first thread alone (by exit, not exit_group), as a killed process of many threads does for a moment."""


def spawned(program: str, directory: Path) -> processes.Identity:
    return spawning.spawn(
        [sys.executable, "-c", program], environment={}, directory=directory, output=directory / "output", held=()
    )


async def until_state(identity: processes.Identity, state: str) -> processes.Process:
    async with asyncio.timeout(20):
        while (process := processes.read(identity.pid)) is None or process.state != state:
            await asyncio.sleep(0.01)
    return process


async def test_a_process_lives_until_the_last_of_its_threads_ended(tmp_path: Path) -> None:
    identity = spawned(FIRST_THREAD_ENDS, tmp_path)
    assert not (await until_state(identity, "Z")).ended
    assert processes.alive(identity)
    ending = asyncio.create_task(spawning.wait_for_end(identity))
    await asyncio.sleep(0)
    assert not ending.done()
    os.kill(identity.pid, signal.SIGKILL)
    await asyncio.wait_for(ending, 20)
    assert processes.read(identity.pid) is None, "it was reaped"


async def test_one_that_was_killed_is_reaped_by_whoever_asks_last(tmp_path: Path) -> None:
    identity = spawned("import time; time.sleep(60)", tmp_path)
    os.kill(identity.pid, signal.SIGKILL)
    assert await processes.wait_until_ended([identity], 20) == []
    spawning.reap(identity)
    assert processes.read(identity.pid) is None
