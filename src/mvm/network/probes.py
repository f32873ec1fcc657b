"""What is tried from inside guests to prove that the network is as it should be, and what to expect. Pure.

A try is a TCP connection. It counts as open when somebody answered, be it with a refusal: then packets came there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

from mvm.model.egress import host_ports, reaches_internet, rules_of
from mvm.model.errors import Unavailable
from mvm.model.routes import DELIVERY_PORT, OUTBOUND_PORT
from mvm.network.picture import Grant, Guest, Picture

METADATA = IPv4Address("169.254.169.254")
SOMEWHERE = (IPv4Address("1.1.1.1"), 443)
"""Tried where the internet is meant; expected to answer a guest only when it answers the host."""
LIMIT_SECONDS = 3.0
MOST_NEIGHBOURS = 3
"""How many other instances are tried of its own tenant, and how many of others."""
MOST_PORTS = 8

SCRIPT = """
import errno, json, selectors, socket, sys, time
found, waiting = {}, selectors.DefaultSelector()
def close(number, code):
    answered = {0: "open", errno.ECONNREFUSED: "refused"}
    found[number] = answered.get(code, "closed")
targets, limit = json.loads(sys.argv[1])
for number, target in enumerate(targets):
    client = socket.socket()
    client.setblocking(False)
    code = client.connect_ex(tuple(target))
    if code == errno.EINPROGRESS:
        waiting.register(client, selectors.EVENT_WRITE, number)
    else:
        close(number, code)
end = time.monotonic() + limit
while waiting.get_map() and time.monotonic() < end:
    for key, _ in waiting.select(max(0, end - time.monotonic())):
        close(key.data, key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        waiting.unregister(key.fileobj)
print(json.dumps([found.get(number, "closed") for number in range(len(targets))]))
"""
"""Python that tries all targets at once; what does not answer in time is closed."""


class Found(StrEnum):
    """How a try came out."""

    OPEN = "open"
    REFUSED = "refused"
    CLOSED = "closed"

    @property
    def reached(self) -> bool:
        return self is not Found.CLOSED


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One connection to try."""

    address: IPv4Address
    port: int
    what: str
    reachable: bool
    """What is expected."""

    def passed(self, found: Found) -> bool:
        return found.reached == self.reachable


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What of the host the probes need to know."""

    names: Mapping[IPv4Address, str]
    """Instances by address; of running ones, whose ports answer."""
    host_addresses: Sequence[IPv4Address] = ()
    host_listens: Sequence[int] = ()
    """TCP ports that services of the host listen at."""
    answers_host: Iterable[tuple[IPv4Address, int]] = ()
    """Places outside that the host itself can connect to now."""


def command(probes: Sequence[Probe], *, limit_seconds: float = LIMIT_SECONDS) -> tuple[str, ...]:
    """What to run in the guest."""
    targets = [[str(probe.address), probe.port] for probe in probes]
    return ("python3", "-c", SCRIPT, json.dumps([targets, limit_seconds]))


def outcomes(text: str, probes: Sequence[Probe]) -> list[Found]:
    """What the guest printed. Raises `Unavailable` when that is no answer."""
    try:
        listed = json.loads(text)
        found = [Found(one) for one in listed]
    except (ValueError, TypeError, RecursionError):
        found = []
    if len(found) != len(probes):
        raise Unavailable("the guest did not say how its tries came out")
    return found


def outside_places(picture: Picture) -> set[tuple[IPv4Address, int]]:
    """Places outside that are tried by somebody: the host has to try them first."""
    places = {SOMEWHERE, *((address, 53) for address in picture.resolvers.addresses)}
    for guest in picture.guests:
        places |= {place for _, place in _listed(guest)}
    return places


def probes_of(guest: Guest, picture: Picture, around: Surroundings) -> list[Probe]:
    """What is tried from a guest."""
    return [
        *_neighbours(guest, picture, around),
        *_host(guest, picture, around),
        Probe(address=METADATA, port=80, what="metadata of a cloud", reachable=False),
        *_outside(guest, picture, around),
    ]


def _neighbours(guest: Guest, picture: Picture, around: Surroundings) -> Iterator[Probe]:
    grants = set(picture.grants)
    running = [other for other in picture.guests if other.ip in around.names and other != guest]
    granted = [o for o in running if {Grant(guest.ip, o.ip), Grant(o.ip, guest.ip)} & grants]
    own = [o for o in running if o.net_id == guest.net_id and o not in granted]
    others = [o for o in running if o.net_id != guest.net_id and o not in granted]
    for other in granted[:MOST_NEIGHBOURS] + own[:MOST_NEIGHBOURS] + others[:MOST_NEIGHBOURS]:
        is_peer = guest.peer_traffic and (other.net_id, other.pool_id) == (guest.net_id, guest.pool_id)
        name = around.names[other.ip]
        for port, grant, what in (
            (DELIVERY_PORT, Grant(guest.ip, other.ip), "delivery to"),
            (OUTBOUND_PORT, Grant(other.ip, guest.ip), "report to"),
            (22, None, "any other port of"),
        ):
            allowed = is_peer or grant in grants
            yield Probe(address=other.ip, port=port, what=f"{what} {name}", reachable=allowed)


def _host(guest: Guest, picture: Picture, around: Surroundings) -> Iterator[Probe]:
    bridge = next(b for b in picture.bridges if b.net_id == guest.net_id)
    listed = host_ports(guest.egress)
    for port in listed:
        # Refused by nobody but the service's own absence, which is the operator's to know.
        if port in around.host_listens:
            yield Probe(address=bridge.address, port=port, what=f"host:{port}, which is listed", reachable=True)
    for port in [p for p in around.host_listens if p not in listed][:MOST_PORTS]:
        for address in (bridge.address, *around.host_addresses[:2]):
            yield Probe(address=address, port=port, what=f"the host's own port {port}", reachable=False)
    for other in [b for b in picture.bridges if b != bridge][:1]:
        for port in around.host_listens[:1]:
            yield Probe(address=other.address, port=port, what="the host at another tenant's bridge", reachable=False)


def _outside(guest: Guest, picture: Picture, around: Surroundings) -> Iterator[Probe]:
    answers = set(around.answers_host)
    allowed = [rule.network for rule in rules_of(guest.egress) if rule.network is not None and not rule.ports]
    for what, place in _listed(guest):
        if place in answers:
            yield Probe(address=place[0], port=place[1], what=what, reachable=True)
    if reaches_internet(guest.egress):
        named = [("its resolver", (address, 53)) for address in picture.resolvers.addresses]
        for what, place in [("the internet", SOMEWHERE), *named]:
            if place in answers:
                yield Probe(address=place[0], port=place[1], what=what, reachable=True)
    elif SOMEWHERE not in {place for _, place in _listed(guest)} and not any(SOMEWHERE[0] in n for n in allowed):
        yield Probe(address=SOMEWHERE[0], port=SOMEWHERE[1], what="the internet, which is not listed", reachable=False)


def _listed(guest: Guest) -> list[tuple[str, tuple[IPv4Address, int]]]:
    """A place to try for each network that a guest's pool lists."""
    return [
        (f"{rule.network}, which is listed", (_first(rule.network), rule.ports[0][0] if rule.ports else 443))
        for rule in rules_of(guest.egress)
        if rule.network is not None
    ]


def _first(network: IPv4Network) -> IPv4Address:
    return network.network_address if network.prefixlen >= 31 else network.network_address + 1
