"""Routing tables: who is sent where (CONTRACT 10), and the table that follows from a deployment's users.

The guest's router reads the same JSON with `mvm.wire.routing` (it may import nothing from here); a test holds the two
to the same tables and the same matches. A route matches when every criterion that it names holds. Of several that
match, the one with the longest path prefix wins, then the narrowest source network, then the one with more criteria,
then the first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mvm.model.base import ForEditors, Frozen, InstanceIdField, PoolIdField, TenantIdField, UserIdField, failed
from mvm.model.errors import InvalidInput, Refused
from mvm.model.ids import worker_key

if TYPE_CHECKING:
    from mvm.model.entities import User

DELIVERY_PORT = 18789
"""Where a worker's forwarder takes messages from its gateway (CONTRACT 11)."""
OUTBOUND_PORT = 18790
"""Where a gateway takes what a worker says unasked (CONTRACT 11)."""
MAX_ROUTES = 4096

_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@%-]+/)*(?:[A-Za-z0-9._~!$&'()*+,;=:@%-]+)?")
_PEER = re.compile(r"(?:telegram|discord):[0-9]{1,20}")


def _check_path_prefix(text: str) -> str:
    if _PATH.fullmatch(text) and not any(part in (".", "..") for part in text.split("/")):
        return text
    raise failed("is not a path prefix", hint="write an absolute path without '..' or '//', such as '/api'")


def _check_network(text: str) -> str:
    try:
        ip_network(text)
    except ValueError:
        raise failed(
            "is not a network", hint="write address/length with no host bits set, such as '10.240.1.0/24'"
        ) from None
    return text


def _check_ipv4(text: str) -> str:
    try:
        IPv4Address(text)
    except ValueError:
        raise failed("is not an IPv4 address", hint="write it as '10.240.1.4'") from None
    return text


def _check_peer(text: str) -> str:
    if _PEER.fullmatch(text):
        return text
    raise failed("is not a peer", hint="write 'telegram:<sender id>' or 'discord:<sender id>', the id in digits")


Peer = Annotated[str, AfterValidator(_check_peer), ForEditors(pattern="^(telegram|discord):[0-9]{1,20}$")]
"""Somebody on a channel: `telegram:<sender id>` or `discord:<sender id>`."""
Port = Annotated[int, Field(ge=1, le=65535)]


class ByIp(Frozen):
    """Selects the instance that has this address."""

    by_ip: Annotated[str, AfterValidator(_check_ipv4)]
    """Address of the instance."""


Selector = Literal["any", "least_connections"] | ByIp


def _parse_selector(value: Any) -> Selector:
    # By hand: pydantic's own union would report one problem per member, each under a path that is not in the document.
    match value:
        case ByIp() | "any" | "least_connections":
            return value
        case {"by_ip": str(address), **rest} if not rest:
            return ByIp(by_ip=_check_ipv4(address))
    raise failed("is not an instance selector", hint="write 'any', 'least_connections' or {\"by_ip\": \"10.240.1.4\"}")


class MatchRule(Frozen):
    """What must hold of a request. A criterion that is left out does not matter; at least one is given."""

    port: Port | None = None
    """Port that the request came to."""
    path_prefix: Annotated[str, AfterValidator(_check_path_prefix)] | None = None
    """Beginning of its path; the longest one wins."""
    source_cidr: Annotated[str, AfterValidator(_check_network)] | None = None
    """Network that it came from."""
    peer: Peer | None = None
    """Who wrote it: telegram:<sender id> or discord:<sender id>."""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.criteria == (None, None, None, None):
            raise failed("has no criterion", hint="give at least one of port, path_prefix, source_cidr, peer")
        return self

    @cached_property
    def criteria(self) -> tuple[int | None, str | None, str | None, str | None]:
        """Equal for two rules that match the same, however they are written."""
        path = None if self.path_prefix is None else self.path_prefix.rstrip("/") or "/"
        network = None if self.source_cidr is None else str(ip_network(self.source_cidr))
        return self.port, path, network, self.peer

    @cached_property
    def rank(self) -> tuple[int, int, int]:
        """How specific the rule is; the greater one wins."""
        _, path, network, _ = self.criteria
        return (
            0 if path is None else len(path),
            0 if network is None else ip_network(network).prefixlen + 1,
            sum(criterion is not None for criterion in self.criteria),
        )

    def matches(
        self,
        *,
        port: int | None = None,
        path: str | None = None,
        source: IPv4Address | IPv6Address | None = None,
        peer: str | None = None,
    ) -> bool:
        """True when every named criterion holds; what is not known of a request fails a criterion that asks for it."""
        if self.port is not None and self.port != port:
            return False
        if self.peer is not None and self.peer != peer:
            return False
        if self.source_cidr is not None and (source is None or source not in ip_network(self.source_cidr)):
            return False
        prefix = self.criteria[1]
        return prefix is None or (path is not None and has_prefix(path, prefix))


def has_prefix(path: str, prefix: str) -> bool:
    """True when `path` is `prefix` or lies under it; a prefix ends at a path segment (`/api` is not in `/apidocs`)."""
    bare = prefix.rstrip("/")
    return path == bare or path.startswith(f"{bare}/")


def longest_prefix(path: str, prefixes: Iterable[str]) -> str | None:
    """The longest of `prefixes` that `path` lies under; None when there is none."""
    return max((p for p in prefixes if has_prefix(path, p)), key=lambda p: len(p.rstrip("/")), default=None)


class Target(Frozen):
    """Where a request goes: a pool (of another tenant when `tenant_id` says so), or one instance of it."""

    pool_id: PoolIdField
    """Pool that takes it."""
    tenant_id: TenantIdField | None = None
    """Tenant of that pool; the own one when absent."""
    instance_id: InstanceIdField | None = None
    """The one instance of it that takes it."""
    instance_selector: Annotated[Selector, BeforeValidator(_parse_selector)] = "any"
    """Which instance takes it: any, least_connections or { by_ip = "..." }."""
    target_port: Port | None = None
    """Port that it is taken at."""


class Route(Frozen):
    """One line of a routing table. The name is for people; it is unique in its table."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    """Name of the route."""
    match_rule: MatchRule
    """What must hold of a request; at least one criterion."""
    target: Target
    """Where it goes."""


class RoutingTable(Frozen):
    """All routes of a gateway."""

    routes: Annotated[tuple[Route, ...], Field(max_length=MAX_ROUTES)] = ()
    """Routes; of several that match, the most specific one wins."""

    @model_validator(mode="after")
    def _no_two_alike(self) -> Self:
        for index, message in duplicates(list(enumerate(self.routes))):
            raise failed(f"routes[{index}] {message}")
        return self

    def match(
        self, *, port: int | None = None, path: str | None = None, source: str | None = None, peer: str | None = None
    ) -> Route | None:
        """The route of a request, or None. `path` has no query; `source` is an IP address, else `ValueError`."""
        address = None if source is None else ip_address(source)
        found = [r for r in self.routes if r.match_rule.matches(port=port, path=path, source=address, peer=peer)]
        return max(found, key=lambda route: route.match_rule.rank, default=None)

    def with_given(self, given: RoutingTable | None) -> RoutingTable:
        """This (generated) table with the routes that a person gave by hand, which replace those of the same match."""
        if given is None:
            return self
        matches = {route.match_rule.criteria for route in given.routes}
        names = {route.name for route in given.routes}
        kept = [route for route in self.routes if route.match_rule.criteria not in matches]
        clash = next((route.name for route in kept if route.name in names), None)
        if clash is not None:
            raise InvalidInput(
                f"route name {clash!r} is given by hand and is also the name of a user's route",
                hint="rename the route in routing_table",
            )
        return RoutingTable(routes=(*given.routes, *kept))

    def to_json(self) -> dict[str, Any]:
        """The content of `routes.json`."""
        return self.model_dump(mode="json", exclude_none=True)


def duplicates(routes: Sequence[tuple[int, Route]]) -> list[tuple[int, str]]:
    """Every route (by the index it was given with) that repeats the match or the name of one before it."""
    found: list[tuple[int, str]] = []
    matches: dict[object, int] = {}
    names: dict[str, int] = {}
    for index, route in routes:
        if (first := matches.setdefault(route.match_rule.criteria, index)) != index:
            found.append((index, f"matches the same as routes[{first}]"))
        if (first := names.setdefault(route.name, index)) != index:
            found.append((index, f"has the same name as routes[{first}], {route.name!r}"))
    return found


class DirectoryEntry(Frozen):
    """One person as a gateway knows them (`users.json`)."""

    worker_key: str
    tenant_id: TenantIdField
    user_id: UserIdField
    pool_id: PoolIdField
    instance_id: InstanceIdField
    peers: tuple[Peer, ...] = ()


class Directory(Frozen):
    """Everybody a gateway serves: the content of `users.json`."""

    users: tuple[DirectoryEntry, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of `users.json`."""
        return self.model_dump(mode="json")


def routes_for_users(users: Iterable[User], *, target_port: int = DELIVERY_PORT) -> tuple[RoutingTable, Directory]:
    """The routing table and the directory of a gateway that serves these users (of its own and of granted tenants).

    A user that no instance is bound to yet is in neither: there is nowhere to send them. Raises `InvalidInput` when two
    users have the same address on a channel, naming both.
    """
    served = sorted((user for user in users if user.instance_id is not None), key=lambda u: (u.tenant_id, u.user_id))
    if (peers := sum(len(user.peers) for user in served)) > MAX_ROUTES:
        raise Refused(
            f"a gateway would have to know {peers} addresses of people, more than {MAX_ROUTES}",
            hint="serve some of the tenants by another gateway ([gateway] tenant)",
        )
    namesakes = Counter(user.user_id for user in served)
    owners: dict[str, str] = {}
    routes: list[Route] = []
    entries: list[DirectoryEntry] = []
    for user in served:
        key = worker_key(user.tenant_id, user.user_id)
        # A route is called like its user; two people of the same name in different tenants are told apart.
        label = key if namesakes[user.user_id] > 1 else user.user_id
        for number, peer in enumerate(user.peers, start=1):
            if (owner := owners.setdefault(peer, key)) != key:
                raise InvalidInput(
                    f"{peer} is an address of both {owner} and {key}",
                    hint="one sender can have one private worker only",
                )
            routes.append(
                Route(
                    # No id holds an underscore, so that a second address never takes another user's name.
                    name=label if number == 1 else f"{label}_{number}",
                    match_rule=MatchRule(peer=peer),
                    target=Target(
                        pool_id=user.pool_id,
                        tenant_id=user.tenant_id,
                        instance_id=user.instance_id,
                        target_port=target_port,
                    ),
                )
            )
        assert user.instance_id is not None
        entries.append(
            DirectoryEntry(
                worker_key=key,
                tenant_id=user.tenant_id,
                user_id=user.user_id,
                pool_id=user.pool_id,
                instance_id=user.instance_id,
                peers=user.peers,
            )
        )
    return RoutingTable(routes=tuple(routes)), Directory(users=tuple(entries))
