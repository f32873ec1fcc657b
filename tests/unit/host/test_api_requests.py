"""Every request of the API, from the client through the real services to machines that take no time."""

import asyncio
import base64
import contextlib
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.host.live_agent import KEY, LIMIT, SECRETS, Agent

from mvm.model.errors import Conflict, InvalidInput, MvmError, NotFound, QuotaExceeded, Refused
from mvm.model.ids import InstanceId, TenantId
from mvm.wire import messages, rpc


async def test_a_deployment_is_made_shown_and_destroyed(agent: Agent) -> None:
    planned = await agent.deploy(dry_run=True)
    assert planned["dry_run"]
    assert not planned["changed"]
    assert (await agent.call("TenantList"))["tenants"] == []
    made = await agent.deploy()
    assert made["actions"] == planned["actions"]
    assert (await agent.deploy())["actions"] == []
    ready = await agent.call("DeploymentReady", tenant_id="alice")
    assert {i["pool_id"] for i in ready["instances"]} == {"gateways", "workers"}
    info = await agent.call("TenantInfo", tenant_id="alice")
    assert [pool["pool_id"] for pool in info["pools"]] == ["gateways", "workers"]
    assert info["users"][0]["telegram"] == ["111"]
    assert info["tenant"]["secrets_epoch"] == 1
    connect = await agent.call("Connect", tenant_id="alice")
    assert (connect["channels"], connect["served_by"]) == (["telegram"], "alice")
    assert connect["gateway"]["state"] == "running"
    (user,) = connect["users"]
    assert (user["user_id"], user["peers"], user["paired"]) == ("alice", ["telegram:111"], True)
    assert user["worker"]["state"] == "running"
    await agent.call("TenantDestroy", tenant_id="alice")
    assert (await agent.call("TenantList"))["tenants"] == []
    with pytest.raises(NotFound):
        await agent.call("TenantInfo", tenant_id="alice")


async def test_an_instance_goes_through_its_states(agent: Agent) -> None:
    await agent.deploy()
    address = await agent.address()
    tenant_id, pool_id, instance_id = address.split("/")
    slept = await agent.call("InstanceSleep", address=address, force=True)
    assert slept["instance"]["state"] == "sleeping"
    woken = await agent.call("WakeInstance", tenant_id=tenant_id, pool_id=pool_id, instance_id=instance_id)
    assert woken["instance"]["state"] == "running"
    assert (await agent.call("InstanceInfo", address=address))["instance"]["last_wake"]["kind"] == "wake"
    stopped = await agent.call("InstanceStop", address=address)
    assert stopped["instance"]["state"] == "stopped"
    with pytest.raises(Refused):
        await agent.call("WakeInstance", tenant_id=tenant_id, pool_id=pool_id, instance_id=instance_id)
    started = await agent.call("InstanceStart", address=address)
    assert started["instance"]["state"] == "running"
    warm = await agent.call("InstanceWarm", address=address)
    assert warm["instance"]["state"] == "warm"


async def test_a_destroyed_worker_leaves_its_user_who_gets_a_new_one(agent: Agent) -> None:
    await agent.deploy()
    address = await agent.address()
    await agent.call("InstanceDestroy", address=address)
    assert (await agent.call("UserList", tenant_id="alice"))["users"][0]["instance_id"] is None
    actions = (await agent.deploy())["actions"]
    assert {action["action"] for action in actions} >= {"make worker"}
    assert await agent.address() != address


async def test_instances_are_listed_page_by_page(agent: Agent) -> None:
    await agent.call("TenantCreate", tenant_id="t")
    await agent.call("PoolCreate", pool={"tenant_id": "t", "pool_id": "p", "role": "capability-openclaw"})
    for _ in range(5):
        await agent.call("InstanceCreate", tenant_id="t", pool_id="p")
    seen: list[str] = []
    while True:
        after = {"after": seen[-1]} if seen else {}
        page = (await agent.call("InstanceList", limit=2, **after))["instances"]
        if not page:
            break
        seen += [instance["instance_id"] for instance in page]
    assert len(set(seen)) == 5
    assert seen == sorted(seen)


