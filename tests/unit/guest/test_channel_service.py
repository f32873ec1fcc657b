"""The channel's service without a machine: who may use its sockets, what it finds, and vsock by stand-ins."""

from __future__ import annotations

import asyncio
import shutil
import socket
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from mvm.guest import channel_service
from mvm.guest.channel import AGENT_PORT, SLEEP_PREP_PORT, SUPERVISOR_PORT, UnixChannel
from mvm.guest.channel_service import Bridge, MuxCarrier
from mvm.guest.virtio_port import find_port
from mvm.guest.vsock import HOST_CID, VsockCarrier, VsockSockets
from mvm.wire import relaying, transfer

pytestmark = pytest.mark.timeout(30)

LISTENED_AT = (AGENT_PORT, SLEEP_PREP_PORT, transfer.PORT, relaying.DELIVERY[1], relaying.OUTBOUND[1])
"""Ports at which agent, `offer` and relay listen in a guest."""


class UnixInPlaceOfVsock:
    """Sockets of the file system, one per port; who connects is the host unless the test says otherwise."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.host_connects = True

    def listen(self, port: int) -> socket.socket:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(self.guest_port(port)))
        return listening

    async def connect(self, port: int) -> socket.socket:
        connected = socket.socket(socket.AF_UNIX)
        connected.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connected, str(self.host_port(port)))
        except OSError:
            connected.close()
            raise
        return connected

    def is_host(self, peer: object) -> bool:
        return self.host_connects

    def guest_port(self, port: int) -> Path:
        return self._directory / f"vsock-guest-{port}"

    def host_port(self, port: int) -> Path:
        return self._directory / f"vsock-host-{port}"


class Guest:
    """A bridge over vsock's stand-in."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mvm-ch-"))
        self.sockets = UnixInPlaceOfVsock(self.directory)
        self.channel = UnixChannel(self.directory / "ch")
        self.supervisor = self.directory / "supervisor.sock"
        self.bridge = Bridge(self.directory / "ch", self.supervisor, VsockCarrier(self.sockets))
        self.servers: list[asyncio.AbstractServer] = []

    async def from_host(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.sockets.guest_port(port)))

    async def close(self) -> None:
        for server in self.servers:
            server.close()
        await self.bridge.close()
        shutil.rmtree(self.directory)


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    guest = Guest()
    await guest.bridge.start()
    try:
        yield guest
    finally:
        await guest.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether what is written comes back and the connection then ends."""
    answer = b""
    with suppress(OSError):
        writer.write(b"hello")
        writer.write_eof()
        answer = await reader.read()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return answer == b"hello"


async def test_over_vsock_the_host_reaches_the_guests_sockets(guest: Guest) -> None:
    guest.servers += [await guest.channel.listen(port, echo) for port in LISTENED_AT]
    guest.servers.append(await asyncio.start_unix_server(echo, str(guest.supervisor)))
    for port in (SUPERVISOR_PORT, *LISTENED_AT):
        assert await echoes(*await guest.from_host(port))


async def test_over_vsock_the_guest_reaches_the_host(guest: Guest) -> None:
    guest.servers.append(await asyncio.start_unix_server(echo, str(guest.sockets.host_port(53))))
    assert await echoes(*await guest.channel.connect(53))


async def test_over_vsock_a_program_in_the_guest_is_not_taken_for_the_host(guest: Guest) -> None:
    guest.servers.append(await guest.channel.listen(52, echo))
    guest.sockets.host_connects = False
    assert not await echoes(*await guest.from_host(52))


async def test_over_vsock_connections_end_where_nobody_listens(guest: Guest) -> None:
    assert not await echoes(*await guest.from_host(52))
    assert not await echoes(*await guest.channel.connect(53))


def test_only_context_2_is_the_host() -> None:
    peers = [(HOST_CID, 1024), (3, 1024), (1, 52), ""]
    assert [VsockSockets().is_host(peer) for peer in peers] == [True, False, False, False]


async def test_others_may_neither_use_the_hosts_socket_nor_put_one_in_its_place(guest: Guest) -> None:
    path = guest.directory / "ch" / "host_53.sock"
    assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o022 == 0


async def test_the_guests_connections_end_at_once_while_no_host_is_there() -> None:
    directory = Path(tempfile.mkdtemp(prefix="mvm-ch-"))
    near, far = socket.socketpair()
    bridge = Bridge(directory / "ch", directory / "supervisor.sock", MuxCarrier(near.detach()))
    await bridge.start()
    assert not await echoes(*await UnixChannel(directory / "ch").connect(53))
    far.close()
    await bridge.close()
    shutil.rmtree(directory)


def test_the_port_is_found_by_its_name(tmp_path: Path) -> None:
    for device, name in (("vport1p1", "com.redhat.spice.0"), ("vport1p2", "org.mvm.mux")):
        (tmp_path / "virtio-ports" / device).mkdir(parents=True)
        (tmp_path / "virtio-ports" / device / "name").write_text(f"{name}\n")
    assert find_port("org.mvm.mux", tmp_path, Path("/dev")) == Path("/dev/vport1p2")
    assert find_port("org.mvm.other", tmp_path) is None
    assert find_port("org.mvm.mux", tmp_path / "nothing") is None


def test_a_machine_without_a_carrier_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_service.virtio_port, "find_port", lambda: None)
    monkeypatch.setattr(channel_service, "VSOCK_DEVICE", tmp_path / "vsock")
    with pytest.raises(OSError, match=r"there is no virtio port org\.mvm\.mux and no .*/vsock"):
        channel_service.find_carrier()
