"""The host's link over vsock, with Unix sockets in the place of vsock's: which guest reaches whom."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mvm.model.errors import TimedOut, Unavailable
from mvm.model.ids import instance_id
from mvm.runtime.base import ChannelKind
from mvm.runtime.qemu import QemuRuntime
from mvm.runtime.vsock_link import FIRST_CID, LAST_CID, VsockHost, cid_of, usable

pytestmark = pytest.mark.timeout(30)


class Kernel:
    """Gives sockets whose addresses are vsock's, kept as files; a guest's CID is in the file that it connects from."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mvm-vsock-"))

    def path(self, port: int, cid: int = 2) -> str:
        return str(self.directory / f"{cid}-{port}")

    def make(self) -> socket.socket:
        kernel = self

        class Vsock(socket.socket):
            def bind(self, address: Any) -> None:
                super().bind(kernel.path(address[1]))

            def connect(self, address: Any) -> None:
                super().connect(kernel.path(address[1], address[0]))

            def accept(self) -> tuple[socket.socket, Any]:
                descriptor, path = self._accept()
                cid = int(Path(path).name.split("-")[1]) if path else 0
                return socket.socket(fileno=descriptor), (cid, 1024)

        return Vsock(socket.AF_UNIX)

    async def from_guest(self, cid: int, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A guest connects to a host port."""
        connecting = socket.socket(socket.AF_UNIX)
        connecting.setblocking(False)
        connecting.bind(str(self.directory / f"from-{cid}-{id(connecting)}"))
        await asyncio.get_running_loop().sock_connect(connecting, self.path(port))
        return await asyncio.open_connection(sock=connecting)

    async def guest_listens(self, cid: int, port: int, answer: bytes) -> asyncio.Server:
        return await asyncio.start_unix_server(saying(answer), self.path(port, cid))


def saying(answer: bytes) -> Any:
    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    return handler


async def heard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    said = b""
    with suppress(OSError):
        said = await reader.read()
    writer.close()
    return said


@pytest.fixture
async def kernel() -> AsyncIterator[Kernel]:
    kernel = Kernel()
    yield kernel
    shutil.rmtree(kernel.directory)


@pytest.fixture
async def host(kernel: Kernel) -> AsyncIterator[VsockHost]:
    host = VsockHost(kernel.make)
    yield host
    host.close()


async def test_each_guest_is_served_by_its_own_handler_and_a_stranger_by_none(kernel: Kernel, host: VsockHost) -> None:
    alice, bob = host.link(3, name="alice"), host.link(4, name="bob")
    await alice.listen(53, saying(b"alice"))
    await bob.listen(53, saying(b"bob"))
    assert await heard(*await kernel.from_guest(3, 53)) == b"alice"
    assert await heard(*await kernel.from_guest(4, 53)) == b"bob"
    assert await heard(*await kernel.from_guest(5, 53)) == b""
    await alice.close()
    assert await heard(*await kernel.from_guest(3, 53)) == b""
    assert await heard(*await kernel.from_guest(4, 53)) == b"bob"


async def test_the_host_reaches_the_guest_with_that_number(kernel: Kernel, host: VsockHost) -> None:
    servers = [await kernel.guest_listens(3, 52, b"alice"), await kernel.guest_listens(4, 52, b"bob")]
    assert await heard(*await host.link(4, name="bob").connect(52)) == b"bob"
    for server in servers:
        server.close()


async def test_a_guest_where_nobody_listens_is_unavailable(host: VsockHost) -> None:
    with pytest.raises(Unavailable, match="guest port 52 of alice/i-1 cannot be reached") as caught:
        await host.link(3, name="alice/i-1").connect(52)
    assert not isinstance(caught.value, TimedOut)


async def test_a_host_port_that_is_taken_is_said_so(kernel: Kernel, host: VsockHost) -> None:
    Path(kernel.path(53)).touch()
    with pytest.raises(Unavailable, match="host port 53 of vsock is not to be had"):
        await host.link(3, name="alice").listen(53, saying(b""))


@pytest.mark.parametrize("instance", ["i-00000000", "i-00000002", "i-ffffffff", "i-80000000"])
def test_every_instance_has_a_number_that_means_nothing_else(instance: str) -> None:
    assert FIRST_CID <= cid_of(instance_id(instance)) <= LAST_CID


def test_neighbours_have_different_numbers() -> None:
    numbers = {cid_of(instance_id(f"i-{number:08x}")) for number in (*range(1000), *range(0xFFFF_FF00, 0xFFFF_FFFB))}
    assert len(numbers) == 1000 + 0xFB


async def test_a_host_that_has_no_vsock_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvm.runtime.vsock_link.DEVICE", Path("/nonexistent"))
    assert not usable()
    runtime = QemuRuntime(channel=ChannelKind.VSOCK)
    probe = await runtime.probe()
    await runtime.close()
    assert not probe.usable
    assert "modprobe vhost_vsock" in (probe.remedy or "")
