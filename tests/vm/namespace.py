"""A network with nothing in it, for whoever runs virtual machines beside others: nothing of the host's is touched."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

CLONE_NEWNET = 0x40000000
OWN = "/proc/thread-self/ns/net"
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


_left: list[int] = []
"""The network that this process began in, opened, once it has left it."""


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Be in the network that this process began in, where the package archive is. Raises `OSError`."""
    if not _left:
        yield
        return
    back = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(_left[0])
        try:
            yield
        finally:
            _enter(back)
    finally:
        os.close(back)


def _enter(network: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(network, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"a network namespace cannot be entered: {os.strerror(number)}")


def enter_private_network() -> None:
    """From here on this process, and everything that it starts, has a network of its own. Raises `OSError`."""
    if not _left:
        _left.append(os.open(OWN, os.O_RDONLY | os.O_CLOEXEC))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"no network namespace can be made: {os.strerror(number)}")
    request = struct.pack("16sH14x", b"lo", 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
