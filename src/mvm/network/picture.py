"""What the network of this host should be: a pure description, from which devices and rules follow (CONTRACT 11).

It covers every instance that has a place in its tenant's network, whether it runs or not, so that nothing changes here
when one sleeps or wakes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network

from mvm.model import addresses
from mvm.model.egress import Egress
from mvm.model.entities import Instance, Pool, Tenant
from mvm.model.ids import PoolId, TenantId, TenantNetId
from mvm.model.roles import Role

BUILDERS = PoolId("builder")
"""Whose the machines are that images are built in: nobody's pool has them."""


@dataclass(frozen=True, order=True)
class Bridge:
    """A tenant's network on this host. Its guests' gateway is the bridge itself."""

    net_id: TenantNetId
    tenant_id: TenantId
    subnet: IPv4Network

    @property
    def name(self) -> str:
        return addresses.bridge_name(self.net_id)

    @property
    def address(self) -> IPv4Address:
        return addresses.gateway_address(self.subnet)

    @property
    def mac(self) -> str:
        """Always the same: a guest that was asleep still knows it."""
        return addresses.mac_address(self.net_id, addresses.GATEWAY_OCTET)


@dataclass(frozen=True, order=True)
class Guest:
    """An instance's place in its tenant's network."""

    net_id: TenantNetId
    ip: IPv4Address
    tap: str
    mac: str
    pool_id: PoolId
    egress: Egress
    peer_traffic: bool
    """Instances of its pool may talk to each other."""


@dataclass(frozen=True, order=True)
class Grant:
    """A gateway may deliver to a worker, and that worker report to it: one port each way, nothing else."""

    gateway: IPv4Address
    worker: IPv4Address


@dataclass(frozen=True, kw_only=True)
class Resolvers:
    """Who answers names for guests that may reach the internet."""

    addresses: tuple[IPv4Address, ...] = ()
    """Resolvers that guests ask by themselves."""
    through_host: IPv4Address | None = None
    """A resolver that only the host can ask (its own, link-local): guests ask their bridge's address instead."""

    def for_guest(self, gateway_ip: str) -> tuple[str, ...]:
        """What a guest is told (`dns` of its `config.json`)."""
        return tuple(map(str, self.addresses)) or ((gateway_ip,) if self.through_host is not None else ())


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Everything that the rules follow from; two that are equal need the same rules."""

    bridges: tuple[Bridge, ...] = ()
    guests: tuple[Guest, ...] = ()
    grants: tuple[Grant, ...] = ()
    resolvers: Resolvers = Resolvers()

    @cached_property
    def bridge_of(self) -> Mapping[str, str]:
        """Address of each guest -> name of its bridge."""
        names = {bridge.net_id: bridge.name for bridge in self.bridges}
        return {str(guest.ip): names[guest.net_id] for guest in self.guests}

    @cached_property
    def guest_at(self) -> Mapping[str, Guest]:
        """Guests by address."""
        return {str(guest.ip): guest for guest in self.guests}


def draw(
    tenants: Mapping[TenantId, Tenant],
    pools: Mapping[tuple[TenantId, PoolId], Pool],
    instances: Iterable[Instance],
    *,
    serving: Callable[[TenantId], TenantId | None],
    granted: Callable[[Instance, Instance], bool],
    resolvers: Resolvers,
    building: Collection[TenantId] = (),
) -> Picture:
    """The picture of these instances, all of which have devices in their tenants' networks.

    `serving` names the tenant whose gateway serves a tenant; `granted` tells whether a gateway may deliver to a worker;
    for the tenants `building` an image is built in a machine, which has a place in their network.
    """
    placed = [i for i in instances if i.tenant_id in tenants and (i.tenant_id, i.pool_id) in pools]
    gateways: dict[TenantId, list[Instance]] = {}
    for instance in placed:
        if instance.role is Role.GATEWAY:
            gateways.setdefault(instance.tenant_id, []).append(instance)
    grants = set()
    for worker in placed:
        if worker.role is Role.GATEWAY:
            continue
        for tenant in {worker.tenant_id, serving(worker.tenant_id)} - {None}:
            for gateway in gateways.get(tenant, ()) if tenant is not None else ():
                if granted(gateway, worker):
                    grants.add(Grant(_address(gateway), _address(worker)))
    builders = [tenants[tenant] for tenant in building if tenant in tenants]
    guests = [_guest(tenants[i.tenant_id], pools[i.tenant_id, i.pool_id], i) for i in placed]
    return Picture(
        bridges=tuple(sorted({bridge_of(t) for t in (*(tenants[i.tenant_id] for i in placed), *builders)})),
        guests=tuple(sorted((*guests, *map(builder_of, builders)), key=_place)),
        grants=tuple(sorted(grants)),
        resolvers=resolvers,
    )


def bridge_of(tenant: Tenant) -> Bridge:
    """The bridge of a tenant."""
    return Bridge(tenant.network.tenant_net_id, tenant.tenant_id, addresses.parse_subnet(tenant.network.ipv4_subnet))


def builder_of(tenant: Tenant) -> Guest:
    """The place of the machine that an image is built in: the internet can be reached from it, and nobody else."""
    net_id = tenant.network.tenant_net_id
    return Guest(
        net_id=net_id,
        ip=addresses.host_address(addresses.parse_subnet(tenant.network.ipv4_subnet), addresses.BUILDER_OCTET),
        tap=addresses.tap_name(net_id, addresses.BUILDER_OCTET),
        mac=addresses.mac_address(net_id, addresses.BUILDER_OCTET),
        pool_id=BUILDERS,
        egress="internet",
        peer_traffic=False,
    )


def _guest(tenant: Tenant, pool: Pool, instance: Instance) -> Guest:
    return Guest(
        net_id=tenant.network.tenant_net_id,
        ip=_address(instance),
        tap=instance.network.tap,
        mac=instance.network.mac,
        pool_id=pool.pool_id,
        egress=pool.egress,
        peer_traffic=pool.peer_traffic,
    )


def _address(instance: Instance) -> IPv4Address:
    return IPv4Address(instance.network.guest_ip)


def _place(guest: Guest) -> tuple[int, IPv4Address]:
    return guest.net_id, guest.ip
