"""Bridges of tenants, and the settings of the kernel that they need.

All of it is idempotent, so that it also puts right what somebody changed and what a reboot took away. pyroute2 is
imported where it is used: it takes longer than a wake, and a wake needs no new bridge.

A guest sees nobody but its bridge: ports are isolated, and the bridge answers for every address of the subnet
(`proxy_arp_pvlan`), so that traffic between guests is routed by the host and judged by its rules. Bridged traffic meets
the host's IP rules only where `net.bridge.bridge-nf-call-iptables` is on, as Docker sets it, and then Docker's rules
too, which drop it. Nothing here depends on that switch, so nobody else's setting is touched.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mvm.model import addresses
from mvm.model.egress import host_ports, reaches_internet
from mvm.model.errors import MvmError, Refused
from mvm.network.picture import Bridge, Picture

if TYPE_CHECKING:
    from pyroute2 import IPRoute

BRIDGE_PREFIX = "br-tenant-"
_TAP = re.compile(r"tn[0-9]{1,4}i[0-9]{1,3}")
SETTINGS = Path("/proc/sys/net/ipv4")
HOST = {
    # Packets to and from guests are forwarded.
    "ip_forward": "1",
    # The kernel takes this one or the interface's own, whichever is on; other interfaces go by their own. A guest that
    # were told of a shorter way to its neighbour would not hear that it is refused: the two share one rate limit.
    "conf/all/send_redirects": "0",
}
"""Settings of the host as a whole that networks of tenants need."""

_ALWAYS = {
    "conf/{}/forwarding": "1",
    "conf/{}/rp_filter": "1",
    "conf/{}/send_redirects": "0",
    "conf/{}/accept_redirects": "0",
    "conf/{}/accept_source_route": "0",
    "conf/{}/proxy_arp": "0",
    "conf/{}/proxy_arp_pvlan": "1",
    # Answers at once, and only for the bridge's own address beside those of the subnet.
    "neigh/{}/proxy_delay": "0",
    "conf/{}/arp_ignore": "1",
    "conf/{}/arp_announce": "2",
}


def make_bridges(picture: Picture) -> bool:
    """Make every bridge of the picture as it should be, and remove those of other tenants. True when one was made.

    Raises `Refused` without the right to, `MvmError` when the kernel refuses.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with_services = {guest.net_id for guest in picture.guests if host_ports(guest.egress)}
    if picture.resolvers.through_host is not None:
        with_services |= {guest.net_id for guest in picture.guests if reaches_internet(guest.egress)}
    made = False
    try:
        with IPRoute() as route:
            present = _present(route)
            for bridge in picture.bridges:
                if bridge.name not in present:
                    made = True
                    _make(route, bridge)
                _address(route, bridge, present.get(bridge.name))
                _set_up(bridge, loopback_services=bridge.net_id in with_services)
            wanted = {bridge.name for bridge in picture.bridges}
            _remove(route, (index for name, index in present.items() if name not in wanted))
    except NetlinkError as error:
        if error.code == 1:
            raise Refused("bridges may not be made", hint="run the agent as root, or with CAP_NET_ADMIN") from error
        raise MvmError(f"the bridges of tenants cannot be made: {error.args[-1]}") from error
    except OSError as error:
        raise MvmError(f"a setting of the kernel cannot be made: {error.filename}: {error.strerror}") from error
    return made


def remove_bridges() -> None:
    """Remove every bridge of a tenant. Idempotent."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        _remove(route, _present(route).values())


def bridges_with_ports() -> tuple[str, ...]:
    """Names of bridges that machines are connected to."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        present = {index: name for name, index in _present(route).items()}
        masters = {link.get("master") for link in route.get_links()}
    return tuple(sorted(name for index, name in present.items() if index in masters))


def devices_without_users() -> tuple[str, ...]:
    """Names of tenants' TAPs that no process holds, and of their bridges that nothing is connected to."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        links = route.get_links()
        bridges = {index: name for name, index in _present(route).items()}
        used = {link.get("master") for link in links}
        taps = (link for link in links if _TAP.fullmatch(link.get("ifname") or "") and not link.get("carrier"))
        unused = [name for index, name in bridges.items() if index not in used]
        return tuple(sorted([*unused, *(link.get("ifname") for link in taps)]))


def remove_devices(names: Iterable[str]) -> None:
    """Remove devices of tenants by name; those that are gone already are passed over."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        for name in names:
            with contextlib.suppress(OSError):
                _remove(route, [socket.if_nametoindex(name)])


