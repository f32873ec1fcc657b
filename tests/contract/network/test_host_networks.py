"""The networks that a host is in, by the addresses that its interfaces really have."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Network

from pyroute2 import IPRoute
from tests.contract.network.world import World, needs_namespaces

from mvm.host.host_networks import host_networks
from mvm.model.addresses import next_net_id

pytestmark = needs_namespaces

UPLINK_NETWORK = IPv4Network("198.51.100.0/24")


def give(interface: str, *addresses: str) -> None:
    """Give an interface more addresses, as `address/prefix length`."""
    with IPRoute() as route:
        index = route.link_lookup(ifname=interface)[0]
        for address in addresses:
            route.addr("add", index=index, address=address.partition("/")[0], prefixlen=int(address.partition("/")[2]))


async def test_every_address_of_an_interface_counts(world: World) -> None:
    await asyncio.to_thread(give, "up0", "10.240.1.10/24", "203.0.113.9/24")
    others = {IPv4Network("10.240.1.0/24"), IPv4Network("203.0.113.0/24")}
    assert set(host_networks().values()) == {UPLINK_NETWORK, *others}


async def test_a_new_tenant_gets_none_of_the_hosts_own_networks(world: World) -> None:
    await asyncio.to_thread(give, "up0", "10.240.1.10/24", "203.0.113.9/24")
    assert next_net_id((), host_networks().values()) == 2


async def test_whose_a_network_is_says_interface_and_address(world: World) -> None:
    assert dict(host_networks()) == {"this host's interface 'up0' (198.51.100.1)": UPLINK_NETWORK}
