"""The host keeps its tenants' networks as its catalog says, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from tests.contract.network.world import INTERNET, World, guest, needs_namespaces
from tests.standins.instant_runtime import InstantRuntime

from mvm.host.catalog import Catalog
from mvm.host.gateways import Gateways
from mvm.host.networks import Networks
from mvm.host.runtimes import Runtimes
from mvm.model import addresses
from mvm.model.entities import Instance, Pool, Tenant
from mvm.model.errors import Conflict
from mvm.model.ids import InstanceId, PoolId, TenantId, TenantNetId
from mvm.model.roles import Role
from mvm.network import devices
from mvm.network.apply import nft
from mvm.network.picture import Guest, Resolvers
from mvm.network.taps import open_tap
from mvm.store.sqlite import SqliteStore

pytestmark = needs_namespaces

ALICE, PEOPLE = TenantId("alice"), PoolId("people")
NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@pytest.fixture
async def catalog(world: World, tmp_path: Path) -> AsyncIterator[Catalog]:
    store = await SqliteStore.open(tmp_path / "state.db")
    yield await Catalog.open(store)
    await store.close()


@contextlib.asynccontextmanager
async def kept(catalog: Catalog, *, owner: str = "/state", networks: bool = True) -> AsyncIterator[Networks]:
    runtime = InstantRuntime()
    runtime.capabilities = dataclasses.replace(runtime.capabilities, networks=networks)
    keeper = Networks(
        catalog=catalog,
        runtimes=Runtimes({"": runtime}),
        gateways=Gateways(catalog),
        owner=owner,
        resolvers=lambda: Resolvers(addresses=(IPv4Address("192.0.2.53"),)),
    )
    await keeper.start()
    try:
        yield keeper
    finally:
        await keeper.close()


async def one_instance(catalog: Catalog) -> Instance:
    network = addresses.tenant_network(TenantNetId(1))
    await catalog.save_tenant(Tenant(tenant_id=ALICE, network=network, created_at=NOW))
    await catalog.save_pool(Pool(tenant_id=ALICE, pool_id=PEOPLE, role=Role.WORKER, created_at=NOW))
    return await catalog.save_instance(
        Instance(
            tenant_id=ALICE,
            pool_id=PEOPLE,
            instance_id=InstanceId("i-00000001"),
            role=Role.WORKER,
            network=addresses.allocate_instance(network, used_octets=()),
            created_at=NOW,
        )
    )


async def rules() -> str:
    return await nft("list", "ruleset")


def place_of(instance: Instance) -> Guest:
    return guest(1, instance.network.host_octet)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


def interfaces() -> set[str]:
    with IPRoute() as route:
        return {link.get("ifname") for link in route.get_links()}


async def test_a_host_whose_instances_need_no_network_is_left_alone(catalog: Catalog) -> None:
    instance = await one_instance(catalog)
    before = devices.host_settings()
    async with kept(catalog, networks=False) as networks:
        await networks.ready(instance)
    assert await rules() == ""
    assert not devices.bridge_is_there("br-tenant-1")
    assert devices.host_settings() == before


async def test_an_instance_that_is_ready_has_its_bridge_and_may_reach_the_internet(
    world: World, catalog: Catalog
) -> None:
    async with kept(catalog) as networks:
        instance = await one_instance(catalog)
        await networks.ready(instance)
        world.connect(place_of(instance))
        with world.outside.listen(443):
            assert world.reaches(place_of(instance), INTERNET, 443)


async def test_a_pool_that_is_closed_is_closed_for_those_that_run(world: World, catalog: Catalog) -> None:
    async with kept(catalog) as networks:
        instance = await one_instance(catalog)
        await networks.ready(instance)
        world.connect(place_of(instance))
        closed = catalog.pool(ALICE, PEOPLE).model_copy(update={"egress": "none"})
        with world.outside.listen(443):
            assert world.reaches(place_of(instance), INTERNET, 443)
            await catalog.save_pool(closed)
            await until(lambda: not world.reaches(place_of(instance), INTERNET, 443))


async def test_a_machine_that_an_image_is_built_in_reaches_the_internet_and_nobody_else(
    world: World, catalog: Catalog
) -> None:
    async with kept(catalog) as networks:
        instance = await one_instance(catalog)
        await networks.ready(instance)
        await networks.admit_builder(ALICE)
        built_in = guest(1, addresses.BUILDER_OCTET)
        world.connect(place_of(instance))
        world.connect(built_in)
        with world.outside.listen(443):
            assert world.reaches(built_in, INTERNET, 443)
        assert not world.reaches(built_in, str(instance.network.guest_ip), 18789)
        await networks.dismiss_builder(ALICE)
        assert "10.240.1.2" not in await rules()
        assert "10.240.1.3" in await rules()


async def test_the_network_of_a_build_goes_with_it_when_nobody_else_needs_one(catalog: Catalog) -> None:
    network = addresses.tenant_network(TenantNetId(1))
    await catalog.save_tenant(Tenant(tenant_id=ALICE, network=network, created_at=NOW))
    async with kept(catalog) as networks:
        await networks.admit_builder(ALICE)
        assert devices.bridge_is_there("br-tenant-1")
        assert (await networks.strays()) == ()
        await networks.dismiss_builder(ALICE)
        assert not devices.bridge_is_there("br-tenant-1")
        assert await rules() == ""


async def test_it_ends_however_shortly_before_something_has_changed(catalog: Catalog) -> None:
    """`asyncio.wait_for` of Python 3.11 forgets a cancellation when what it waits for comes at the same moment."""
    network = addresses.tenant_network(TenantNetId(1))
    await catalog.save_tenant(Tenant(tenant_id=ALICE, network=network, created_at=NOW))
    async with asyncio.timeout(20), kept(catalog) as networks:
        await networks.admit_builder(ALICE)
        await networks.dismiss_builder(ALICE)


async def test_what_somebody_threw_away_is_there_again_before_the_next_start(catalog: Catalog) -> None:
    async with kept(catalog) as networks:
        instance = await one_instance(catalog)
        await networks.ready(instance)
        whole = await rules()
        await nft("flush", "ruleset")
        await networks.ready(instance)
        assert await rules() == whole


async def test_what_somebody_changed_in_it_is_put_right(catalog: Catalog) -> None:
    async with kept(catalog) as networks:
        instance = await one_instance(catalog)
        await networks.ready(instance)
        whole = await rules()
        await nft("flush", "chain", "inet", "mvm", "between")
        await networks.ready(instance)
        assert await rules() == whole


async def test_a_bridge_that_was_taken_away_is_there_again(catalog: Catalog) -> None:
    async with kept(catalog) as networks:
        instance = await one_instance(catalog)
        await networks.ready(instance)
        await asyncio.to_thread(devices.remove_bridges)
        await networks.ready(instance)
        assert devices.bridge_is_there("br-tenant-1")


async def test_rules_of_others_are_none_of_its_business(catalog: Catalog) -> None:
    async with kept(catalog) as networks:
        instance = await one_instance(catalog)
        await networks.ready(instance)
        await nft("add", "table", "inet", "somebody")
        await networks.ready(instance)
        assert "table inet somebody" in await rules()


async def test_the_last_instance_takes_everything_along(catalog: Catalog) -> None:
    before = devices.host_settings()
    async with kept(catalog) as networks:
        instance = await one_instance(catalog)
        await networks.ready(instance)
        assert devices.host_settings() == devices.HOST
        await catalog.remove_instance(instance.ref)
        await networks.tenant_removed(ALICE)
        assert await rules() == ""
        assert await asyncio.to_thread(interfaces) == {"lo", "up0"}
        assert devices.host_settings() == before


async def test_networks_outlive_their_agent_and_its_next_run_takes_them_on(world: World, catalog: Catalog) -> None:
    async with kept(catalog) as networks:
        instance = await one_instance(catalog)
        await networks.ready(instance)
    tap = open_tap(instance.network.tap, "br-tenant-1")
    world.defer(lambda: os.close(tap))
    whole = await rules()
    async with kept(catalog) as networks:
        assert networks.usable() == (True, "bridges and rules can be made")
        assert await rules() == whole
        assert devices.bridge_is_there(instance.network.tap)


async def test_a_second_agent_does_not_take_the_networks_of_a_first(catalog: Catalog) -> None:
    async with kept(catalog) as first:
        instance = await one_instance(catalog)
        await first.ready(instance)
        async with kept(catalog, owner="/other") as second:
            assert second.usable()[0] is False
            with pytest.raises(Conflict, match="another agent"):
                await second.changed()


async def test_machines_of_an_agent_that_ended_keep_their_network(world: World, catalog: Catalog) -> None:
    async with kept(catalog) as first:
        instance = await one_instance(catalog)
        await first.ready(instance)
    tap = open_tap(instance.network.tap, "br-tenant-1")
    world.defer(lambda: os.close(tap))
    async with kept(catalog, owner="/other") as second:
        with pytest.raises(Conflict, match="'/state'"):
            await second.changed()
    assert devices.bridge_is_there(instance.network.tap)


DOCKER = (
    "table ip filter {\nchain DOCKER-USER {\n}\n"
    "chain FORWARD {\ntype filter hook forward priority filter; policy drop;\njump DOCKER-USER\n}\n}\n"
)


async def of_others(networks: Networks) -> tuple[bool, str]:
    """What is found of other programs' rules."""
    return {what: (well, found) for what, well, found in await networks.inspect()}["rules of other programs"]


