"""The host's TAP behind a guest's network card, and the wire between the two."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
from contextlib import suppress

from tests.standins.firecracker.guest_init import TAP_FLAGS, TUNSETIFF
from tests.standins.firecracker.jail import Jail
from tests.standins.firecracker.rules import Fault

MOST_FRAMES = 64


def open_tap(name: str, jail: Jail) -> int:
    """Attach to an existing TAP as the jail's user; the kernel decides whether that user may. Raises `Fault`."""
    what = f"Cannot open the TAP device {name}"
    if len(name) > 15:
        raise Fault(f"{what}: Invalid interface name")
    try:
        socket.if_nametoindex(name)
    except OSError:
        raise Fault(f"{what}: there is none, and nobody but root could make one") from None
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    error = _attach_as(jail, descriptor, struct.pack("16sH14x", name.encode(), TAP_FLAGS))
    if error:
        os.close(descriptor)
        raise Fault(f"{what}: {os.strerror(error)} (os error {error})")
    return descriptor


def _attach_as(jail: Jail, descriptor: int, request: bytes) -> int:
    """What the kernel says, asked by a child that has become that user: only it has no privilege left."""
    child = os.fork()
    if child == 0:
        try:
            if jail.confined:
                os.setgroups([])
                os.setresgid(jail.gid, jail.gid, jail.gid)
                os.setresuid(jail.uid, jail.uid, jail.uid)
            fcntl.ioctl(descriptor, TUNSETIFF, request)
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Wire:
    """Frames between the host's TAP and the guest's card, both with the header that virtio has."""

    def __init__(self, host: int, card: int) -> None:
        self._ends = (host, card)

    def open(self) -> None:
        loop = asyncio.get_running_loop()
        for here, there in (self._ends, self._ends[::-1]):
            loop.add_reader(here, self._carry, here, there)

    def close(self) -> None:
        for end in self._ends:
            asyncio.get_running_loop().remove_reader(end)

    @staticmethod
    def _carry(here: int, there: int) -> None:
        with suppress(OSError):  # one end is down, or full: a network may lose frames
            for _ in range(MOST_FRAMES):
                os.write(there, os.read(here, 1 << 16))
