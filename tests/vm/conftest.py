"""Tests with virtual machines run in a network namespace of their own: nothing of the host's network is touched."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

import pytest

pytest.register_assert_rewrite("tests.vm.path")

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


@pytest.fixture(scope="session")
def private_network() -> None:
    """From here on this process, and everything that it starts, has a network of its own with nothing in it."""
    if os.geteuid() != 0:
        pytest.skip("machines with networks of their own need root")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        pytest.skip(f"no network namespace can be made: {os.strerror(ctypes.get_errno())}")
    request = struct.pack("16sH14x", b"lo", 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
