"""The guest's end of the channel as a service: joins what carries it to the Unix sockets of `mvm.guest.channel`.

The host opens guest port N: a connection to `guest_<N>.sock`, which the agent listens on; the supervisor's control
socket is guest port 51. Somebody in the guest connects to `host_<N>.sock`: host port N is opened. The carrier is the
virtio serial port of our name where the machine has one (QEMU), else vsock (Firecracker, vhost-vsock).
"""

from __future__ import annotations

import asyncio
import grp
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from mvm.guest import virtio_port
from mvm.guest.channel import HOST_PORT, SUPERVISOR_PORT, UnixChannel
from mvm.guest.joint import Half
from mvm.guest.paths import GuestPaths
from mvm.guest.relay import Relay
from mvm.guest.stopping import told_to_end
from mvm.guest.virtio_port import VirtioPort
from mvm.guest.vsock import VsockCarrier
from mvm.wire.mux import GuestEnd
from mvm.wire.mux_connection import MuxConnection
from mvm.wire.relaying import RELAY_PORT

log = logging.getLogger(__name__)

HOST_PORTS = (HOST_PORT, RELAY_PORT)
"""Host ports that have a socket in the guest."""
VSOCK_DEVICE = Path("/dev/vsock")
ROUTER_GROUP = "router"
"""Group that may use the host's ports beside root, in images that have it."""
GOODBYE_SECONDS = 1.0
"""How long the service may go on at its end, so that last answers reach the host."""


class Carrier(Protocol):
    """What brings connections to and from the host."""

    async def start(self, bridge: Bridge) -> None:
        """Bring the host's connections to the bridge from now on. Raises `OSError`."""

    def open(self, port: int, near: Half) -> None:
        """Open a host port and join it to `near`, whose connection is there; that one ends if it cannot be done."""

    async def close(self) -> None:
        """Let what was said reach the host, within `GOODBYE_SECONDS`, and end all connections."""


class Bridge:
    """The sockets in the guest's directory, and who connects to them."""

    def __init__(self, directory: Path, supervisor: Path, carrier: Carrier) -> None:
        self._directory = directory
        self._supervisor = supervisor
        self._carrier = carrier
        self._servers: list[asyncio.Server] = []
        self._joints: set[Half] = set()

    async def start(self) -> None:
        """Listen at the host's ports, and take the host's connections. Raises `OSError`."""
        self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        for port in HOST_PORTS:
            self._servers.append(await self._listen(port))
        await self._carrier.start(self)

    async def _listen(self, port: int) -> asyncio.Server:
        path = self._directory / f"host_{port}.sock"
        path.unlink(missing_ok=True)

        def connected() -> Half:
            return _Caller(port, self._carrier, self._joints)

        mask = os.umask(0o177)
        try:
            server = await asyncio.get_running_loop().create_unix_server(connected, str(path))
        finally:
            os.umask(mask)
        with suppress(KeyError, PermissionError):
            os.chown(path, -1, grp.getgrnam(ROUTER_GROUP).gr_gid)
            path.chmod(0o660)
        return server

    async def connect(self, port: int, far: Half) -> asyncio.Transport:
        """Connect to who listens at a guest port, joined to `far`. Raises `OSError` when nobody does."""
        path = self._supervisor if port == SUPERVISOR_PORT else self._directory / f"guest_{port}.sock"
        near = Half(lambda: self._joints.discard(near))
        near.join(far)
        self._joints.add(near)
        try:
            transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: near, str(path))
        except BaseException:
            self._joints.discard(near)
            raise
        return transport

    async def close(self) -> None:
        """Take no more connections, let those that are there end within `GOODBYE_SECONDS`, then end them all."""
        for server in self._servers:
            server.close()
        await _until(lambda: not self._joints)
        await self._carrier.close()
        for near in list(self._joints):
            if near.transport is not None:
                near.transport.abort()


class _Caller(Half):
    """Somebody in the guest who connected to one of the host's sockets."""

    def __init__(self, port: int, carrier: Carrier, joints: set[Half]) -> None:
        super().__init__(lambda: joints.discard(self))
        self._port = port
        self._carrier = carrier
        self._joints = joints

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._joints.add(self)
        self._carrier.open(self._port, self)


class MuxCarrier:
    """The multiplexer over a virtio serial port."""

    def __init__(self, descriptor: int) -> None:
        """Takes over the port's descriptor."""
        self._descriptor = descriptor
        self._port: VirtioPort | None = None
        self._end: GuestEnd | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    async def start(self, bridge: Bridge) -> None:
        def opened(connection: MuxConnection) -> None:
            task = asyncio.get_running_loop().create_task(self._connect(bridge, connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

        end = GuestEnd(transmit=lambda data: port.write(data), discard=lambda: port.discard(), on_open=opened)
        port = VirtioPort(self._descriptor, end)
        self._port, self._end = port, end
        end.begin()

    @staticmethod
    async def _connect(bridge: Bridge, connection: MuxConnection) -> None:
        far = Half()
        try:
            near = await bridge.connect(connection.port, far)
        except OSError as error:
            log.debug("guest port %d: %s", connection.port, error)
            connection.refuse()
            return
        try:
            connection.accept(far)
        except ConnectionResetError:
            near.abort()

    def open(self, port: int, near: Half) -> None:
        if self._end is None or self._end.session is None:
            assert near.transport is not None
            near.transport.abort()
            return
        far = Half()
        near.join(far)
        self._end.session.open(port, far)

    async def close(self) -> None:
        if self._port is None or self._end is None:
            return
        port = self._port
        if self._end.session is not None:
            await _until(lambda: not port.unwritten)
            self._end.lose("the service ends")  # the host is told so, and waits for the next one
            await _until(lambda: not port.unwritten)
        port.close()


async def _until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds, or after `GOODBYE_SECONDS`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(GOODBYE_SECONDS):
            while not condition():  # noqa: ASYNC110 - a second at the very end of a guest's life
                await asyncio.sleep(0.005)


def find_carrier() -> Carrier:
    """What this machine has; raises `OSError` when that is nothing or cannot be used."""
    if (device := virtio_port.find_port()) is not None:
        log.info("the channel to the host is %s", device)
        return MuxCarrier(os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY))
    if VSOCK_DEVICE.exists():
        log.info("the channel to the host is vsock")
        return VsockCarrier()
    raise OSError(f"no channel to the host: there is no virtio port {virtio_port.PORT_NAME} and no {VSOCK_DEVICE}")


async def serve(environment: Mapping[str, str]) -> None:
    """Run until SIGTERM or SIGINT. Raises `OSError` or `ValueError` when it cannot."""
    stop = told_to_end()
    paths = GuestPaths.from_environment(environment)
    bridge = Bridge(paths.channel, paths.supervisor_socket, find_carrier())
    await bridge.start()
    relay = Relay(UnixChannel(paths.channel))
    try:
        await relay.start()
    except OSError as error:  # the channel is worth more than what needs it only where there is no network
        log.error("there is no relay to other instances: %s", error)
    await stop.wait()
    await relay.close()
    await bridge.close()
