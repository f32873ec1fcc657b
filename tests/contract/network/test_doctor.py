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
    await nft(*found.remedy.partition(";")[0].replace("'", '"').split()[1:])


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
