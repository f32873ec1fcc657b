"""Tenants come with a network of their own, share gateways by consent, and go without a trace."""

import asyncio
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from tests.unit.host.services import ALICE, GATEWAYS, WORKERS, Services, opened

from mvm.host.tenants import HOST_AUDIT, TenantChanges
from mvm.model.entities import Instance
from mvm.model.errors import Conflict, InvalidInput, MvmError, NotFound
from mvm.model.ids import InstanceRef, TenantId, UserId

BOB = UserId("bob")


async def create(services: Services, name: str, **options: object) -> str:
    tenant = await services.tenants.create(TenantId(name), actor="test", **options)  # type: ignore[arg-type]
    return tenant.network.ipv4_subnet


async def test_each_tenant_gets_the_next_network(services: Services) -> None:
    assert await create(services, "a") == "10.240.1.0/24"
    assert await create(services, "b") == "10.240.2.0/24"


async def test_a_net_id_is_never_used_again(services: Services) -> None:
    assert await create(services, "a", net_id=7) == "10.240.7.0/24"
    await services.tenants.destroy(TenantId("a"), actor="test")
    with pytest.raises(Conflict, match="never reused"):
        await create(services, "b", net_id=7)
    for number in range(1, 8):
        assert await create(services, f"t{number}") != "10.240.7.0/24"


async def test_two_created_at_once_do_not_share_a_network(services: Services) -> None:
    subnets = await asyncio.gather(*(create(services, f"t{n}") for n in range(10)))
    assert len(set(subnets)) == 10


async def test_a_given_subnet_may_not_overlap_another_tenants(services: Services) -> None:
    await create(services, "a", subnet="192.168.7.0/24")
    with pytest.raises(Conflict, match="tenant 'a'"):
        await create(services, "b", subnet="192.168.7.0/24")


async def test_a_given_subnet_may_not_overlap_the_hosts_own(tmp_path: Path) -> None:
    own = {"this host's interface 'eth0'": IPv4Network("192.168.0.0/16")}
    async with opened(tmp_path / "state", host=own) as services:
        with pytest.raises(Conflict, match="eth0"):
            await create(services, "a", subnet="192.168.7.0/24")


async def test_a_network_of_the_host_is_avoided_where_that_can_be(tmp_path: Path) -> None:
    async with opened(tmp_path / "one", host={"eth0": IPv4Network("10.240.1.0/24")}) as services:
        assert await create(services, "a") == "10.240.2.0/24"
    async with opened(tmp_path / "two", host={"eth0": IPv4Network("10.0.0.0/8")}) as services:
        assert await create(services, "a") == "10.240.1.0/24"


async def test_a_tenant_that_exists_is_not_created_again(services: Services) -> None:
    await create(services, "a")
    with pytest.raises(Conflict, match="exists already"):
        await create(services, "a")


async def test_the_hosts_own_audit_cannot_be_a_tenants(services: Services) -> None:
    with pytest.raises(InvalidInput):
        await create(services, HOST_AUDIT)


async def test_a_destroyed_tenant_leaves_nothing_but_its_net_id_and_a_line_of_the_host(services: Services) -> None:
    await services.tenant(workers=1)
    await services.users.add(ALICE, BOB, telegram=["111"], actor="test")
    await services.tenants.set_secrets(ALICE, {"anthropic/ANTHROPIC_API_KEY": "sk-ant-0123456789"}, actor="test")
    await services.secrets.openclaw_token(services.gateway())
    await services.pairing.request(ALICE, "telegram:999")
    await services.store.put("budgets/alice/bob", ["2026-01-31T12:00:00+00:00"])
    await services.tenants.destroy(ALICE, actor="operator")
    left = [document.key for document in await services.store.list("")]
    assert left == ["net/1"]
    await services.chronicle.flush()
    assert [path.name for path in services.audit_dir.glob("*.jsonl")] == [f"{HOST_AUDIT}.jsonl"]
    assert "alice" in (services.audit_dir / f"{HOST_AUDIT}.jsonl").read_text()
    with pytest.raises(NotFound):
        services.catalog.tenant(ALICE)


async def test_a_name_can_be_used_again(services: Services) -> None:
    await services.tenant(workers=1)
    await services.tenants.destroy(ALICE, actor="operator")
    await services.tenant(workers=1)
    assert services.catalog.tenant(ALICE).network.ipv4_subnet == "10.240.2.0/24"
    assert [name.path for name in await services.secrets.names(ALICE)] == []


