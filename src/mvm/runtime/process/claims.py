"""Addresses and ports for instances without a network of their own, claimed so that nobody else's mvm takes them too.

A claim is a socket that is bound and never listened on, at a port that nothing else uses. It is inherited by the
instance's supervisor: as long as that runs, agent or not, no other mvm on this machine can claim the same; when it
ends, however it ends, the kernel lets go of the claim. There is no lock file that could be left behind.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mvm.model.addresses import loopback_address
from mvm.model.errors import Unavailable

CLAIM_PORT = 18788
"""Bound on an instance's address while the address is taken."""
FORWARDER_PORT = 18789
OUTBOUND_PORT = 18790
"""Ports that an instance listens on at its own address (CONTRACT 11)."""
ADDRESS_ATTEMPTS = 64

LOWEST_PORT = 20_000
EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
DEFAULT_EPHEMERAL_START = 32_768
BLOCK = 32
"""Loopback ports per instance: OpenClaw's own (it derives further ones from it), router, outbox and the claim."""
ROUTER_OFFSET = BLOCK - 3
OUTBOX_OFFSET = BLOCK - 2
CLAIM_OFFSET = BLOCK - 1
PORT_ATTEMPTS = 200


class Claim:
    """A bound socket's file descriptor; let go of by `close`, by whoever forgets the object, and by the kernel."""

    def __init__(self, bound_socket: socket.socket) -> None:
        self._descriptor = bound_socket.detach()

    def fileno(self) -> int:
        """The descriptor to pass on."""
        return self._descriptor

    def close(self) -> None:
        """Let go of it here; whoever inherited it holds it still. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True)
class PortBlock:
    """A claimed block of loopback ports."""

    first: int
    claim: Claim

    @property
    def openclaw(self) -> int:
        return self.first

    @property
    def router(self) -> int:
        return self.first + ROUTER_OFFSET

    @property
    def outbox(self) -> int:
        return self.first + OUTBOX_OFFSET


def other_addresses(chance: random.Random) -> Iterator[str]:
    """Loopback addresses outside of what `loopback_address` gives to the usual networks."""
    for _ in range(ADDRESS_ATTEMPTS):
        yield f"127.{chance.randrange(64, 192)}.{chance.randrange(256)}.{chance.randrange(3, 255)}"


def claim_address(guest_ip: str, chance: random.Random) -> tuple[str, Claim]:
    """Claim the loopback address for `guest_ip`, or another one when that is taken. Raises `Unavailable`."""
    wanted = loopback_address(guest_ip)
    reason = ""
    for address in (wanted, *other_addresses(chance)):
        try:
            return address, claim_free(address)
        except OSError as error:
            reason = reason or f"{address}: {error.strerror or error}"
    raise Unavailable(
        f"no loopback address is free for an instance ({reason})",
        hint=f"is something listening on port {FORWARDER_PORT} or {OUTBOUND_PORT} of every address (0.0.0.0)? "
        "`ss -ltnp` shows it; stop it or have it listen on 127.0.0.1",
    )


def claim_free(address: str) -> Claim:
    """Claim exactly this address. Raises `OSError` when it, or a port that an instance needs on it, is taken."""
    claim = bound(address, CLAIM_PORT)
    try:
        require_free(address, FORWARDER_PORT)
        require_free(address, OUTBOUND_PORT)
    except OSError:
        claim.close()
        raise
    return claim


def claim_ports(chance: random.Random) -> PortBlock:
    """Claim a block of loopback ports below the range that the kernel gives to outgoing connections."""
    end = max(ephemeral_start(), LOWEST_PORT + 10 * BLOCK)
    blocks = (end - LOWEST_PORT) // BLOCK
    start = chance.randrange(blocks)
    reason = ""
    for step in range(min(PORT_ATTEMPTS, blocks)):
        first = LOWEST_PORT + (start + step) % blocks * BLOCK
        try:
            claim = bound("127.0.0.1", first + CLAIM_OFFSET)
        except OSError as error:
            reason = str(error)
            continue
        try:
            for offset in (0, ROUTER_OFFSET, OUTBOX_OFFSET):
                require_free("127.0.0.1", first + offset)
        except OSError as error:
            claim.close()
            reason = str(error)
            continue
        return PortBlock(first, claim)
    raise Unavailable(
        f"no free loopback ports were found between {LOWEST_PORT} and {end} ({reason})",
        hint="`ss -ltn` shows what listens on this machine",
    )


def ephemeral_start() -> int:
    """First port that the kernel gives to outgoing connections."""
    try:
        return int(EPHEMERAL_PORTS.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return DEFAULT_EPHEMERAL_START


def bound(address: str, port: int) -> Claim:
    """Claim that port for whoever binds first only. Raises `OSError`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as exclusive:
        exclusive.bind((address, port))
        return Claim(exclusive)


def require_free(address: str, port: int) -> None:
    """Raise `OSError` unless a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        # Binding alone succeeds beside a listener that also allows reuse; only listening tells.
        probe.listen(1)
