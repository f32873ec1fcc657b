"""The rules that follow from a picture, as text for one atomic `nft -f -` (CONTRACT 11). Pure.

Two tables are mvm's own and are always replaced whole. `bridge mvm` looks at every frame of a guest: its TAP, MAC and
address must belong together, and nothing but IPv4 and ARP passes. Ports of a bridge do not see each other, so whatever
goes from guest to guest is routed by the host and meets `inet mvm`. That table judges every packet, also of connections
that exist, by who opened the connection: what is taken away ends at once.

What each guest may do is in sets and maps by its address. A packet costs the same with one guest as with a thousand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from mvm.model.egress import Egress, host_ports, reaches_internet, rules_of
from mvm.model.routes import DELIVERY_PORT, OUTBOUND_PORT
from mvm.network.picture import Bridge, Guest, Picture

TABLES = (("inet", "mvm"), ("bridge", "mvm"))
BRIDGES = "br-tenant-*"
CONNECTIONS_PER_GUEST = 1024
"""The kernel's table of connections is everybody's; one guest must not fill it."""

NEVER = tuple(map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")))
"""Reached by no guest, whatever its pool lists."""
PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16")))
"""Not the internet: networks around the host, reached only where they are listed."""
LOOPBACK = IPv4Address("127.0.0.1")
"""Where a service of the host that is listed as `host:PORT` listens."""
DNS_PORT = 53

# Names of TAPs are `tn<net_id>i<octet>`; wildcards cover also those that no instance of the picture has.
_TAPS = tuple(f"tn{digit}*" for digit in range(1, 10))


def render(picture: Picture, *, owner: str) -> str:
    """The input of `nft -f -` that replaces both tables; `owner` is noted in them."""
    return _replaced("inet", _inet(picture), owner) + _replaced("bridge", _bridge(picture), owner)


def removal() -> str:
    """The input of `nft -f -` that removes both tables, whether they are there or not."""
    return "".join(f"table {family} {name} {{ }}\ndelete table {family} {name}\n" for family, name in TABLES)


def _replaced(family: str, lines: Iterable[str], owner: str) -> str:
    # Made first, so that deleting it cannot fail; all of it is one transaction.
    head = f"table {family} mvm {{ }}\ndelete table {family} mvm\ntable {family} mvm {{\n"
    return head + f'comment "{_quoted(owner)}"\n' + "\n".join(lines) + "\n}\n"


def _quoted(text: str) -> str:
    return "".join(c if c.isalnum() or c in "/._-: " else "_" for c in text)[:120]


def _inet(picture: Picture) -> Iterator[str]:
    guests, bridges = picture.guests, picture.bridges
    gateways = {bridge.net_id: bridge.address for bridge in bridges}
    subnets = list(collapse_addresses(bridge.subnet for bridge in bridges))
    services = [(guest, port) for guest in guests for port in host_ports(guest.egress)]
    policies = {egress: f"egress-{number}" for number, egress in enumerate(dict.fromkeys(g.egress for g in guests), 1)}
    peers = {key: f"peers-{key[0]}-{key[1]}" for key in dict.fromkeys(map(_group, guests)) if key is not None}

    yield from _counters("refused", bridges)
    yield _set("tenants", "ipv4_addr", map(str, subnets), "flags interval; ")
    yield _set("never", "ipv4_addr", map(str, collapse_addresses([*NEVER, *subnets])), "flags interval; ")
    yield _set("private", "ipv4_addr", map(str, PRIVATE), "flags interval; ")
    yield _set("resolvers", "ipv4_addr", map(str, picture.resolvers.addresses))
    yield _set("deliveries", "ipv4_addr . ipv4_addr", (f"{g.gateway} . {g.worker}" for g in picture.grants))
    yield _set("reports", "ipv4_addr . ipv4_addr", (f"{g.worker} . {g.gateway}" for g in picture.grants))
    # Whoever may ask a service of the host: as it is asked at the bridge's address, and where it really listens.
    service = "ipv4_addr . ipv4_addr . inet_proto . inet_service"
    yield _set("services", service, (f"{g.ip} . {gateways[g.net_id]} . tcp . {port}" for g, port in services))
    yield _set("service_places", service, (f"{g.ip} . {LOOPBACK} . tcp . {port}" for g, port in services))
    resolver = picture.resolvers.through_host
    askers = [g for g in guests if reaches_internet(g.egress)] if resolver is not None else []
    yield _set("resolver_askers", "ipv4_addr . ipv4_addr", (f"{g.ip} . {gateways[g.net_id]}" for g in askers))
    yield _set("resolver_places", "ipv4_addr . ipv4_addr", (f"{g.ip} . {resolver}" for g in askers))
    yield "set connections { type ipv4_addr; size 65535; flags dynamic; }"
    yield _map("refused_by", "ifname : counter", (f'"{b.name}" : "refused-{b.net_id}"' for b in bridges))
    grouped = ((guest, _group(guest)) for guest in guests)
    yield _map("peers", "ipv4_addr : verdict", (f"{g.ip} : jump {peers[key]}" for g, key in grouped if key is not None))
    yield _map("egress", "ipv4_addr : verdict", (f"{g.ip} : goto {policies[g.egress]}" for g in guests))

    yield from _chain(
        "refuse",
        "counter name iifname map @refused_by",
        # A connection that exists would not mind being told; it has to be cut.
        "ct state established meta l4proto tcp reject with tcp reset",
        "ct direction reply drop",
        _reject(),
        "drop",
    )
    for key, name in peers.items():
        members = ", ".join(str(guest.ip) for guest in guests if _group(guest) == key)
        yield from _chain(name, f"ct original ip daddr {{ {members} }} accept")
    for egress, name in policies.items():
        yield from _chain(name, *_egress(egress))

    yield from _chain(
        "between",
        "meta nfproto != ipv4 drop",
        "ct state invalid drop",
        "ct state related meta l4proto icmp accept",
        # Nobody outside opens a connection to a guest, and no rule of others' leads a guest's one elsewhere.
        f'ct direction original iifname != "{BRIDGES}" drop',
        *(
            f"ct status dnat meta l4proto {protocol} ct original proto-dst {DNS_PORT} "
            "ct original ip saddr . ct original ip daddr @resolver_askers accept"
            for protocol in ("udp", "tcp")
        ),
        "ct direction original ct status dnat goto refuse",
        f"ct state new add @connections {{ ip saddr ct count over {CONNECTIONS_PER_GUEST} }} goto refuse",
        _granted(DELIVERY_PORT, "deliveries"),
        _granted(OUTBOUND_PORT, "reports"),
        "ct original ip saddr vmap @peers",
        f'iifname "{BRIDGES}" oifname "{BRIDGES}" goto refuse',
        "ct original ip saddr vmap @egress",
        "goto refuse",
    )
    yield from _chain(
        "to_host",
        "meta nfproto != ipv4 drop",
        "ct state invalid drop",
        "ct direction reply accept",
        f"ct state new add @connections {{ ip saddr ct count over {CONNECTIONS_PER_GUEST} }} goto refuse",
        "ct status dnat ip saddr . ip daddr . meta l4proto . th dport @service_places accept",
        f"ct status dnat meta l4proto {{ tcp, udp }} th dport {DNS_PORT} ip saddr . ip daddr @resolver_places accept",
        "goto refuse",
    )
    yield from _base("raw", "filter", "prerouting", "raw", f'iifname != {{ "{BRIDGES}", "lo" }} ip saddr @tenants drop')
    yield from _base(
        "prerouting",
        "nat",
        "prerouting",
        # Before others' translations: what is listed leads to the host's service, not to somebody's container.
        "dstnat - 10",
        f'iifname "{BRIDGES}" ip saddr . ip daddr . meta l4proto . th dport @services dnat ip to {LOOPBACK}',
        *(
            f'iifname "{BRIDGES}" meta l4proto {{ tcp, udp }} th dport {DNS_PORT} '
            f"ip saddr . ip daddr @resolver_askers dnat ip to {resolver}"
            for _ in askers[:1]
        ),
    )
    yield from _base("input", "filter", "input", "filter", f'iifname "{BRIDGES}" goto to_host')
    yield from _base(
        "forward",
        "filter",
        "forward",
        "filter",
        f'iifname "{BRIDGES}" goto between',
        f'oifname "{BRIDGES}" goto between',
    )
    # Guests of one bridge are told nothing of a shorter way: there is none.
    yield from _base("output", "filter", "output", "filter", f'oifname "{BRIDGES}" icmp type redirect drop')
    yield from _base(
        "postrouting",
        "nat",
        "postrouting",
        "srcnat",
        f'ct original ip saddr @tenants oifname != {{ "{BRIDGES}", "lo" }} masquerade',
    )


def _bridge(picture: Picture) -> Iterator[str]:
    guests = picture.guests
    yield from _counters("spoofed", picture.bridges)
    yield _set("taps", "ifname", (f'"{tap}"' for tap in _TAPS), "flags interval; ")
    yield _set("places", "ifname . ether_addr . ipv4_addr", (f'"{g.tap}" . {g.mac} . {g.ip}' for g in guests))
    yield _map("spoofed_by", "ifname : counter", (f'"{g.tap}" : "spoofed-{g.net_id}"' for g in guests))
    yield from _chain(
        "from_guest",
        "ether type ip iifname . ether saddr . ip saddr @places accept",
        "ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp operation { request, reply } "
        "iifname . ether saddr . arp saddr ip @places iifname . arp saddr ether . arp saddr ip @places accept",
        "counter name iifname map @spoofed_by",
        "drop",
    )
    yield from _base("prerouting", "filter", "prerouting", "dstnat", "iifname @taps goto from_guest")
    yield from _base("forward", "filter", "forward", "filter", "iifname @taps drop")


def _egress(egress: Egress) -> Iterator[str]:
    """Rules of a pool's way out; what they do not accept is refused. What is listed goes before what is private."""
    rules = rules_of(egress)
    if reaches_internet(egress):
        for protocol in ("udp", "tcp"):
            yield f"meta l4proto {protocol} ct original proto-dst {DNS_PORT} ct original ip daddr @resolvers accept"
    yield "ct original ip daddr @never goto refuse"
    for rule in rules:
        if rule.network is None:
            continue
        if not rule.ports:
            yield f"ct original ip daddr {rule.network} accept"
        ports = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in _merged(rule.ports))
        for protocol in ("tcp", "udp") if ports else ():
            yield (
                f"meta l4proto {protocol} ct original proto-dst {{ {ports} }} "
                f"ct original ip daddr {rule.network} accept"
            )
    if reaches_internet(egress):
        yield "ct original ip daddr != @private accept"
    yield "goto refuse"


