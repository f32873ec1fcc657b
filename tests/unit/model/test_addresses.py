"""Addresses, names and MACs, and who gets the next one."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.model import addresses
from mvm.model.errors import Conflict, InvalidInput

net_ids = st.integers(1, 4094)
octets = st.integers(3, 254)


@pytest.mark.parametrize(
    ("net_id", "subnet"),
    [
        (1, "10.240.1.0/24"),
        (12, "10.240.12.0/24"),
        (255, "10.240.255.0/24"),
        (256, "10.241.0.0/24"),
        (4094, "10.255.254.0/24"),
    ],
)
def test_a_net_id_has_the_subnet_of_the_contract(net_id: int, subnet: str) -> None:
    assert str(addresses.subnet_of(net_id)) == subnet


@given(net_ids, net_ids)
def test_subnets_lie_in_the_cluster_range_and_two_ids_never_share_one(one: int, other: int) -> None:
    first, second = addresses.subnet_of(one), addresses.subnet_of(other)
    assert first.subnet_of(addresses.CLUSTER_RANGE)
    assert first.overlaps(second) == (one == other)


@given(net_ids, octets)
def test_an_instance_gets_everything_from_its_place(net_id: int, octet: int) -> None:
    place = addresses.instance_network(addresses.tenant_network(net_id), octet)
    subnet = addresses.subnet_of(net_id)
    assert IPv4Address(place.guest_ip) in subnet
    assert place.guest_ip.split(".")[-1] == str(octet) == str(place.host_octet)
    assert place.gateway_ip == str(subnet.network_address + 1)
    assert place.tap == f"tn{net_id}i{octet}"
    assert len(place.tap) <= 15
    assert len(addresses.bridge_name(net_id)) <= 15
    assert place.mac == f"02:fc:{net_id >> 8:02x}:{net_id & 255:02x}:00:{octet:02x}"


@given(net_ids, octets, net_ids, octets)
def test_no_two_places_share_an_address_a_mac_or_a_tap(net_a: int, octet_a: int, net_b: int, octet_b: int) -> None:
    a = addresses.instance_network(addresses.tenant_network(net_a), octet_a)
    b = addresses.instance_network(addresses.tenant_network(net_b), octet_b)
    same = (net_a, octet_a) == (net_b, octet_b)
    assert (a.guest_ip == b.guest_ip) is (a.mac == b.mac) is (a.tap == b.tap) is same


@given(st.sets(st.integers(1, 254)))
def test_the_next_octet_is_the_lowest_free_one(used: set[int]) -> None:
    free = [octet for octet in range(3, 255) if octet not in used]
    if free:
        assert addresses.next_host_octet(used) == free[0]
    else:
        with pytest.raises(Conflict):
            addresses.next_host_octet(used)


def test_a_full_subnet_says_so() -> None:
    with pytest.raises(Conflict, match="all 252"):
        addresses.next_host_octet(set(range(3, 255)))


@given(st.sets(net_ids, max_size=50))
def test_a_net_id_is_never_given_twice(ever_used: set[int]) -> None:
    assert addresses.next_net_id(ever_used) not in ever_used


def test_a_net_id_whose_subnet_is_taken_by_somebody_else_is_passed_over() -> None:
    assert addresses.next_net_id({1}, [IPv4Network("10.240.2.0/23")]) == 4


def test_no_net_id_left_says_so() -> None:
    with pytest.raises(Conflict, match="no tenant net id is left"):
        addresses.next_net_id(range(1, 4095))


def test_another_subnet_may_be_given() -> None:
    network = addresses.tenant_network(7, "192.168.9.0/24")
    place = addresses.allocate_instance(network, used_octets={3})
    assert (place.guest_ip, place.gateway_ip, place.mac) == ("192.168.9.4", "192.168.9.1", "02:fc:00:07:00:04")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.240.1.0",
        "10.240.1.0/23",
        "10.240.1.0/25",
        "10.240.1.7/24",
        "10.240.1.0/24/24",
        "10.240.01.0/24",
        "fe80::/24",
        "127.0.0.0/24",
        "169.254.1.0/24",
        "224.0.0.0/24",
        "0.0.0.0/24",
        "10.240.1.0/24\n",
        "x" * 10_000,
    ],
)
def test_a_subnet_of_another_form_is_refused_briefly_with_the_right_form(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        addresses.parse_subnet(text)
    assert refused.value.hint
    assert len(refused.value.message) < 300


@given(st.text())
def test_any_text_for_a_subnet_is_a_subnet_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        assert addresses.parse_subnet(text).prefixlen == 24


def test_an_overlap_names_whose_network_it_is() -> None:
    with pytest.raises(Conflict, match=r"10\.0\.0\.0/16 of the host's eth0"):
        addresses.require_free(IPv4Network("10.0.3.0/24"), {"the host's eth0": IPv4Network("10.0.0.0/16")})
    addresses.require_free(IPv4Network("10.1.3.0/24"), {"the host's eth0": IPv4Network("10.0.0.0/16")})


@pytest.mark.parametrize("octet", [0, 255, 256, -1])
def test_an_octet_that_is_no_host_is_refused(octet: int) -> None:
    with pytest.raises(InvalidInput, match="octet"):
        addresses.tap_name(1, octet)
