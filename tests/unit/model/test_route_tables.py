"""Routing tables: checked strictly, matched as the guest's router matches, and made from users."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.model.entities import User
from mvm.model.errors import InvalidInput, Refused
from mvm.model.routes import MAX_ROUTES, RoutingTable, has_prefix, longest_prefix, routes_for_users
from mvm.model.validation import ValidationProblems, parse
from mvm.wire.routing import RouteTable as GuestTable

NOW = datetime(2026, 1, 1, tzinfo=UTC)

paths = st.lists(st.sampled_from(["api", "apidocs", "v1", "a", "x%20y"]), max_size=3).map(lambda p: "/" + "/".join(p))
peers = st.builds(
    lambda channel, number: f"{channel}:{number}", st.sampled_from(["telegram", "discord"]), st.integers(0, 30)
)
cidrs = st.sampled_from(["10.0.0.0/8", "10.240.0.0/12", "10.240.1.0/24", "10.240.1.7", "10.240.1.7/32", "fd00::/8"])
sources = st.sampled_from(["10.240.1.7", "10.240.1.8", "10.9.9.9", "192.0.2.1", "fd00::1"])
rules = st.fixed_dictionaries(
    {},
    optional={"port": st.integers(1, 4), "path_prefix": paths, "source_cidr": cidrs, "peer": peers},
).filter(bool)
targets = st.fixed_dictionaries(
    {"pool_id": st.sampled_from(["workers", "others"])},
    optional={
        "tenant_id": st.sampled_from(["alice", "bob"]),
        "instance_id": st.just("i-00000001"),
        "instance_selector": st.sampled_from(["any", "least_connections", {"by_ip": "10.240.1.4"}]),
        "target_port": st.integers(1, 65535),
    },
)


def numbered(routes: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    return {
        "routes": [{"name": f"r{n}", "match_rule": rule, "target": target} for n, (rule, target) in enumerate(routes)]
    }


documents = st.lists(st.tuples(rules, targets), max_size=6).map(numbered)


def table(*rules: dict[str, Any]) -> RoutingTable:
    return parse(RoutingTable, numbered([(rule, {"pool_id": "workers"}) for rule in rules]), what="routes.json")


def accepted(document: dict[str, Any]) -> RoutingTable | None:
    try:
        return parse(RoutingTable, document, what="routes.json")
    except InvalidInput:
        return None


@given(documents)
def test_a_table_is_accepted_here_exactly_when_the_guest_accepts_it(document: dict[str, Any]) -> None:
    ours = accepted(document)
    try:
        GuestTable.parse(document)
    except Exception:
        assert ours is None
    else:
        assert ours is not None


@given(documents)
def test_a_rendered_table_reads_back_here_and_in_the_guest(document: dict[str, Any]) -> None:
    if (ours := accepted(document)) is not None:
        assert parse(RoutingTable, ours.to_json(), what="routes.json") == ours
        assert [route.name for route in GuestTable.parse(ours.to_json()).routes] == [r.name for r in ours.routes]


@given(documents, st.integers(1, 4), paths, sources, peers)
def test_a_request_takes_the_same_route_here_and_in_the_guest(
    document: dict[str, Any], port: int, path: str, source: str, peer: str
) -> None:
    if (ours := accepted(document)) is not None:
        here = ours.match(port=port, path=path, source=source, peer=peer)
        there = GuestTable.parse(ours.to_json()).match(port=port, path=path, source=source, peer=peer)
        assert (here and here.name) == (there and there.name)


@given(paths, st.lists(paths))
def test_the_longest_prefix_is_a_prefix_and_none_is_longer(path: str, prefixes: list[str]) -> None:
    longest = longest_prefix(path, prefixes)
    fitting = [prefix for prefix in prefixes if has_prefix(path, prefix)]
    assert (longest is None) == (not fitting)
    assert longest is None or (longest in fitting and all(len(p.rstrip("/")) <= len(longest) for p in fitting))


def test_a_prefix_ends_at_a_segment() -> None:
    assert has_prefix("/api/v1", "/api")
    assert has_prefix("/api", "/api/")
    assert has_prefix("/api", "/")
    assert not has_prefix("/apidocs", "/api")


def test_the_longest_prefix_wins_whatever_its_place() -> None:
    routes = table({"path_prefix": "/api/v1"}, {"path_prefix": "/"}, {"path_prefix": "/api"})
    found = [routes.match(path=path) for path in ("/api/v1/x", "/api/v2", "/other")]
    assert [route and route.name for route in found] == ["r0", "r2", "r1"]


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({}, "no criterion"),
        ({"peer": None}, "no criterion"),
        ({"port": 0}, "at least 1"),
        ({"port": 65536}, "at most 65535"),
        ({"port": "80"}, "whole number"),
        ({"port": True}, "whole number"),
        ({"path_prefix": "api"}, "path prefix"),
        ({"path_prefix": "/a/../b"}, "path prefix"),
        ({"path_prefix": "/a//b"}, "path prefix"),
        ({"path_prefix": "/a?b"}, "path prefix"),
        ({"path_prefix": "/a\n"}, "path prefix"),
        ({"source_cidr": "10.0.0.1/8"}, "not a network"),
        ({"source_cidr": "everywhere"}, "not a network"),
        ({"peer": "telegram:@alice"}, "not a peer"),
        ({"peer": "signal:1"}, "not a peer"),
        ({"peer": "telegram:1\n"}, "not a peer"),
        ({"peers": "telegram:1"}, "did you mean 'peer'"),
    ],
)
def test_a_bad_rule_is_refused_with_its_place(rule: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        table({"port": 1}, rule)
    text = f"{refused.value.message} {refused.value.hint}"
    assert "routes[1].match_rule" in text
    assert problem in text


@pytest.mark.parametrize(
    "target",
    [
        {},
        {"pool_id": "Workers"},
        {"pool_id": "workers", "tenant_id": ""},
        {"pool_id": "workers", "instance_id": "i-1"},
        {"pool_id": "workers", "instance_selector": "some"},
        {"pool_id": "workers", "instance_selector": {"by_ip": "10.240.1"}},
        {"pool_id": "workers", "instance_selector": {"by_ip": "10.240.1.4", "or": 1}},
        {"pool_id": "workers", "instance_selector": ["any"]},
        {"pool_id": "workers", "target_port": -1},
        {"pool_id": "workers", "host": "x"},
    ],
)
def test_a_bad_target_is_refused(target: dict[str, Any]) -> None:
    with pytest.raises(ValidationProblems):
        parse(RoutingTable, numbered([({"port": 1}, target)]), what="routes.json")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"peer": "telegram:1"}, {"peer": "telegram:1"}),
        ({"path_prefix": "/api"}, {"path_prefix": "/api/"}),
        ({"source_cidr": "10.0.0.1"}, {"source_cidr": "10.0.0.1/32"}),
        ({"port": 1, "peer": "telegram:1"}, {"peer": "telegram:1", "port": 1}),
    ],
)
def test_two_routes_with_the_same_match_are_refused_however_they_are_written(one, other) -> None:
    with pytest.raises(InvalidInput, match="matches the same as"):
        table(one, other)


def user(tenant: str, name: str, number: int, *, telegram: tuple[str, ...] = (), **more: Any) -> User:
    bound = {"instance_id": f"i-{number:08x}"} | more
    return User(tenant_id=tenant, user_id=name, pool_id="workers", telegram=telegram, created_at=NOW, **bound)


def test_each_address_of_a_user_leads_to_the_instance_bound_to_them() -> None:
    routes, directory = routes_for_users([user("alice", "alice", 1, telegram=("111", "222"), discord=("9",))])
    for peer in ("telegram:111", "telegram:222", "discord:9"):
        found = routes.match(peer=peer)
        assert found is not None
        assert (found.target.tenant_id, found.target.instance_id) == ("alice", "i-00000001")
    assert routes.to_json()["routes"][0] == {
        "name": "alice",
        "match_rule": {"peer": "telegram:111"},
        "target": {
            "pool_id": "workers",
            "tenant_id": "alice",
            "instance_id": "i-00000001",
            "instance_selector": "any",
            "target_port": 18789,
        },
    }
    assert directory.to_json() == {
        "users": [
            {
                "worker_key": "alice.alice",
                "tenant_id": "alice",
                "user_id": "alice",
                "pool_id": "workers",
                "instance_id": "i-00000001",
                "peers": ["telegram:111", "telegram:222", "discord:9"],
            }
        ]
    }


def test_a_stranger_has_no_route() -> None:
    routes, _ = routes_for_users([user("alice", "alice", 1, telegram=("111",))])
    assert routes.match(peer="telegram:112") is None
    assert routes.match(peer="discord:111") is None


def test_a_user_who_is_not_paired_yet_is_known_but_has_no_route() -> None:
    routes, directory = routes_for_users([user("alice", "alice", 1)])
    assert routes.routes == ()
    assert [entry.worker_key for entry in directory.users] == ["alice.alice"]


def test_a_user_without_an_instance_is_sent_nowhere() -> None:
    routes, directory = routes_for_users([user("alice", "alice", 1, telegram=("1",), instance_id=None)])
    assert (routes.routes, directory.users) == ((), ())


def test_namesakes_of_different_tenants_keep_their_own_routes() -> None:
    routes, directory = routes_for_users([user("b", "kim", 2, telegram=("2",)), user("a", "kim", 1, telegram=("1",))])
    one, other = routes.match(peer="telegram:1"), routes.match(peer="telegram:2")
    assert one is not None
    assert other is not None
    assert (one.name, one.target.tenant_id, other.name, other.target.tenant_id) == ("a.kim", "a", "b.kim", "b")
    assert [entry.worker_key for entry in directory.users] == ["a.kim", "b.kim"]


def test_one_address_cannot_belong_to_two_people() -> None:
    with pytest.raises(InvalidInput, match=r"telegram:1 is an address of both a\.kim and b\.lee"):
        routes_for_users([user("a", "kim", 1, telegram=("1",)), user("b", "lee", 2, telegram=("1",))])


def test_a_gateway_with_more_addresses_than_a_table_holds_says_so() -> None:
    everybody = tuple(str(number) for number in range(MAX_ROUTES + 1))
    with pytest.raises(Refused, match=f"more than {MAX_ROUTES}"):
        routes_for_users([user("a", "kim", 1, telegram=everybody)])


people = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["kim", "2", "kim-2", "lee"]), st.sets(st.integers(0, 40))),
    max_size=5,
    unique_by=lambda person: person[:2],
)


@given(people)
def test_tables_made_from_users_are_always_valid_for_the_guest(persons: list[tuple[str, str, set[int]]]) -> None:
    users, taken = [], set()
    for number, (tenant, name, numbers) in enumerate(persons):
        users.append(user(tenant, name, number, telegram=tuple(str(n) for n in sorted(numbers - taken))))
        taken |= numbers
    routes, directory = routes_for_users(users)
    guest = GuestTable.parse(routes.to_json())
    for one in users:
        for peer in one.peers:
            found = guest.match(peer=peer)
            assert found is not None
            assert found.target.instance_id == one.instance_id
    assert len(directory.users) == len(users)


def test_routes_given_by_hand_replace_generated_ones_of_the_same_match() -> None:
    generated, _ = routes_for_users([user("a", "kim", 1, telegram=("1",)), user("a", "lee", 2, telegram=("2",))])
    by_hand = table({"peer": "telegram:1"}, {"port": 80})
    merged = generated.with_given(by_hand)
    assert merged.match(peer="telegram:1") == by_hand.routes[0]
    assert merged.match(peer="telegram:2") == generated.routes[1]
    assert generated.with_given(None) == generated


def test_a_route_given_by_hand_may_not_take_a_users_name() -> None:
    generated, _ = routes_for_users([user("a", "r0", 1, telegram=("1",))])
    with pytest.raises(InvalidInput, match="r0"):
        generated.with_given(table({"port": 80}))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_json_is_a_table_or_refused(document: Any) -> None:
    with contextlib.suppress(InvalidInput):
        parse(RoutingTable, document, what="routes.json")


@given(cidrs)
def test_networks_are_compared_by_value(text: str) -> None:
    (route,) = table({"source_cidr": text}).routes
    assert route.match_rule.criteria[2] == str(ip_network(text))
