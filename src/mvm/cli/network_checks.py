"""What `mvm doctor` checks for the networks of tenants, which machines of their own are connected to."""

from __future__ import annotations

import os
from pathlib import Path

from mvm.cli.checks import Finding, Verdict
from mvm.model.addresses import CLUSTER_RANGE
from mvm.model.errors import MvmError
from mvm.network import devices, doors
from mvm.network.apply import nft
from mvm.network.taps import TUN_DEVICE

_MATTERS = "instances that are machines of their own need it for their tenant's network"
_BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


async def network_checks() -> list[Finding]:
    """All of them, in the order of the report."""
    return [tap_devices(TUN_DEVICE), await nftables(), forwarding(), bridged(_BRIDGED), await firewall(), ranges()]


def tap_devices(device: Path) -> Finding:
    if os.access(device, os.R_OK | os.W_OK):
        return Finding(name="tap devices", verdict=Verdict.OK, found=f"{device} can be opened", matters=_MATTERS)
    missing = not device.exists()
    return Finding(
        name="tap devices",
        verdict=Verdict.WARNING,
        found=f"there is no {device}" if missing else f"{device} may not be opened by this user",
        matters=_MATTERS,
        remedy="modprobe tun" if missing else "run the agent as root",
    )


async def nftables() -> Finding:
    """Whether rules can be set here, found out by asking for those that there are."""
    try:
        version = (await nft("--version")).split(" (")[0].strip()
        await nft("list", "tables")
    except MvmError as error:
        return Finding(
            name="nftables", verdict=Verdict.WARNING, found=error.message, matters=_MATTERS, remedy=error.hint
        )
    return Finding(name="nftables", verdict=Verdict.OK, found=f"{version}, rules can be set", matters=_MATTERS)


def forwarding() -> Finding:
    on = devices.host_settings()["ip_forward"] == "1"
    return Finding(
        name="forwarding",
        verdict=Verdict.OK,
        found="on" if on else "off; the agent switches it on with the first machine and off after the last",
        matters="packets of machines go through this host",
    )


def bridged(setting: Path) -> Finding:
    """Said because other programs ask for it, one way or the other."""
    on = setting.exists() and setting.read_text().strip() == "1"
    return Finding(
        name="bridged traffic",
        verdict=Verdict.OK,
        found=f"{'meets' if on else 'does not meet'} the host's IP rules; that of machines is routed, either is fine",
        matters="Docker switches net.bridge.bridge-nf-call-iptables on, others off; mvm leaves it as it is",
    )


async def firewall() -> Finding:
    matters = "packets of machines pass only where every program's rules let them"
    try:
        drops = await doors.foreign_drops()
    except MvmError as error:
        found = f"not known: {error.message}"
        return Finding(name="firewall", verdict=Verdict.OK, found=found, matters=matters)
    if not drops:
        return Finding(
            name="firewall", verdict=Verdict.OK, found="nobody else drops what is forwarded", matters=matters
        )
    return Finding(
        name="firewall",
        verdict=Verdict.WARNING,
        found=f"{', '.join(drops)} drops what is forwarded",
        matters=matters,
        remedy=_opening(drops[0]),
    )


def _opening(chain: str) -> str:
    """What to type to let guests pass a chain of another program."""
    if chain.split(" ")[1] == "firewalld":  # rules that are put in by hand are gone when it reloads
        return "firewall-cmd --permanent --zone=trusted --add-interface=br-tenant-+ && firewall-cmd --reload"
    return f"nft insert rule {chain} iifname 'br-tenant-*' accept; the same with oifname"


def ranges() -> Finding:
    matters = f"tenants' networks are taken from {CLUSTER_RANGE}; what lies behind such a route is hidden by them"
    routes = devices.overlapping_routes()
    return Finding(
        name="tenants' range",
        verdict=Verdict.WARNING if routes else Verdict.OK,
        found=f"this host routes {', '.join(routes)}" if routes else f"{CLUSTER_RANGE} is free",
        matters=matters,
        remedy="give tenants other networks: `mvm tenant create NAME --subnet 192.168.77.0/24`" if routes else None,
    )
