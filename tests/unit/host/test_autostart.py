"""One agent for whoever needs one, and never a second one beside another."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mvm.host import daemon
from mvm.host.autostart import ensure_agent, prepare_directories
from mvm.host.locations import Locations
from mvm.model.errors import MvmError, Refused, Unavailable

STAND_IN = """
import asyncio, os, signal, sys
from pathlib import Path
from mvm.host.api import ApiServer, Params, Request

class Nothing(Params):
    pass

async def info(services, params, call):
    return {"agent_pid": os.getpid(), "runtime": os.environ["MVM_RUNTIME"]}

async def main():
    run_dir = Path(os.environ["MVM_RUN_DIR"])
    with open(run_dir / "started", "a") as started:
        started.write("x")
    server = ApiServer({"NodeInfo": Request(Nothing, info)}, None)
    await server.start(run_dir / "agent.sock")
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await server.close()

asyncio.run(main())
"""
AGENT = (sys.executable, "-c", STAND_IN)


@pytest.fixture
def locations() -> Iterator[Locations]:
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))
    yield Locations(
        state_dir=directory / "state",
        run_dir=directory / "run",
        programs_dir=directory / "programs",
        secrets_dir=directory / "run/secrets",
        secrets_in_memory=False,
        runtime="process",
        production=False,
        log_level="info",
        autostart=True,
    )
    shutil.rmtree(directory)


def end(pid: int) -> None:
    """End an agent that a test started."""
    os.kill(pid, signal.SIGTERM)
    psutil.Process(pid).wait(timeout=10)


async def test_an_agent_is_started_in_the_background_and_said_so(locations: Locations, tmp_path: Path) -> None:
    said: list[str] = []
    client = await ensure_agent(locations, command=AGENT, say=said.append, system_socket=tmp_path / "none")
    answer = await client.call("NodeInfo")
    try:
        assert len(said) == 1
        assert "starting one in the background" in said[0]
        assert os.getsid(answer["agent_pid"]) == answer["agent_pid"]
        assert answer["runtime"] == "process"
    finally:
        end(answer["agent_pid"])


async def test_what_an_agent_makes_does_not_depend_on_the_umask_of_its_shell(
    locations: Locations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Enough(Exception):
        pass

    def make(_: Locations) -> None:
        (tmp_path / "made").touch()
        raise Enough

    monkeypatch.setattr(daemon, "prepare_directories", make)
    before = os.umask(0o077)
    try:
        with pytest.raises(Enough):
            await daemon.serve(locations)
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o644


async def test_an_agent_that_runs_is_used(locations: Locations, tmp_path: Path) -> None:
    first = await ensure_agent(locations, command=AGENT, say=lambda _: None, system_socket=tmp_path / "none")
    pid = (await first.call("NodeInfo"))["agent_pid"]
    try:
        said: list[str] = []
        second = await ensure_agent(locations, command=AGENT, say=said.append, system_socket=tmp_path / "none")
        assert (await second.call("NodeInfo"))["agent_pid"] == pid
        assert said == []
    finally:
        end(pid)


async def test_two_commands_at_once_start_one_agent(locations: Locations, tmp_path: Path) -> None:
    clients = await asyncio.gather(
        *(ensure_agent(locations, command=AGENT, say=lambda _: None, system_socket=tmp_path / "none") for _ in range(3))
    )
    pids = {(await client.call("NodeInfo"))["agent_pid"] for client in clients}
    try:
        assert len(pids) == 1
        assert (locations.run_dir / "started").read_text() == "x"
    finally:
        for pid in pids:
            end(pid)


async def test_none_is_started_where_that_is_forbidden(locations: Locations, tmp_path: Path) -> None:
    forbidden = replace(locations, autostart=False, origins={"autostart": "environment MVM_NO_AUTOSTART"})
    with pytest.raises(Unavailable, match="MVM_NO_AUTOSTART"):
        await ensure_agent(forbidden, command=AGENT, system_socket=tmp_path / "none")
    assert not locations.run_dir.exists()


async def test_one_that_dies_at_its_start_is_told_with_its_last_words(locations: Locations, tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import sys; sys.exit('the database is damaged')")
    with pytest.raises(Unavailable, match=r"status 1 .*: the database is damaged"):
        await ensure_agent(locations, command=command, say=lambda _: None, system_socket=tmp_path / "none")


async def test_the_systems_agent_is_used_before_ones_own(locations: Locations, tmp_path: Path) -> None:
    system = replace(locations, run_dir=locations.run_dir.with_name("system"), state_dir=locations.state_dir)
    there = await ensure_agent(system, command=AGENT, say=lambda _: None, system_socket=tmp_path / "none")
    pid = (await there.call("NodeInfo"))["agent_pid"]
    try:
        client = await ensure_agent(locations, command=AGENT, system_socket=system.socket)
        assert client.socket == system.socket
        chosen = replace(locations, origins={"run_dir": "environment MVM_RUN_DIR"}, autostart=False)
        with pytest.raises(Unavailable):
            await ensure_agent(chosen, command=AGENT, system_socket=system.socket)
    finally:
        end(pid)


async def test_beside_a_system_agent_that_is_down_no_other_is_started(locations: Locations) -> None:
    prepare_directories(locations)
    left = locations.run_dir / "system.sock"
    server = await asyncio.start_unix_server(lambda reader, writer: None, str(left))
    server.close()
    with pytest.raises(Unavailable, match="system agent"):
        await ensure_agent(locations, command=AGENT, system_socket=left)
    assert not locations.socket.exists()


async def test_beside_a_system_agent_that_one_may_not_talk_to_no_other_is_started(
    locations: Locations, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_directories(locations)
    closed = locations.run_dir / "system.sock"
    server = await asyncio.start_unix_server(lambda reader, writer: None, str(closed))

    async def forbidden(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    # To root, as which tests may run, nothing is forbidden by a mode.
    monkeypatch.setattr(asyncio, "open_unix_connection", forbidden)
    with pytest.raises(Refused, match=r"may not talk to the agent .* \(owned by"):
        await ensure_agent(locations, command=AGENT, system_socket=closed)
    server.close()
    assert not locations.socket.exists()


def test_directories_are_for_their_owner(locations: Locations) -> None:
    prepare_directories(locations)
    assert locations.state_dir.stat().st_mode & 0o777 == 0o700
    assert locations.run_dir.stat().st_mode & 0o022 == 0


def test_a_directory_that_others_may_write_to_is_refused(locations: Locations) -> None:
    locations.run_dir.mkdir(parents=True)
    locations.run_dir.chmod(0o777)
    with pytest.raises(Refused, match="not safe"):
        prepare_directories(locations)


def test_a_link_in_place_of_a_directory_is_refused(locations: Locations, tmp_path: Path) -> None:
    locations.run_dir.parent.mkdir(exist_ok=True)
    locations.run_dir.symlink_to(tmp_path)
    with pytest.raises(MvmError, match="not safe"):
        prepare_directories(locations)
