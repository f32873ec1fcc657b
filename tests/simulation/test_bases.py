"""New workers as copies of a base: made once, kept apart from every tenant, and never in the way of a start."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from copy import copy
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.simulation.world import ALICE, GATEWAYS, WORKERS, World
from tests.standins.instant_runtime import Guest
from tests.standins.waiting import until

from mvm.guest.identity import NOBODYS_NETWORK
from mvm.host.bases import NOBODY, NOBODYS_POOL, PLACEHOLDER, RETRY_SECONDS
from mvm.model.entities import Instance
from mvm.model.errors import Conflict, MvmError, Unavailable
from mvm.model.ids import InstanceId
from mvm.model.states import State
from mvm.wire import messages


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World(tmp_path, clone=True).open()
    await world.tenant()
    yield world
    await world.close()


def made_by_booting(world: World) -> int:
    return world.runtime.starts


def left_of_bases(world: World) -> list[str]:
    """Everything under the bases' directory but the finished bases; the processes that serve no instance."""
    work = world.bases.directory / ".work"
    strangers = set(world.runtime.processes) - set(world.catalog.instances)
    return [str(path) for path in sorted(work.glob("*"))] + sorted(strangers)


def stages(instance: Instance) -> list[str]:
    assert instance.last_wake is not None
    return [stage.stage for stage in instance.last_wake.stages]


async def test_the_first_worker_is_a_copy_of_the_base_and_learns_who_it_is(world: World) -> None:
    ref = await world.worker()
    assert made_by_booting(world) == 1  # the base; the worker itself was restored
    assert world.runtime.restores == 1
    assert world.guest(ref).wakes == 1
    assert "restore" in stages(world.catalog.instance(ref))
    assert left_of_bases(world) == []


async def test_the_base_takes_a_turn_before_it_is_drained_and_kept(world: World) -> None:
    met: dict[int, Guest] = {}
    guest_of = world.runtime.guest

    def guest(instance: InstanceId) -> Guest:
        found = guest_of(instance)
        met[id(found)] = found
        return found

    world.runtime.guest = guest  # type: ignore[method-assign]
    await world.worker()
    base = next(iter(met.values()))
    assert base.requests.index("Exec") < base.requests.index("SleepPrep")


async def test_nothing_of_a_person_a_tenant_or_a_key_is_on_the_drives_of_a_base(world: World) -> None:
    found: dict[str, str] = {}

    def look(step: str) -> None:
        if step == "before start" and not found:
            drives = (world.directory / "secrets", world.directory / "run/b")
            files = (path for drive in drives for path in drive.rglob("*") if path.is_file())
            found.update({str(path): path.read_text() for path in files})

    world.runtime.on_step = look
    ref = await world.worker()
    by_name = {Path(path).name: text for path, text in found.items()}
    assert by_name["ANTHROPIC_API_KEY"] == PLACEHOLDER
    config = json.loads(by_name["config.json"])
    assert (config["tenant_id"], config["pool_id"]) == (NOBODY, NOBODYS_POOL)
    assert IPv4Address(config["guest_ip"]) in NOBODYS_NETWORK
    assert config["instance_id"] not in world.catalog.instances
    tenant = world.catalog.tenant(ALICE)
    for named in (ALICE, WORKERS, ref.instance_id, tenant.network.ipv4_subnet.rpartition(".")[0]):
        assert not [path for path, text in found.items() if named in text], named


async def test_workers_that_start_together_share_one_base(world: World) -> None:
    await asyncio.gather(world.worker(), world.worker(), world.worker())
    assert made_by_booting(world) == 1
    assert world.runtime.restores == 3


async def test_a_base_outlives_the_agent(world: World) -> None:
    await world.worker()
    await world.restart_agent()
    await world.worker()
    assert made_by_booting(world) == 1


async def test_a_gateway_boots(world: World) -> None:
    await world.worker(pool=GATEWAYS)
    assert made_by_booting(world) == 1
    assert world.runtime.restores == 0
    assert not world.bases.directory.exists()


async def test_a_worker_that_ran_before_boots_from_its_own_data(world: World) -> None:
    ref = await world.worker(state=State.STOPPED)
    await world.lifecycle.start(ref, actor="test")
    assert made_by_booting(world) == 2
    assert world.runtime.restores == 1


@pytest.mark.parametrize("step", ["start", "pause", "keep_as_base"])
async def test_a_worker_boots_when_there_can_be_no_base(world: World, step: str) -> None:
    world.runtime.fail[step] = Unavailable("the disk is full")
    ref = await world.worker()
    assert world.state(ref) is State.RUNNING
    assert world.runtime.restores == 0
    assert left_of_bases(world) == []
    before = made_by_booting(world)
    await world.worker()
    assert made_by_booting(world) == before + 1  # the base is not tried again so soon
    world.time.pass_seconds(RETRY_SECONDS)
    await world.worker()
    assert world.runtime.restores == 1


async def test_a_worker_boots_when_the_first_turn_of_the_base_fails(world: World) -> None:
    async def refuse(request: messages.HostToGuest) -> None:
        if isinstance(request, messages.Exec):
            raise AssertionError("no turn")

    guest_of = world.runtime.guest

    def guest(instance: InstanceId) -> Guest:
        found = guest_of(instance)
        found.before = refuse
        return found

    world.runtime.guest = guest  # type: ignore[method-assign]
    ref = await world.worker()
    assert world.state(ref) is State.RUNNING
    assert world.runtime.restores == 0
    assert left_of_bases(world) == []


