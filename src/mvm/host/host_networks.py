"""Networks that this host itself is in, which no tenant's subnet may overlap."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from ipaddress import IPv4Network

import psutil

OWN_BRIDGES = "br-tenant-"


def host_networks() -> Mapping[str, IPv4Network]:
    """A phrase for whose each network is -> network, for every address of the host's interfaces."""
    found: dict[str, IPv4Network] = {}
    for interface, entries in psutil.net_if_addrs().items():
        if interface.startswith(OWN_BRIDGES):
            continue
        for entry in entries:
            if entry.family == socket.AF_INET and entry.netmask:
                network = IPv4Network(f"{entry.address}/{entry.netmask}", strict=False)
                if not network.is_loopback:
                    found[f"this host's interface {interface!r} ({entry.address})"] = network
    return found
