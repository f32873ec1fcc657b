"""Addresses and ports of instances on a shared machine: nobody gets what somebody else has."""

from __future__ import annotations

import itertools
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mvm.model.addresses import loopback_address
from mvm.model.errors import Unavailable
from mvm.runtime.process import claims


@pytest.fixture
def address() -> str:
    """A loopback address that no other test uses."""
    chance = random.SystemRandom()
    return f"127.{chance.randrange(200, 239)}.{chance.randrange(256)}.{chance.randrange(3, 255)}"


@pytest.fixture
def listen() -> Iterator[Callable[[str, int], socket.socket]]:
    """Listen somewhere until the test's end."""
    open_sockets = []

    def listen(address: str, port: int) -> socket.socket:
        server = socket.create_server((address, port))
        open_sockets.append(server)
        return server

    yield listen
    for server in open_sockets:
        server.close()


@pytest.mark.parametrize(
    ("guest_ip", "expected"),
    [("10.240.1.3", "127.240.1.3"), ("10.255.255.254", "127.255.255.254"), ("127.9.8.7", "127.9.8.7")],
)
def test_an_address_has_its_usual_loopback_address(guest_ip: str, expected: str) -> None:
    assert loopback_address(guest_ip) == expected


def test_addresses_of_other_networks_are_mapped_apart() -> None:
    mapped = {loopback_address(f"192.168.7.{last}") for last in range(3, 255)}
    assert len(mapped) > 245
    assert all(64 <= int(address.split(".")[1]) < 192 for address in mapped)


def test_a_claimed_address_is_not_given_again(address: str) -> None:
    first, held = claims.claim_address(address, random.Random(1))
    with closing(held):
        second, other = claims.claim_address(address, random.Random(1))
        other.close()
    assert first == address
    assert second != address
    assert second.startswith("127.")


@pytest.mark.parametrize("port", [claims.FORWARDER_PORT, claims.OUTBOUND_PORT])
def test_an_address_with_a_taken_port_is_passed_over(
    address: str, port: int, listen: Callable[[str, int], socket.socket]
) -> None:
    listen(address, port)
    other, held = claims.claim_address(address, random.Random(2))
    held.close()
    assert other != address


def test_a_claim_is_held_by_whoever_inherits_it(address: str) -> None:
    _, held = claims.claim_address(address, random.Random(3))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[held.fileno()])
    held.close()
    with pytest.raises(OSError, match="in use"):
        claims.claim_free(address)
    child.communicate(b"\n", timeout=10)
    claims.claim_free(address).close()


def test_ports_lie_below_the_ephemeral_range_and_do_not_overlap() -> None:
    blocks = [claims.claim_ports(random.Random(4)) for _ in range(5)]
    firsts = sorted(block.first for block in blocks)
    for block in blocks:
        block.claim.close()
    assert all(claims.LOWEST_PORT <= first < claims.ephemeral_start() for first in firsts)
    assert all(later - first >= claims.BLOCK for first, later in itertools.pairwise(firsts))


def test_a_block_with_a_taken_port_is_passed_over(listen: Callable[[str, int], socket.socket]) -> None:
    seed = random.SystemRandom().random()
    first = claims.claim_ports(random.Random(seed))
    first.claim.close()
    listen("127.0.0.1", first.router)
    second = claims.claim_ports(random.Random(seed))
    second.claim.close()
    assert second.first != first.first


def test_a_machine_without_free_ports_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(address: str, port: int) -> claims.Claim:
        raise OSError("in use")

    monkeypatch.setattr(claims, "bound", taken)
    with pytest.raises(Unavailable, match="no free loopback ports") as refused:
        claims.claim_ports(random.Random(6))
    assert refused.value.hint
    with pytest.raises(Unavailable, match="no loopback address") as refused:
        claims.claim_address("10.240.1.3", random.Random(6))
    assert "ss -ltnp" in (refused.value.hint or "")


def test_an_unknown_ephemeral_range_has_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "EPHEMERAL_PORTS", tmp_path / "nothing")
    assert claims.ephemeral_start() == claims.DEFAULT_EPHEMERAL_START
