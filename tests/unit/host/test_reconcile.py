"""Passes of the reconcile engine over a host of records: whole desired states, what is kept, told and tried again."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.host.services import ALICE, GATEWAYS, WORKERS, Services

from mvm.host.audit import AuditAction
from mvm.model.desired import DesiredPool, DesiredState, DesiredTenant, validate_desired
from mvm.model.entities import DesiredCounts, Instance
from mvm.model.errors import InvalidInput, MvmError, QuotaExceeded, Refused
from mvm.model.ids import PoolId, TenantId, UserId
from mvm.model.roles import Role
from mvm.model.states import State
from mvm.model.validation import ValidationProblems

ERIN = TenantId("erin")


def pool(pool_id: str = "gateways", role: str = "gateway", running: int = 1, **more: Any) -> dict[str, Any]:
    counts = {"running": running, "warm": 0, "sleeping": 0}
    return {"pool_id": pool_id, "role": role, "desired_counts": counts, **more}


def tenant(name: str = "erin", *pools: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"tenant_id": name, "pools": list(pools or (pool(),)), **more}


def state(*tenants: dict[str, Any], **more: Any) -> DesiredState:
    return validate_desired({"schema_version": 1, "node_id": "local", "tenants": list(tenants), **more})


async def reconcile(services: Services, *tenants: dict[str, Any], **more: Any) -> dict[str, Any]:
    report = await services.reconciler.apply_state(state(*tenants, **more), actor="test")
    return report.to_json()


async def keep_up(services: Services) -> dict[str, Any]:
    return (await services.reconciler.keep_up()).to_json()


def only(services: Services, tenant_id: TenantId = ERIN) -> Instance:
    (found,) = services.catalog.instances_of(tenant_id)
    return found


def audited(services: Services, action: AuditAction) -> int:
    return services.kinds().count(action.value)


async def test_a_state_is_brought_about_and_a_second_pass_does_nothing_and_says_so(services: Services) -> None:
    first = await reconcile(services, tenant())
    gateway = only(services)
    assert gateway.state is State.RUNNING
    assert first["tenants"]["created"] == ["erin"]
    assert first["pools"]["created"] == ["erin/gateways"]
    assert first["instances"]["created"] == first["instances"]["started"] == [str(gateway.ref)]
    before = services.kinds()
    second = await reconcile(services, tenant())
    assert (second["changed"], second["actions"], second["errors"]) == (False, [], [])
    assert services.kinds() == before


async def test_the_kept_state_can_be_given_back_and_changes_nothing(services: Services) -> None:
    await reconcile(services, tenant("erin", pool(), pool("workers", "capability-openclaw", 0)))
    bob = await services.users.add(ERIN, UserId("bob"), telegram=["5"], actor="test")
    assert bob.instance_id is not None
    await services.operations.start(services.catalog.instances[bob.instance_id].ref, actor="message")
    kept = (await services.reconciler.desired("local")).to_json()
    assert kept["tenants"][0]["users"][0]["telegram"] == ["5"]
    report = await services.reconciler.apply_state(validate_desired(kept), actor="test")
    assert report.actions == []


async def test_what_nobody_asks_for_is_pruned_with_leave_only_and_only_by_the_pass_that_has_it(
    services: Services,
) -> None:
    await services.tenant("alice", workers=1)
    kept = await reconcile(services, tenant())
    assert kept["left_alone"] == [{"object": "alice", "reason": "nobody asks for this tenant"}]
    pruned = await reconcile(services, tenant(), prune_unknown_tenants=True)
    assert pruned["tenants"]["pruned"] == ["alice"]
    await services.tenant("alice")
    await keep_up(services)
    assert ALICE in services.catalog.tenants


async def test_pools_are_pruned_with_leave_and_their_people_with_them(services: Services) -> None:
    await reconcile(services, tenant("erin", pool(), pool("workers", "capability-openclaw", 0)))
    await services.users.add(ERIN, UserId("bob"), actor="test")
    pruned = await reconcile(services, tenant(), prune_unknown_pools=True)
    assert pruned["pools"]["pruned"] == ["erin/workers"]
    assert pruned["users"]["removed"] == ["erin/users/bob"]
    assert {i.pool_id for i in services.catalog.instances_of(ERIN)} == {"gateways"}


async def test_a_dry_run_tells_what_would_be_done_and_does_none_of_it(services: Services) -> None:
    report = await services.reconciler.apply_state(state(tenant()), actor="test", dry_run=True)
    assert [action.kind.value for action in report.actions] == ["create tenant", "create pool", "create instance"]
    assert await services.store.list("") == []


async def test_contradictions_are_all_told_before_anything_is_done(services: Services) -> None:
    await reconcile(services, tenant())
    wrong = tenant("erin", pool("gateways", "worker"), network={"tenant_net_id": 77})
    with pytest.raises(ValidationProblems) as caught:
        await reconcile(services, wrong, tenant("new"))
    assert [problem.path for problem in caught.value.problems] == ["erin: network", "erin: pools[0].role"]
    assert TenantId("new") not in services.catalog.tenants


async def test_one_that_fails_keeps_nobody_else_from_being_there(services: Services) -> None:
    def fails(what: str, about: Instance | PoolId) -> MvmError | None:
        is_erin = isinstance(about, Instance) and about.tenant_id == ERIN
        return MvmError("no such kernel") if what == "start" and is_erin else None

    services.operations.fails = fails
    report = await reconcile(services, tenant("erin"), tenant("fay"))
    assert [(e["object"], e["message"]) for e in report["errors"]] == [
        ("erin/gateways", "no such kernel: Error: gateways found no model")
    ]
    assert only(services, TenantId("fay")).state is State.RUNNING
    assert only(services).state is State.READY, "kept for the next attempt"


async def test_what_failed_is_tried_again_by_the_agent_after_a_pause(services: Services) -> None:
    services.operations.fails = lambda what, about: MvmError("no memory") if what == "start" else None
    await reconcile(services, tenant())
    services.operations.fails = lambda what, about: None
    assert (await keep_up(services))["instances"]["started"] == []
    services.time.passes(timedelta(seconds=3))
    assert (await keep_up(services))["instances"]["started"] == [str(only(services).ref)]


async def test_a_gateway_that_stopped_comes_back_and_one_that_a_person_stopped_does_not(services: Services) -> None:
    await reconcile(services, tenant())
    await services.operations.stop(only(services).ref, actor="crash")
    assert (await keep_up(services))["instances"]["started"] == [str(only(services).ref)]
    held = (await services.operations.stop(only(services).ref, actor="operator")).model_copy(update={"held": True})
    await services.catalog.save_instance(held)
    assert (await keep_up(services))["changed"] is False


async def test_what_a_guest_refuses_is_put_off_and_audited_once(services: Services) -> None:
    await reconcile(services, tenant("erin", pool("batch", "worker", 2)))
    services.operations.fails = lambda what, about: Refused("a turn is under way") if what == "stop" else None
    for _ in range(3):
        report = await reconcile(services, tenant("erin", pool("batch", "worker", 1)))
        assert [d["reason"] for d in report["deferred"]] == ["a turn is under way"]
        assert report["errors"] == []
    assert audited(services, AuditAction.TRANSITION_DEFERRED) == 1


async def test_what_comes_down_makes_room_within_the_same_pass(services: Services) -> None:
    two = {"max_running": 2}
    await reconcile(services, tenant("erin", pool("a", "worker", 2), pool("b", "worker", 0), quotas=two))
    report = await reconcile(services, tenant("erin", pool("a", "worker", 0), pool("b", "worker", 2), quotas=two))
    assert (len(report["instances"]["stopped"]), len(report["instances"]["started"])) == (2, 2)
    assert report["deferred"] == []
    assert (await reconcile(services, tenant("erin", pool("a", "worker", 0), pool("b", "worker", 2), quotas=two)))[
        "actions"
    ] == []


async def test_a_pool_for_which_there_is_no_room_is_wanted_until_there_is(services: Services) -> None:
    pools = (pool("a", "worker", 0), pool("b", "worker", 0))
    report = await reconcile(services, tenant("erin", *pools, quotas={"max_pools": 1}))
    assert "quota max_pools" in report["deferred"][0]["reason"]
    kept = await services.reconciler.desired("local")
    assert [p.pool_id for p in kept.tenants[0].pools] == ["a", "b"]
    assert (await keep_up(services))["pools"]["created"] == []
    await services.pools.destroy(ERIN, PoolId("a"), actor="operator")
    assert (await keep_up(services))["changed"] is False, "a command of a person is the latest word"
    assert [p.pool_id for p in (await services.reconciler.desired("local")).tenants[0].pools] == []


async def test_what_could_not_be_recorded_is_recorded_once_it_can(services: Services) -> None:
    fails = {"on": True}
    real_create = services.tenants.create

    async def create(*arguments: Any, **options: Any) -> Any:
        if fails["on"]:
            raise MvmError("the disk is full")
        return await real_create(*arguments, **options)

    services.tenants.create = create  # type: ignore[method-assign]
    report = await reconcile(services, tenant())
    assert report["errors"][0]["object"] == "erin"
    assert (await services.reconciler.desired("local")).tenants[0].tenant_id == ERIN
    fails["on"] = False
    services.time.passes(timedelta(minutes=1))
    assert (await keep_up(services))["tenants"]["created"] == ["erin"]
    assert only(services).state is State.RUNNING


async def test_passes_do_not_overlap(services: Services) -> None:
    at_work, most = 0, 0
    real_start = services.operations.start

    async def start(*arguments: Any, **options: Any) -> Any:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0)
        at_work -= 1
        return await real_start(*arguments, **options)

    services.operations.start = start  # type: ignore[method-assign]
    await asyncio.gather(*(reconcile(services, tenant(name)) for name in ("erin", "fay", "gus")))
    assert most == 1


async def test_a_change_that_waits_for_a_pass_undoes_nothing_that_was_recorded_meanwhile(services: Services) -> None:
    await services.tenant(workers=1)
    await services.users.add(ALICE, UserId("bob"), telegram=["111"], pool_id=WORKERS, actor="test")

    def more_memory(tenant: DesiredTenant) -> DesiredTenant:
        specs = [p.spec() for p in tenant.pools]
        changed = [s.model_copy(update={"mem_mib": 3072}) if s.pool_id == WORKERS else s for s in specs]
        return tenant.model_copy(update={"pools": tuple(DesiredPool.from_spec(spec) for spec in changed)})

    async with services.reconciler._pass:
        change = asyncio.create_task(services.reconciler.apply_change(ALICE, more_memory, actor="operator"))
        own = asyncio.create_task(services.reconciler.keep_up())
        for _ in range(20):
            await asyncio.sleep(0)
        await services.users.remove(ALICE, UserId("bob"), actor="operator")
    report, _ = await change, await own
    assert report.done["pools"]["updated"] == ["alice/workers"]
    assert services.catalog.pool(ALICE, WORKERS).mem_mib == 3072
    assert services.catalog.users_of(ALICE) == []


async def test_a_sender_who_was_unlinked_is_not_linked_again_by_what_still_waits(services: Services) -> None:
    bob = {"user_id": "bob", "pool_id": "workers", "telegram": ["111", "222"], "discord": []}
    pools = (pool(), pool("workers", "capability-openclaw", 0))
    await reconcile(services, tenant("erin", *pools, users=[bob], quotas={"max_pools": 2}))
    more = pool("extra", "worker", 0)
    report = await reconcile(services, tenant("erin", *pools, more, users=[bob], quotas={"max_pools": 2}))
    assert report["deferred"], "something waits"
    await services.users.unlink(ERIN, UserId("bob"), {"telegram": ["111"]}, actor="operator")
    await keep_up(services)
    assert services.catalog.user(ERIN, UserId("bob")).telegram == ("222",)
    (kept,) = (await services.reconciler.desired("local")).tenants
    assert [p.pool_id for p in kept.pools][-1] == "extra", "it waits still"
    assert kept.users[0].telegram == ("222",)


async def test_a_pass_is_measured(services: Services) -> None:
    seen: list[tuple[float, int]] = []
    services.reconciler.observe = lambda seconds, errors: seen.append((seconds, errors))
    await keep_up(services)
    services.operations.fails = lambda what, about: MvmError("no memory") if what == "start" else None
    await reconcile(services, tenant())
    assert [errors for _, errors in seen] == [0, 1]


async def test_a_persons_count_that_no_quota_allows_is_refused_after_what_fits_was_done(services: Services) -> None:
    await services.tenant()
    pool_of_twenty = services.catalog.pool(ALICE, WORKERS).model_copy(update={"desired": DesiredCounts(running=20)})
    await services.catalog.save_pool(pool_of_twenty)
    with pytest.raises(QuotaExceeded, match="instances wait: quota max_vcpus"):
        await services.reconciler.bring_about(ALICE, WORKERS, actor="operator")
    assert sum(i.state is State.RUNNING for i in services.catalog.instances_of(ALICE)) == 8


async def test_a_pool_that_is_being_destroyed_is_left_alone(services: Services) -> None:
    await services.tenant(workers=1)
    services.operations.fails = lambda what, about: MvmError("busy disk") if what == "destroy" else None
    with pytest.raises(MvmError, match="busy disk"):
        await services.pools.destroy(ALICE, WORKERS, actor="operator")
    await services.operations.stop(services.catalog.instances_of(ALICE, WORKERS)[0].ref, actor="crash")
    assert (await keep_up(services))["changed"] is False


async def test_a_user_without_a_worker_gets_one(services: Services) -> None:
    await services.tenant()
    bob = await services.users.add(ALICE, UserId("bob"), actor="test")
    (worker,) = services.catalog.instances_of(ALICE, WORKERS)
    await services.operations.destroy(worker.ref, actor="operator")
    await services.users.unbind(ALICE, bob.user_id, actor="operator")
    await asyncio.gather(keep_up(services), keep_up(services))
    (worker,) = services.catalog.instances_of(ALICE, WORKERS)
    assert (worker.user, services.users.get(ALICE, bob.user_id).instance_id) == ("bob", worker.instance_id)
    assert worker.state is State.READY, "it comes up with their first message"


async def test_gateways_are_of_use_first(services: Services) -> None:
    order: list[str] = []

    def note(what: str, about: Instance | PoolId) -> MvmError | None:
        if what == "start" and isinstance(about, Instance):
            order.append(about.pool_id)
        return None

    services.operations.fails = note
    await reconcile(services, tenant("erin", pool("batch", "worker", 2), pool()))
    assert order == ["gateways", "batch", "batch"]


async def test_a_role_that_does_not_exist_is_refused_with_the_roles(services: Services) -> None:
    with pytest.raises(InvalidInput, match="role 'gatway' is unknown"):
        state(tenant("erin", pool("gateways", "gatway")))
    assert Role.GATEWAY in Role


async def test_a_new_size_reaches_every_idle_instance_one_after_the_other(services: Services) -> None:
    await reconcile(services, tenant("erin", pool("batch", "worker", 3)))
    larger = tenant("erin", pool("batch", "worker", 3, instance_resources={"vcpus": 2, "mem_mib": 2048}))
    first = await reconcile(services, larger)
    assert len(first["instances"]["restarted"]) == 1
    assert [len((await keep_up(services))["instances"]["restarted"]) for _ in range(3)] == [1, 1, 0]
    assert {i.mem_mib for i in services.catalog.instances_of(ERIN)} == {2048}


async def test_one_that_does_not_come_up_with_a_new_size_stops_the_roll(services: Services) -> None:
    await reconcile(services, tenant("erin", pool("batch", "worker", 2)))

    async def fail(ref: Any, *, actor: str, unless_held: bool = False) -> Instance:
        failed = services.catalog.instance(ref).model_copy(update={"last_error": "no memory", "mem_mib": 2048})
        await services.catalog.save_instance(failed)
        raise MvmError("no memory")

    real_start, services.operations.start = services.operations.start, fail  # type: ignore[method-assign]
    larger = tenant("erin", pool("batch", "worker", 2, instance_resources={"vcpus": 2, "mem_mib": 2048}))
    assert len((await reconcile(services, larger))["errors"]) == 1
    services.time.passes(timedelta(minutes=5))
    report = await keep_up(services)
    assert "no memory" in str(report["deferred"])
    assert sorted(i.state for i in services.catalog.instances_of(ERIN)) == [State.RUNNING, State.STOPPED]
    services.operations.start = real_start  # type: ignore[method-assign]
    assert GATEWAYS not in {i.pool_id for i in services.catalog.instances_of(ERIN)}
