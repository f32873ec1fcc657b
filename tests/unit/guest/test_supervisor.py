"""The supervisor with real processes: what it starts, restarts, stops, and what it leaves behind (nothing)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator

import pytest
from tests.unit.guest.guest_world import LIMIT_SECONDS, GuestWorld, config, until

from mvm.guest import processes
from mvm.guest.supervisor_socket import OperationRefused

FAMILY = """
import os, subprocess, sys, time, signal
from pathlib import Path
code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('child', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code])
escaped = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, env={"PATH": os.environ["PATH"]})
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("orphan", flush=True)
        time.sleep(600)
    os._exit(0)
print("hello from openclaw", flush=True)
time.sleep(600)
"""


WITH_CHANNEL = """
import asyncio, dataclasses, os
from mvm.guest import services, supervisor, supervisor_socket
from mvm.guest.paths import GuestPaths
from mvm.guest.services import Programs

class Noting(supervisor_socket.SupervisorSocket):
    async def finish(self, seconds=1.0):
        await super().finish(seconds)
        with open(os.path.join(os.path.dirname(os.environ["MVM_GUEST_ZIPAPP"]), "ends"), "a") as file:
            file.write("answered\\n")

supervisor.SupervisorSocket = Noting
channel = dataclasses.replace(services.CHANNEL, needs_own_machine=False)
paths, programs = GuestPaths.from_environment(os.environ), Programs.from_environment(os.environ)
asyncio.run(supervisor.Supervisor(paths, programs, os.environ, (channel, services.AGENT)).run())
"""


LISTENING_FAMILY = FAMILY.replace("signal.SIG_IGN", "signal.SIG_DFL")


@pytest.fixture
async def world() -> AsyncIterator[GuestWorld]:
    world = GuestWorld()
    try:
        yield world
    finally:
        await world.close()


async def test_a_worker_runs_the_agent_and_openclaw_only_when_told(world: GuestWorld) -> None:
    await world.supervise()
    await world.running("agent")
    assert (await world.service("openclaw"))["state"] == "stopped"
    assert (await world.service("router"))["state"] == "stopped"

    await world.client.start("openclaw")
    openclaw = await world.running("openclaw")
    await world.client.start("openclaw")
    assert await world.running("openclaw") == openclaw


async def test_what_needs_a_machine_of_its_own_is_not_there(world: GuestWorld) -> None:
    await world.supervise()
    await world.running("agent")
    assert set((await world.client.status())["services"]) == {"agent", "router", "openclaw"}


async def test_what_a_shutdown_is_answered_through_ends_after_the_answer(world: GuestWorld) -> None:
    await world.supervise("-c", WITH_CHANNEL)
    await world.running("agent")
    await world.running("channel")
    reader, writer = await asyncio.open_unix_connection(str(world.paths.supervisor_socket))
    writer.write(b'{"op": "shutdown", "grace_seconds": 10}\n')
    assert json.loads(await reader.readline()) == {"ok": True, "killed": []}
    writer.close()
    assert world.supervisor is not None
    assert await asyncio.wait_for(world.supervisor.wait(), LIMIT_SECONDS) == 0
    assert world.ends() == ["agent", "answered", "channel"]


async def test_a_gateway_runs_the_router_too(world: GuestWorld) -> None:
    world.write_config(config(role="gateway"))
    await world.supervise()
    await world.running("agent")
    await world.running("router")


async def test_without_a_usable_config_the_agent_still_runs_to_say_so(world: GuestWorld) -> None:
    world.paths.config.write_text("{")
    await world.supervise()
    await world.running("agent")
    assert "config.json is not JSON" in world.log("supervisor")


async def test_the_record_names_the_supervisor_and_its_services_for_certain(world: GuestWorld) -> None:
    supervisor = await world.supervise()
    agent = await world.running("agent")
    record = json.loads(world.paths.supervisor_record.read_text())
    assert record["supervisor"] == {"pid": supervisor.pid, "start_time": supervisor.start_time}
    assert record["services"] == {"agent": {"pid": agent.pid, "start_time": agent.start_time}}


async def test_openclaw_gets_its_environment_and_nothing_of_the_supervisors(world: GuestWorld) -> None:
    world.paths.environment_file.write_text('ANTHROPIC_API_KEY="a\\"b\\\\c\\$d"\n')
    await world.supervise()
    await world.client.start("openclaw")
    pid = (await world.running("openclaw")).pid
    assert processes.variable_of(pid, "ANTHROPIC_API_KEY") == 'a"b\\c$d'
    assert processes.variable_of(pid, "OPENCLAW_STATE_DIR") == str(world.paths.openclaw_state.resolve())
    assert processes.variable_of(pid, "MVM_CHANNEL_DIR") is None


async def test_a_service_that_dies_is_started_again_and_its_children_are_gone(world: GuestWorld) -> None:
    world.script("openclaw", FAMILY)
    await world.supervise()
    await world.client.start("openclaw")
    first = await world.running("openclaw")
    await until(lambda: world.log("openclaw").count("child") == 2 and "orphan" in world.log("openclaw"), "the family")
    old = {process.identity for process in processes.descendants(first.pid)}
    assert len(old) >= 2

    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: world.log("openclaw").count("hello") == 2, "a second start")
    await until(lambda: not any(processes.alive(process) for process in old), "the end of the former children")
    service = await world.service("openclaw")
    assert service["restarts"] == 1
    assert service["last_exit"] == "signal SIGKILL"
    assert service["pid"] != first.pid


async def test_a_service_that_cannot_be_started_says_why_and_is_tried_again(world: GuestWorld) -> None:
    world.paths.environment_file.unlink()
    await world.supervise()
    with pytest.raises(OperationRefused, match="openclaw cannot be started"):
        await world.client.start("openclaw")
    with pytest.raises(OperationRefused, match="there is no such service"):
        await world.client.start("nonsense")


async def test_shutdown_ends_openclaw_before_what_it_needs_and_leaves_nothing(world: GuestWorld) -> None:
    world.write_config(config(role="gateway"))
    await world.supervise()
    await world.client.start("openclaw")
    for name in ("agent", "router", "openclaw"):
        await world.running(name)

    answer = await world.client.ask({"op": "shutdown", "grace_seconds": 10}, 10)
    assert answer == {"killed": []}
    assert world.ends() == ["openclaw", "router", "agent"]
    assert world.alive() == []
    assert world.supervisor is not None
    assert await asyncio.wait_for(world.supervisor.wait(), LIMIT_SECONDS) == 0
    assert not world.paths.supervisor_socket.exists()
    assert not world.paths.supervisor_record.exists()


async def test_sigterm_kills_whoever_does_not_listen_also_grandchildren_that_hid(world: GuestWorld) -> None:
    world.script("openclaw", "import signal; signal.signal(15, signal.SIG_IGN)\n" + FAMILY)
    supervisor = await world.supervise()
    await world.client.start("openclaw")
    await world.running("openclaw")
    await until(lambda: world.log("openclaw").count("child") == 2 and "orphan" in world.log("openclaw"), "the family")
    everybody = [process.identity for process in processes.descendants(supervisor.pid)]
    assert len(everybody) == 5

    answer = await world.client.ask({"op": "shutdown", "grace_seconds": 0.5}, 10)
    assert "openclaw" in answer["killed"]
    assert [identity for identity in everybody if processes.alive(identity)] == []


async def test_when_the_supervisor_is_killed_its_services_end(world: GuestWorld) -> None:
    supervisor = await world.supervise()
    await world.client.start("openclaw")
    await world.running("agent")
    await world.running("openclaw")
    os.kill(supervisor.pid, signal.SIGKILL)
    await until(lambda: not world.alive(), "the end of the services")
    assert sorted(world.ends()) == ["agent", "openclaw"]


async def test_a_new_supervisor_ends_what_a_killed_one_left_before_it_starts_anything(world: GuestWorld) -> None:
    world.script("openclaw", LISTENING_FAMILY)
    supervisor = await world.supervise()
    await world.client.start("openclaw")
    await world.running("openclaw")
    await until(lambda: "orphan" in world.log("openclaw"), "the orphan")
    os.kill(supervisor.pid, signal.SIGKILL)
    assert world.supervisor is not None
    await world.supervisor.wait()
    leftovers = [process.identity for process in world.alive()]
    assert leftovers

    world.paths.supervisor_record.unlink()
    await world.supervise()
    await world.running("agent")
    assert [identity for identity in leftovers if processes.alive(identity)] == []


async def test_clear_ends_leftovers_without_starting_anything(world: GuestWorld) -> None:
    world.script("openclaw", LISTENING_FAMILY)
    supervisor = await world.supervise()
    await world.client.start("openclaw")
    await world.running("openclaw")
    await until(lambda: "orphan" in world.log("openclaw"), "the orphan")

    assert await _run(world, "clear") == 1, "a guest whose supervisor lives is left alone"
    assert processes.alive(supervisor)
    os.kill(supervisor.pid, signal.SIGKILL)
    assert world.supervisor is not None
    await world.supervisor.wait()
    assert await _run(world, "clear") == 0
    assert world.alive() == []


async def test_there_is_one_supervisor_only(world: GuestWorld) -> None:
    supervisor = await world.supervise()
    assert await _run(world, "supervise") == 1
    assert processes.alive(supervisor)
    await world.running("agent")


async def test_a_frozen_guest_does_nothing_and_goes_on_when_thawed(world: GuestWorld) -> None:
    supervisor = await world.supervise()
    await world.client.start("openclaw")
    await world.running("agent")
    openclaw = await world.running("openclaw")
    await world.client.ask({"op": "freeze"})
    assert {process.state for process in processes.descendants(supervisor.pid)} == {"T"}
    with pytest.raises(OperationRefused, match="frozen"):
        await world.client.stop("openclaw", grace=1)

    await world.client.ask({"op": "thaw"})
    assert "T" not in {process.state for process in processes.descendants(supervisor.pid)}
    assert await world.running("openclaw") == openclaw


async def test_a_frozen_guest_can_be_shut_down_and_its_services_still_end_by_themselves(world: GuestWorld) -> None:
    await world.supervise()
    await world.client.start("openclaw")
    await world.running("agent")
    await world.running("openclaw")
    await world.client.ask({"op": "freeze"})
    await world.client.ask({"op": "shutdown", "grace_seconds": 10}, 10)
    assert world.ends() == ["openclaw", "agent"]
    assert world.alive() == []


async def test_a_flooding_service_neither_blocks_nor_fills_the_disk(world: GuestWorld) -> None:
    flood = """
