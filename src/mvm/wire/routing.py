"""The routing table of a gateway (`routes.json`, CONTRACT 10): strict parsing, and the one match that everybody uses.

A route matches when every criterion that it names holds. Of several, the one with the longest path prefix wins, then
the one with the narrowest source network, then the one with more criteria, then the first in the table. A path prefix
ends at a path segment: `/api` matches `/api` and `/api/v1`, never `/apidocs`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Annotated

from mvm.wire.frames import JsonValue
from mvm.wire.schema import (
    INSTANCE_ID,
    NAME,
    PEER,
    Checked,
    Choice,
    Integer,
    ListOf,
    MessageError,
    Optional,
    Pattern,
    Record,
)

MAX_ROUTES = 4096

_PORT = Integer(1, 65535)
_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@%-]+/)*(?:[A-Za-z0-9._~!$&'()*+,;=:@%-]+)?")


def _check_path_prefix(text: str) -> None:
    if not _PATH.fullmatch(text) or any(part in (".", "..") for part in text.split("/")):
        raise ValueError


class SelectorKind(StrEnum):
    """How an instance of the target pool is chosen when the route names none."""

    ANY = "any"
    LEAST_CONNECTIONS = "least_connections"


@dataclass(frozen=True, kw_only=True)
class ByIp:
    """Selects the instance with that address."""

    by_ip: Annotated[str, Checked("an IPv4 address", ipaddress.IPv4Address, limit=15)]


class _Selector:
    """`"any"`, `"least_connections"` or `{"by_ip": "10.240.1.4"}`."""

    _kind = Choice(SelectorKind)
    _by_ip = Record(ByIp)

    def parse(self, value: JsonValue, path: str) -> SelectorKind | ByIp:
        return self._by_ip.parse(value, path) if isinstance(value, Mapping) else self._kind.parse(value, path)

    def render(self, value: SelectorKind | ByIp) -> JsonValue:
        return self._by_ip.render(value) if isinstance(value, ByIp) else self._kind.render(value)


@dataclass(frozen=True, kw_only=True)
class MatchRule:
    """What must hold of a request; None does not matter, and at least one criterion is named."""

    port: Annotated[int | None, Optional(_PORT)] = None
    path_prefix: Annotated[str | None, Optional(Checked("a path prefix such as '/api'", _check_path_prefix))] = None
    source_cidr: Annotated[
        str | None, Optional(Checked("a network such as '10.240.1.0/24'", ipaddress.ip_network, limit=64))
    ] = None
    peer: Annotated[str | None, Optional(PEER)] = None

    @cached_property
    def _network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
        return None if self.source_cidr is None else ipaddress.ip_network(self.source_cidr)

    @cached_property
    def criteria(self) -> tuple[int | str | None, ...]:
        """Equal for rules that match the same, however they are written."""
        path = None if self.path_prefix is None else self.path_prefix.rstrip("/") or "/"
        return self.port, path, None if self._network is None else str(self._network), self.peer

    @cached_property
    def rank(self) -> tuple[int, int, int]:
        """Greater is more specific."""
        path = self.criteria[1]
        return (
            0 if path is None else len(str(path)),
            0 if self._network is None else self._network.prefixlen + 1,
            sum(criterion is not None for criterion in self.criteria),
        )

    def matches(
        self,
        *,
        port: int | None,
        path: str | None,
        source: ipaddress.IPv4Address | ipaddress.IPv6Address | None,
        peer: str | None,
    ) -> bool:
        """True when every named criterion holds; what the request does not say fails a criterion that asks for it."""
        if self.port is not None and self.port != port:
            return False
        if self.peer is not None and self.peer != peer:
            return False
        if self._network is not None and (source is None or source not in self._network):
            return False
        prefix = self.criteria[1]
        if prefix is None or prefix == "/":
            return prefix is None or path is not None
        return path is not None and (path == prefix or path.startswith(f"{prefix}/"))


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a request goes: a pool, of another tenant where `tenant_id` says so, or one instance of it."""

    pool_id: Annotated[str, NAME]
    tenant_id: Annotated[str | None, Optional(NAME)] = None
    instance_id: Annotated[str | None, Optional(INSTANCE_ID)] = None
    instance_selector: Annotated[SelectorKind | ByIp | None, Optional(_Selector())] = None
    target_port: Annotated[int | None, Optional(_PORT)] = None


@dataclass(frozen=True, kw_only=True)
class Route:
    """One line of the table."""

    name: Annotated[str, Pattern("a route name such as 'alice'", r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")]
    match_rule: Annotated[MatchRule, Record(MatchRule)]
    target: Annotated[Target, Record(Target)]


@dataclass(frozen=True, kw_only=True)
class RouteTable:
    """All routes of a gateway. `parse` and `render` are the only ways from and to JSON."""

    routes: Annotated[tuple[Route, ...], ListOf(Record(Route), MAX_ROUTES)] = ()

    @classmethod
    def parse(cls, value: JsonValue) -> RouteTable:
        """Check and read a table; raises `MessageError` naming the first place that breaks a rule."""
        table = _table().parse(value, "")
        names: dict[str, int] = {}
        rules: dict[tuple[int | str | None, ...], int] = {}
        for index, route in enumerate(table.routes):
            place = f"routes[{index}]"
            if not any(criterion is not None for criterion in route.match_rule.criteria):
                raise MessageError(
                    f"{place}.match_rule", "names no criterion; give port, path_prefix, source_cidr or peer"
                )
            if (first := names.setdefault(route.name, index)) != index:
                raise MessageError(f"{place}.name", f"{route.name!r} is also the name of routes[{first}]")
            if (first := rules.setdefault(route.match_rule.criteria, index)) != index:
                raise MessageError(f"{place}.match_rule", f"matches the same as routes[{first}]")
        return table

    def render(self) -> JsonValue:
        """The JSON of `routes.json`."""
        return _table().render(self)

    @cached_property
    def _by_rank(self) -> tuple[Route, ...]:
        return tuple(sorted(self.routes, key=lambda route: route.match_rule.rank, reverse=True))

    def match(
        self, *, port: int | None = None, path: str | None = None, source: str | None = None, peer: str | None = None
    ) -> Route | None:
        """The route for a request, or None. `path` has no query; `source` is an IP address (`ValueError` if not)."""
        address = None if source is None else ipaddress.ip_address(source)
        for route in self._by_rank:
            if route.match_rule.matches(port=port, path=path, source=address, peer=peer):
                return route
        return None


def _table() -> Record[RouteTable]:
    return Record(RouteTable)
