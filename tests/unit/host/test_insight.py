"""Why things are as they are, and what was used, from the real services."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.host.live_agent import Agent

from mvm.host.reports import Activity
from mvm.model.errors import InvalidInput, NotFound
from mvm.model.ids import InstanceId


async def explained(agent: Agent, address: str) -> dict[str, object]:
    ((_, found),) = (await agent.call("Explain", address=address)).items()
    return dict(found)


async def test_a_running_instance_says_what_blocks_its_sleep_and_who_started_it(agent: Agent) -> None:
    await agent.deploy()
    address = await agent.address()
    agent.host.reports.record(InstanceId(address.rpartition("/")[2]), Activity.BUSY, in_flight=1)
    found = await explained(agent, address)
    assert (found["state"], found["activity"], found["in_flight"]) == ("running", "busy", 1)
    assert (found["why"], found["blocks_sleep"]) == ("awake: it is busy", "it is busy")
    transitions = [line["action"] for line in found["last_transitions"]]  # type: ignore[attr-defined]
    assert transitions[:2] == ["InstanceCreated", "InstanceStarted"]
    assert found["holds"] == {"vcpus": 2, "mem_mib": 1024}
    assert found["quotas"]["max_running"] == {"limit": 8, "used": 2}  # type: ignore[index]


async def test_what_a_person_did_is_said_and_keeps_policy_away(agent: Agent) -> None:
    await agent.deploy()
    address = await agent.address()
    actor = (await explained(agent, address))["last_transitions"][-1]["actor"]  # type: ignore[index]
    await agent.call("InstanceSleep", address=address, force=True)
    asleep = await explained(agent, address)
    assert (asleep["why"], asleep["blocks_sleep"]) == (f"put to sleep by {actor}", None)
    assert asleep["last_sleep"]["kind"] == "sleep"  # type: ignore[index]
    await agent.call("InstanceStart", address=address)
    awake = await explained(agent, address)
    assert str(awake["blocks_sleep"]).startswith("a person dealt with it")
    assert awake["last_wake"]["total_ms"] >= 0  # type: ignore[index]
    await agent.call("InstanceStop", address=address)
    stopped = await explained(agent, address)
    assert stopped["why"] == f"stopped by {actor}: only a person starts it again"
    assert stopped["holds"] == {"vcpus": 0, "mem_mib": 0}


async def test_a_sleeper_says_when_its_alarm_wakes_it(agent: Agent) -> None:
    await agent.deploy()
    worker = agent.host.catalog.instances[(await agent.worker())["instance_id"]]
    await agent.call("InstanceSleep", address=str(worker.ref), force=True)
    alarm = datetime.now(UTC) + timedelta(hours=8)
    asleep = agent.host.catalog.instance(worker.ref)
    await agent.host.catalog.save_instance(asleep.model_copy(update={"next_alarm_at": alarm}))
    found = await explained(agent, str(worker.ref))
    begins = datetime.fromisoformat(str(found["alarm_wake_at"]))
    assert timedelta(0) < alarm - begins < timedelta(minutes=2)


async def test_a_pool_and_a_tenant_are_explained(agent: Agent) -> None:
    await agent.deploy()
    pool = await explained(agent, "alice/workers")
    assert pool["states"] == {"running": 1}
    assert [i["user"] for i in pool["instances"]] == ["alice"]  # type: ignore[attr-defined]
    tenant = await explained(agent, "alice")
    assert tenant["states"] == {"running": 2}
    assert [p["address"] for p in tenant["pools"]] == ["alice/gateways", "alice/workers"]  # type: ignore[attr-defined]
    assert tenant["errors"] == []
    for unknown in ("nope", "alice/nope", "alice/workers/i-00000000"):
        with pytest.raises(NotFound):
            await agent.call("Explain", address=unknown)
    with pytest.raises(InvalidInput):
        await agent.call("Explain", address="a/b/c/d")


async def test_usage_is_told_by_user_and_page_by_page(agent: Agent) -> None:
    await agent.deploy()
    await agent.host.accounting.begin()
    worker = await agent.address()
    await agent.call("InstanceSleep", address=worker, force=True)
    await agent.call("InstanceStart", address=worker)
    told = await agent.call("Usage", tenant_id="alice")
    assert [(row["user_id"], row["pool_id"], row["wakes"]) for row in told["usage"]] == [
        ("alice", None, 1),
        (None, "gateways", 0),
    ]
    first = await agent.call("Usage", limit=1)
    (last,) = (await agent.call("Usage", limit=1, after=first["usage"][0]["key"]))["usage"]
    assert last["pool_id"] == "gateways"
    with pytest.raises(NotFound):
        await agent.call("Usage", tenant_id="nope")
    with pytest.raises(InvalidInput):
        await agent.call("Usage", since="2026-02-31")
    await agent.call("TenantDestroy", tenant_id="alice")
    assert (await agent.call("Usage", tenant_id="alice"))["usage"], "a bill may be written afterwards"