async def test_a_pool_that_does_not_exist_is_told_from_one_without_instances(agent: Agent) -> None:
    await agent.call("TenantCreate", tenant_id="t")
    await agent.call("PoolCreate", pool={"tenant_id": "t", "pool_id": "p"})
    assert (await agent.call("InstanceList", tenant_id="t", pool_id="p"))["instances"] == []
    with pytest.raises(NotFound, match="pool 't/wrong' does not exist") as caught:
        await agent.call("InstanceList", tenant_id="t", pool_id="wrong")
    assert caught.value.hint == "`mvm pool list t` shows the tenant's pools"


async def test_pools_are_made_scaled_and_destroyed(agent: Agent) -> None:
    await agent.call("TenantCreate", tenant_id="t", template="openclaw")
    await agent.call("SecretsSet", tenant_id="t", secrets=SECRETS)
    pool = {"tenant_id": "t", "pool_id": "p", "role": "capability-openclaw", "desired": {"running": 1}}
    made = (await agent.call("PoolCreate", pool=pool))["pool"]
    assert made["runtime_policy"]["min_running_seconds"] == 300
    await agent.call("PoolScale", tenant_id="t", pool_id="p", running=2)
    info = await agent.call("PoolInfo", tenant_id="t", pool_id="p")
    assert [i["state"] for i in info["instances"]] == ["running", "running"]
    (listed,) = (await agent.call("PoolList", tenant_id="t"))["pools"]
    assert (listed["pool_id"], listed["states"], listed["desired"]["running"]) == ("p", {"running": 2}, 2)
    assert (await agent.call("TenantInfo", tenant_id="t"))["pools"] == [listed]
    await agent.call("PoolDestroy", tenant_id="t", pool_id="p")
    assert (await agent.call("InstanceList", tenant_id="t"))["instances"] == []


async def test_a_sender_is_linked_to_a_user_who_exists_and_unlinked_again(agent: Agent) -> None:
    await agent.deploy()
    alice = {"tenant_id": "alice", "user_id": "alice"}
    assert not (await agent.call("UserAdd", **alice, telegram=["111"]))["added"]
    with pytest.raises(Conflict, match="exists already"):
        await agent.call("UserAdd", **alice, telegram=["222"])
    linked = await agent.call("UserLink", **alice, telegram=["222"])
    assert (linked["changed"], linked["user"]["telegram"]) == (True, ["111", "222"])
    assert not (await agent.call("UserLink", **alice, telegram=["222"]))["changed"]
    assert (await agent.call("UserUnlink", **alice, telegram=["111"]))["user"]["telegram"] == ["222"]


