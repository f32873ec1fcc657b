"""One network device, by the ioctls that every Linux has (netdevice(7)): no program to start, no library to load."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NETWORK_DEVICES = Path("/sys/class/net")
LOOPBACK = "lo"

_SIOCADDRT = 0x890B
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCGIFADDR, _SIOCSIFADDR = 0x8915, 0x8916
_SIOCGIFNETMASK, _SIOCSIFNETMASK = 0x891B, 0x891C
_SIOCSIFHWADDR, _SIOCGIFHWADDR = 0x8924, 0x8927
_IFF_UP = 1
_ARPHRD_ETHER = 1
_RTF_UP, _RTF_GATEWAY = 1, 2
_REQUEST_BYTES = 40
_ARP = 0x0806


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """What a device is known by in its network."""

    mac: str | None
    """`aa:bb:cc:dd:ee:ff`; None to leave it as it is."""
    address: str
    prefix: int
    gateway: str

    @property
    def netmask(self) -> str:
        """The prefix as an address."""
        return socket.inet_ntoa(struct.pack("!I", (0xFFFFFFFF << (32 - self.prefix)) & 0xFFFFFFFF))


def only_device(devices: Path = NETWORK_DEVICES) -> str | None:
    """Name of the one device that leads out of the machine; None when there is none."""
    try:
        names = sorted(name for name in os.listdir(devices) if name != LOOPBACK)
    except OSError:
        return None
    return next((name for name in names if (devices / name / "device").exists()), None)


class NetworkDevice:
    """One device of this machine. Every method raises `OSError`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def up(self) -> None:
        """Have it carry traffic."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
            self._set_up(channel, True)

    def has(self, wanted: Addresses) -> bool:
        """True when it is up and known by just these."""
        # What it does not have yet is an error to ask for.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel, suppress(OSError):
            return (
                self._flags(channel) & _IFF_UP != 0
                and wanted.mac in (None, _mac(self._ask(channel, _SIOCGIFHWADDR)))
                and _address(self._ask(channel, _SIOCGIFADDR)) == wanted.address
                and _address(self._ask(channel, _SIOCGIFNETMASK)) == wanted.netmask
                and self._routes_through(wanted.gateway)
            )
        return False

    def take(self, wanted: Addresses) -> None:
        """Be known by these and by nothing else; connections that are open are lost."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
            self._set_up(channel, False)  # its routes go with that, and only then can it have another MAC
            if wanted.mac is not None:
                mac = bytes.fromhex(wanted.mac.replace(":", ""))
                self._tell(channel, _SIOCSIFHWADDR, struct.pack("=H6s", _ARPHRD_ETHER, mac))
            self._tell(channel, _SIOCSIFADDR, _socket_address(wanted.address))
            self._tell(channel, _SIOCSIFNETMASK, _socket_address(wanted.netmask))
            self._set_up(channel, True)
            self._route(channel, wanted.gateway)

    def announce(self, address: str) -> None:
        """Tell the neighbours who has this address now (gratuitous ARP)."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ARP)) as channel:
            channel.bind((self.name, _ARP))
            mac = channel.getsockname()[4]
            ip = socket.inet_aton(address)
            nobody = bytes(6)
            message = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + ip + nobody + ip
            channel.send(b"\xff" * 6 + mac + struct.pack("!H", _ARP) + message)

    def _route(self, channel: socket.socket, gateway: str) -> None:
        """Send everything that has no better way to the gateway (`struct rtentry`)."""
        nowhere = _socket_address("0.0.0.0")  # noqa: S104 - the destination "anywhere"
        addresses = nowhere + _socket_address(gateway) + nowhere
        request = struct.pack("@L48sH", 0, addresses, _RTF_UP | _RTF_GATEWAY)
        fcntl.ioctl(channel, _SIOCADDRT, request + bytes(64))

    def _routes_through(self, gateway: str) -> bool:
        wanted = f"{int.from_bytes(socket.inet_aton(gateway), 'little'):08X}"
        with open("/proc/net/route") as table:
            rows = [line.split() for line in table]
        return any(row[0] == self.name and row[1] == "00000000" and row[2] == wanted for row in rows if len(row) > 2)

    def _set_up(self, channel: socket.socket, up: bool) -> None:
        flags = self._flags(channel)
        self._tell(channel, _SIOCSIFFLAGS, struct.pack("=H", flags | _IFF_UP if up else flags & ~_IFF_UP))

    def _flags(self, channel: socket.socket) -> int:
        return int(struct.unpack_from("=H", self._ask(channel, _SIOCGIFFLAGS), 16)[0])

    def _ask(self, channel: socket.socket, request: int) -> bytes:
        return fcntl.ioctl(channel, request, self._request(b""))

    def _tell(self, channel: socket.socket, request: int, value: bytes) -> None:
        fcntl.ioctl(channel, request, self._request(value))

    def _request(self, value: bytes) -> bytes:
        """`struct ifreq`."""
        return struct.pack("16s", self.name.encode()) + value.ljust(_REQUEST_BYTES - 16, b"\0")


def _socket_address(address: str) -> bytes:
    return struct.pack("=HH4s8s", socket.AF_INET, 0, socket.inet_aton(address), bytes(8))


def _address(answer: bytes) -> str:
    return socket.inet_ntoa(answer[20:24])


def _mac(answer: bytes) -> str:
    return answer[18:24].hex(":")
