"""Devices of tenants' networks that nobody uses are found, and only those."""

from __future__ import annotations

import asyncio
import os

from pyroute2 import IPRoute
from tests.contract.network.world import World, needs_namespaces

from mvm.network import devices, taps

pytestmark = needs_namespaces


def _make(*bridges: str) -> None:
    with IPRoute() as route:
        for name in bridges:
            route.link("add", ifname=name, kind="bridge")


async def test_a_bridge_without_ports_and_a_device_that_nobody_holds_are_unused(world: World) -> None:
    await asyncio.to_thread(_make, "br-tenant-7", "br-tenant-8", "br-other")
    descriptor = taps.open_tap("tn8i3", "br-tenant-8")
    try:
        assert await asyncio.to_thread(devices.devices_without_users) == ("br-tenant-7",)
    finally:
        os.close(descriptor)
    assert await asyncio.to_thread(devices.devices_without_users) == ("br-tenant-7", "br-tenant-8")
    await asyncio.to_thread(devices.remove_devices, ("br-tenant-7", "br-tenant-8", "tn8i3"))
    assert await asyncio.to_thread(devices.devices_without_users) == ()
    assert devices.bridge_is_there("br-other")
