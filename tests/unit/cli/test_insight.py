"""`mvm explain` and `mvm usage`: what people read, what programs get."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.unit.cli import samples
from tests.unit.cli.conftest import ScriptedAgent, Type


def test_an_instance_is_explained_from_what_it_does_to_how_it_came_to_that(agent: ScriptedAgent, mvm: Type) -> None:
    agent.answers["Explain"] = {"instance": samples.explained_instance()}
    typed = mvm("explain", samples.WORKER)
    assert agent.asked("Explain") == {"address": samples.WORKER}
    for said in (
        "awake: it is busy",
        "busy, 2 in flight",
        "1m",
        "paused after 5m of idleness, asleep after 15m",
        "2099-01-01T07:00:00",
        "message by i-1, 9000.4 ms",
        "service  9000.0",
        "InstanceWoken",
        "2 vCPUs, 2 GiB",
    ):
        assert said in typed.out
    assert "last sleep" not in typed.out
    assert mvm("explain", samples.WORKER, "--json").document == {"instance": samples.explained_instance()}


def test_a_pool_is_explained_with_its_instances(agent: ScriptedAgent, mvm: Type) -> None:
    agent.answers["Explain"] = {"pool": samples.explained_pool()}
    typed = mvm("explain", "alice/workers")
    for said in ("1 running, 201 sleeping", "pinned", samples.WORKER, "and 201 more"):
        assert said in typed.out
    assert "critical" not in typed.out


def test_limits_of_a_pool_are_shown_where_it_has_any(agent: ScriptedAgent, mvm: Type) -> None:
    assert "in a second" not in mvm("pool", "info", "alice/workers").out
    limits = {"disk_mib_per_second": 80, "network_mib_per_second": 8, "disk_ops_per_second": 0}
    agent.answers["Explain"] = {"pool": samples.explained_pool() | limits}
    agent.answers["PoolInfo"] = {"pool": samples.pool() | limits, "instances": []}
    for words in (("explain", "alice/workers"), ("pool", "info", "alice/workers")):
        assert "80 MiB by each drive, 8 MiB of network each way in a second" in mvm(*words).out


def test_what_is_not_there_cannot_be_explained(agent: ScriptedAgent, mvm: Type) -> None:
    agent.refuse("Explain", 404, "tenant 'nope' does not exist", "`mvm tenant list` shows the tenants")
    assert mvm("explain", "nope").status == 3


def row(tenant: str, user: str | None, pool: str | None = None, **fields: float) -> dict[str, Any]:
    used = {"running_seconds": 3661.5, "memory_mib_seconds": 2 * 1024 * 3600, "wakes": 3, "messages": 5, **fields}
    return {"key": f"{tenant}/{user}", "tenant_id": tenant, "user_id": user, "pool_id": pool, **used}


USED = [row("alice", "alice"), row("alice", None, "gateways", messages=0), row("bob", "bob")]


def used(params: dict[str, Any]) -> dict[str, Any]:
    """Pages of two rows."""
    page = [r for r in USED if r["key"] > params.get("after", "")]
    page.sort(key=lambda r: r["key"])
    return {"since": "2026-11-01", "until": "2026-11-22T18:00:00+00:00", "usage": page[:2]}


def test_usage_is_shown_as_a_table_json_and_csv(agent: ScriptedAgent, mvm: Type) -> None:
    agent.answers["Usage"] = used
    table = mvm("usage", "--since", "2026-11-01").out
    assert agent.requests[1][1] == {"since": "2026-11-01"}
    assert ["alice", "alice", "1h1m", "2.00", "3", "5"] in [line.split() for line in table.splitlines()]
    assert "(gateways)" in table
    document = mvm("usage", "--json").document
    assert sorted((r["tenant_id"], r["user_id"] or "") for r in document["usage"]) == [
        ("alice", ""),
        ("alice", "alice"),
        ("bob", "bob"),
    ]
    assert set(document["usage"][0]) == {*USED[0]} - {"key"}
    rows = list(csv.DictReader(io.StringIO(mvm("usage", "--csv").out)))
    assert [(r["tenant_id"], r["user_id"], r["pool_id"], r["wakes"]) for r in rows] == [
        ("alice", "", "gateways", "3"),
        ("alice", "alice", "", "3"),
        ("bob", "bob", "", "3"),
    ]


def test_days_back_are_counted_from_today(agent: ScriptedAgent, mvm: Type) -> None:
    agent.answers["Usage"] = {"since": "x", "until": "2026-11-22T18:00:00+00:00", "usage": []}
    assert mvm("usage", "alice", "--since", "7d").out.startswith("nothing was used")
    week = (datetime.now(UTC).date() - timedelta(days=6)).isoformat()
    assert agent.asked("Usage") == {"tenant_id": "alice", "since": week}


def test_usage_of_a_tenant_that_never_was_is_not_found(agent: ScriptedAgent, mvm: Type) -> None:
    agent.refuse("Usage", 404, "tenant 'nope' does not exist")
    typed = mvm("usage", "nope", "--csv")
    assert (typed.status, typed.out) == (3, "")
