"""Who is served by a deployment, and that the gateway hears of every change."""

from pathlib import Path

import pytest
from tests.unit.host.services import ALICE, GATEWAYS, WORKERS, Services, opened

from mvm.host.tenants import TenantChanges
from mvm.model.entities import Instance, PoolSpec, Quotas, UserSpec
from mvm.model.errors import Conflict, InvalidInput, MvmError, NotFound, QuotaExceeded
from mvm.model.ids import PoolId, TenantId, UserId
from mvm.model.roles import Role
from mvm.model.states import State

BOB = UserId("bob")


async def test_a_new_user_has_a_worker_of_their_own_and_the_gateway_hears_of_it(services: Services) -> None:
    await services.tenant()
    user = await services.users.add(ALICE, BOB, telegram=["111"], actor="test")
    assert user.instance_id is not None
    assert services.catalog.instances[user.instance_id].user == BOB
    assert services.operations.refreshed == [services.gateway().ref]


async def test_an_instance_that_is_nobodys_yet_is_used_before_a_new_one_is_made(services: Services) -> None:
    await services.tenant(workers=1)
    (spare,) = services.catalog.instances_of(ALICE, WORKERS)
    user = await services.users.add(ALICE, BOB, actor="test")
    assert user.instance_id == spare.instance_id
    assert services.catalog.instances[spare.instance_id].user == BOB


async def test_a_sender_belongs_to_one_user_only(services: Services) -> None:
    await services.tenant()
    await services.users.add(ALICE, BOB, telegram=["111"], actor="test")
    with pytest.raises(Conflict, match=r"telegram:111 already belongs to user 'bob'"):
        await services.users.add(ALICE, UserId("carol"), telegram=["111"], actor="test")
    assert [user.user_id for user in services.users.list(ALICE)] == ["bob"]


async def test_the_same_number_on_another_channel_is_another_sender(services: Services) -> None:
    await services.tenant()
    await services.users.add(ALICE, BOB, telegram=["111"], actor="test")
    await services.users.add(ALICE, UserId("carol"), discord=["111"], actor="test")


@pytest.mark.parametrize("sender", ["", "12a", "-1", "1" * 21, "telegram:1"])
async def test_what_is_no_sender_id_is_refused(services: Services, sender: str) -> None:
    await services.tenant()
    with pytest.raises(InvalidInput):
        await services.users.add(ALICE, BOB, telegram=[sender], actor="test")
    assert services.users.list(ALICE) == []


async def test_nothing_is_left_of_a_user_for_whom_there_is_no_room(services: Services) -> None:
    await services.tenant()
    services.operations.fails = lambda operation, _: QuotaExceeded("full") if operation == "create" else None
    with pytest.raises(QuotaExceeded):
        await services.users.add(ALICE, BOB, telegram=["111"], actor="test")
    assert services.users.list(ALICE) == []
    assert services.catalog.instances_of(ALICE, WORKERS) == []


async def test_a_user_who_exists_is_not_added_again(services: Services) -> None:
    await services.tenant()
    await services.users.add(ALICE, BOB, actor="test")
    with pytest.raises(Conflict, match="exists already"):
        await services.users.add(ALICE, BOB, actor="test")


async def test_a_user_who_has_these_senders_already_is_as_good_as_added(services: Services) -> None:
    await services.tenant()
    first = await services.users.add(ALICE, BOB, telegram=["111"], actor="test")
    assert await services.users.add(ALICE, BOB, telegram=["111"], actor="test") == services.users.get(ALICE, BOB)
    assert services.kinds(ALICE).count("UserAdded") == 1
    assert services.users.get(ALICE, BOB).instance_id == first.instance_id


async def test_a_sender_that_a_user_does_not_have_is_not_added_by_a_slip_but_linked(services: Services) -> None:
    await services.tenant()
    await services.users.add(ALICE, BOB, actor="test")
    with pytest.raises(Conflict, match="exists already") as caught:
        await services.users.add(ALICE, BOB, telegram=["111"], discord=["5"], actor="test")
    assert "`mvm user link alice bob --telegram 111 --discord 5`" in (caught.value.hint or "")
    services.operations.refreshed.clear()
    user = await services.users.link(ALICE, BOB, {"telegram": ["111"]}, actor="test")
    assert user.peers == ("telegram:111",)
    assert services.operations.refreshed == [services.gateway().ref]
    user = await services.users.link(ALICE, BOB, {"telegram": ["222", "111"], "discord": ["5"]}, actor="test")
    assert user.peers == ("telegram:111", "telegram:222", "discord:5")


