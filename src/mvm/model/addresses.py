"""Addresses, names and MACs of tenants and instances, and who gets the next one (CONTRACT 1 and 11).

Pure arithmetic: which ids and octets are taken is passed in, and nothing here knows of devices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

from mvm.model.entities import InstanceNetwork, TenantNetwork
from mvm.model.errors import Conflict, InvalidInput
from mvm.model.ids import MAX_TENANT_NET_ID, MIN_TENANT_NET_ID, TenantNetId, tenant_net_id

CLUSTER_RANGE = IPv4Network("10.240.0.0/12")
PREFIX_LENGTH = 24
GATEWAY_OCTET = 1
BUILDER_OCTET = 2
FIRST_INSTANCE_OCTET = 3
LAST_INSTANCE_OCTET = 254

FIRST_UID = 1_900_000_000
"""Above what users, containers and systemd-nspawn take (up to 1,879,048,191), below 2^31."""

_NEVER = tuple(
    (IPv4Network(network), why)
    for network, why in (
        ("0.0.0.0/8", "it means 'this network'"),
        ("127.0.0.0/8", "it is loopback"),
        ("169.254.0.0/16", "it is link-local, which guests may not reach"),
        ("224.0.0.0/3", "it is multicast or reserved"),
    )
)


def subnet_of(net_id: TenantNetId) -> IPv4Network:
    """The /24 that belongs to a net id: `10.(240 + (id >> 8)).(id & 255).0/24`."""
    tenant_net_id(net_id)
    return IPv4Network((int(CLUSTER_RANGE.network_address) + (net_id << 8), PREFIX_LENGTH))


def tenant_network(net_id: TenantNetId, subnet: str | None = None) -> TenantNetwork:
    """Network of a tenant: its net id with the subnet that was asked for, or the one that belongs to the id."""
    chosen = subnet_of(net_id) if subnet is None else parse_subnet(subnet)
    return TenantNetwork(tenant_net_id=net_id, ipv4_subnet=str(chosen))


def parse_subnet(text: str) -> IPv4Network:
    """Parse a tenant's subnet: a /24 in `a.b.c.0/24` form, in a range that can be used; else `InvalidInput`."""
    example = "such as 10.240.12.0/24"
    try:
        network = IPv4Network(text, strict=False)
        exact = "/" in text and text.split("/", 1)[0] == str(network.network_address)
    except (AddressValueError, NetmaskValueError, ValueError):
        raise InvalidInput(
            f"subnet {text[:80]!r} is not an IPv4 network", hint=f"write an IPv4 /{PREFIX_LENGTH}, {example}"
        ) from None
    if network.prefixlen != PREFIX_LENGTH:
        raise InvalidInput(
            f"subnet {text[:80]!r} is a /{network.prefixlen}",
            hint=f"a tenant has exactly a /{PREFIX_LENGTH}, {example}",
        )
    if not exact:
        raise InvalidInput(f"subnet {text[:80]!r} names an address inside it", hint=f"write '{network}'")
    for never, why in _NEVER:
        if network.overlaps(never):
            raise InvalidInput(f"subnet '{network}' cannot be used: {why}", hint=f"take a private range, {example}")
    return network


def overlapping(subnet: IPv4Network, others: Mapping[str, IPv4Network]) -> str | None:
    """Name of the first of `others` that overlaps `subnet`, in order; None when there is none."""
    return next((name for name, other in others.items() if subnet.overlaps(other)), None)


def require_free(subnet: IPv4Network, others: Mapping[str, IPv4Network]) -> None:
    """Raise `Conflict` when `subnet` overlaps one of `others` (a phrase for whose each is, and the network)."""
    if (owner := overlapping(subnet, others)) is not None:
        raise Conflict(
            f"subnet {subnet} overlaps {others[owner]} of {owner}", hint="leave the subnet out and a free one is chosen"
        )


def next_net_id(ever_used: Collection[int], in_use: Iterable[IPv4Network] = ()) -> TenantNetId:
    """The lowest net id that no tenant ever had and whose subnet overlaps none `in_use` (tenants' and the host's own).

    Ids are never given again, also after their tenant is gone: whatever still carries the old address must not reach
    somebody else. Raises `Conflict` when none is left.
    """
    taken = list(in_use)
    for candidate in range(MIN_TENANT_NET_ID, MAX_TENANT_NET_ID + 1):
        net_id = TenantNetId(candidate)
        if candidate not in ever_used and not any(subnet_of(net_id).overlaps(network) for network in taken):
            return net_id
    raise Conflict(
        "no tenant net id is left: each of the 4094 was used once or its subnet is taken",
        hint="net ids are never reused; a host that had so many tenants needs a new state directory",
    )


