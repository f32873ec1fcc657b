"""Where a pool's instances may connect to outside their tenant (CONTRACT 11)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, Literal

from mvm.model.errors import InvalidInput

Egress = Literal["internet", "none"] | tuple[str, ...]
"""`internet`, `none`, or a list of `CIDR[:ports]`, `host:PORT` and `internet`."""

HOST = "host"
INTERNET = "internet"
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_HINT = "write 'internet', 'none', or a list such as ['203.0.113.0/24:443', 'host:8080']"


@dataclass(frozen=True)
class EgressRule:
    """One entry of the list, parsed."""

    network: IPv4Network | None
    """Destinations; None for a service of the host itself and for the internet."""
    ports: tuple[tuple[int, int], ...] = ()
    """First and last of each range; empty for all ports."""

    @property
    def host_port(self) -> int | None:
        """The port of the host's own service that it names."""
        return self.ports[0][0] if self.network is None and self.ports else None

    @property
    def is_internet(self) -> bool:
        return self.network is None and not self.ports


def parse_rule(text: str) -> EgressRule:
    """Parse `CIDR`, `CIDR:443`, `CIDR:80,8000-8080`, `host:PORT` or `internet`; raises `InvalidInput`."""
    if text == INTERNET:
        return EgressRule(None)
    place, colon, ports_text = text.partition(":")
    ports = tuple(_port_range(text, part) for part in ports_text.split(",")) if colon else ()
    if place == HOST:
        if len(ports) != 1 or ports[0][0] != ports[0][1]:
            raise InvalidInput(
                f"egress entry {text[:80]!r} does not name one port of the host", hint="write 'host:8080'"
            )
        return EgressRule(None, ports)
    try:
        return EgressRule(IPv4Network(place), ports)
    except ValueError:
        raise InvalidInput(f"egress entry {text[:80]!r} does not begin with an IPv4 network", hint=_HINT) from None


def _port_range(text: str, part: str) -> tuple[int, int]:
    if (match := _PORTS.fullmatch(part)) is not None:
        first = int(match[1])
        last = int(match[2] or first)
        if 1 <= first <= last <= 65535:
            return first, last
    raise InvalidInput(
        f"egress entry {text[:80]!r} has no valid ports after ':'", hint="write ports as '443', '80,443' or '8000-8080'"
    )


def parse_egress(value: Any) -> Egress:
    """Check what a document says of egress; raises `InvalidInput`."""
    match value:
        case "internet":
            return "internet"
        case "none":
            return "none"
        case [*entries] if all(isinstance(entry, str) for entry in entries):
            for entry in entries:
                parse_rule(entry)
            return tuple(entries)
    raise InvalidInput("is not an egress", hint=_HINT)


def rules_of(egress: Egress) -> tuple[EgressRule, ...]:
    """Everything that an egress lets pass, as a list has it."""
    match egress:
        case "none":
            return ()
        case "internet":
            return (EgressRule(None),)
        case _:
            return tuple(parse_rule(entry) for entry in egress)


def host_ports(egress: Egress) -> tuple[int, ...]:
    """Ports of the host's own services that are listed."""
    return tuple(sorted({rule.host_port for rule in rules_of(egress) if rule.host_port is not None}))


def reaches_internet(egress: Egress) -> bool:
    """True when it lets the internet pass, and with it the questions for names."""
    return any(rule.is_internet for rule in rules_of(egress))
