"""What `mvm doctor` says of a host's network."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pyroute2 import IPRoute
from tests.contract.network.world import World, needs_namespaces

from mvm.cli.checks import Finding, Verdict
from mvm.cli.network_checks import bridged, network_checks, tap_devices
from mvm.network.apply import nft

pytestmark = needs_namespaces


async def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in await network_checks()}


async def test_a_host_without_anything_in_the_way_is_well(world: World) -> None:
    found = await findings()
    assert {finding.verdict for finding in found.values()} == {Verdict.OK}
    assert "switches it on" in found["forwarding"].found


async def test_a_firewall_that_drops_what_is_forwarded_is_named_with_its_remedy(world: World) -> None:
    chain = "chain FORWARD {\ntype filter hook forward priority filter; policy drop;\n}\n"
    await nft("-f", "-", text=f"table ip filter {{\n{chain}}}\n")
    found = (await findings())["firewall"]
    assert found.verdict is Verdict.WARNING
    assert "ip filter FORWARD" in found.found
    assert found.remedy is not None
    first = found.remedy.partition(";")[0].replace("'", '"').split()[1:]
    await nft(*first)
    assert (await findings())["firewall"].verdict is Verdict.WARNING, "half of the remedy"
    await nft(*(word.replace("iifname", "oifname") for word in first))
    assert (await findings())["firewall"].verdict is Verdict.OK


FIREWALLD = """
table inet firewalld {
    chain filter_FWD_public { reject with icmpx admin-prohibited; }
    chain filter_FWD_trusted { accept; }
    chain filter_FORWARD_ZONES { goto filter_FWD_public; }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        jump filter_FORWARD_ZONES
        counter log prefix "gone: " reject with icmpx admin-prohibited
    }
}
"""


async def test_firewalld_rejects_by_its_last_rule_and_is_named_with_its_own_remedy(world: World) -> None:
    await nft("-f", "-", text=FIREWALLD)
    found = (await findings())["firewall"]
    assert found.verdict is Verdict.WARNING
    assert "inet firewalld filter_FORWARD" in found.found
    assert found.remedy is not None
    assert "firewall-cmd --permanent --zone=trusted" in found.remedy


async def test_firewalld_whose_trusted_zone_has_the_bridges_of_tenants_is_well(world: World) -> None:
    await nft("-f", "-", text=FIREWALLD)
    zone = ("inet", "firewalld", "filter_FORWARD_ZONES", "iifname", '"br-tenant-*"', "goto", "filter_FWD_trusted")
    await nft("insert", "rule", *zone)
    assert (await findings())["firewall"].verdict is Verdict.OK


async def test_a_chain_that_drops_only_some_packets_is_not_named(world: World) -> None:
    rule = "type filter hook forward priority filter; policy accept;\nct state invalid drop\n"
    await nft("-f", "-", text=f"table inet somebody {{\nchain forward {{\n{rule}}}\n}}\n")
    assert (await findings())["firewall"].verdict is Verdict.OK


async def test_docker_needs_no_remedy(world: World) -> None:
    chains = "chain DOCKER-USER {\n}\nchain FORWARD {\ntype filter hook forward priority filter; policy drop;\n}\n"
    await nft("-f", "-", text=f"table ip filter {{\n{chains}}}\n")
    assert (await findings())["firewall"].verdict is Verdict.OK


async def test_a_route_into_the_range_of_tenants_is_named(world: World) -> None:
    def route() -> None:
        with IPRoute() as kernel:
            kernel.route("add", dst="10.245.0.0/16", gateway="198.51.100.2")

    await asyncio.to_thread(route)
    found = (await findings())["tenants' range"]
    assert found.verdict is Verdict.WARNING
    assert "10.245.0.0/16 on up0" in found.found


def test_a_host_without_tap_devices_is_told_so(tmp_path: Path) -> None:
    found = tap_devices(tmp_path / "tun")
    assert (found.verdict, found.remedy) == (Verdict.WARNING, "modprobe tun")


def test_either_way_of_bridged_traffic_is_fine(tmp_path: Path) -> None:
    setting = tmp_path / "setting"
    for value in ("0", "1"):
        setting.write_text(value)
        assert bridged(setting).verdict is Verdict.OK