def next_host_octet(used: Collection[int]) -> int:
    """The lowest free last octet for an instance (.3 to .254); raises `Conflict` when the subnet is full."""
    for octet in range(FIRST_INSTANCE_OCTET, LAST_INSTANCE_OCTET + 1):
        if octet not in used:
            return octet
    raise Conflict(
        f"no address is left: all {LAST_INSTANCE_OCTET - FIRST_INSTANCE_OCTET + 1} of the tenant's subnet are taken",
        hint="destroy instances that are not needed; a sleeping instance keeps its address",
    )


def bridge_name(net_id: TenantNetId) -> str:
    """Name of a tenant's bridge."""
    return f"br-tenant-{tenant_net_id(net_id)}"


def tap_name(net_id: TenantNetId, host_octet: int) -> str:
    """Name of an instance's TAP device."""
    return f"tn{tenant_net_id(net_id)}i{_octet(host_octet)}"


def mac_address(net_id: TenantNetId, host_octet: int) -> str:
    """MAC of an instance: `02:fc:HH:LL:00:OO`, net id big-endian, last octet of the address."""
    high, low = divmod(tenant_net_id(net_id), 256)
    return f"02:fc:{high:02x}:{low:02x}:00:{_octet(host_octet):02x}"


def instance_uid(net_id: TenantNetId, host_octet: int) -> int:
    """User and group id that an instance's machine runs as: its own, like its address."""
    return FIRST_UID + (tenant_net_id(net_id) << 8) + _octet(host_octet)


def host_address(subnet: IPv4Network, host_octet: int) -> IPv4Address:
    """The address in a tenant's subnet that ends in `host_octet`."""
    return subnet.network_address + _octet(host_octet)


def gateway_address(subnet: IPv4Network) -> IPv4Address:
    """Address of a tenant's bridge (`.1`)."""
    return host_address(subnet, GATEWAY_OCTET)


def loopback_address(guest_ip: str) -> str:
    """The loopback address that stands for an address of the tenant's network: 10.240.1.3 becomes 127.240.1.3."""
    address = IPv4Address(guest_ip)
    if address.is_loopback:
        return guest_ip
    if address in CLUSTER_RANGE:
        return f"127.{str(address).partition('.')[2]}"
    digest = hashlib.sha256(address.packed).digest()
    return f"127.{64 + digest[0] % 128}.{digest[1]}.{3 + digest[2] % 252}"


def networked_address(guest_ip: str) -> str:
    """The address in the cluster's range that a loopback one stands for; any other as it is."""
    candidate = IPv4Address(0x0A000000 | int(IPv4Address(guest_ip)) & 0x00FFFFFF)
    fits = IPv4Address(guest_ip).is_loopback and candidate in CLUSTER_RANGE
    return str(candidate) if fits else guest_ip


def instance_network(network: TenantNetwork, host_octet: int) -> InstanceNetwork:
    """Everything that follows from an instance's place in its tenant's network."""
    subnet = parse_subnet(network.ipv4_subnet)
    return InstanceNetwork(
        guest_ip=str(host_address(subnet, host_octet)),
        gateway_ip=str(gateway_address(subnet)),
        prefix=subnet.prefixlen,
        host_octet=host_octet,
        tap=tap_name(network.tenant_net_id, host_octet),
        mac=mac_address(network.tenant_net_id, host_octet),
    )


def allocate_instance(network: TenantNetwork, *, used_octets: Collection[int]) -> InstanceNetwork:
    """The next free place in a tenant's network; raises `Conflict` when it is full."""
    return instance_network(network, next_host_octet(used_octets))


def _octet(value: int) -> int:
    if not GATEWAY_OCTET <= value <= LAST_INSTANCE_OCTET:
        raise InvalidInput(
            f"host octet {value} is out of range", hint=f"it is {GATEWAY_OCTET} to {LAST_INSTANCE_OCTET}"
        )
    return value
