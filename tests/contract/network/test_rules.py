"""What passes and what does not, by real packets between namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest
from tests.contract.network.world import (
    INTERNET,
    METADATA,
    PRIVATE,
    RESOLVER,
    UPLINK,
    World,
    guest,
    listen_on_host,
    needs_namespaces,
    picture,
)

from mvm.model import addresses
from mvm.network import devices
from mvm.network.apply import Rules, nft
from mvm.network.picture import Picture, Resolvers
from mvm.network.resolvers import read_resolvers
from mvm.network.rules import render

pytestmark = needs_namespaces

GATEWAY, WORKER, OTHER = guest(1, 3, pool="gateway"), guest(1, 4), guest(1, 5)
STRANGER = guest(2, 4)
DELIVERY, OUTBOUND, ANY_PORT = 18789, 18790, 2222


async def put(drawn: Picture, rules: Rules | None = None) -> Rules:
    rules = rules or Rules()
    await rules.put(render(drawn, owner="test"))
    await asyncio.to_thread(devices.make_bridges, drawn)
    devices.set_host()
    return rules


async def connected(world: World, drawn: Picture, *ports: int) -> Rules:
    """All guests of a picture, each listening at the given ports."""
    rules = await put(drawn)
    for each in drawn.guests:
        world.connect(each)
        world.listen(each, *ports)
    return rules


@pytest.mark.parametrize("bridged_is_filtered", ["0", "1"], ids=["", "as Docker sets it"])
async def test_a_grant_is_one_port_each_way(world: World, bridged_is_filtered: str) -> None:
    switch = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if switch.exists():
        switch.write_text(bridged_is_filtered)
    await connected(world, picture(GATEWAY, WORKER, OTHER, grants=((GATEWAY, WORKER),)), DELIVERY, OUTBOUND, ANY_PORT)
    tried = {
        (source.ip, target.ip, port): world.reaches(source, target.ip, port)
        for source in (GATEWAY, WORKER, OTHER)
        for target in (GATEWAY, WORKER, OTHER)
        for port in (DELIVERY, OUTBOUND, ANY_PORT)
        if source != target
    }
    assert {key for key, reached in tried.items() if reached} == {
        (GATEWAY.ip, WORKER.ip, DELIVERY),
        (WORKER.ip, GATEWAY.ip, OUTBOUND),
    }


async def test_tenants_do_not_reach_each_other(world: World) -> None:
    await connected(world, picture(GATEWAY, WORKER, STRANGER, grants=((GATEWAY, WORKER),)), DELIVERY, ANY_PORT)
    for source, target in ((WORKER, STRANGER), (STRANGER, WORKER), (GATEWAY, STRANGER), (STRANGER, GATEWAY)):
        assert not world.reaches(source, target.ip, DELIVERY)
        assert not world.reaches(source, target.ip, ANY_PORT)


async def test_a_gateway_that_serves_another_tenant_reaches_the_granted_worker_only(world: World) -> None:
    neighbour = guest(2, 5)
    await connected(world, picture(GATEWAY, STRANGER, neighbour, grants=((GATEWAY, STRANGER),)), DELIVERY, OUTBOUND)
    assert world.reaches(GATEWAY, STRANGER.ip, DELIVERY)
    assert world.reaches(STRANGER, GATEWAY.ip, OUTBOUND)
    assert not world.reaches(GATEWAY, STRANGER.ip, OUTBOUND)
    assert not world.reaches(STRANGER, GATEWAY.ip, DELIVERY)
    assert not world.reaches(GATEWAY, neighbour.ip, DELIVERY)


async def test_instances_of_a_pool_with_peer_traffic_reach_each_other_and_nobody_else(world: World) -> None:
    one, two = (guest(1, octet, pool="friends", peer_traffic=True) for octet in (6, 7))
    await connected(world, picture(one, two, WORKER), ANY_PORT)
    assert world.reaches(one, two.ip, ANY_PORT)
    assert world.reaches(two, one.ip, ANY_PORT)
    assert not world.reaches(one, WORKER.ip, ANY_PORT)
    assert not world.reaches(WORKER, one.ip, ANY_PORT)


async def test_the_internet_sees_the_host_and_never_the_guest(world: World) -> None:
    await connected(world, picture(WORKER))
    with world.outside.listen(443) as server:
        assert world.reaches(WORKER, INTERNET, 443)
        connection, seen = server.accept()
        connection.close()
    assert seen[0] == UPLINK


async def test_internet_is_neither_the_private_networks_around_nor_the_metadata_of_a_cloud(world: World) -> None:
    await connected(world, picture(WORKER))
    with world.outside.listen(80):
        assert world.reaches(WORKER, INTERNET, 80)
        assert not world.reaches(WORKER, PRIVATE, 80)
        assert not world.reaches(WORKER, METADATA, 80)


async def test_a_list_is_what_it_lists(world: World) -> None:
    some = guest(1, 6, egress=("203.0.113.0/24:443,8000-8010", "192.168.50.0/24"))
    everything = guest(1, 7, egress=("0.0.0.0/0",))
    await connected(world, picture(some, everything))
    with world.outside.listen(443), world.outside.listen(8005), world.outside.listen(80):
        assert [world.reaches(some, INTERNET, port) for port in (443, 8005, 80)] == [True, True, False]
        assert world.reaches(some, PRIVATE, 80)
        assert not world.reaches(some, RESOLVER, 80)
        assert world.reaches(everything, PRIVATE, 80)
        assert not world.reaches(everything, METADATA, 80)


async def test_none_is_nothing_and_is_refused_at_once(world: World) -> None:
    closed = guest(1, 6, egress="none")
    await connected(world, picture(closed))
    with world.outside.listen(443), world.at(closed).new_socket() as client:
        client.settimeout(5)
        with pytest.raises(OSError, match="No route to host"):
            client.connect((INTERNET, 443))


async def test_names_are_asked_of_the_hosts_resolvers_where_there_is_internet(world: World) -> None:
    closed = guest(1, 6, egress="none")
    resolvers = Resolvers(addresses=(addresses.IPv4Address(RESOLVER),))
    await connected(world, picture(WORKER, closed, resolvers=resolvers))
    with world.outside.listen(53), world.outside.listen(54):
        assert world.reaches(WORKER, RESOLVER, 53)
        assert not world.reaches(WORKER, RESOLVER, 54)
        assert not world.reaches(closed, RESOLVER, 53)


@pytest.mark.parametrize("place", ["127.0.0.53", METADATA, UPLINK])
async def test_a_resolver_that_only_the_host_can_ask_is_asked_at_the_bridge(
    world: World, tmp_path: Path, place: str
) -> None:
    listed = tmp_path / "resolv.conf"
    listed.write_text(f"nameserver {place}\n")
    resolvers = read_resolvers(listed)
    drawn = picture(WORKER, resolvers=resolvers)
    await connected(world, drawn)
    assert resolvers.for_guest(str(drawn.bridges[0].address)) == (str(drawn.bridges[0].address),)
    make = world.outside.listen if place == METADATA else listen_on_host
    with make(53, place, socket.SOCK_DGRAM) as server, world.at(WORKER).new_socket(socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(b"who?", (str(drawn.bridges[0].address), 53))
        question, asker = server.recvfrom(100)
        server.sendto(b"me", asker)
        assert (question, client.recv(100)) == (b"who?", b"me")
    with make(80, place):
        assert not world.reaches(WORKER, drawn.bridges[0].address, 80)


async def test_no_service_of_the_host_is_reached_at_any_of_its_addresses(world: World) -> None:
    drawn = picture(WORKER, STRANGER)
    await connected(world, drawn)
    with listen_on_host(8080):
        for address in (drawn.bridges[0].address, drawn.bridges[1].address, UPLINK):
            assert not world.reaches(WORKER, address, 8080)


async def test_a_listed_service_of_the_hosts_loopback_is_reached_at_the_bridge(world: World) -> None:
    listed = guest(1, 6, egress=("host:9000",))
    drawn = picture(listed, WORKER)
    await connected(world, drawn)
    at_bridge = drawn.bridges[0].address
    with listen_on_host(9000, "127.0.0.1"), listen_on_host(9001, "127.0.0.1"):
        assert world.reaches(listed, at_bridge, 9000)
        assert not world.reaches(listed, at_bridge, 9001)
        assert not world.reaches(WORKER, at_bridge, 9000)
        assert not world.reaches(listed, UPLINK, 9000)


async def test_nobody_outside_reaches_a_guest(world: World) -> None:
    await connected(world, picture(WORKER), ANY_PORT)

    def route_to_guests() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            route.route("add", dst="10.240.0.0/12", gateway=UPLINK)

    world.outside.run(route_to_guests)
    with world.outside.new_socket() as client:
        client.settimeout(0.5)
        assert client.connect_ex((str(WORKER.ip), ANY_PORT)) != 0


async def test_what_is_taken_away_ends_at_once(world: World) -> None:
    rules = await connected(world, picture(GATEWAY, WORKER, grants=((GATEWAY, WORKER),)))
    with world.at(WORKER).listen(DELIVERY) as server, world.at(GATEWAY).new_socket() as client:
        client.settimeout(10)
        client.connect((str(WORKER.ip), DELIVERY))
        accepted = server.accept()[0]
        with accepted:
            client.send(b"one")
            assert accepted.recv(100) == b"one"
            await put(picture(GATEWAY, WORKER), rules)
            client.send(b"two")
            with pytest.raises(ConnectionResetError):
                client.recv(100)


async def test_another_programs_translation_opens_no_way_around(world: World) -> None:
    await connected(world, picture(WORKER))
    chain = f"type nat hook prerouting priority dstnat\ntcp dport 8080 dnat to {PRIVATE}:80\n"
    await nft("-f", "-", text=f"table ip docker {{\nchain pre {{\n{chain}}}\n}}\n")
    with world.outside.listen(80):
        assert not world.reaches(WORKER, UPLINK, 8080)
        assert not world.reaches(WORKER, INTERNET, 8080)


async def test_nothing_passes_while_rules_are_replaced(world: World) -> None:
    drawn, other = picture(WORKER, STRANGER), picture(WORKER, STRANGER, OTHER)
    rules = await connected(world, drawn)
    with (
        world.at(WORKER).listen(ANY_PORT, kind=socket.SOCK_DGRAM) as target,
        world.at(STRANGER).new_socket(socket.SOCK_DGRAM) as source,
    ):
        target.settimeout(0.2)
        source.setblocking(False)
        for number in range(20):
            replacing = rules.put(render(other if number % 2 else drawn, owner="test"))
            task = asyncio.create_task(replacing)
            while not task.done():
                with contextlib.suppress(OSError):  # a refusal that came back
                    source.sendto(b"leak", (str(WORKER.ip), ANY_PORT))
                await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            target.recv(100)