async def test_linking_what_is_linked_changes_nothing(services: Services) -> None:
    await services.tenant()
    await services.users.add(ALICE, BOB, telegram=["111"], actor="test")
    services.operations.refreshed.clear()
    await services.users.link(ALICE, BOB, {"telegram": ["111"]}, actor="test")
    assert services.operations.refreshed == []
    assert "UserUpdated" not in services.kinds(ALICE)


async def test_a_sender_who_is_somebody_else_is_not_linked_before_they_are_unlinked(services: Services) -> None:
    await services.tenant()
    carol = UserId("carol")
    await services.users.add(ALICE, BOB, telegram=["111", "222"], actor="test")
    await services.users.add(ALICE, carol, actor="test")
    with pytest.raises(Conflict, match="telegram:111 already belongs to user 'bob'") as caught:
        await services.users.link(ALICE, carol, {"telegram": ["111"]}, actor="test")
    assert "`mvm user unlink alice bob --telegram 111`" in (caught.value.hint or "")
    assert (await services.users.unlink(ALICE, BOB, {"telegram": ["111"]}, actor="test")).peers == ("telegram:222",)
    assert (await services.users.link(ALICE, carol, {"telegram": ["111"]}, actor="test")).peers == ("telegram:111",)


async def test_only_who_is_a_user_can_be_unlinked_from_them(services: Services) -> None:
    await services.tenant()
    await services.users.add(ALICE, BOB, telegram=["111"], actor="test")
    with pytest.raises(NotFound, match="telegram:222 is no address of user 'bob'"):
        await services.users.unlink(ALICE, BOB, {"telegram": ["111", "222"]}, actor="test")
    assert services.users.get(ALICE, BOB).peers == ("telegram:111",)
    with pytest.raises(NotFound):
        await services.users.link(ALICE, UserId("nobody"), {"telegram": ["333"]}, actor="test")


async def test_a_gateway_pool_holds_nobodys_worker(services: Services) -> None:
    await services.tenant()
    with pytest.raises(InvalidInput, match="cannot hold anybody's worker"):
        await services.users.add(ALICE, BOB, pool_id=GATEWAYS, actor="test")


async def test_with_two_pools_of_workers_the_pool_must_be_named(services: Services) -> None:
    await services.tenant()
    large = PoolSpec(pool_id=PoolId("large"), role=Role.CAPABILITY_OPENCLAW)
    await services.pools.create(ALICE, large, actor="test")
    with pytest.raises(InvalidInput, match="several pools"):
        await services.users.add(ALICE, BOB, actor="test")
    user = await services.users.add(ALICE, BOB, pool_id=large.pool_id, actor="test")
    assert user.pool_id == "large"


async def test_what_a_manifest_says_of_a_users_addresses_replaces_what_was_known(services: Services) -> None:
    await services.tenant()
    await services.users.add(ALICE, BOB, telegram=["111"], discord=["5"], actor="test")
    said = UserSpec(user_id=BOB, pool_id=WORKERS, telegram=("222",))
    assert (await services.users.change(ALICE, said, actor="test")).peers == ("telegram:222",)


async def test_the_gateway_stops_serving_a_user_before_their_worker_is_destroyed(services: Services) -> None:
    await services.tenant()
    await services.users.add(ALICE, BOB, telegram=["111"], actor="test")
    order: list[str] = []
    services.operations.fails = lambda operation, about: order.append(operation)  # type: ignore[func-returns-value,return-value]
    await services.users.remove(ALICE, BOB, actor="test")
    assert order == ["refresh", "destroy"]
    assert services.users.list(ALICE) == []
    assert services.catalog.instances_of(ALICE, WORKERS) == []
    assert "tokens/" not in await services.everything()


async def test_a_removal_that_was_cut_short_is_finished_by_the_next_agent(tmp_path: Path) -> None:
    async with opened(tmp_path / "state") as services:
        await services.tenant()
        await services.users.add(ALICE, BOB, telegram=["111"], actor="test")
        services.operations.fails = lambda operation, _: MvmError("dead") if operation == "destroy" else None
        with pytest.raises(MvmError):
            await services.users.remove(ALICE, BOB, actor="test")
        assert services.users.list(ALICE) == []
    async with opened(tmp_path / "state") as services:
        assert len(services.catalog.instances_of(ALICE, WORKERS)) == 1
        await services.users.resume_removals()
        assert services.catalog.instances_of(ALICE, WORKERS) == []
        assert await services.removals.pending("user") == []


async def test_a_user_whose_worker_was_not_made_yet_gets_one_from_the_next_agent(services: Services) -> None:
    await services.tenant()
    user = await services.users.add(ALICE, BOB, actor="test")
    await services.catalog.save_user(user.model_copy(update={"instance_id": None}))
    await services.users.resume_removals()
    assert services.users.get(ALICE, BOB).instance_id == user.instance_id


