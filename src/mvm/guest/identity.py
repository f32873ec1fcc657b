"""Who this machine is: name, machine id, addresses, resolvers. Taken from `config.json`, as often as one likes.

A copy of another machine's memory wakes up as that machine; taking an identity makes it the one that it is to be.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import logging
import socket
from pathlib import Path

from mvm.guest.config import GuestConfig
from mvm.guest.network_device import Addresses, NetworkDevice, only_device
from mvm.guest.paths import GuestPaths, write_atomically

log = logging.getLogger(__name__)

NOBODYS_NETWORK = ipaddress.IPv4Network("192.0.2.0/24")
"""Never routed (RFC 5737): an address from it means that this machine is nobody's, and will be copied."""
_MACHINE_ID_PURPOSE = b"mvm machine id\0"

QEMUS_NETWORK = Addresses(mac=None, address="10.0.2.15", prefix=24, gateway="10.0.2.2")
"""What a machine is in the network that its own QEMU makes up, on a host without privileges."""
QEMUS_RESOLVER = "10.0.2.3"


def take(paths: GuestPaths, config: GuestConfig) -> bool:
    """Be the machine that `config` describes; True when it was another before.

    Under the process runtime the machine is the host's and nothing happens. Raises `OSError`.
    """
    if not paths.owns_machine:
        return False
    new = _take_name(paths.root, config)
    _take_files(paths.root, config)
    return _take_addresses(config) or new


def is_nobodys(config: GuestConfig) -> bool:
    """True for a machine that is started in order to be copied."""
    return ipaddress.IPv4Address(config.guest_ip) in NOBODYS_NETWORK


def machine_id(instance_id: str) -> str:
    """The same 32 hexadecimal digits for the same instance, which tell nothing of other instances."""
    return hashlib.sha256(_MACHINE_ID_PURPOSE + instance_id.encode()).hexdigest()[:32]


def hosts_file(instance_id: str) -> str:
    """Content of `/etc/hosts`."""
    return f"127.0.0.1 localhost\n127.0.1.1 {instance_id}\n::1 localhost ip6-localhost\n"


def resolver_file(dns: tuple[str, ...]) -> str:
    """Content of `/etc/resolv.conf`."""
    lines = [f"nameserver {address}" for address in dns]
    return "\n".join([*lines, "options timeout:2 attempts:2", ""])


def _take_name(root: Path, config: GuestConfig) -> bool:
    new = socket.gethostname() != config.instance_id
    if new:
        socket.sethostname(config.instance_id)
    _write(root / "etc/hostname", f"{config.instance_id}\n")
    _write(root / "etc/machine-id", f"{machine_id(config.instance_id)}\n")
    return new


def _take_files(root: Path, config: GuestConfig) -> None:
    _write(root / "etc/hosts", hosts_file(config.instance_id))
    _write(root / "etc/resolv.conf", resolver_file((QEMUS_RESOLVER,) if _is_relayed(config) else config.dns))


def _is_relayed(config: GuestConfig) -> bool:
    """True when other instances are reached through the host only, which gives loopback addresses then."""
    return ipaddress.IPv4Address(config.guest_ip).is_loopback


def _write(path: Path, text: str) -> None:
    content = text.encode()
    if path.is_symlink() or not path.exists() or path.read_bytes() != content:
        write_atomically(path, content, mode=0o644)


def _take_addresses(config: GuestConfig) -> bool:
    name = only_device()
    if name is None:
        log.info("there is no network device")
        return False
    device = NetworkDevice(name)
    if _is_relayed(config):
        wanted = dataclasses.replace(QEMUS_NETWORK, mac=config.mac)
    else:
        wanted = Addresses(mac=config.mac, address=config.guest_ip, prefix=config.prefix, gateway=config.gateway_ip)
    new = not device.has(wanted)
    if new:
        device.take(wanted)
    try:
        device.announce(wanted.address)
    except OSError as error:  # the neighbours find out by asking
        log.info("the address cannot be announced: %s", error)
    return new