async def test_no_image_is_built_that_nothing_would_run_unless_it_is_asked_for(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agent.call("TenantCreate", tenant_id="t")
    await agent.call("PoolCreate", pool={"tenant_id": "t", "pool_id": "p"})

    async def build(*_: object, **__: object) -> None:
        raise MvmError("it is being built")

    monkeypatch.setattr(agent.host.images, "build", build)
    with pytest.raises(Conflict, match="nothing is built for pool 't/p': the runtime instant") as caught:
        await agent.call("PoolBuild", tenant_id="t", pool_id="p")
    assert "--force" in (caught.value.hint or "")
    with pytest.raises(MvmError, match="being built"):
        await agent.call("PoolBuild", tenant_id="t", pool_id="p", force=True)
    agent.runtime.capabilities = replace(agent.runtime.capabilities, images=True)
    with pytest.raises(MvmError, match="being built"):
        await agent.call("PoolBuild", tenant_id="t", pool_id="p")


async def test_a_pool_whose_first_instance_cannot_start_is_not_left_behind(agent: Agent) -> None:
    await agent.call("TenantCreate", tenant_id="t")
    pool = {"tenant_id": "t", "pool_id": "p", "role": "capability-openclaw", "desired": {"running": 1}}
    with pytest.raises(InvalidInput, match="no model provider's key"):
        await agent.call("PoolCreate", pool=pool)
    assert (await agent.call("PoolList", tenant_id="t"))["pools"] == []


async def test_quotas_are_changed_one_by_one_and_hold(agent: Agent) -> None:
    await agent.call("TenantCreate", tenant_id="t", quotas={"max_pools": 1})
    await agent.call("PoolCreate", pool={"tenant_id": "t", "pool_id": "a"})
    with pytest.raises(QuotaExceeded, match="max_pools"):
        await agent.call("PoolCreate", pool={"tenant_id": "t", "pool_id": "b"})
    tenant = (await agent.call("TenantUpdate", tenant_id="t", quotas={"max_running": 3}))["tenant"]
    assert (tenant["quotas"]["max_pools"], tenant["quotas"]["max_running"]) == (1, 3)
    with pytest.raises(InvalidInput, match="max_runing"):
        await agent.call("TenantUpdate", tenant_id="t", quotas={"max_runing": 3})


async def test_names_of_secrets_are_shown_and_values_never(agent: Agent) -> None:
    await agent.deploy()
    listed = await agent.call("SecretsList", tenant_id="alice")
    assert listed["secrets"] == sorted(SECRETS)
    assert listed["pools"] == dict(zip(sorted(SECRETS), (["workers"], ["gateways"]), strict=True))
    changed = await agent.call("SecretsSet", tenant_id="alice", secrets={"x/Y": "other-value"})
    assert changed == {"changed": ["x/Y"], "secrets_epoch": 2}
    assert (await agent.call("SecretsRotate", tenant_id="alice", scope="x"))["rotated"] == ["x/Y"]
    with pytest.raises(InvalidInput) as caught:
        await agent.call("SecretsSet", tenant_id="alice", secrets={"bad name/Y": "s3cret-value"})
    assert "s3cret-value" not in str(caught.value)
    shown = [await agent.call(name, tenant_id="alice") for name in ("TenantInfo", "SecretsList", "Connect", "UserList")]
    events = [event async for event in agent.client.events()]
    assert KEY not in str(shown) + str(events)


async def test_users_come_pair_and_go(agent: Agent) -> None:
    await agent.deploy()
    added = (await agent.call("UserAdd", tenant_id="alice", user_id="bob"))["user"]
    assert added["instance_id"] is not None
    offer = await agent.host.pairing.request(TenantId("alice"), "telegram:222")
    assert offer is not None
    paired = (await agent.call("UserPair", tenant_id="alice", code=offer.code))["user"]
    assert (paired["user_id"], paired["telegram"]) == ("bob", ["222"])
    with pytest.raises(Conflict):
        await agent.call("InstanceCreate", tenant_id="alice", pool_id="workers", user="bob")
    await agent.call("UserRemove", tenant_id="alice", user_id="bob")
    assert [u["user_id"] for u in (await agent.call("UserList", tenant_id="alice"))["users"]] == ["alice"]


async def test_events_are_followed_as_they_happen(agent: Agent) -> None:
    await agent.call("TenantCreate", tenant_id="before")
    seen: list[str] = []

    async def follow() -> None:
        async with contextlib.aclosing(agent.client.events(follow=True)) as events:
            async for event in events:
                seen.append(f"{event['kind']} {event['tenant_id']}")
                if len(seen) == 1:
                    await agent.call("TenantCreate", tenant_id="after")
                if len(seen) == 2:
                    return

    await asyncio.wait_for(follow(), LIMIT)
    assert seen == ["TenantCreated before", "TenantCreated after"]
    assert [e["tenant_id"] async for e in agent.client.events(tenant_id="after")] == ["after"]
    assert [e["number"] async for e in agent.client.events(since=1)] == [2]


async def test_events_of_a_tenant_that_never_was_are_not_found(agent: Agent) -> None:
    with pytest.raises(NotFound, match="'nope'"):
        await agent.call("Events", tenant_id="nope")
    await agent.call("TenantCreate", tenant_id="short")
    await agent.call("TenantDestroy", tenant_id="short")
    kinds = [event["kind"] async for event in agent.client.events(tenant_id="short")]
    assert kinds[-1] == "TenantDestroyed"


async def test_the_audits_are_verified(agent: Agent) -> None:
    await agent.deploy()
    audits = (await agent.call("AuditVerify"))["audits"]
    assert [(audit["tenant_id"], audit["intact"]) for audit in audits] == [("alice", True), ("mvm-host", True)]
    path = agent.host.locations.state_dir / "audit/alice.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2].replace("alice", "carol", 1), *lines[3:], ""]))
    (audit,) = (await agent.call("AuditVerify", tenant_id="alice"))["audits"]
    assert (audit["intact"], audit["broken"]["file"], audit["broken"]["line"]) == (False, str(path), 4)
    with pytest.raises(NotFound):
        await agent.call("AuditVerify", tenant_id="nope")


async def test_an_instance_can_be_looked_into(agent: Agent) -> None:
    await agent.deploy()
    address = await agent.address()
    stats = await agent.call("InstanceStats", address=address)
    assert (stats["state"], stats["memory_total_bytes"]) == ("running", 2)
    answer = await agent.call("InstanceExec", address=address, argv=["echo", "hello"])
    assert (answer["status"], base64.b64decode(answer["stdout"])) == (0, b"echo hello")
    assert (await agent.call("InstanceLogs", address=address))["logs"] == {"agent": "all is well"}
    await agent.call("InstanceSleep", address=address, force=True)
    assert (await agent.call("InstanceStats", address=address))["state"] == "sleeping"
    with pytest.raises(Conflict, match="is sleeping"):
        await agent.call("InstanceExec", address=address, argv=["true"])
    with pytest.raises(NotFound, match="no log"):
        await agent.call("InstanceLogs", address=address)


async def test_the_node_says_what_it_is_and_what_it_uses(agent: Agent) -> None:
    await agent.deploy()
    info = await agent.call("NodeInfo")
    assert info["runtime"] == "instant"
    assert (info["tenants"], info["instances"]) == (1, 2)
    stats = await agent.call("NodeStats")
    assert stats["instances"] == {"running": 2}
    assert stats["agent_memory_bytes"] > 0


async def test_a_shutdown_is_asked_for(agent: Agent) -> None:
    await agent.call("Shutdown")
    assert agent.host.shutdown.is_set()


async def test_a_service_that_has_no_log_is_answered_with_those_that_have(agent: Agent) -> None:
    await agent.deploy()
    address = await agent.address()

    with pytest.raises(NotFound, match="no log of service 'opnclaw'") as caught:
        await agent.call("InstanceLogs", address=address, service="opnclaw")
    assert caught.value.hint == "there are logs of: agent"


async def test_a_program_that_is_not_there_is_told_with_what_to_do(agent: Agent) -> None:
    await agent.deploy()
    address = await agent.address()
    await agent.call("PoolUpdate", tenant_id="alice", pool_id="workers", settings={"allow_exec": True})

    async def refuse(request: messages.HostToGuest) -> None:
        if isinstance(request, messages.Exec):
            raise rpc.Refusal("'ll' cannot be started: No such file or directory")

    agent.runtime.guest(InstanceId(address.split("/")[2])).before = refuse
    with pytest.raises(MvmError) as caught:
        await agent.call("InstanceExec", address=address, argv=["ll"])
    assert caught.value.message == f"{address}: 'll' cannot be started: No such file or directory"
    assert f"mvm instance exec {address} -- ls /usr/bin" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "params", "error"),
    [
        ("TenantInfo", {"tenant_id": "Alice"}, InvalidInput),
        ("TenantInfo", {}, InvalidInput),
        ("TenantInfo", {"tenant_id": "nobody"}, NotFound),
        ("TenantCreate", {"tenant_id": "t", "template": "nonsense"}, InvalidInput),
        ("TenantCreate", {"tenant_id": "t", "net_id": 5000}, InvalidInput),
        ("InstanceInfo", {"address": "alice"}, InvalidInput),
        ("InstanceInfo", {"address": "alice/workers/i-00000000"}, NotFound),
        ("InstanceList", {"tenant_id": "nobody"}, NotFound),
        ("InstanceList", {"limit": 0}, InvalidInput),
        ("InstanceList", {"limit": 10_000}, InvalidInput),
        ("InstanceList", {"pool_id": "p"}, InvalidInput),
        ("InstanceExec", {"address": "a/b/i-00000000", "argv": []}, InvalidInput),
        ("PoolCreate", {"pool": {"tenant_id": "nobody", "pool_id": "p"}}, NotFound),
        ("PoolCreate", {"pool": {"tenant_id": "t", "pool_id": "p", "role": "king"}}, InvalidInput),
        ("PoolCreate", {"pool": {"tenant_id": "t", "pool_id": "p", "vcpus": 0}}, InvalidInput),
        ("UserPair", {"tenant_id": "nobody", "code": "ABCDEF"}, NotFound),
        ("ApplyDeployment", {"deployment": {}}, InvalidInput),
        ("DeploymentReady", {"tenant_id": "nobody"}, NotFound),
    ],
)
async def test_what_cannot_be_is_refused_in_words(
    agent: Agent, name: str, params: dict[str, Any], error: type[MvmError]
) -> None:
    with pytest.raises(error) as caught:
        await agent.call(name, **params)
    assert caught.value.message
    assert agent.host.catalog.tenants == {}
