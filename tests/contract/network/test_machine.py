"""A virtual machine at its tenant's bridge, among other guests."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.contract.network.frames import PORT, ethernet, udp
from tests.contract.network.world import INTERNET, UPLINK, World, guest, listen_on_host, needs_namespaces, picture
from tests.contract.runtime.bench import Bench, Subject

from mvm.model import addresses
from mvm.network import devices
from mvm.network.apply import Rules, nft
from mvm.network.picture import Resolvers
from mvm.network.probes import Surroundings, command, outcomes, probes_of
from mvm.network.rules import render
from mvm.network.taps import open_tap
from mvm.runtime.base import Machine, Runtime
from mvm.runtime.qemu import QemuRuntime

pytestmark = [
    needs_namespaces,
    pytest.mark.vm,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU"),
]

GATEWAY, OTHER, STRANGER = guest(1, 3, pool="gateway"), guest(1, 5), guest(2, 4)
WORKER = guest(1, 4, egress=("internet", "host:9000"))
DRAWN = picture(
    GATEWAY,
    WORKER,
    OTHER,
    STRANGER,
    grants=((GATEWAY, WORKER),),
    resolvers=Resolvers(addresses=(IPv4Address(INTERNET),)),
)

BRIDGE = addresses.mac_address(WORKER.net_id, addresses.GATEWAY_OCTET)
FORGED = (
    ethernet(WORKER.mac, BRIDGE, 0x0800, udp(str(OTHER.ip), INTERNET)),
    ethernet(OTHER.mac, BRIDGE, 0x0800, udp(str(WORKER.ip), INTERNET)),
    ethernet(OTHER.mac, BRIDGE, 0x0800, udp(str(OTHER.ip), INTERNET)),
    ethernet(WORKER.mac, BRIDGE, 0x0800, udp(str(STRANGER.ip), INTERNET)),
    ethernet(WORKER.mac, BRIDGE, 0x0800, udp("127.0.0.1", INTERNET)),
)
"""Of another's address, another's card, both, another tenant, the host."""
SENDS = """
import os, socket, sys
(name,) = [name for name in os.listdir("/sys/class/net") if os.path.exists(f"/sys/class/net/{name}/device")]
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
    wire.bind((name, 0))
    for frame in sys.argv[1:]:
        wire.send(bytes.fromhex(frame))
"""


class NetworkBench(Bench):
    """Machines that are the worker of the picture."""

    gateway_address = str(GATEWAY.ip)

    def __init__(self, base: Path, image: Path) -> None:
        self.image = image
        super().__init__(base)

    def make_runtime(self) -> Runtime:
        bridge = addresses.bridge_name(WORKER.net_id)
        return QemuRuntime(run_dir=self.base, open_tap=lambda machine: open_tap(machine.tap, bridge))

    def equip(self, machine: Machine) -> Machine:
        return replace(
            machine,
            vcpus=1,
            mem_mib=256,
            data_mib=64,
            image=self.image,
            guest_ip=str(WORKER.ip),
            gateway_ip=str(DRAWN.bridges[0].address),
            tap=WORKER.tap,
            mac=WORKER.mac,
        )

    def leftovers(self, subject: Subject) -> list[str]:
        return [subject.machine.tap] if devices.bridge_is_there(subject.machine.tap) else []

    async def read_data(self, subject: Subject, name: str) -> str:
        raise AssertionError("nobody asks")


@pytest.fixture
def base() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))
    yield directory
    shutil.rmtree(directory)


async def draw() -> None:
    await Rules().put(render(DRAWN, owner="test"))
    await asyncio.to_thread(devices.make_bridges, DRAWN)
    devices.set_host()


async def test_a_machine_cannot_pass_for_another(world: World, base: Path, small_image: Path) -> None:
    await draw()
    target = world.outside.listen(PORT, kind=socket.SOCK_DGRAM)
    world.defer(target.close)
    bench = NetworkBench(base, small_image)
    try:
        machine = await bench.new()
        await machine.start_ready()
        before = await spoofed()
        first, last = (ethernet(WORKER.mac, BRIDGE, 0x0800, udp(str(WORKER.ip), INTERNET, b)) for b in (b"own", b"end"))
        await machine.execute("python3", "-c", SENDS, *(frame.hex() for frame in (first, *FORGED, last)))
        assert target.recv(100) == b"own"
        assert target.recv(100) == b"end", "what was forged would have come before"
        assert await spoofed() >= before + len(FORGED)
    finally:
        await bench.close()


async def spoofed() -> int:
    """How many of the tenant's frames the host counted as forged."""
    listed = await nft("list", "counter", "bridge", "mvm", f"spoofed-{WORKER.net_id}")
    return int(listed.partition("packets ")[2].split()[0])


async def test_a_machine_reaches_what_it_may_and_is_reached_by_its_gateway_only(
    world: World, base: Path, small_image: Path
) -> None:
    await draw()
    for each in (GATEWAY, OTHER, STRANGER):
        world.connect(each)
        world.listen(each, 18789, 18790)
    for place in (listen_on_host(9000, "127.0.0.1"), listen_on_host(9001)):
        world.defer(place.close)
    for port in (53, 443):
        world.defer(world.outside.listen(port, INTERNET).close)
    bench = NetworkBench(base, small_image)
    try:
        machine = await bench.new()
        await machine.start_ready()
        probes = probes_of(
            WORKER,
            DRAWN,
            Surroundings(
                names={each.ip: str(each.ip) for each in DRAWN.guests},
                host_addresses=[IPv4Address(UPLINK)],
                host_listens=[9000, 9001],
                answers_host=[(IPv4Address(INTERNET), 53)],
            ),
        )
        found = outcomes(await machine.execute(*command(probes)), probes)
        assert [probe for probe, one in zip(probes, found, strict=True) if not probe.passed(one)] == []
        connects = f"import socket; socket.create_connection(('{INTERNET}', 443), 10)"
        await machine.execute("python3", "-c", connects)
        assert world.reaches(GATEWAY, WORKER.ip, 18789)
        assert not world.reaches(OTHER, WORKER.ip, 18789)
        assert not world.reaches(STRANGER, WORKER.ip, 18789)
        assert not world.reaches(GATEWAY, WORKER.ip, 22)
    finally:
        await bench.close()
