"""vsock as a carrier of the channel: the kernel multiplexes, so connections are only joined."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Protocol

from mvm.guest.channel import AGENT_PORT, SLEEP_PREP_PORT, SUPERVISOR_PORT
from mvm.guest.joint import Half
from mvm.wire import relaying, transfer

if TYPE_CHECKING:
    from mvm.guest.channel_service import Bridge

log = logging.getLogger(__name__)

GUEST_PORTS = (
    SUPERVISOR_PORT,
    AGENT_PORT,
    SLEEP_PREP_PORT,
    transfer.PORT,
    relaying.DELIVERY[1],
    relaying.OUTBOUND[1],
)
"""Guest ports that the host may connect to. Where nobody listens (yet), a connection ends as soon as it is there."""
HOST_CID = 2


class Sockets(Protocol):
    """Where vsock's sockets come from."""

    def listen(self, port: int) -> socket.socket:
        """A socket bound to a guest port. Raises `OSError`."""

    async def connect(self, port: int) -> socket.socket:
        """A socket connected to a host port. Raises `OSError`."""

    def is_host(self, peer: object) -> bool:
        """Whether the host has that address; a program in the guest may reach the guest's own ports as well."""


class VsockSockets:
    """The real ones."""

    def listen(self, port: int) -> socket.socket:
        listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        try:
            listening.bind((socket.VMADDR_CID_ANY, port))
        except BaseException:
            listening.close()
            raise
        return listening

    async def connect(self, port: int) -> socket.socket:
        connected = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        try:
            connected.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connected, (HOST_CID, port))
        except BaseException:
            connected.close()
            raise
        return connected

    def is_host(self, peer: object) -> bool:
        return isinstance(peer, tuple) and peer[0] == HOST_CID


class VsockCarrier:
    """Joins vsock connections to the guest's sockets."""

    def __init__(self, sockets: Sockets | None = None) -> None:
        self._sockets = sockets or VsockSockets()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, bridge: Bridge) -> None:
        loop = asyncio.get_running_loop()
        for port in GUEST_PORTS:
            listening = self._sockets.listen(port)
            listening.setblocking(False)

            def connected(port: int = port) -> Half:
                return _FromHost(self, bridge, port)

            self._servers.append(await loop.create_server(connected, sock=listening))

    def from_host(self, bridge: Bridge, port: int, far: Half) -> None:
        """Somebody connected to a guest port."""
        assert far.transport is not None
        peer = far.transport.get_extra_info("peername")
        if self._sockets.is_host(peer):
            self._begin(self._join(bridge, port, far))
        else:
            log.warning("guest port %d: refused %s, who is not the host", port, peer)
            far.transport.abort()

    @staticmethod
    async def _join(bridge: Bridge, port: int, far: Half) -> None:
        assert far.transport is not None
        try:
            near = await bridge.connect(port, far)
        except OSError as error:
            log.debug("guest port %d: %s", port, error)
            far.transport.abort()
        else:
            if far.transport.is_closing():
                near.abort()

    def open(self, port: int, near: Half) -> None:
        self._begin(self._connect(port, near))

    async def _connect(self, port: int, near: Half) -> None:
        assert near.transport is not None
        far = Half()
        near.join(far)
        try:
            connected = await self._sockets.connect(port)
            transport, _ = await asyncio.get_running_loop().create_connection(lambda: far, sock=connected)
        except OSError as error:
            log.debug("host port %d: %s", port, error)
            near.transport.abort()
        else:
            if near.transport.is_closing():
                transport.abort()

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()


class _FromHost(Half):
    """A connection to a guest port, until it is joined."""

    def __init__(self, carrier: VsockCarrier, bridge: Bridge, port: int) -> None:
        super().__init__()
        self._carrier = carrier
        self._bridge = bridge
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._carrier.from_host(self._bridge, self._port, self)
