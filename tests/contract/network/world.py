"""A host of its own inside network namespaces: tenants' guests around it, and the internet beyond.

Namespaces have no names: they are gone with the descriptors that hold them, whatever becomes of the test. A socket
belongs to the namespace that it was made in, so that one process can be everybody.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, TypeVar

import pytest
from pyroute2 import IPRoute

from mvm.model import addresses
from mvm.model.egress import Egress
from mvm.model.ids import PoolId, TenantId, TenantNetId
from mvm.network import devices
from mvm.network.picture import Bridge, Grant, Guest, Picture
from mvm.network.taps import isolate_port

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
UPLINK = "198.51.100.1"
INTERNET = "203.0.113.7"
PRIVATE = "192.168.50.2"
METADATA = "169.254.169.254"
RESOLVER = "10.255.255.53"

_libc = ctypes.CDLL(None, use_errno=True)


def namespaces_work() -> str | None:
    """Why tests in namespaces cannot run here; None when they can."""
    if os.geteuid() != 0:
        return "needs root: network namespaces are made"
    if shutil.which("nft") is None:
        return "needs the program nft"
    tried: list[bool] = []
    thread = threading.Thread(target=lambda: tried.append(_libc.unshare(CLONE_NEWNET) == 0))
    thread.start()
    thread.join()
    return None if tried[0] else "network namespaces cannot be made"


def _unshare() -> None:
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _own() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def new_host() -> Iterator[None]:
    """Run the block in a network namespace of its own."""
    before = _own()
    _unshare()
    try:
        # A namespace begins with the settings of the host that the tests run on.
        devices.set_host({"ip_forward": "0", "conf/all/send_redirects": "1"})
        _in_thread(_loopback_up)
        yield
    finally:
        _enter(before)
        os.close(before)


@dataclass
class Place:
    """A network namespace beside the host's."""

    descriptor: int

    @classmethod
    def make(cls) -> Place:
        found: list[int] = []

        def make() -> None:
            _unshare()
            found.append(_own())

        _in_thread(make)
        return cls(found[0])

    def run(self, work: Callable[[], T]) -> T:
        """Do something inside."""

        def enter_and_work() -> T:
            _enter(self.descriptor)
            return work()

        return _in_thread(enter_and_work)

    def new_socket(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        return self.run(lambda: socket.socket(socket.AF_INET, kind))

    def listen(self, port: int, address: str = "", kind: int = socket.SOCK_STREAM) -> socket.socket:
        return _listening(self.new_socket(kind), address, port)

    def close(self) -> None:
        os.close(self.descriptor)


def listen_on_host(port: int, address: str = "", kind: int = socket.SOCK_STREAM) -> socket.socket:
    return _listening(socket.socket(socket.AF_INET, kind), address, port)


def _listening(listener: socket.socket, address: str, port: int) -> socket.socket:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.settimeout(10)
    if listener.type == socket.SOCK_STREAM:
        listener.listen()
    return listener


def _loopback_up() -> None:
    with IPRoute() as route:
        route.link("set", index=1, state="up")


def _in_thread(work: Callable[[], T]) -> T:
    outcome: list[Any] = []

    def catch() -> None:
        try:
            outcome.extend((work(), None))
        except BaseException as error:
            outcome.extend((None, error))

    thread = threading.Thread(target=catch)
    thread.start()
    thread.join()
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def bridge(net_id: int) -> Bridge:
    number = TenantNetId(net_id)
    return Bridge(number, TenantId(f"tenant-{net_id}"), addresses.subnet_of(number))


def guest(
    net_id: int, octet: int, *, pool: str = "people", egress: Egress = "internet", peer_traffic: bool = False
) -> Guest:
    number = TenantNetId(net_id)
    return Guest(
        net_id=number,
        ip=addresses.host_address(addresses.subnet_of(number), octet),
        tap=addresses.tap_name(number, octet),
        mac=addresses.mac_address(number, octet),
        pool_id=PoolId(pool),
        egress=egress,
        peer_traffic=peer_traffic,
    )


def picture(*guests: Guest, grants: tuple[tuple[Guest, Guest], ...] = (), **others: Any) -> Picture:
    """The picture of these guests; each grant is a gateway and a worker."""
    return Picture(
        bridges=tuple(bridge(number) for number in sorted({g.net_id for g in guests})),
        guests=guests,
        grants=tuple(Grant(gateway.ip, worker.ip) for gateway, worker in grants),
        **others,
    )


class World:
    """Guests with an IP stack of their own, and an outside with a few addresses that do not know of any guest."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._guests: dict[IPv4Address, Place] = {}
        self.outside = self._place()
        self._connect_outside()

    def defer(self, callback: Callable[[], object]) -> None:
        """Have something done when the test has ended."""
        self._stack.callback(callback)

    def _place(self) -> Place:
        place = Place.make()
        self._stack.callback(place.close)
        return place

    def _connect_outside(self) -> None:
        def plug_in() -> None:
            with IPRoute() as route:
                peer = {"ifname": "eth0", "net_ns_fd": self.outside.descriptor}
                route.link("add", ifname="up0", kind="veth", peer=peer)
                index = route.link_lookup(ifname="up0")[0]
                route.addr("add", index=index, address=UPLINK, prefixlen=24)
                route.link("set", index=index, state="up")
                route.route("add", dst="default", gateway="198.51.100.2")

        def set_up() -> None:
            with IPRoute() as route:
                index = route.link_lookup(ifname="eth0")[0]
                route.addr("add", index=index, address="198.51.100.2", prefixlen=24)
                for address in (INTERNET, PRIVATE, METADATA, RESOLVER):
                    route.addr("add", index=1, address=address, prefixlen=32)
                for each in (1, index):
                    route.link("set", index=each, state="up")

        _in_thread(plug_in)
        self.outside.run(set_up)

    def connect(self, guest: Guest) -> Place:
        """Give a guest a machine of its own, at its port of its tenant's bridge."""
        place = self._guests[guest.ip] = self._place()
        subnet = addresses.subnet_of(guest.net_id)

        def plug_in() -> None:
            with IPRoute() as route:
                peer = {"ifname": "eth0", "net_ns_fd": place.descriptor}
                route.link("add", ifname=guest.tap, kind="veth", peer=peer)
                index = route.link_lookup(ifname=guest.tap)[0]
                master = route.link_lookup(ifname=addresses.bridge_name(guest.net_id))[0]
                route.link("set", index=index, master=master)
                isolate_port(index)
                route.link("set", index=index, state="up")

        def set_up() -> None:
            with IPRoute() as route:
                index = route.link_lookup(ifname="eth0")[0]
                route.link("set", index=index, address=guest.mac, state="up")
                route.link("set", index=1, state="up")
                route.addr("add", index=index, address=str(guest.ip), prefixlen=24)
                route.route("add", dst="default", gateway=str(addresses.gateway_address(subnet)))

        _in_thread(plug_in)
        place.run(set_up)
        return place

    def at(self, guest: Guest) -> Place:
        return self._guests[guest.ip]

    def listen(self, guest: Guest, *ports: int) -> None:
        for port in ports:
            self._stack.enter_context(self.at(guest).listen(port))

    def reaches(self, guest: Guest, address: object, port: int, *, seconds: float = 5.0) -> bool:
        """Whether a connection that a guest opens comes about. A refusal is heard at once."""
        with self.at(guest).new_socket() as client:
            client.settimeout(seconds)
            return client.connect_ex((str(address), port)) == 0


needs_namespaces = pytest.mark.skipif(namespaces_work() is not None, reason=str(namespaces_work()))