import sys
from pathlib import Path
for _ in range(400):
    sys.stdout.write("x" * 65535 + "\\n")
sys.stdout.flush()
(Path(sys.argv[0]).parent / "flooded").touch()
print("hello from openclaw", flush=True)
import time; time.sleep(600)
"""
    world.script("openclaw", flood)
    await world.supervise()
    await world.client.start("openclaw")
    await until((world.programs / "openclaw/flooded").exists, "the end of the flood")
    sizes = [path.stat().st_size for path in world.paths.logs.glob("openclaw.log*")]
    assert sum(sizes) < 9 * 1024 * 1024


async def test_hostile_lines_on_the_socket_are_answered(world: GuestWorld) -> None:
    await world.supervise()
    reader, writer = await asyncio.open_unix_connection(str(world.paths.supervisor_socket))
    for line in (
        b"nonsense\n",
        b"[]\n",
        b'{"op": 5}\n',
        b'{"op":"explode"}\n',
        b'{"op":"shutdown","grace_seconds":-1}\n',
    ):
        writer.write(line)
        answer = json.loads(await reader.readline())
        assert answer["ok"] is False
        assert answer["error"]
    writer.close()
    await writer.wait_closed()
    await world.running("agent")


async def _run(world: GuestWorld, command: str) -> int:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mvm.guest", command, env=world.environment, stderr=asyncio.subprocess.DEVNULL
    )
    return await asyncio.wait_for(process.wait(), LIMIT_SECONDS)
