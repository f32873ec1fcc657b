"""What the network should be follows from who is there and who consents."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.unit.network.town import ALICE, BOB, GATEWAYS, PEOPLE, Town

from mvm.host.catalog import Catalog
from mvm.model.addresses import loopback_address, networked_address
from mvm.model.egress import Egress, host_ports, reaches_internet
from mvm.model.entities import Instance
from mvm.network.devices import overlapping_routes
from mvm.network.picture import Grant, Picture, Resolvers
from mvm.network.resolvers import nameservers, read_resolvers
from mvm.network.rules import render
from mvm.store.sqlite import SqliteStore


@pytest.fixture
async def town(tmp_path: Path) -> Town:
    return Town(await Catalog.open(await SqliteStore.open(tmp_path / "state.db")))


def grant(gateway: Instance, worker: Instance) -> Grant:
    return Grant(IPv4Address(gateway.network.guest_ip), IPv4Address(worker.network.guest_ip))


async def test_a_gateway_is_granted_the_workers_of_its_tenant_and_no_others(town: Town) -> None:
    await town.tenant(ALICE, 1)
    await town.tenant(BOB, 2)
    gateway, worker = await town.instance(ALICE, GATEWAYS), await town.instance(ALICE, PEOPLE)
    await town.instance(BOB, PEOPLE, user="bob")
    assert town.picture().grants == (grant(gateway, worker),)


async def test_a_gateway_that_serves_another_tenant_is_granted_the_workers_of_its_people(town: Town) -> None:
    await town.tenant(ALICE, 1, accepts=(BOB,))
    await town.tenant(BOB, 2, gateway_tenant=ALICE)
    gateway = await town.instance(ALICE, GATEWAYS)
    bound, _unbound = await town.instance(BOB, PEOPLE, user="bob"), await town.instance(BOB, PEOPLE)
    assert town.picture().grants == (grant(gateway, bound),)


async def test_without_the_consent_of_both_there_is_no_grant(town: Town) -> None:
    await town.tenant(ALICE, 1)
    await town.tenant(BOB, 2, gateway_tenant=ALICE)
    await town.instance(ALICE, GATEWAYS)
    await town.instance(BOB, PEOPLE, user="bob")
    assert town.picture().grants == ()


async def test_a_tenant_without_instances_has_no_bridge(town: Town) -> None:
    await town.tenant(ALICE, 1)
    await town.tenant(BOB, 2)
    await town.instance(BOB, PEOPLE)
    assert [bridge.name for bridge in town.picture().bridges] == ["br-tenant-2"]


async def test_equal_pictures_have_equal_rules(town: Town) -> None:
    await town.tenant(ALICE, 1)
    for pool in (GATEWAYS, PEOPLE, PEOPLE):
        await town.instance(ALICE, pool)
    assert render(town.picture(), owner="x") == render(town.picture(), owner="x")


def test_an_owner_cannot_write_rules() -> None:
    assert '"; }' not in render(Picture(), owner='x"; } table inet evil { comment "')


@pytest.mark.parametrize(
    ("egress", "ports", "internet"),
    [
        ("internet", (), True),
        ("none", (), False),
        (("host:80", "host:9", "10.0.0.0/8:443"), (9, 80), False),
        (("internet", "host:80"), (80,), True),
    ],
)
def test_what_an_egress_lets_pass(egress: Egress, ports: tuple[int, ...], internet: bool) -> None:
    assert (host_ports(egress), reaches_internet(egress)) == (ports, internet)


@pytest.mark.parametrize(
    ("files", "addresses_", "through_host"),
    [
        (["nameserver 192.0.2.1\nnameserver fe80::1\nnameserver 192.0.2.2"], ["192.0.2.1", "192.0.2.2"], None),
        (["nameserver 127.0.0.53", "nameserver 192.0.2.9"], ["192.0.2.9"], None),
        (["nameserver 127.0.0.53 # stub", None], [], "127.0.0.53"),
        (["nameserver 169.254.169.254"], [], "169.254.169.254"),
        (["nameserver 127.0.0.1\nnameserver 192.0.2.3"], ["192.0.2.3"], None),
        (["nameserver 198.51.100.1", None], [], "198.51.100.1"),
        (["nameserver 198.51.100.1\nnameserver 192.0.2.3"], ["192.0.2.3"], None),
        (["", None], [], None),
        (["".join(f"nameserver 192.0.2.{n}\n" for n in range(9))], ["192.0.2.0", "192.0.2.1", "192.0.2.2"], None),
    ],
)
def test_guests_are_told_of_resolvers_that_they_can_ask(
    tmp_path: Path, files: list[str | None], addresses_: list[str], through_host: str | None
) -> None:
    places = [tmp_path / str(number) for number in range(len(files))]
    for place, text in zip(places, files, strict=True):
        if text is not None:
            place.write_text(text)
    found = read_resolvers(*places, own=lambda: [IPv4Address("198.51.100.1")])
    assert (list(map(str, found.addresses)), found.through_host and str(found.through_host)) == (
        addresses_,
        through_host,
    )


def test_a_resolver_behind_the_host_is_asked_at_the_bridge() -> None:
    assert Resolvers(through_host=IPv4Address("127.0.0.53")).for_guest("10.240.1.1") == ("10.240.1.1",)
    assert Resolvers(addresses=(IPv4Address("192.0.2.1"),)).for_guest("10.240.1.1") == ("192.0.2.1",)
    assert Resolvers().for_guest("10.240.1.1") == ()


def test_whatever_else_is_in_a_resolv_conf_is_passed_over() -> None:
    assert nameservers("search example\nnameserver\nnameserver x\nnameserver 0.0.0.0\noptions ndots:1") == []


@pytest.mark.parametrize("address", ["10.240.1.3", "10.255.254.254"])
def test_an_address_in_the_cluster_and_the_loopback_one_for_it_are_found_from_each_other(address: str) -> None:
    assert networked_address(loopback_address(address)) == address


@pytest.mark.parametrize("address", ["10.240.1.3", "192.168.7.3", "127.0.0.1"])
def test_any_other_address_is_left_as_it_is(address: str) -> None:
    assert networked_address(address) == address


def test_routes_of_the_host_into_the_range_of_tenants_are_found(tmp_path: Path) -> None:
    head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    rows = [
        "eth0\t00000000\t0100000A\t3\t0\t0\t0\t00000000\t0\t0\t0",
        "eth0\t0000000A\t00000000\t1\t0\t0\t0\t000000FF\t0\t0\t0",
        "br-tenant-1\t0001F00A\t00000000\t1\t0\t0\t0\t00FFFFFF\t0\t0\t0",
        "tun0\t0000F50A\t00000000\t1\t0\t0\t0\t0000FFFF\t0\t0\t0",
    ]
    table = tmp_path / "route"
    table.write_text(head + "\n".join(rows) + "\n")
    assert overlapping_routes(table) == ("10.0.0.0/8 on eth0", "10.245.0.0/16 on tun0")
