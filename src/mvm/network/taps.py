"""TAP devices of instances: made when an instance starts, gone with the process that holds them.

On the way of every wake, so nothing here forks or imports more than the standard library. A TAP whose descriptor is
handed on is not persistent: the kernel removes it when the last one is closed, whatever becomes of the agent. A virtual
machine that wants to open its TAP itself, without any privilege, gets one that lasts and belongs to its user.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

from mvm.model.errors import Conflict, MvmError, Refused, Unavailable

TUN_DEVICE = Path("/dev/net/tun")

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
# No IFF_VNET_HDR: the guest's card has every offload off, so that a snapshot restores to any kind of network.
_SIOCBRADDIF = 0x89A2
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_IFREQ = struct.Struct("16sH14x")
_IFREQ_INDEX = struct.Struct("16si12x")

_RTM_SETLINK = 19
_NLM_F_REQUEST_ACK = 0x5
_NLMSG_ERROR = 2
_IFLA_PROTINFO = 12 | 0x8000
_IFLA_BRPORT_ISOLATED = 33
_NETLINK_ROUTE = 0


def open_tap(name: str, bridge: str) -> int:
    """Make the TAP `name` as a port of `bridge`, up, and return the descriptor for the virtual machine.

    The descriptor is non-blocking and not inherited unless it is passed on. Ports of a bridge do not see each other:
    what may pass between guests is routed, where the rules are. Raises `MvmError` and leaves no device.
    """
    descriptor = _open_device()
    try:
        _attach(descriptor, name, bridge)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_device() -> int:
    try:
        return os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise Unavailable(f"there is no {TUN_DEVICE}", hint="modprobe tun") from None
    except OSError as error:
        raise Refused(f"{TUN_DEVICE} cannot be opened: {error.strerror}", hint="run the agent as root") from None


def make_lasting_tap(name: str, bridge: str, *, owner: int | None) -> None:
    """Make the TAP `name`, which that user may open, as a port of `bridge`; it stays until `remove_lasting_tap`.

    Without a bridge there is nobody at its other end. Raises `MvmError`, `Conflict` when a process has it open, and
    leaves no device.
    """
    descriptor = _open_device()
    try:
        _attach(descriptor, name, bridge)
        try:
            if owner is not None:
                fcntl.ioctl(descriptor, _TUNSETOWNER, owner)
            fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
        except OSError as error:
            raise _why_no_tap(name, error) from error
    finally:
        os.close(descriptor)


def remove_lasting_tap(name: str) -> None:
    """Remove such a TAP. Idempotent. Raises `Conflict` when a process has it open."""
    try:
        socket.if_nametoindex(name)  # not a look at /sys, which may show another network than this process's
    except OSError:
        return
    descriptor = _open_device()
    try:
        _become(descriptor, name)
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 0)
    finally:
        os.close(descriptor)


def _become(descriptor: int, name: str) -> None:
    request = _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
    except OSError as error:
        raise _why_no_tap(name, error) from error


def _attach(descriptor: int, name: str, bridge: str) -> None:
    _become(descriptor, name)
    # Not a word of the host's own into the guest's wire: no router solicitations, no multicast reports.
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_bytes(b"1")
    if not bridge:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        index = socket.if_nametoindex(name)
        try:
            fcntl.ioctl(control, _SIOCBRADDIF, _IFREQ_INDEX.pack(bridge.encode(), index))
        except OSError as error:
            raise _why_no_port(name, bridge, error) from error
        isolate_port(index)
        flags = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0)))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(name.encode(), flags | _IFF_UP))


def isolate_port(index: int) -> None:
    """Keep a bridge's port from the other isolated ones, whatever becomes of the rules. Raises `MvmError`.

    One netlink message by hand: the library for it takes longer to import than a wake may last.
    """
    isolated = struct.pack("=HHB3x", 5, _IFLA_BRPORT_ISOLATED, 1)
    information = struct.pack("=HH", 4 + len(isolated), _IFLA_PROTINFO) + isolated
    payload = struct.pack("=BxHiII", socket.AF_BRIDGE, 0, index, 0, 0) + information
    header = struct.pack("=IHHII", 16 + len(payload), _RTM_SETLINK, _NLM_F_REQUEST_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE) as netlink:
        netlink.send(header + payload)
        answer = netlink.recv(4096)
    kind, code = struct.unpack_from("=4xH10xi", answer)
    if kind != _NLMSG_ERROR or code != 0:
        reason = os.strerror(-code) if code else "no answer"
        raise MvmError(f"a port of the bridge cannot be isolated: {reason}", hint="Linux 4.18 or newer is needed")


def _why_no_tap(name: str, error: OSError) -> MvmError:
    if error.errno == errno.EBUSY:
        return Conflict(f"TAP {name!r} is in use", hint="does an earlier process of that instance still run?")
    if error.errno == errno.EPERM:
        return Refused(f"TAP {name!r} may not be made", hint="run the agent as root, or with CAP_NET_ADMIN")
    return MvmError(f"TAP {name!r} cannot be made: {error.strerror}")


def _why_no_port(name: str, bridge: str, error: OSError) -> MvmError:
    if error.errno == errno.ENODEV:
        return Unavailable(f"there is no bridge {bridge!r} for {name!r}", hint="restart the agent; it makes bridges")
    return MvmError(f"TAP {name!r} cannot become a port of {bridge!r}: {error.strerror}")
