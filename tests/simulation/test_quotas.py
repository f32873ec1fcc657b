"""All seven quotas, with whatever is under way counted in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest
from tests.simulation.engine import engine
from tests.simulation.world import ALICE, WORKERS, World
from tests.standins.waiting import until

from mvm.host.gateways import Gateways
from mvm.host.pools import Pools
from mvm.host.refreshes import Refreshes
from mvm.host.removals import Removals
from mvm.host.reports import Activity
from mvm.model.entities import Instance, PoolSpec, Quotas
from mvm.model.errors import NotFound, QuotaExceeded, Refused
from mvm.model.ids import PoolId
from mvm.model.roles import Role
from mvm.model.states import State

PLENTY = {
    "max_vcpus": 1000,
    "max_mem_mib": 10**6,
    "max_running": 100,
    "max_warm": 100,
    "max_pools": 100,
    "max_instances_per_pool": 100,
    "max_disk_gib": 1000,
}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World(tmp_path).open()
    await world.tenant()
    yield world
    await world.close()


async def limit(world: World, **quotas: int) -> None:
    """Plenty of everything but these."""
    tenant = world.catalog.tenant(ALICE)
    await world.catalog.save_tenant(tenant.model_copy(update={"quotas": Quotas(**(PLENTY | quotas))}))


async def outcomes(*work: Awaitable[object]) -> list[str]:
    """What came of things that were all begun at once: `ok`, or the quota that refused."""
    results = await asyncio.gather(*work, return_exceptions=True)
    return sorted(_outcome(result) for result in results)


def _outcome(result: object) -> str:
    if isinstance(result, QuotaExceeded):
        return next(name for name in PLENTY if name in result.message)
    assert not isinstance(result, BaseException), result
    return "ok"


def pools(world: World) -> Pools:
    clock = world.time.clock()
    return Pools(
        catalog=world.catalog,
        operations=world.lifecycle,
        quotas=world.quotas,
        refreshes=Refreshes(world.catalog, world.lifecycle, Gateways(world.catalog), world.chronicle),
        removals=Removals(world.store, clock),
        chronicle=world.chronicle,
        clock=clock,
    )


def spec(name: str, **more: int) -> PoolSpec:
    return PoolSpec(pool_id=PoolId(name), role=Role.WORKER, **more)


@pytest.mark.parametrize(
    ("quota", "value"), [("max_running", 2), ("max_vcpus", 4), ("max_mem_mib", 2048)], ids=lambda value: str(value)
)
async def test_starts_at_once_share_what_is_left(world: World, quota: str, value: int) -> None:
    refs = [await world.worker(state=State.READY) for _ in range(5)]
    await limit(world, **{quota: value})
    came = await outcomes(*(world.lifecycle.start(ref, actor="test") for ref in refs))
    assert came == [quota] * 3 + ["ok"] * 2


async def test_warmings_at_once_share_what_is_left(world: World) -> None:
    refs = [await world.worker() for _ in range(4)]
    await limit(world, max_warm=2)
    came = await outcomes(*(world.lifecycle.warm(ref, actor="test") for ref in refs))
    assert came == ["max_warm"] * 2 + ["ok"] * 2


async def test_creations_at_once_share_what_is_left(world: World) -> None:
    await limit(world, max_instances_per_pool=3)
    came = await outcomes(*(world.lifecycle.create_instance(ALICE, WORKERS, actor="test") for _ in range(5)))
    assert came == ["max_instances_per_pool"] * 2 + ["ok"] * 3


async def test_drives_count_also_of_those_that_sleep_and_when_they_grow(world: World) -> None:
    await limit(world, max_disk_gib=4)
    made = await pools(world).create(ALICE, spec("batch", data_disk_mib=1024), actor="test")
    came = await outcomes(*(world.lifecycle.create_instance(ALICE, made.pool_id, actor="test") for _ in range(6)))
    assert came == ["max_disk_gib"] * 2 + ["ok"] * 4
    with pytest.raises(QuotaExceeded, match="max_disk_gib would be exceeded by larger drives of alice/batch"):
        await pools(world).update(ALICE, spec("batch", data_disk_mib=2048), actor="test")
    assert world.catalog.pool(ALICE, made.pool_id).data_disk_mib == 1024
    await pools(world).update(ALICE, spec("batch", data_disk_mib=512), actor="test")


async def test_pools_at_once_share_what_is_left(world: World) -> None:
    await limit(world, max_pools=3)
    service = pools(world)
    came = await outcomes(*(service.create(ALICE, spec(f"batch-{n}"), actor="test") for n in range(3)))
    assert came == ["max_pools"] * 2 + ["ok"], "two are there already"


async def test_what_runs_counts_with_the_size_that_it_runs_with(world: World) -> None:
    await world.worker()
    pool = world.catalog.pool(ALICE, WORKERS)
    await world.catalog.save_pool(pool.model_copy(update={"vcpus": 8}))
    assert world.quotas.use(ALICE).vcpus == pool.vcpus


async def test_a_larger_size_that_has_no_room_restarts_nobody(world: World) -> None:
    ref = await world.worker()
    await limit(world, max_mem_mib=2048)
    pool = world.catalog.pool(ALICE, WORKERS)
    await world.catalog.save_pool(pool.model_copy(update={"mem_mib": 4096}))
    report = await engine(world).keep_up()
    assert "max_mem_mib" in report.deferrals[0].reason
    assert (world.state(ref), world.guest(ref).sleeps) == (State.RUNNING, 0)


async def test_no_instance_is_made_in_a_pool_that_is_just_going(world: World) -> None:
    await limit(world)
    made = await pools(world).create(ALICE, spec("batch"), actor="test")
    for _ in range(3):
        await world.lifecycle.create_instance(ALICE, made.pool_id, actor="test")

    making = [world.lifecycle.create_instance(ALICE, made.pool_id, actor="test") for _ in range(20)]
    results = await asyncio.gather(
        *making[:10], pools(world).destroy(ALICE, made.pool_id, actor="test"), *making[10:], return_exceptions=True
    )
    assert {type(result) for result in results} <= {Instance, NotFound, type(None)}
    assert world.catalog.instances_of(ALICE, made.pool_id) == []


async def test_a_wake_that_waits_for_room_is_told_of_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvm.host.wakes.ROOM_RETRY_SECONDS", 0.01)
    await limit(world, max_vcpus=2)
    working, wanted = await world.worker(), await world.worker(state=State.READY)
    world.says(working, Activity.BUSY, in_flight=1)
    looked = 0
    make_room = world.wakes._make_room

    async def look(instance: Instance, *, actor: str) -> None:
        nonlocal looked
        looked += 1
        await make_room(instance, actor=actor)

    world.wakes._make_room = look  # type: ignore[method-assign]
    waiting = asyncio.create_task(world.wakes.wake(wanted, actor="test"))
    await until(lambda: looked > 5, what="a look for room", seconds=60)
    await world.lifecycle.stop(working, actor="test", force=True)
    assert (await waiting).state is State.RUNNING
    actions = [entry["action"] for entry in world.audit.recent(ALICE, 100)]
    assert actions.count("QuotaExceeded") == 1


async def test_a_wake_that_waits_for_room_ends_with_its_instance(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvm.host.wakes.ROOM_RETRY_SECONDS", 0.01)
    await limit(world, max_vcpus=2)
    working, wanted = await world.worker(), await world.worker(state=State.READY)
    world.says(working, Activity.BUSY, in_flight=1)
    waiting = asyncio.create_task(world.wakes.wake(wanted, actor="test"))
    await until(lambda: "QuotaExceeded" in [e["action"] for e in world.audit.recent(ALICE, 100)], what="the wait")
    await world.lifecycle.destroy(wanted, actor="test")
    with pytest.raises(NotFound):
        await asyncio.wait_for(waiting, 30)
    assert world.state(working) is State.RUNNING


async def test_a_wake_that_waits_for_room_does_not_start_who_was_stopped_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvm.host.wakes.ROOM_RETRY_SECONDS", 0.01)
    wanted, working = await world.worker(state=State.SLEEPING), await world.worker()
    await limit(world, max_running=1)
    world.says(working, Activity.BUSY, in_flight=1)
    waiting = asyncio.create_task(world.wakes.wake(wanted, actor="message"))
    await until(lambda: "QuotaExceeded" in [e["action"] for e in world.audit.recent(ALICE, 100)], what="the wait")
    await world.lifecycle.stop(wanted, actor="operator")
    world.says(working, Activity.IDLE)
    with pytest.raises(Refused, match="stopped by its operator"):
        await asyncio.wait_for(waiting, 30)
    assert (world.state(wanted), world.catalog.instance(wanted).held) == (State.STOPPED, True)
    assert world.state(working) is State.RUNNING, "nobody is put to sleep for nobody"