async def test_a_refresh_that_fails_is_told_and_the_user_is_added_all_the_same(services: Services) -> None:
    await services.tenant()
    services.operations.fails = lambda operation, _: MvmError("deaf") if operation == "refresh" else None
    await services.users.add(ALICE, BOB, telegram=["111"], actor="test")
    assert services.users.get(ALICE, BOB).peers == ("telegram:111",)
    assert "RefreshFailed" in services.kinds(ALICE)


async def test_tenants_at_one_gateway_cannot_have_a_sender_in_common(services: Services) -> None:
    hub = await services.tenant("hub")
    bob = await services.tenant("bob", gateway=False)
    await services.users.add(hub, UserId("anna"), telegram=["111"], actor="test")
    await services.users.add(bob, BOB, telegram=["111"], actor="test")
    await services.tenants.update(hub, TenantChanges(accepts=(bob,)), actor="test")
    with pytest.raises(Conflict, match="telegram:111"):
        await services.tenants.update(bob, TenantChanges(gateway_tenant=hub), actor="test")
    assert services.gateways.gateway_of(bob) is None


async def test_at_a_shared_gateway_a_conflict_does_not_name_another_tenants_user(services: Services) -> None:
    hub = await services.tenant("hub")
    bob = await services.tenant("bob", gateway=False)
    await services.tenants.update(hub, TenantChanges(accepts=(bob,)), actor="test")
    await services.tenants.update(bob, TenantChanges(gateway_tenant=hub), actor="test")
    await services.users.add(hub, UserId("anna"), telegram=["111"], actor="test")
    with pytest.raises(Conflict) as caught:
        await services.users.add(bob, BOB, telegram=["111"], actor="test")
    assert "anna" not in str(caught.value)
    assert "somebody else" in str(caught.value)


async def test_users_of_a_tenant_that_does_not_exist_are_not_found(services: Services) -> None:
    with pytest.raises(NotFound):
        services.users.list(TenantId("nobody"))


async def test_a_user_stays_known_when_their_worker_is_destroyed(services: Services) -> None:
    await services.tenant()
    user = await services.users.add(ALICE, BOB, telegram=["111"], actor="test")
    (worker,) = services.catalog.instances_of(ALICE, WORKERS)
    await services.operations.destroy(worker.ref, actor="test")
    await services.users.unbind(ALICE, BOB, actor="test")
    assert services.users.get(ALICE, BOB).instance_id is None
    rebound = await services.users.bind(services.users.get(ALICE, BOB), actor="test")
    assert rebound.instance_id not in (None, user.instance_id)
    assert services.catalog.instances_of(ALICE, WORKERS)[0].state is State.READY


async def test_quotas_of_a_tenant_can_be_changed_alone(services: Services) -> None:
    await services.tenant()
    before = services.catalog.tenant(ALICE)
    after = await services.tenants.update(ALICE, TenantChanges(quotas=Quotas(max_running=1)), actor="test")
    assert after == before.model_copy(update={"quotas": Quotas(max_running=1)})


async def test_who_is_still_being_removed_is_not_added_and_the_removal_can_be_finished(services: Services) -> None:
    await services.tenant()
    await services.users.add(ALICE, BOB, actor="test")
    services.operations.fails = lambda operation, _: MvmError("stuck") if operation == "destroy" else None
    with pytest.raises(MvmError, match="stuck"):
        await services.users.remove(ALICE, BOB, actor="test")
    services.operations.fails = lambda operation, _: None
    with pytest.raises(Conflict, match="still being removed"):
        await services.users.add(ALICE, BOB, actor="test")
    await services.users.remove(ALICE, BOB, actor="test")
    assert (await services.users.add(ALICE, BOB, actor="test")).instance_id is not None
    with pytest.raises(NotFound):
        await services.users.remove(ALICE, UserId("nobody"), actor="test")


async def test_one_removal_that_cannot_be_finished_does_not_keep_the_others(services: Services) -> None:
    await services.tenant()
    carol = UserId("carol")
    services.operations.fails = lambda operation, _: MvmError("stuck") if operation == "destroy" else None
    for name in (BOB, carol):
        await services.users.add(ALICE, name, actor="test")
        with pytest.raises(MvmError, match="stuck"):
            await services.users.remove(ALICE, name, actor="test")
    services.operations.fails = lambda operation, about: (
        MvmError("stuck") if operation == "destroy" and isinstance(about, Instance) and about.user == BOB else None
    )
    await services.users.resume_removals()
    assert [i.user for i in services.catalog.instances_of(ALICE, WORKERS)] == [BOB]
    assert "UserRemovalFailed" in services.kinds(ALICE)
