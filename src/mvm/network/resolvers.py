"""Which resolvers guests are told of: those of the host, as far as guests can ask them.

A resolver on the host's loopback, at another address of the host's own, or on a link-local address cannot be asked
from a guest. Where systemd-resolved is behind it, those that it asks itself are taken. Where there is nothing else
(dnsmasq, unbound, the metadata server of a cloud), guests ask their bridge's address and the host passes that on, and
nothing but questions for names.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from ipaddress import IPv4Address
from pathlib import Path

import psutil

from mvm.network.picture import Resolvers

RESOLV_CONF = Path("/etc/resolv.conf")
RESOLVED_CONF = Path("/run/systemd/resolve/resolv.conf")
MOST = 3
"""As many as a resolver library asks."""


def own_addresses() -> set[IPv4Address]:
    """Addresses of this host."""
    interfaces = psutil.net_if_addrs().values()
    return {IPv4Address(e.address) for entries in interfaces for e in entries if e.family == socket.AF_INET}


def read_resolvers(*places: Path, own: Callable[[], Collection[IPv4Address]] = own_addresses) -> Resolvers:
    """Resolvers for guests, from the first of the files that names one that guests can ask."""
    through_host: IPv4Address | None = None
    hosts = own()
    for place in places or (RESOLV_CONF, RESOLVED_CONF):
        try:
            text = place.read_text(errors="replace")
        except OSError:
            continue
        listed = nameservers(text)
        if direct := tuple(a for a in listed if not _only_for_the_host(a, hosts))[:MOST]:
            return Resolvers(addresses=direct)
        through_host = through_host or next(iter(listed), None)
    return Resolvers(through_host=through_host)


def nameservers(text: str) -> list[IPv4Address]:
    """IPv4 addresses of the `nameserver` lines of a resolv.conf, in order; anything else is passed over."""
    found = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if len(words) == 2 and words[0] == "nameserver":
            try:
                address = IPv4Address(words[1])
            except ValueError:
                continue
            if not address.is_unspecified and not address.is_multicast:
                found.append(address)
    return list(dict.fromkeys(found))


def _only_for_the_host(address: IPv4Address, hosts: Collection[IPv4Address]) -> bool:
    return address.is_loopback or address.is_link_local or address in hosts