def ports_not_isolated() -> tuple[str, ...]:
    """Names of ports of tenants' bridges that see other ports."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        bridges = set(_present(route).values())
        ports = [link for link in route.get_links() if link.get("master") in bridges]
        return tuple(sorted(port.get("ifname") for port in ports if not _isolated(port)))


def _isolated(link: Any) -> bool:
    data = link.get(("linkinfo", "slave_data"))
    return bool(data is not None and data.get("isolated"))


def bridge_is_there(name: str) -> bool:
    """True when that bridge exists; a matter of microseconds."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def host_settings() -> dict[str, str]:
    """What those settings of the host are now."""
    return {setting: (SETTINGS / setting).read_text().strip() for setting in HOST}


def set_host(values: Mapping[str, str] = MappingProxyType(HOST)) -> None:
    """Give the host these settings; those that it has already are not touched."""
    for setting, value in values.items():
        _write(SETTINGS / setting, value)


def _present(route: IPRoute) -> dict[str, int]:
    """Bridges of tenants by name -> index."""
    found = {link.get("ifname"): link["index"] for link in route.get_links(kind="bridge")}
    return {name: index for name, index in found.items() if name.startswith(BRIDGE_PREFIX)}


def _make(route: IPRoute, bridge: Bridge) -> None:
    route.link(
        "add",
        ifname=bridge.name,
        kind="bridge",
        address=bridge.mac,
        br_stp_state=0,
        br_forward_delay=0,
        br_mcast_snooping=0,
    )


def _address(route: IPRoute, bridge: Bridge, known_index: int | None) -> None:
    index = socket.if_nametoindex(bridge.name) if known_index is None else known_index
    # Before it is up: an interface without IPv6 never speaks it.
    setting = Path(f"/proc/sys/net/ipv6/conf/{bridge.name}/disable_ipv6")
    if setting.exists():
        _write(setting, "1")
    route.link("set", index=index, address=bridge.mac, state="up")
    wanted = (str(bridge.address), bridge.subnet.prefixlen)
    present = {
        (address.get("local"), address["prefixlen"]) for address in route.get_addr(family=socket.AF_INET, index=index)
    }
    for local, prefix in present - {wanted}:
        route.addr("del", index=index, address=local, prefixlen=prefix)
    if wanted not in present:
        route.addr("add", index=index, address=wanted[0], prefixlen=wanted[1])


def _set_up(bridge: Bridge, *, loopback_services: bool) -> None:
    for setting, value in _ALWAYS.items():
        _write(SETTINGS / setting.format(bridge.name), value)
    # Services that are listed as `host:PORT` listen on loopback. Only where there are any may packets go there.
    _write(SETTINGS / f"conf/{bridge.name}/route_localnet", "1" if loopback_services else "0")


def _write(setting: Path, value: str) -> None:
    if setting.read_text().strip() != value:
        setting.write_text(value)


def _remove(route: IPRoute, indexes: Iterable[int]) -> None:
    for index in list(indexes):
        route.link("del", index=index)


def overlapping_routes(route_table: Path = Path("/proc/thread-self/net/route")) -> tuple[str, ...]:
    """Routes of this host into the range of tenants' networks, but those of tenants' bridges."""
    from ipaddress import IPv4Network

    found = []
    for line in route_table.read_text().splitlines()[1:]:
        interface, destination, _, _, _, _, _, mask = line.split()[:8]
        network = IPv4Network((_little_endian(destination), _prefix(mask)), strict=False)
        if network.prefixlen and network.overlaps(addresses.CLUSTER_RANGE) and not interface.startswith(BRIDGE_PREFIX):
            found.append(f"{network} on {interface}")
    return tuple(found)


def _little_endian(text: str) -> int:
    return int.from_bytes(bytes.fromhex(text), "little")


def _prefix(mask: str) -> int:
    return bin(int(mask, 16)).count("1")
