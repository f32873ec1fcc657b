"""Frames that a guest writes by itself, straight into its TAP: what is not its own goes nowhere."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest
from tests.contract.network.frames import PORT, arp, ethernet, mac, udp
from tests.contract.network.world import (
    INTERNET,
    World,
    guest,
    listen_on_host,
    needs_namespaces,
    picture,
)

from mvm.model import addresses
from mvm.model.errors import Conflict, Unavailable
from mvm.network import devices
from mvm.network.apply import Rules, nft
from mvm.network.picture import Guest
from mvm.network.rules import render
from mvm.network.taps import open_tap

pytestmark = needs_namespaces

# Another guest of its tenant may use a service of the host's loopback, so packets may be led there at all.
WORKER, VICTIM = guest(1, 4), guest(1, 5, egress=("host:9000",))
BRIDGE = addresses.mac_address(WORKER.net_id, addresses.GATEWAY_OCTET)
BRIDGE_IP = str(addresses.gateway_address(addresses.subnet_of(WORKER.net_id)))
BROADCAST = "ff:ff:ff:ff:ff:ff"


class Wire:
    """A guest's end of its TAP."""

    def __init__(self, world: World, guest: Guest) -> None:
        self.descriptor = open_tap(guest.tap, addresses.bridge_name(guest.net_id))
        world.defer(self.unplug)

    def unplug(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def send(self, frame: bytes) -> None:
        os.write(self.descriptor, frame)

    def answered(self) -> bool:
        """True when there was an answer lately, and no more is to come."""
        frames = []
        while select.select([self.descriptor], [], [], 0.05)[0]:
            frames.append(os.read(self.descriptor, 2048))
        return any(map(answer, frames))

    def heard(self, until: Callable[[bytes], bool]) -> list[bytes]:
        """Every frame up to the first that `until` holds of, without it: frames keep their order."""
        frames: list[bytes] = []
        deadline = time.monotonic() + 10
        while True:
            assert select.select([self.descriptor], [], [], max(0, deadline - time.monotonic()))[0], frames
            frame = os.read(self.descriptor, 2048)
            if until(frame):
                return frames
            frames.append(frame)


@pytest.fixture
async def wire(world: World) -> Wire:
    drawn = picture(WORKER, VICTIM)
    await Rules().put(render(drawn, owner="test"))
    await asyncio.to_thread(devices.make_bridges, drawn)
    devices.set_host()
    wire = Wire(world, WORKER)
    while not wire.answered():  # the kernel lets a bridge speak some time after it got its first port
        wire.send(QUESTION)
    return wire


@pytest.fixture
def target(world: World) -> Iterator[socket.socket]:
    with world.outside.listen(PORT, kind=socket.SOCK_DGRAM) as listening:
        yield listening


OWN = ethernet(WORKER.mac, BRIDGE, 0x0800, udp(str(WORKER.ip), INTERNET, b"own"))
QUESTION = ethernet(WORKER.mac, BROADCAST, 0x0806, arp(WORKER.mac, str(WORKER.ip), BRIDGE_IP))


def answer(frame: bytes) -> bool:
    """An answer to an ARP question."""
    return frame[12:14] == b"\x08\x06" and frame[20:22] == b"\x00\x02"


async def spoofed() -> int:
    """How many frames the host counted as forged."""
    listed = await nft("list", "counter", "bridge", "mvm", "spoofed-1")
    return int(listed.partition("packets ")[2].split()[0])


async def test_what_is_its_own_passes(wire: Wire, target: socket.socket) -> None:
    wire.send(OWN)
    assert target.recv(100) == b"own"
    assert await spoofed() == 0


@pytest.mark.parametrize(
    "frame",
    [
        ethernet(WORKER.mac, BRIDGE, 0x0800, udp(str(VICTIM.ip), INTERNET)),
        ethernet(VICTIM.mac, BRIDGE, 0x0800, udp(str(WORKER.ip), INTERNET)),
        ethernet(VICTIM.mac, BRIDGE, 0x0800, udp(str(VICTIM.ip), INTERNET)),
        ethernet(BRIDGE, BRIDGE, 0x0800, udp(str(WORKER.ip), INTERNET)),
        ethernet(WORKER.mac, BRIDGE, 0x0800, udp("127.0.0.1", INTERNET)),
        ethernet(WORKER.mac, BRIDGE, 0x8100, struct.pack("!HH", 5, 0x0800) + udp(str(WORKER.ip), INTERNET)),
        ethernet(WORKER.mac, BRIDGE, 0x8100, struct.pack("!HH", 0, 0x0800) + udp(str(VICTIM.ip), INTERNET)),
        ethernet(WORKER.mac, BRIDGE, 0x86DD, b"\x60" + bytes(39)),
        ethernet(WORKER.mac, BRIDGE, 0x8864, bytes(60)),
    ],
    ids=["address", "MAC", "both", "the bridge's MAC", "loopback", "VLAN", "priority tag", "IPv6", "PPPoE"],
)
async def test_a_frame_that_is_not_its_own_goes_nowhere(wire: Wire, target: socket.socket, frame: bytes) -> None:
    wire.send(frame)
    wire.send(OWN)
    assert target.recv(100) == b"own"
    assert await spoofed() == 1


async def test_it_is_told_the_bridges_mac_for_every_neighbour(wire: Wire) -> None:
    for asked in (BRIDGE_IP, str(VICTIM.ip)):
        wire.send(ethernet(WORKER.mac, BROADCAST, 0x0806, arp(WORKER.mac, str(WORKER.ip), asked)))
        wire.heard(lambda frame, asked=asked: answer(frame) and frame[22:32] == mac(BRIDGE) + socket.inet_aton(asked))


@pytest.mark.parametrize(
    "frame",
    [
        ethernet(WORKER.mac, BROADCAST, 0x0806, arp(WORKER.mac, str(VICTIM.ip), BRIDGE_IP)),
        ethernet(WORKER.mac, BROADCAST, 0x0806, arp(VICTIM.mac, str(WORKER.ip), BRIDGE_IP)),
        ethernet(VICTIM.mac, BROADCAST, 0x0806, arp(VICTIM.mac, str(VICTIM.ip), BRIDGE_IP)),
        ethernet(WORKER.mac, BROADCAST, 0x0806, arp(WORKER.mac, BRIDGE_IP, str(VICTIM.ip), operation=2)),
    ],
    ids=["address", "MAC in the question", "both", "the bridge's address"],
)
async def test_a_forged_question_or_answer_is_not_heard(wire: Wire, frame: bytes) -> None:
    wire.send(frame)
    wire.send(QUESTION)
    assert [f for f in wire.heard(answer) if f[:6] != mac(BROADCAST)] == []
    assert await spoofed() == 1


def speak_to(guest: Guest) -> Callable[[bytes], bool]:
    """Have the host send something to a guest; tells which frame that is, the first that the guest may hear."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.sendto(b"host", (str(guest.ip), PORT))
    return lambda frame: frame[6:12] == mac(BRIDGE)


async def test_nothing_of_one_guest_is_heard_by_another(world: World, wire: Wire) -> None:
    victim = Wire(world, VICTIM)
    for target in (VICTIM.mac, BROADCAST, "01:00:5e:00:00:fb"):
        wire.send(ethernet(WORKER.mac, target, 0x0800, udp(str(WORKER.ip), str(VICTIM.ip))))
        wire.send(ethernet(WORKER.mac, target, 0x0806, arp(WORKER.mac, str(WORKER.ip), str(VICTIM.ip))))
    assert victim.heard(speak_to(VICTIM)) == []


async def test_ports_stay_apart_when_somebody_throws_the_rules_away(world: World, wire: Wire) -> None:
    victim = Wire(world, VICTIM)
    await nft("flush", "ruleset")
    wire.send(ethernet(WORKER.mac, VICTIM.mac, 0x0800, udp(str(WORKER.ip), str(VICTIM.ip))))
    wire.send(ethernet(WORKER.mac, BROADCAST, 0x0800, udp(str(WORKER.ip), str(VICTIM.ip))))
    assert victim.heard(speak_to(VICTIM)) == []


async def test_the_hosts_loopback_is_not_reached_by_its_address(wire: Wire) -> None:
    with listen_on_host(PORT, "127.0.0.1", socket.SOCK_DGRAM) as service:
        wire.send(ethernet(WORKER.mac, BRIDGE, 0x0800, udp(str(WORKER.ip), "127.0.0.1")))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
            host.sendto(b"host", ("127.0.0.1", PORT))
        assert service.recv(100) == b"host"


async def test_a_tap_is_gone_with_its_descriptor(wire: Wire) -> None:
    assert devices.bridge_is_there(WORKER.tap)
    wire.unplug()
    assert not devices.bridge_is_there(WORKER.tap)


async def test_a_tap_in_use_and_a_bridge_that_is_not_there_are_told_apart(wire: Wire) -> None:
    with pytest.raises(Conflict, match="in use"):
        open_tap(WORKER.tap, addresses.bridge_name(WORKER.net_id))
    with pytest.raises(Unavailable, match="no bridge"):
        open_tap("tn7i7", "br-tenant-7")
    assert not devices.bridge_is_there("tn7i7")
