"""A virtual machine on a host without privileges: its QEMU's own network outwards, the relay to other instances."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract.runtime.bench import Bench, Subject

from mvm.runtime.base import Connection, Machine, Runtime
from mvm.runtime.qemu import QemuRuntime
from mvm.wire import relaying

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU"),
]

GATEWAY, WORKER = "127.240.1.3", "127.240.1.4"
CONNECTS = """
import socket, sys
with socket.socket() as client:
    client.settimeout(5)
    print(client.connect_ex((sys.argv[1], int(sys.argv[2]))) == 0)
"""
REPORTS = (
    "import socket; s = socket.create_connection(('127.240.1.3', 18794), 5);"
    "s.sendall(b'report'); s.shutdown(1); print(s.recv(100).decode())"
)


class UserBench(Bench):
    """Machines in networks that their QEMU makes up."""

    gateway_address = GATEWAY

    def __init__(self, base: Path, image: Path) -> None:
        self.image = image
        super().__init__(base)

    def make_runtime(self) -> Runtime:
        return QemuRuntime(run_dir=self.base, user_network=True)

    def equip(self, machine: Machine) -> Machine:
        small = replace(machine, vcpus=1, mem_mib=256, data_mib=64, image=self.image)
        return replace(small, guest_ip=WORKER, gateway_ip="10.240.1.1")

    def leftovers(self, subject: Subject) -> list[str]:
        return []

    async def read_data(self, subject: Subject, name: str) -> str:
        raise AssertionError("nobody asks")


@pytest.fixture
def base() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
async def bench(base: Path, small_image: Path) -> AsyncIterator[UserBench]:
    bench = UserBench(base, small_image)
    yield bench
    await bench.close()


async def test_deliveries_and_reports_go_by_the_relay_and_the_rest_by_its_own_network(bench: UserBench) -> None:
    calls: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    async def serve(reader: Any, writer: Any) -> None:
        calls.put_nowait(await relaying.read_target(reader))
        writer.write((await reader.read()).upper())
        writer.close()

    subject = await bench.new()
    relay = await bench.runtime.listen(subject.machine, relaying.RELAY_PORT, serve)
    await subject.start_ready()

    assert await subject.execute("python3", "-c", REPORTS) == "REPORT\n"
    assert await calls.get() == (GATEWAY, 18790)

    reader, writer = await delivery(bench, subject, GATEWAY)
    writer.write(b"hello\n")
    assert await asyncio.wait_for(reader.readline(), 30) == b"HELLO\n"
    writer.close()

    reader, writer = await delivery(bench, subject, "127.240.1.9")
    writer.write(b"hello\n")
    assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()

    with socket.create_server(("127.0.0.1", 0)) as service:
        port = str(service.getsockname()[1])
        assert await subject.execute("python3", "-c", CONNECTS, "10.0.2.2", port) == "True\n"
    relay.close()


async def test_a_closed_machine_reaches_nothing(bench: UserBench) -> None:
    subject = await bench.new()
    subject.machine = replace(subject.machine, closed=True)
    await subject.start_ready()
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = str(service.getsockname()[1])
        assert await subject.execute("python3", "-c", CONNECTS, "10.0.2.2", port) == "False\n"


async def delivery(bench: UserBench, subject: Subject, caller: str) -> Connection:
    """A connection that the host carries to the worker, in the name of `caller`."""
    reader, writer = await bench.runtime.connect(subject.machine, 18789)
    writer.write(relaying.caller_line(caller, WORKER))
    return reader, writer
