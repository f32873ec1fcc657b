"""Whole desired states over the API: validated before anything is done, kept, counted."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
from tests.standins.waiting import until
from tests.unit.host.live_agent import SECRETS, Agent

from mvm.host.daemon import observed
from mvm.host.reports import Activity
from mvm.model.errors import InvalidInput

EXAMPLE: dict[str, Any] = {
    "schema_version": 1,
    "node_id": "local",
    "prune_unknown_tenants": False,
    "prune_unknown_pools": False,
    "tenants": [
        {
            "tenant_id": "erin",
            "network": {"tenant_net_id": 12, "ipv4_subnet": "10.240.12.0/24"},
            "quotas": {
                "max_vcpus": 16,
                "max_mem_mib": 32768,
                "max_running": 8,
                "max_warm": 4,
                "max_pools": 10,
                "max_instances_per_pool": 32,
                "max_disk_gib": 500,
            },
            "pools": [
                {
                    "pool_id": "gateways",
                    "flake_ref": "github:openclaw/nix-openclaw",
                    "profile": "minimal",
                    "role": "gateway",
                    "instance_resources": {"vcpus": 2, "mem_mib": 1024, "data_disk_mib": 0},
                    "desired_counts": {"running": 1, "warm": 0, "sleeping": 0},
                }
            ],
        }
    ],
}
"""The example of CONTRACT 5."""


def example(**tenant: Any) -> dict[str, Any]:
    state = copy.deepcopy(EXAMPLE)
    state["tenants"][0] |= tenant
    return state


async def test_the_example_of_the_contract_is_brought_about_and_kept(agent: Agent) -> None:
    report = await agent.call("Reconcile", desired=EXAMPLE)
    assert (report["tenants"]["created"], report["pools"]["created"]) == (["erin"], ["erin/gateways"])
    assert len(report["instances"]["started"]) == 1
    assert (await agent.call("Reconcile", desired=EXAMPLE))["changed"] is False
    kept = (await agent.call("DesiredState"))["desired"]
    assert kept["tenants"][0]["network"] == EXAMPLE["tenants"][0]["network"]
    assert (await agent.call("Reconcile", desired=kept))["actions"] == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"schema_version": 2}, ["schema_version: is none of: 1"]),
        ({"node_id": "another-host"}, ["node_id: this state is for the node 'another-host'"]),
        ({"prune": True}, ["unknown key 'prune'"]),
        ({"tenants": {}}, ["tenants: expected a list"]),
        (
            example(tenant_id="Erin", pools=[{"pool_id": "a", "role": "gatway"}, {"pool_id": "a"}]),
            ["tenants[0].tenant_id", "role 'gatway' is unknown", "pool 'a' is already at tenants[0].pools[0]"],
        ),
        (
            example(network={"tenant_net_id": 5000, "ipv4_subnet": "10.240.12.0/23"}, users=[{"user_id": "x"}]),
            ["tenant_net_id", "ipv4_subnet", "users[0].pool_id"],
        ),
        (
            example(pools=[{"pool_id": "a", "desired_counts": {"running": 101}}]),
            ["is too large: it may be at most 100"],
        ),
        (example(pools=[{"pool_id": "a", "instance_resources": {"vcpus": 0}}]), ["vcpus: is too small"]),
    ],
)
async def test_a_state_that_is_wrong_in_any_way_changes_nothing(
    agent: Agent, wrong: dict[str, Any], said: list[str]
) -> None:
    before = await agent.host.catalog.store.list("")
    with pytest.raises(InvalidInput) as caught:
        await agent.call("Reconcile", desired={**EXAMPLE, **wrong})
    told = f"{caught.value.message} {caught.value.hint}"
    assert [words for words in said if words not in told] == []
    assert await agent.host.catalog.store.list("") == before


async def test_a_subnet_of_a_tenant_that_the_state_does_not_name_is_taken(agent: Agent) -> None:
    await agent.call("TenantCreate", tenant_id="fay", net_id=12)
    with pytest.raises(InvalidInput, match=r"10\.240\.12\.0/24 overlaps 10\.240\.12\.0/24 of tenant 'fay'"):
        await agent.call("Reconcile", desired=EXAMPLE)
    assert "erin" not in agent.host.catalog.tenants


async def test_a_deployment_that_need_not_be_whole_keeps_what_could_be_had(agent: Agent) -> None:
    agent.runtime.fail["start"] = InvalidInput("no such kernel")
    report = await agent.deploy(whole=False)
    assert [error["message"] for error in report["errors"]] == ["no such kernel"]
    assert len(agent.host.catalog.instances) == 2
    states = sorted(i.state.value for i in agent.host.catalog.instances.values())
    assert states == ["ready", "running"]
    assert (await agent.deploy(whole=False))["errors"] == []


async def test_a_pool_is_changed_in_what_is_named_and_its_idle_instances_follow(agent: Agent) -> None:
    await agent.deploy()
    worker = await agent.worker()
    agent.host.reports.record(worker["instance_id"], Activity.IDLE)
    # What the gateway was just told may still be on its way to the worker.
    await until(lambda: not agent.host.lifecycle.busy(worker["instance_id"]), what="the end of its refresh")
    settings = {"mem_mib": 1536, "runtime_policy": {"min_running_seconds": 7}}
    planned = await agent.call("PoolUpdate", tenant_id="alice", pool_id="workers", settings=settings, dry_run=True)
    assert [action["action"] for action in planned["actions"]] == ["update pool", "restart instance"]
    assert planned["pool"]["mem_mib"] == 1024
    done = await agent.call("PoolUpdate", tenant_id="alice", pool_id="workers", settings=settings)
    assert done["pools"]["updated"] == ["alice/workers"]
    assert (done["pool"]["mem_mib"], done["pool"]["vcpus"]) == (1536, 2)
    policy = done["pool"]["runtime_policy"]
    assert (policy["min_running_seconds"], policy["warm_after_idle_seconds"]) == (7, 300)
    assert (await agent.worker())["mem_mib"] == 1536
    again = await agent.call("PoolUpdate", tenant_id="alice", pool_id="workers", settings=settings)
    assert (again["changed"], again["actions"]) == (False, [])


async def test_other_limits_are_for_the_next_start_and_restart_nobody(agent: Agent) -> None:
    await agent.deploy()
    before = await agent.worker()
    limits = {"disk_mib_per_second": 80, "disk_ops_per_second": 500, "network_mib_per_second": 8}
    done = await agent.call("PoolUpdate", tenant_id="alice", pool_id="workers", settings=limits)
    assert [action["action"] for action in done["actions"]] == ["update pool"]
    assert {name: done["pool"][name] for name in limits} == limits
    assert await agent.worker() == before
    explained = await agent.call("Explain", address="alice/workers")
    assert {name: explained["pool"][name] for name in limits} == limits


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mem_mib": 512}, "OpenClaw needs 1024 at least"),
        ({"vcpus": 0}, "too small"),
        ({"network_mib_per_second": -1}, "too small"),
        ({"disk_mib_per_second": 16_385}, "too large"),
        ({"role": "worker"}, "unknown key 'role'"),
        ({"egress": ["nonsense"]}, "nonsense"),
        ({"runtime_policy": {"min_running_seconds": -1}}, "too small"),
    ],
)
async def test_a_pool_is_not_changed_to_what_is_wrong(agent: Agent, settings: dict[str, Any], said: str) -> None:
    await agent.deploy()
    before = await agent.call("PoolInfo", tenant_id="alice", pool_id="workers")
    with pytest.raises(InvalidInput) as caught:
        await agent.call("PoolUpdate", tenant_id="alice", pool_id="workers", settings=settings)
    assert said in f"{caught.value.message} {caught.value.hint}"
    assert await agent.call("PoolInfo", tenant_id="alice", pool_id="workers") == before


async def test_what_reconcile_does_is_in_the_metrics(agent: Agent) -> None:
    host = agent.host
    host.locations = dataclasses.replace(host.locations, metrics_port=0)
    async with observed(host):
        await agent.call("Reconcile", desired=EXAMPLE)
        agent.runtime.fail["start"] = InvalidInput("no such kernel")
        await agent.deploy(whole=False)
        rendered = await _metrics(host.metrics_port)
    assert "mvm_reconcile_runs_total 2.0" in rendered
    assert "mvm_reconcile_errors_total 1.0" in rendered
    assert "mvm_reconcile_duration_seconds_count 2.0" in rendered
    assert SECRETS["anthropic/ANTHROPIC_API_KEY"] not in rendered


async def _metrics(port: int | None) -> str:
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        return await answer.text()
