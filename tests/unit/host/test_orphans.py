"""What belongs to no instance any more is found and cleared away, and nothing else is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.unit.host.live_agent import Agent

from mvm.host.machines import base_id
from mvm.host.orphans import MARKERS
from mvm.model.ids import InstanceId

NOBODY = InstanceId("i-deadbeef")
Mark = Callable[[str, Path], "subprocess.Popen[bytes]"]


@pytest.fixture
def marked() -> Iterator[Mark]:
    """Starts processes that carry a mark of an instance's, until they are ended."""
    with ExitStack() as stack:

        def start(marker: str, place: Path) -> subprocess.Popen[bytes]:
            code = "import sys; print(flush=True); sys.stdin.read()"
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", code],
                    env={marker: str(place)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            return process

        yield start


async def orphans(agent: Agent, **params: Any) -> dict[str, list[str]]:
    """Names by kind."""
    found: dict[str, list[str]] = {}
    for orphan in (await agent.call("Orphans", **params))["orphans"]:
        assert orphan["failed"] is None
        found.setdefault(orphan["kind"], []).append(orphan["name"])
    return found


def leave_files(agent: Agent, name: InstanceId) -> tuple[Path, Path, Path]:
    directories = agent.host.directories
    places = (directories.state(name), directories.run(name), directories.secrets(name))
    for place in places:
        place.mkdir(parents=True)
        (place / "content").write_text("of somebody")
    return places


async def test_a_host_where_all_is_well_has_none(agent: Agent) -> None:
    await agent.deploy()
    assert await orphans(agent) == {}


async def test_files_of_nobody_are_found_and_a_data_drive_is_only_put_aside(agent: Agent) -> None:
    await agent.deploy()
    state, run, secrets = leave_files(agent, NOBODY)
    assert await orphans(agent) == {"data drive": [str(state)], "run directory": [str(run)], "secrets": [str(secrets)]}
    assert state.exists(), "to look changes nothing"
    await orphans(agent, clear=True)
    assert [place for place in (state, run, secrets) if place.exists()] == []
    aside = agent.host.orphans.aside / NOBODY / "content"
    assert aside.read_text() == "of somebody"
    assert await orphans(agent) == {}

    shown = await agent.call("NodeGc", dry_run=True)
    assert [drive["path"] for drive in shown["drives"]] == [str(aside.parent)]
    assert (await agent.call("NodeGc", drives=False))["drives"] == []
    assert aside.exists(), "nobody was asked"
    assert (await agent.call("NodeGc"))["bytes"] == shown["bytes"] > 0
    assert not agent.host.orphans.aside.exists()


async def test_two_drives_of_one_name_are_both_kept(agent: Agent) -> None:
    for _ in range(2):
        leave_files(agent, NOBODY)
        await orphans(agent, clear=True)
    assert sorted(path.name for path in agent.host.orphans.aside.iterdir()) == [NOBODY, f"{NOBODY}.2"]


@pytest.mark.parametrize("marker", MARKERS)
async def test_a_process_of_nobody_is_ended_and_a_stranger_is_not(agent: Agent, marked: Mark, marker: str) -> None:
    ours = marked(marker, agent.host.directories.run(NOBODY) / "root")
    other_agent = marked(marker, Path("/tmp/mvm-of-somebody-else/i") / NOBODY)
    assert await orphans(agent) == {"process": [f"pid {ours.pid}"]}
    await orphans(agent, clear=True)
    assert ours.wait(10) != 0
    assert other_agent.poll() is None


async def test_a_process_of_an_instance_that_does_not_run_is_one(agent: Agent, marked: Mark) -> None:
    await agent.deploy()
    worker, address = await agent.worker(), await agent.address()
    left = marked(MARKERS[0], agent.host.directories.run(InstanceId(worker["instance_id"])))
    assert await orphans(agent) == {}, "it runs: that may be its own"
    await agent.call("InstanceSleep", address=address, force=True)
    assert await orphans(agent) == {"process": [f"pid {left.pid}"]}
    await orphans(agent, clear=True)
    assert left.wait(10) != 0
    assert (await agent.worker())["state"] == "sleeping"


async def test_a_process_in_the_jail_of_an_instance_that_does_not_run_is_one(agent: Agent) -> None:
    await agent.deploy()
    worker, address = await agent.worker(), await agent.address()
    await agent.call("InstanceSleep", address=address, force=True)
    name = InstanceId(worker["instance_id"])
    jail = agent.host.directories.state(name) / "jail/firecracker" / name / "root"
    jail.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"], cwd=jail, env={}) as left:
        try:
            assert await orphans(agent) == {"process": [f"pid {left.pid}"]}
            await orphans(agent, clear=True)
            assert left.wait(10) != 0
        finally:
            left.kill()


async def test_secrets_stay_only_for_who_is_up(agent: Agent) -> None:
    await agent.deploy()
    instance_id, address = InstanceId((await agent.worker())["instance_id"]), await agent.address()
    place = agent.host.directories.secrets(instance_id)
    place.mkdir(parents=True, exist_ok=True)
    assert await orphans(agent) == {}
    await agent.call("InstanceSleep", address=address, force=True)
    place.mkdir(parents=True, exist_ok=True)
    image = place.with_name(f"{instance_id}.img")
    image.touch()
    assert sorted((await orphans(agent))["secrets"]) == [str(place), str(image)]
    await orphans(agent, clear=True)
    assert [left for left in (place, image) if left.exists()] == []


async def test_a_base_in_the_making_is_not_nobodys(agent: Agent) -> None:
    directories = agent.host.directories
    (directories.state_dir / "bases/.work/some-key").mkdir(parents=True)
    place = directories.secrets(base_id("some-key"))
    place.mkdir(parents=True)
    assert await orphans(agent) == {}


async def test_what_cannot_be_cleared_away_is_told_and_keeps_nobody_else(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, run, _ = leave_files(agent, NOBODY)

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "rename", refuse)
    answer = await agent.call("Orphans", clear=True)
    assert {o["name"]: o["failed"] for o in answer["orphans"] if o["failed"]} == {str(state): "not yours"}
    assert state.exists()
    assert not run.exists()
    assert os.listdir(agent.host.orphans.aside) == []
