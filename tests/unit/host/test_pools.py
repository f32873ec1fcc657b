"""Pools: their rules, their counts and their end."""

from pathlib import Path

import pytest
from tests.unit.host.services import ALICE, GATEWAYS, WORKERS, Services, opened

from mvm.host.tenants import TenantChanges
from mvm.model.entities import PoolSpec, Quotas, RuntimePolicy
from mvm.model.errors import Conflict, InvalidInput, MvmError, NotFound, QuotaExceeded, Refused
from mvm.model.ids import PoolId, UserId
from mvm.model.roles import Role
from mvm.model.states import State


def states(services: Services) -> list[State]:
    return [i.state for i in services.catalog.instances_of(ALICE, WORKERS)]


async def test_scaling_makes_and_starts_what_is_missing_and_stops_what_is_too_much(services: Services) -> None:
    await services.tenant()
    await services.scale(WORKERS, running=3)
    assert states(services) == [State.RUNNING] * 3
    await services.scale(WORKERS, running=1)
    assert sorted(states(services)) == [State.RUNNING, State.STOPPED, State.STOPPED]


async def test_a_count_that_is_not_given_stays(services: Services) -> None:
    await services.tenant()
    await services.scale(WORKERS, running=1, sleeping=1)
    await services.scale(WORKERS, running=2)
    pool = services.catalog.pool(ALICE, WORKERS)
    assert (pool.desired.running, pool.desired.sleeping) == (2, 1)


async def test_scaling_again_does_nothing(services: Services) -> None:
    await services.tenant()
    await services.scale(WORKERS, running=2)
    before = services.kinds()
    await services.scale(WORKERS, running=2)
    assert services.kinds() == before


async def test_an_instance_that_cannot_start_is_kept_for_another_attempt_and_the_others_are_there(
    services: Services,
) -> None:
    await services.tenant()
    started: list[object] = []

    def fails(operation: str, about: object) -> MvmError | None:
        if operation != "start":
            return None
        started.append(about)
        return MvmError("no memory") if len(started) == 2 else None

    services.operations.fails = fails
    with pytest.raises(MvmError, match="no memory"):
        await services.scale(WORKERS, running=3)
    assert sorted(states(services)) == [State.READY, State.RUNNING, State.RUNNING]


async def test_a_pool_too_many_is_refused(services: Services) -> None:
    await services.tenant()
    await services.tenants.update(ALICE, TenantChanges(quotas=Quotas(max_pools=2)), actor="test")
    with pytest.raises(QuotaExceeded, match="max_pools"):
        await services.pools.create(ALICE, PoolSpec(pool_id=PoolId("third")), actor="test")


async def test_a_role_never_changes(services: Services) -> None:
    await services.tenant()
    with pytest.raises(InvalidInput, match="never changes"):
        await services.pools.update(ALICE, PoolSpec(pool_id=WORKERS, role=Role.WORKER), actor="test")


async def test_a_changed_policy_reaches_what_runs(services: Services) -> None:
    await services.tenant(workers=1)
    spec = services.catalog.pool(ALICE, WORKERS).spec.model_copy(
        update={"runtime_policy": RuntimePolicy(drain_timeout_seconds=5)}
    )
    await services.pools.update(ALICE, spec, actor="test")
    assert services.operations.refreshed == [services.catalog.instances_of(ALICE, WORKERS)[0].ref]


async def test_a_pool_that_exists_is_not_created_again(services: Services) -> None:
    await services.tenant()
    with pytest.raises(Conflict, match="exists already"):
        await services.pools.create(ALICE, PoolSpec(pool_id=WORKERS), actor="test")


async def test_a_pool_that_holds_peoples_workers_is_not_destroyed(services: Services) -> None:
    await services.tenant()
    await services.users.add(ALICE, UserId("bob"), actor="test")
    with pytest.raises(Refused, match="holds the workers of bob"):
        await services.pools.destroy(ALICE, WORKERS, actor="test")


async def test_a_destroyed_pool_takes_its_instances_along(services: Services) -> None:
    await services.tenant(workers=2)
    await services.pools.destroy(ALICE, WORKERS, actor="test")
    assert services.catalog.instances_of(ALICE, WORKERS) == []
    with pytest.raises(NotFound):
        services.catalog.pool(ALICE, WORKERS)


async def test_workers_hear_of_the_end_of_their_gateway(services: Services) -> None:
    await services.tenant(workers=1)
    await services.pools.destroy(ALICE, GATEWAYS, actor="test")
    assert services.operations.refreshed == [services.catalog.instances_of(ALICE, WORKERS)[0].ref]


async def test_a_destruction_that_was_cut_short_is_finished_by_the_next_agent(tmp_path: Path) -> None:
    async with opened(tmp_path / "state") as services:
        await services.tenant(workers=2)
        services.operations.fails = lambda operation, _: MvmError("dead") if operation == "destroy" else None
        with pytest.raises(MvmError):
            await services.pools.destroy(ALICE, WORKERS, actor="test")
    async with opened(tmp_path / "state") as services:
        await services.pools.resume_removals()
        assert (ALICE, WORKERS) not in services.catalog.pools
        assert await services.removals.pending("pool") == []
