"""A state that is damaged anywhere is said to be by name, changes nothing by itself, and keeps nobody else waiting."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.standins.instant_runtime import InstantRuntime
from tests.unit.host.live_agent import SECRETS, Agent, opened_agent

from mvm.host.app import Host, open_host
from mvm.host.budgets import PREFIX as BUDGETS
from mvm.host.daemon import _recover
from mvm.model.errors import MvmError
from mvm.model.ids import TenantId
from mvm.runtime.base import Runtime
from mvm.store.sqlite import SqliteStore

JUNK: list[Any] = [1, "x", [], {"a": 1}, [1]]
ENTITIES = ("tenants/", "pools/", "instances/", "users/")


@pytest.fixture
def copy() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))
    yield directory / "s"
    shutil.rmtree(directory)


async def lived_in(agent: Agent, target: Path) -> list[str]:
    """Let an agent do a bit of everything, and copy its state; returns the keys of its documents."""
    await agent.deploy()
    address = await agent.address()
    tenant_id, pool_id, instance_id = address.split("/")
    state = (await agent.call("DesiredState"))["desired"]
    await agent.call("TenantUpdate", tenant_id="alice", quotas={"max_pools": 2})
    state["tenants"][0]["quotas"]["max_pools"] = 2
    state["tenants"][0]["pools"].append({"pool_id": "extra", "role": "worker"})
    assert (await agent.call("Reconcile", desired=state))["deferred"], "something waits for room"
    await agent.host.accounting.begin()
    await agent.call("InstanceSleep", address=address, force=True)
    await agent.call("WakeInstance", tenant_id=tenant_id, pool_id=pool_id, instance_id=instance_id)
    await agent.host.accounting.flush()
    await agent.host.catalog.store.put(f"{BUDGETS}alice/alice", ["2026-01-01T00:00:00Z"])
    shutil.copytree(agent.host.locations.state_dir, target)
    return [document.key for document in await agent.host.catalog.store.list("")]


@contextlib.asynccontextmanager
async def opened(agent: Agent, state: Path) -> AsyncIterator[Host]:
    """The next agent over a copy of the state."""
    locations = replace(agent.host.locations, state_dir=state)
    async with open_host(locations, {"instant": InstantRuntime()}, environment={}) as host:
        yield host


async def test_a_document_that_is_not_what_it_was_stops_what_needs_it_and_nothing_else(copy: Path) -> None:
    async with opened_agent() as agent:
        keys = await lived_in(agent, copy)
        assert {key.split("/")[0] for key in keys} >= {
            *("tenants", "pools", "instances", "users", "secrets", "tokens", "drives", "desired", "usage", "budgets")
        }
        for number, key in enumerate(keys):
            spoilt = copy.with_name("spoilt")
            shutil.rmtree(spoilt, ignore_errors=True)
            shutil.copytree(copy, spoilt)
            store = await SqliteStore.open(spoilt / "state.db")
            await store.put(key, JUNK[number % len(JUNK)])
            await store.close()
            if key.startswith(ENTITIES):
                with pytest.raises(MvmError, match=f"document '{key}' in the state database is damaged"):
                    async with opened(agent, spoilt):
                        pass
                continue
            async with opened(agent, spoilt) as host:
                await look_around(host, key)


async def look_around(host: Host, key: str) -> None:
    """The agent works, but for what hangs on that document."""
    await _recover(host, holding=host.serving)
    report = await host.reconciler.keep_up()
    assert [f"{f.object}: {f.error.message}" for f in report.failures if f"'{key}'" not in f.error.message] == []
    await host.accounting.begin()
    await host.policy.tick_and_wait()
    tenant_id = TenantId("alice")
    (user,) = host.catalog.users_of(tenant_id)
    assert user.instance_id is not None
    worker = host.catalog.instances[user.instance_id]
    with contextlib.suppress(MvmError) if key.startswith("secrets/") else contextlib.nullcontext():
        assert (await host.wakes.wake(worker.ref, actor="message", for_user=True)).state == "running", key
    assert await host.accounting.rows(None, since=host.clock.now().date()), key
    assert (await host.reconciler.desired("local")).tenants, key
    await host.tenants.destroy(tenant_id, actor="test")
    assert host.catalog.tenants == {}


@pytest.mark.parametrize("seed", range(6))
async def test_a_file_with_any_damage_is_opened_or_refused_and_never_changed(copy: Path, seed: int) -> None:
    async with opened_agent() as agent:
        await lived_in(agent, copy)
        file, chance = copy / "state.db", random.Random(seed)
        for beside in copy.glob("state.db-*"):
            beside.unlink()
        whole = file.read_bytes()
        content = bytearray(whole)
        match seed % 3:
            case 0:
                del content[chance.randrange(len(content)) :]
            case 1:
                for _ in range(chance.randrange(1, 40)):
                    content[chance.randrange(len(content))] = chance.randrange(256)
            case _:
                start = chance.randrange(len(content))
                content[start : start + 5000] = bytes(len(content[start : start + 5000]))
        file.write_bytes(content)
        try:
            async with opened(agent, copy) as host:
                assert host.catalog.store is not None
        except MvmError as error:
            refusal = error
        else:
            return
        assert refusal.hint, "what to do is said"
        assert [value for value in SECRETS.values() if value in refusal.message] == []
        assert file.read_bytes() == bytes(content), "a damaged database is left as it is"


async def test_bases_that_cannot_be_cleared_keep_no_build_from_it(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[str] = []

    async def fail(_runtime: Runtime) -> None:
        raise RuntimeError("a defect")

    async def clear(runtime: Runtime) -> None:
        cleared.append(runtime.name)

    monkeypatch.setattr(agent.host.bases, "clear_unfinished", fail)
    monkeypatch.setattr(agent.host.build_machines, "clear_unfinished", clear)
    await _recover(agent.host, holding=agent.host.serving)
    assert cleared == list(agent.host.runtimes.names)
    assert cleared


async def test_removals_are_finished_although_the_secrets_of_another_tenant_are_damaged(agent: Agent) -> None:
    await agent.deploy()
    await agent.call("TenantCreate", tenant_id="bob")
    store = agent.host.catalog.store
    await store.put("secrets/alice", "nonsense")
    await store.put("host/removals/tenant/bob", {"actor": "operator"})
    agent.host.secrets._cache.clear()
    await _recover(agent.host, holding=agent.host.serving)
    assert set(agent.host.catalog.tenants) == {"alice"}
    kinds = [event.kind for event in agent.host.chronicle.events.recent(100)]
    assert "SecretsDamaged" in kinds


async def test_secrets_whose_key_was_lost_can_be_set_again(tmp_path: Path) -> None:
    async with opened_agent() as agent:
        await lived_in(agent, tmp_path / "copy")
        (tmp_path / "copy/secrets.key").unlink()
        alice, bob = TenantId("alice"), TenantId("bob")
        async with opened(agent, tmp_path / "copy") as host:
            await _recover(host, holding=host.serving)
            await host.tenants.create(bob, actor="test")
            await host.tenants.set_secrets(bob, {"telegram/TELEGRAM_BOT_TOKEN": f"98765:{'B' * 35}"}, actor="test")
            (user,) = host.catalog.users_of(alice)
            assert user.instance_id is not None
            worker = host.catalog.instances[user.instance_id].ref
            with pytest.raises(MvmError, match="is sealed with the key"):
                await host.wakes.wake(worker, actor="message", for_user=True)

            key, *others = sorted(SECRETS)
            assert await host.tenants.set_secrets(alice, {key: SECRETS[key]}, actor="test") == (key,)
            assert [name.path for name in await host.secrets.names(alice)] == [key, *others], "the others' key may come"
            await host.tenants.set_secrets(alice, SECRETS, actor="test")
            assert (await host.wakes.wake(worker, actor="message", for_user=True)).state == "running"
            assert await host.secrets.reveal(alice) == SECRETS
