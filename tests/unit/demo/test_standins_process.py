"""Both stand-ins as one process: found by their state file, the same again when started again, gone when told to."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from tests.standins.waiting import until
from tests.unit.demo.callers import ALICE

from mvm.demo.standins import StandInState
from mvm.model.errors import InvalidInput, NotFound


@asynccontextmanager
async def running(state_file: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process, once its state file names it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mvm.demo", "--state-file", str(state_file), *options, stderr=asyncio.subprocess.PIPE
    )
    try:

        def ready() -> bool:
            try:
                return StandInState.read(state_file).pid == process.pid
            except (NotFound, InvalidInput):
                return False

        await until(lambda: ready() or process.returncode is not None, what="the state file", seconds=30)
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def test_it_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    state_file = tmp_path / "standins.json"
    async with running(state_file) as process, aiohttp.ClientSession() as http:
        state = StandInState.read(state_file)
        assert stat.S_IMODE(state_file.stat().st_mode) == 0o600
        async with http.get(f"{state.telegram.url}/bot{state.telegram.token}/getMe") as answer:
            assert (await answer.json())["result"]["id"] == state.telegram.bot_id
        headers = {"x-api-key": state.model.key, "anthropic-version": "2023-06-01"}
        async with http.get(f"{state.model.url}/v1/models", headers=headers) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_started_again_it_is_the_same_and_still_knows_who_wrote(tmp_path: Path) -> None:
    state_file = tmp_path / "standins.json"
    async with running(state_file), aiohttp.ClientSession() as http:
        first = StandInState.read(state_file)
        admin = {"Authorization": f"Bearer {first.telegram.admin_token}"}
        said = {"from": ALICE, "text": "hello"}
        async with http.post(f"{first.telegram.url}/-/admin/say", json=said, headers=admin) as answer:
            assert answer.status == 200
        await until(lambda: "111" in str(StandInState.read(state_file).memory), what="a record of who wrote")
    async with running(state_file), aiohttp.ClientSession() as http:
        second = StandInState.read(state_file)
        assert (second.telegram, second.model) == (first.telegram, first.model)
        url = f"{second.telegram.url}/bot{second.telegram.token}/sendMessage"
        async with http.post(url, json={"chat_id": ALICE, "text": "still here"}) as answer:
            assert answer.status == 200


async def test_two_do_not_serve_from_one_state_file(tmp_path: Path) -> None:
    state_file = tmp_path / "standins.json"
    async with running(state_file):
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mvm.demo", "--state-file", str(state_file), stderr=asyncio.subprocess.PIPE
        )
        _, told = await other.communicate()
    assert other.returncode == 1
    assert b"are running already" in told


async def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    state_file = tmp_path / "standins.json"
    command = f'"{sys.executable}" -m mvm.demo --state-file "{state_file}" --with-parent & read line'
    parent = await asyncio.create_subprocess_exec("/bin/sh", "-c", command, stdin=asyncio.subprocess.PIPE)
    await until(state_file.exists, what="the state file", seconds=30)
    pid = StandInState.read(state_file).pid
    parent.kill()
    await parent.wait()
    await until(lambda: not is_alive(pid), what="the end of the stand-ins")


def is_alive(pid: int) -> bool:
    """Whether the process runs (a dead one that nobody has waited for does not)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return not Path("/proc").is_dir()


@pytest.mark.parametrize("text", ["", "{}", "[1]", "not json"])
def test_another_file_is_not_taken_for_a_state_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(InvalidInput, match="not a state file"):
        StandInState.read(path)