async def test_one_instance_that_cannot_be_destroyed_does_not_keep_the_others(services: Services) -> None:
    await services.tenant(workers=2)
    stuck = services.catalog.instances_of(ALICE, WORKERS)[0]

    def fails(operation: str, about: object) -> MvmError | None:
        is_stuck = isinstance(about, Instance) and about.ref == stuck.ref
        return MvmError("it will not die") if operation == "destroy" and is_stuck else None

    services.operations.fails = fails
    with pytest.raises(MvmError, match=r"1 of 3 instances .* it will not die"):
        await services.tenants.destroy(ALICE, actor="operator")
    assert [i.ref for i in services.catalog.instances_of(ALICE)] == [stuck.ref]
    services.operations.fails = lambda operation, about: None
    await services.tenants.destroy(ALICE, actor="operator")
    assert ALICE not in services.catalog.tenants


async def test_a_destruction_that_was_cut_short_is_finished_by_the_next_agent(tmp_path: Path) -> None:
    async with opened(tmp_path / "state") as services:
        await services.tenant(workers=1)
        services.operations.fails = lambda operation, _: MvmError("dead") if operation == "destroy" else None
        with pytest.raises(MvmError):
            await services.tenants.destroy(ALICE, actor="operator")
    async with opened(tmp_path / "state") as services:
        await services.tenants.resume_removals()
        assert [document.key for document in await services.store.list("")] == ["net/1"]


async def test_a_tenant_whose_removal_did_not_end_well_takes_nothing_new_until_it_is_gone(services: Services) -> None:
    await services.tenant(workers=1)
    services.operations.fails = lambda operation, _: MvmError("stuck") if operation == "destroy" else None
    with pytest.raises(MvmError):
        await services.tenants.destroy(ALICE, actor="operator")
    services.operations.fails = lambda operation, about: None
    with pytest.raises(Conflict, match="its removal did not end well") as refused:
        await services.users.add(ALICE, BOB, telegram=["111"], actor="test")
    assert "mvm tenant destroy alice" in (refused.value.hint or "")
    kept = await services.reconciler.desired("local")
    with pytest.raises(Conflict, match="its removal did not end well"):
        await services.reconciler.apply_state(kept, actor="test")
    assert (await services.reconciler.keep_up()).failures == []

    await services.tenants.destroy(ALICE, actor="operator")
    await services.tenant(workers=1)
    await services.tenants.resume_removals()
    assert ALICE in services.catalog.tenants


async def test_what_is_made_in_a_tenant_while_it_goes_goes_too(services: Services) -> None:
    await services.tenant(workers=1)
    destroy, made = services.operations.destroy, 0

    async def make_another(ref: InstanceRef, *, actor: str) -> None:
        nonlocal made
        await destroy(ref, actor=actor)
        if made < 2:
            made += 1
            await services.operations.create_instance(ALICE, WORKERS, actor="test")

    services.operations.destroy = make_another  # type: ignore[method-assign]
    await services.tenants.destroy(ALICE, actor="operator")
    assert made == 2
    assert services.catalog.instances == {}
    assert services.catalog.pools == {}


async def test_a_removal_of_which_only_the_record_is_left_takes_no_later_tenant_of_that_name(
    services: Services,
) -> None:
    await services.tenant(workers=1)
    await services.tenants.destroy(ALICE, actor="operator")
    await services.store.put("host/removals/tenant/alice", {"actor": "operator"})
    await services.tenant(workers=1)
    await services.tenants.resume_removals()
    assert ALICE in services.catalog.tenants


async def shared(services: Services) -> tuple[TenantId, TenantId]:
    """A hub that serves bob's tenant, whose user has a worker."""
    hub = await services.tenant("hub")
    bob = await services.tenant("bob", gateway=False)
    await services.users.add(bob, BOB, telegram=["111"], actor="test")
    await services.tenants.update(hub, TenantChanges(accepts=(bob,)), actor="test")
    await services.tenants.update(bob, TenantChanges(gateway_tenant=hub), actor="test")
    return hub, bob


def bobs_worker(services: Services, bob: TenantId) -> Instance:
    return services.catalog.instances_of(bob, WORKERS)[0]


async def test_a_gateway_may_wake_a_worker_of_a_tenant_that_it_serves(services: Services) -> None:
    hub, bob = await shared(services)
    assert services.gateways.gateway_of(bob) == services.gateway(hub)
    assert services.gateways.granted(services.gateway(hub), bobs_worker(services, bob))


async def test_one_sides_word_is_not_enough(services: Services) -> None:
    hub = await services.tenant("hub")
    bob = await services.tenant("bob", gateway=False)
    await services.users.add(bob, BOB, actor="test")
    await services.tenants.update(bob, TenantChanges(gateway_tenant=hub), actor="test")
    assert services.gateways.gateway_of(bob) is None
    assert not services.gateways.granted(services.gateway(hub), bobs_worker(services, bob))


