"""`mvm net verify` finds a network in order, and finds out when it is not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from ipaddress import IPv4Address

import pytest
from tests.contract.network.world import INTERNET, UPLINK, World, guest, listen_on_host, needs_namespaces, picture

from mvm.network import devices
from mvm.network.apply import Rules, nft
from mvm.network.picture import Guest, Picture
from mvm.network.probes import Probe, Surroundings, command, outcomes, probes_of
from mvm.network.rules import render

pytestmark = needs_namespaces

GATEWAY, WORKER = guest(1, 3, pool="gateway"), guest(1, 4, egress=(f"{INTERNET}/32:443", "host:9000"))
OTHER, STRANGER = guest(1, 5, egress="none"), guest(2, 4)
GUESTS = (GATEWAY, WORKER, OTHER, STRANGER)
DRAWN = picture(*GUESTS, grants=((GATEWAY, WORKER),))
AROUND = Surroundings(
    names={each.ip: str(each.ip) for each in GUESTS},
    host_addresses=[IPv4Address(UPLINK)],
    host_listens=[9000, 9001],
    answers_host=[(IPv4Address(INTERNET), 443)],
)


def tried(world: World, each: Guest, drawn: Picture) -> list[tuple[Probe, bool]]:
    """What a guest tries, and whether it passed."""
    probes = probes_of(each, drawn, AROUND)
    argv = [sys.executable, *command(probes, limit_seconds=0.5)[1:]]
    ran = world.at(each).run(lambda: subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30))
    return [(probe, probe.passed(found)) for probe, found in zip(probes, outcomes(ran.stdout, probes), strict=True)]


@pytest.fixture
async def whole(world: World) -> World:
    await Rules().put(render(DRAWN, owner="test"))
    await asyncio.to_thread(devices.make_bridges, DRAWN)
    devices.set_host()
    for each in GUESTS:
        world.connect(each)
        world.listen(each, 18789, 18790)
    for port in (9000, 9001):
        world.defer(listen_on_host(port).close)
    world.defer(world.outside.listen(443).close)
    return world


async def test_a_network_in_order_passes(whole: World) -> None:
    results = [result for each in GUESTS for result in tried(whole, each, DRAWN)]
    assert [probe for probe, passed in results if not passed] == []
    assert {probe.reachable for probe, _ in results} == {True, False}


async def test_a_network_without_rules_does_not(whole: World) -> None:
    await nft("flush", "ruleset")
    failed = {probe.what for probe, passed in tried(whole, OTHER, DRAWN) if not passed}
    assert f"delivery to {STRANGER.ip}" in failed
    assert f"delivery to {WORKER.ip}" in failed
    assert "the host's own port 9001" in failed


async def test_a_grant_that_does_not_work_does_not_pass(whole: World) -> None:
    await Rules().put(render(picture(*GUESTS), owner="test"))
    assert {probe.what for probe, passed in tried(whole, GATEWAY, DRAWN) if not passed} == {f"delivery to {WORKER.ip}"}