async def test_guests_pass_where_docker_drops_what_is_not_its_own(world: World, catalog: Catalog) -> None:
    await nft("-f", "-", text=DOCKER)
    before = await rules()
    async with kept(catalog) as networks:
        instance = await one_instance(catalog)
        await networks.ready(instance)
        world.connect(place_of(instance))
        with world.outside.listen(443):
            assert world.reaches(place_of(instance), INTERNET, 443)
        await catalog.remove_instance(instance.ref)
        await networks.tenant_removed(ALICE)
    assert await rules() == before


@pytest.mark.parametrize("lost", ["both rules", "one rule"])
async def test_a_way_through_docker_that_was_lost_is_told_and_there_again_before_the_next_start(
    world: World, catalog: Catalog, lost: str
) -> None:
    await nft("-f", "-", text=DOCKER)
    async with kept(catalog) as networks:
        instance = await one_instance(catalog)
        await networks.ready(instance)
        world.connect(place_of(instance))
        whole = await rules()
        assert await of_others(networks) == (True, "let pass")
        if lost == "both rules":
            await nft("flush", "chain", "ip", "filter", "DOCKER-USER")
        else:
            listed = await nft("--handle", "list", "chain", "ip", "filter", "DOCKER-USER")
            handle = next(line.rpartition(" ")[2] for line in listed.splitlines() if "oifname" in line)
            await nft("delete", "rule", "ip", "filter", "DOCKER-USER", "handle", handle)
        assert await of_others(networks) == (False, "ip filter FORWARD drop what is forwarded")
        await networks.ready(instance)
        assert await of_others(networks) == (True, "let pass")
        assert sorted(without_counts(await rules())) == sorted(without_counts(whole))
        with world.outside.listen(443):
            assert world.reaches(place_of(instance), INTERNET, 443)


def without_counts(ruleset: str) -> list[str]:
    """Lines of a ruleset without what was counted."""
    return [re.sub(r"packets \d+ bytes \d+", "", line) for line in ruleset.splitlines()]