@pytest.mark.parametrize("side", ["hub", "bob"])
async def test_either_side_ends_it_at_once(services: Services, side: str) -> None:
    hub, bob = await shared(services)
    services.operations.refreshed.clear()
    changes = TenantChanges(accepts=()) if side == "hub" else TenantChanges(gateway_tenant=None)
    await services.tenants.update(TenantId(side), changes, actor="test")
    assert not services.gateways.granted(services.gateway(hub), bobs_worker(services, bob))
    assert services.gateway(hub).ref in services.operations.refreshed
    assert services.gateways.users_served_by(hub) == []


async def test_a_worker_may_wake_nobody(services: Services) -> None:
    hub, bob = await shared(services)
    worker = bobs_worker(services, bob)
    assert not services.gateways.granted(worker, worker)
    assert not services.gateways.granted(worker, services.gateway(hub))


async def test_a_gateway_may_not_wake_what_no_user_of_the_other_tenant_is_bound_to(services: Services) -> None:
    hub, bob = await shared(services)
    nobodys = await services.operations.create_instance(bob, WORKERS, actor="test")
    assert not services.gateways.granted(services.gateway(hub), nobodys)


async def test_a_gateway_does_not_reach_into_a_tenant_that_it_does_not_serve(services: Services) -> None:
    hub, _ = await shared(services)
    carol = await services.tenant("carol")
    await services.users.add(carol, UserId("carol"), actor="test")
    assert not services.gateways.granted(services.gateway(hub), bobs_worker(services, carol))


async def test_a_served_tenants_end_is_heard_by_the_gateway_before_its_workers_go(services: Services) -> None:
    hub, bob = await shared(services)
    heard: list[tuple[str, object]] = []

    def watch(operation: str, about: object) -> None:
        heard.append((operation, about.tenant_id if isinstance(about, Instance) else about))

    services.operations.fails = watch  # type: ignore[assignment]
    await services.tenants.destroy(bob, actor="test")
    assert heard == [("refresh", hub), ("destroy", bob)]


async def test_tenants_of_a_destroyed_hub_have_no_gateway(services: Services) -> None:
    hub, bob = await shared(services)
    await services.tenants.destroy(hub, actor="test")
    assert services.gateways.gateway_of(bob) is None
    assert bobs_worker(services, bob).user == BOB


async def test_a_tenant_cannot_be_its_own_guest(services: Services) -> None:
    await services.tenant()
    for changes in (TenantChanges(gateway_tenant=ALICE), TenantChanges(accepts=(ALICE,))):
        with pytest.raises(InvalidInput, match="itself"):
            await services.tenants.update(ALICE, changes, actor="test")


async def test_an_update_that_changes_nothing_tells_nobody(services: Services) -> None:
    await services.tenant()
    before = services.kinds()
    await services.tenants.update(ALICE, TenantChanges(accepts=()), actor="test")
    assert services.kinds() == before
    assert services.operations.refreshed == []


async def test_a_gateway_of_its_own_is_the_oldest_one(services: Services) -> None:
    await services.tenant()
    await services.scale(GATEWAYS, running=2)
    assert services.gateway() == services.catalog.instances_of(ALICE, GATEWAYS)[0]


async def test_two_destructions_at_once_are_one(services: Services) -> None:
    await services.tenant(workers=2)
    await asyncio.gather(*(services.tenants.destroy(ALICE, actor="operator") for _ in range(3)))
    assert services.kinds().count("TenantDestroyed") == 1


async def test_a_destruction_under_way_is_not_taken_up_a_second_time(services: Services) -> None:
    await services.tenant(workers=1)
    gate, began = asyncio.Event(), asyncio.Event()
    destroy = services.operations.destroy

    async def slowly(ref: InstanceRef, *, actor: str) -> None:
        began.set()
        await gate.wait()
        await destroy(ref, actor=actor)

    services.operations.destroy = slowly  # type: ignore[method-assign]
    under_way = asyncio.create_task(services.tenants.destroy(ALICE, actor="operator"))
    await began.wait()
    await services.tenants.resume_removals()
    gate.set()
    await under_way
    assert services.kinds().count("TenantDestroyed") == 1


async def test_one_bot_is_one_tenants(services: Services) -> None:
    token = {"telegram/TELEGRAM_BOT_TOKEN": "123456789:AAE-abcdefghijklmnopqrstuvwxyz012345"}
    alice, bob = await services.tenant("alice"), await services.tenant("bob")
    await services.tenants.set_secrets(alice, token, actor="test")
    await services.tenants.set_secrets(alice, token, actor="test")
    with pytest.raises(Conflict, match="already, and only one gateway") as caught:
        await services.tenants.set_secrets(bob, token, actor="test")
    assert token["telegram/TELEGRAM_BOT_TOKEN"] not in caught.value.message
    assert "share the gateway: [gateway] tenant = 'alice'" in (caught.value.hint or "")
    assert await services.secrets.names(bob) == []