def _merged(ranges: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """Ranges that do not overlap, which nft asks for."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _granted(port: int, pairs: str) -> str:
    return f"meta l4proto tcp ct original proto-dst {port} ct original ip saddr . ct original ip daddr @{pairs} accept"


def _reject() -> str:
    """A refusal that the guest hears at once, the same for whatever was asked: nobody has to wait for a time-out."""
    return "fib daddr type { unicast, local } reject with icmpx type admin-prohibited"


def _group(guest: Guest) -> tuple[int, str] | None:
    return (guest.net_id, guest.pool_id) if guest.peer_traffic else None


def _counters(name: str, bridges: Iterable[Bridge]) -> Iterator[str]:
    return (f"counter {name}-{bridge.net_id} {{ }}" for bridge in bridges)


def _set(name: str, kind: str, elements: Iterable[str], flags: str = "") -> str:
    return f"set {name} {{ type {kind}; {flags}{_elements(elements)} }}"


def _map(name: str, kind: str, elements: Iterable[str]) -> str:
    return f"map {name} {{ type {kind}; {_elements(elements)} }}"


def _elements(elements: Iterable[str]) -> str:
    listed = ", ".join(elements)
    return f"elements = {{ {listed} }};" if listed else ""


def _chain(name: str, *rules: str) -> list[str]:
    return [f"chain {name} {{", *rules, "}"]


def _base(name: str, kind: str, hook: str, priority: str, *rules: str) -> list[str]:
    return _chain(name, f"type {kind} hook {hook} priority {priority}; policy accept;", *rules)
