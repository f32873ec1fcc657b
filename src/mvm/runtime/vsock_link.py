"""The host's end of instances' channels over vhost-vsock: as `mvm.runtime.link`, with the kernel as the multiplexer.

A machine is known by its context number (CID). The host's ports are shared by all machines, so whoever connects to one
is told apart by the CID that the kernel names, and nobody else is served.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from mvm.model.errors import TimedOut, Unavailable
from mvm.model.ids import InstanceId
from mvm.runtime.base import Connection, Handler
from mvm.runtime.link import CONNECT_SECONDS, PortServer

log = logging.getLogger(__name__)

DEVICE = Path("/dev/vhost-vsock")
FIRST_CID, LAST_CID = 3, 0xFFFF_FFFE
"""Those below and above have a meaning of their own (vsock(7))."""


def cid_of(instance: InstanceId) -> int:
    """The context number of an instance: made of its id, so that nobody has to keep account of them."""
    return FIRST_CID + int(instance.removeprefix("i-"), 16) % (LAST_CID - FIRST_CID + 1)


def usable() -> bool:
    """Whether this host has vhost-vsock and we may use it, found out by trying."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return hasattr(socket, "AF_VSOCK")


def vsock_socket() -> socket.socket:
    """A vsock socket that is neither bound nor connected."""
    return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)


class VsockHost:
    """The host's ports, shared by the links to all machines."""

    def __init__(self, make_socket: Callable[[], socket.socket] = vsock_socket) -> None:
        self.make_socket = make_socket
        self._handlers: dict[int, dict[int, PortServer]] = {}
        self._servers: dict[int, asyncio.Server] = {}

    def link(self, cid: int, *, name: str) -> VsockLink:
        """The link to the machine with that CID."""
        return VsockLink(self, cid, name=name)

    async def serve(self, port: int, cid: int, handler: Handler) -> PortServer:
        """Have a handler serve one machine at a host port. Raises `Unavailable` when the port cannot be listened at."""
        if port not in self._servers:
            listening = self.make_socket()
            try:
                listening.bind((socket.VMADDR_CID_ANY, port))
                listening.setblocking(False)
                self._servers[port] = await asyncio.start_server(self._connected_to(port), sock=listening)
            except OSError as error:
                listening.close()
                raise Unavailable(f"host port {port} of vsock is not to be had: {error.strerror or error}") from error
        server = PortServer(self._handlers.setdefault(port, {}), cid, handler)
        self._handlers[port][cid] = server
        return server

    def _connected_to(self, port: int) -> Handler:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = writer.get_extra_info("peername")
            server = self._handlers.get(port, {}).get(peer[0]) if peer else None
            if server is None:
                writer.transport.abort()
            else:
                await server.handler(reader, writer)

        return connected

    def forget(self, cid: int) -> None:
        """Serve a machine no more."""
        for handlers in self._handlers.values():
            handlers.pop(cid, None)

    def close(self) -> None:
        """Listen no more."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        self._handlers.clear()


class VsockLink:
    """The channel to one guest."""

    def __init__(self, host: VsockHost, cid: int, *, name: str) -> None:
        self._host = host
        self._cid = cid
        self._name = name

    async def connect(self, port: int, *, timeout: float = CONNECT_SECONDS) -> Connection:
        """Connect to a guest port.

        Raises `Unavailable` when nobody listens there (yet), `TimedOut` when the machine is silent.
        """
        connecting = self._host.make_socket()
        try:
            connecting.setblocking(False)
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_connect(connecting, (self._cid, port))
            return await asyncio.open_connection(sock=connecting)
        except TimeoutError:
            connecting.close()
            raise TimedOut(f"guest port {port} of {self._name} does not answer within {timeout:g} s") from None
        except OSError as error:
            connecting.close()
            raise Unavailable(
                f"guest port {port} of {self._name} cannot be reached: {error.strerror or error}"
            ) from error

    async def ready(self, *, timeout: float = CONNECT_SECONDS) -> None:
        """The kernel is the other end: there is nothing to wait for."""

    async def listen(self, port: int, handler: Handler) -> asyncio.AbstractServer:
        """Have a handler serve what the guest connects to at a host port; the former one does no more."""
        return await self._host.serve(port, self._cid, handler)

    async def close(self) -> None:
        """Serve this guest no more."""
        self._host.forget(self._cid)
