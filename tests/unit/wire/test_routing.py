"""Routing tables: what is refused, and which of several routes wins."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.wire.routing import ByIp, RouteTable, SelectorKind
from mvm.wire.schema import MessageError

WORKERS = {"pool_id": "workers"}


def route(name: str, target: dict[str, Any] | None = None, **rule: Any) -> dict[str, Any]:
    return {"name": name, "match_rule": rule, "target": target or WORKERS}


def table(*routes: dict[str, Any]) -> RouteTable:
    return RouteTable.parse({"routes": list(routes)})


def winner(routes: RouteTable, **request: Any) -> str | None:
    found = routes.match(**request)
    return None if found is None else found.name


def test_a_table_is_read_and_written_as_in_the_contract() -> None:
    shape: Any = {
        "routes": [
            {
                "name": "alice",
                "match_rule": {"peer": "telegram:111"},
                "target": {
                    "pool_id": "workers",
                    "tenant_id": "alice",
                    "instance_id": "i-0a1b2c3d",
                    "target_port": 18789,
                },
            },
            {
                "name": "web",
                "match_rule": {"port": 80, "path_prefix": "/api", "source_cidr": "10.240.1.0/24"},
                "target": {"pool_id": "web", "instance_selector": {"by_ip": "10.240.1.4"}},
            },
            {
                "name": "rest",
                "match_rule": {"path_prefix": "/"},
                "target": {"pool_id": "web", "instance_selector": "least_connections"},
            },
        ]
    }
    routes = RouteTable.parse(shape)
    assert routes.render() == shape
    assert [r.target.instance_selector for r in routes.routes] == [
        None,
        ByIp(by_ip="10.240.1.4"),
        SelectorKind.LEAST_CONNECTIONS,
    ]


def test_a_person_is_found_by_their_address() -> None:
    routes = table(route("alice", peer="telegram:111"), route("bob", peer="discord:111"))
    assert winner(routes, peer="telegram:111") == "alice"
    assert winner(routes, peer="discord:111") == "bob"
    assert winner(routes, peer="telegram:1111") is None
    assert winner(routes) is None


def test_every_named_criterion_must_hold() -> None:
    routes = table(route("a", port=80, path_prefix="/x", source_cidr="10.0.0.0/8", peer="telegram:1"))
    request: dict[str, Any] = {"port": 80, "path": "/x/y", "source": "10.1.2.3", "peer": "telegram:1"}
    assert winner(routes, **request) == "a"
    for name, other in (("port", 81), ("path", "/y"), ("source", "11.0.0.1"), ("peer", "telegram:2")):
        assert winner(routes, **request | {name: other}) is None
        assert winner(routes, **request | {name: None}) is None


@pytest.mark.parametrize(
    ("prefix", "path", "matches"),
    [
        ("/api", "/api", True),
        ("/api", "/api/", True),
        ("/api", "/api/v1", True),
        ("/api", "/apidocs", False),
        ("/api", "/ap", False),
        ("/api/", "/api", True),
        ("/", "/", True),
        ("/", "/anything", True),
        ("/a", "/A", False),
    ],
)
def test_a_path_prefix_ends_at_a_segment(prefix: str, path: str, matches: bool) -> None:
    assert (winner(table(route("a", path_prefix=prefix)), path=path) == "a") is matches


def test_the_longest_path_prefix_wins_whatever_the_order() -> None:
    routes = [route("root", path_prefix="/"), route("b", path_prefix="/a/b"), route("a", path_prefix="/a", port=80)]
    for order in (routes, routes[::-1]):
        assert winner(table(*order), path="/a/b/c", port=80) == "b"
        assert winner(table(*order), path="/a/c", port=80) == "a"
        assert winner(table(*order), path="/a/c", port=81) == "root"


def test_of_equal_paths_the_narrower_network_wins_then_more_criteria_then_the_first() -> None:
    routes = table(
        route("wide", source_cidr="10.0.0.0/8"),
        route("narrow", source_cidr="10.1.0.0/16"),
        route("port", port=80),
        route("port-and-peer", port=80, peer="telegram:1"),
        route("peer", peer="telegram:1"),
    )
    assert winner(routes, source="10.1.2.3") == "narrow"
    assert winner(routes, source="10.2.2.3", port=80) == "wide"
    assert winner(routes, port=80, peer="telegram:1") == "port-and-peer"
    assert winner(routes, port=81, peer="telegram:1") == "peer"


@pytest.mark.parametrize(
    ("routes", "place"),
    [
        ([route("a")], "routes[0].match_rule: names no criterion"),
        ([route("a", port=None)], "routes[0].match_rule: names no criterion"),
        ([route("a", port=1), route("a", port=2)], "routes[1].name"),
        ([route("a", port=1), route("b", port=1)], "routes[1].match_rule: matches the same as routes[0]"),
        ([route("a", path_prefix="/x"), route("b", path_prefix="/x/")], "routes[1].match_rule"),
        ([route("a", port=0)], "routes[0].match_rule.port"),
        ([route("a", port=65536)], "routes[0].match_rule.port"),
        ([route("a", port="80")], "routes[0].match_rule.port"),
        ([route("a", path_prefix="api")], "routes[0].match_rule.path_prefix"),
        ([route("a", path_prefix="/a/../b")], "routes[0].match_rule.path_prefix"),
        ([route("a", path_prefix="//")], "routes[0].match_rule.path_prefix"),
        ([route("a", path_prefix="/a?b")], "routes[0].match_rule.path_prefix"),
        ([route("a", path_prefix="/" + "a" * 2000)], "routes[0].match_rule.path_prefix"),
        ([route("a", source_cidr="10.0.0.1/8")], "routes[0].match_rule.source_cidr"),
        ([route("a", source_cidr="10.0.0.0/33")], "routes[0].match_rule.source_cidr"),
        ([route("a", source_cidr="anywhere")], "routes[0].match_rule.source_cidr"),
        ([route("a", peer="telegram:alice")], "routes[0].match_rule.peer"),
        ([route("a", hostname="x")], "routes[0].match_rule.hostname: unknown key"),
        ([route("", port=1)], "routes[0].name"),
        ([route("a", {"pool_id": "Workers"}, port=1)], "routes[0].target.pool_id"),
        ([route("a", {}, port=1) | {"target": {}}], "routes[0].target.pool_id: missing"),
        ([route("a", WORKERS | {"instance_id": "x"}, port=1)], "routes[0].target.instance_id"),
        ([route("a", WORKERS | {"instance_selector": "random"}, port=1)], "routes[0].target.instance_selector"),
        ([route("a", WORKERS | {"instance_selector": {"by_ip": "x"}}, port=1)], "routes[0].target.instance_selector"),
        ([route("a", WORKERS | {"target_port": 70000}, port=1)], "routes[0].target.target_port"),
        ("x", "routes: expected a list"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused_by_place(routes: Any, place: str) -> None:
    with pytest.raises(MessageError) as refusal:
        RouteTable.parse({"routes": routes})
    assert str(refusal.value).startswith(place)


TOO_MANY = {"routes": [route(f"r{n}", peer=f"telegram:{n}") for n in range(5000)]}


@pytest.mark.parametrize("shape", [None, [], {}, {"routes": [], "x": 1}, TOO_MANY])
def test_what_is_no_table_is_refused(shape: Any) -> None:
    with pytest.raises(MessageError):
        RouteTable.parse(shape)


def test_an_empty_table_routes_nothing() -> None:
    assert winner(table(), peer="telegram:1", path="/", port=1, source="10.0.0.1") is None


def test_a_source_must_be_an_address() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        table().match(source="nonsense")


rules = st.fixed_dictionaries(
    {},
    optional={
        "port": st.integers(1, 3),
        "path_prefix": st.sampled_from(["/", "/a", "/a/b", "/b"]),
        "source_cidr": st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0"]),
        "peer": st.sampled_from(["telegram:1", "telegram:2"]),
    },
).filter(bool)
requests = st.fixed_dictionaries(
    {
        "port": st.none() | st.integers(1, 3),
        "path": st.none() | st.sampled_from(["/", "/a", "/a/b/c", "/ab", "/b"]),
        "source": st.none() | st.sampled_from(["10.1.0.1", "10.2.0.1", "192.0.2.1"]),
        "peer": st.none() | st.sampled_from(["telegram:1", "telegram:2", "telegram:3"]),
    }
)


@given(st.lists(rules, max_size=12, unique_by=lambda rule: tuple(sorted(rule.items()))), requests)
def test_the_winner_matches_and_nothing_that_matches_is_more_specific(
    found: list[dict[str, Any]], request: dict[str, Any]
) -> None:
    routes = table(*(route(f"r{index}", **rule) for index, rule in enumerate(found)))
    alone = [r for r in routes.routes if RouteTable(routes=(r,)).match(**request) is not None]
    won = routes.match(**request)
    assert (won is None) is (not alone)
    if won is not None:
        assert won in alone
        assert all(won.match_rule.rank >= other.match_rule.rank for other in alone)
        longest = max(len(r.match_rule.path_prefix or "") for r in alone)
        assert len(won.match_rule.path_prefix or "") == longest


@given(st.lists(rules, max_size=8, unique_by=lambda rule: tuple(sorted(rule.items()))))
def test_a_table_survives_writing_and_reading(found: list[dict[str, Any]]) -> None:
    routes = table(*(route(f"r{index}", **rule) for index, rule in enumerate(found)))
    assert RouteTable.parse(routes.render()) == routes