async def test_a_copy_that_cannot_be_made_is_no_reason_not_to_start(world: World) -> None:
    await world.worker()
    world.runtime.fail["clone"] = Unavailable("the disk is full")
    ref = await world.worker()
    assert world.state(ref) is State.RUNNING
    assert made_by_booting(world) == 2


async def test_an_agent_killed_while_it_makes_a_base_leaves_nothing_of_it(world: World) -> None:
    class Killed(BaseException):
        pass

    def kill(step: str) -> None:
        if step == "before keep_as_base":
            raise Killed

    world.runtime.on_step = kill
    removing = world.bases._remove
    first = True

    async def die_instead(*given: object) -> None:
        """What a killed agent does not do any more."""
        nonlocal first
        if first:
            first = False
            await removing(*given)  # type: ignore[arg-type]

    world.bases._remove = die_instead  # type: ignore[method-assign]
    with pytest.raises(Killed):
        await world.worker()
    assert len(left_of_bases(world)) == 2
    world.runtime.on_step = lambda step: None
    another = copy(world.runtime)
    another.name = "another"  # type: ignore[misc]
    await world.bases.clear_unfinished(another)
    assert len(left_of_bases(world)) == 2, "it knows nothing of the process"
    await world.restart_agent()
    assert left_of_bases(world) == []


async def test_what_a_killed_removal_left_of_bases_is_removed_by_the_next_agent(world: World) -> None:
    await world.worker()
    (made,) = [path for path in world.bases.directory.iterdir() if path.name != ".work"]
    half_removed = world.bases.directory / ".work/0123/base"
    half_removed.mkdir(parents=True)
    (half_removed / "memory").write_text("of a base whose making was just being cleared away")
    doomed = world.bases.directory / ".removed-abc/4567"
    doomed.mkdir(parents=True)
    (doomed / "memory").write_text("of a base that nobody used")
    await world.restart_agent()
    assert left_of_bases(world) == []
    assert [path for path in world.bases.directory.iterdir() if path.name != ".work"] == [made]


async def test_one_that_is_left_and_cannot_be_removed_keeps_no_other_from_it(world: World) -> None:
    for key in ("0123", "4567"):
        (world.bases.directory / ".work" / key / "base").mkdir(parents=True)
    world.runtime.fail["destroy"] = MvmError("it cannot be removed")
    await world.bases.clear_unfinished(world.runtime)
    assert left_of_bases(world) == [str(world.bases.directory / ".work/0123")]


async def test_a_base_is_garbage_when_no_copy_of_it_was_made_for_a_month(world: World) -> None:
    day = 24 * 3600.0
    await world.worker()
    (made,) = [path for path in world.bases.directory.iterdir() if path.name != ".work"]
    world.time.pass_seconds(20 * day)
    await world.worker()
    world.time.pass_seconds(20 * day)
    assert world.bases.unused([]) == [], "it was needed since"
    world.time.pass_seconds(20 * day)
    assert world.bases.unused([]) == [made]


async def test_nobody_is_among_the_tenants(world: World) -> None:
    await world.worker()
    assert NOBODY not in world.catalog.tenants
    assert [i.tenant_id for i in world.catalog.instances.values()] == [ALICE]


@pytest.mark.parametrize("command", ["destroy", "stop"])
async def test_who_is_no_longer_wanted_does_not_wait_for_a_base_that_is_being_made(world: World, command: str) -> None:
    made = asyncio.Event()
    guest_of = world.runtime.guest

    def guest(instance: InstanceId) -> Guest:
        found = guest_of(instance)
        found.answer_gate = made  # this one never answers
        return found

    world.runtime.guest = guest  # type: ignore[method-assign]
    ref = (await world.lifecycle.create_instance(ALICE, WORKERS, actor="test")).ref
    starting = asyncio.create_task(world.lifecycle.start(ref, actor="test"))
    await until(lambda: bool(world.runtime.processes), what="the base's machine", seconds=60)
    if command == "destroy":
        await world.lifecycle.destroy(ref, actor="test")
    else:
        # There is nothing to stop then: it is as it was before its start.
        with pytest.raises(MvmError, match="Invalid state transition: ready -> stopped"):
            await world.lifecycle.stop(ref, actor="test", force=True)
    with pytest.raises(Conflict, match=f"the start of {ref} was given up"):
        await starting
    made.set()
    assert (ref.instance_id in world.catalog.instances) == (command == "stop")
    assert left_of_bases(world) == []
    world.runtime.guest = guest_of  # type: ignore[method-assign]
    await world.worker()
    assert world.runtime.restores == 1, "the base is made for the next one"


async def test_who_is_no_longer_wanted_does_not_wait_for_another_one_that_boots(world: World) -> None:
    slow = world.runtime.capabilities
    world.runtime.capabilities = replace(slow, slowness=4.0, clone=False)
    made = asyncio.Event()
    guest_of = world.runtime.guest

    def guest(instance: InstanceId) -> Guest:
        found = guest_of(instance)
        found.answer_gate = made
        return found

    world.runtime.guest = guest  # type: ignore[method-assign]
    first, second = [(await world.lifecycle.create_instance(ALICE, WORKERS, actor="test")).ref for _ in range(2)]
    starting = [asyncio.create_task(world.lifecycle.start(first, actor="test"))]
    await until(lambda: world.has_process(first), what="the first one's machine", seconds=60)
    starting.append(asyncio.create_task(world.lifecycle.start(second, actor="test")))
    instances, waits = world.catalog.instances, second.instance_id
    await until(lambda: instances[waits].transition is not None, what="the second one's start", seconds=60)
    await world.lifecycle.destroy(second, actor="test")
    with pytest.raises(Conflict, match="was given up"):
        await starting[1]
    made.set()
    await starting[0]
    assert world.state(first) is State.RUNNING
