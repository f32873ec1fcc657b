"""Secrets at rest, and who is handed which."""

from pathlib import Path

import pytest
from tests.unit.host.services import ALICE, WORKERS, Services, opened

from mvm.model.entities import PoolSpec
from mvm.model.errors import InvalidInput, MvmError, NotFound
from mvm.model.ids import PoolId
from mvm.model.roles import Role

KEY = "sk-ant-0123456789abcdef"
BOT = "123456789:AAE-abcdefghijklmnopqrstuvwxyz012345"
SECRETS = {"anthropic/ANTHROPIC_API_KEY": KEY, "telegram/TELEGRAM_BOT_TOKEN": BOT}


async def test_a_value_is_nowhere_in_the_state(services: Services, tmp_path: Path) -> None:
    await services.tenant(workers=1)
    await services.tenants.set_secrets(ALICE, SECRETS, actor="test")
    (worker,) = services.catalog.instances_of(ALICE, WORKERS)
    token = await services.secrets.openclaw_token(worker)
    await services.chronicle.flush()
    files = [path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()]
    for value in (KEY, BOT, token):
        assert not any(value.encode() in content for content in files)


async def test_each_role_sees_what_it_needs_and_no_more(services: Services) -> None:
    await services.tenant(workers=1)
    await services.secrets.set(ALICE, SECRETS)
    (worker,) = services.catalog.instances_of(ALICE, WORKERS)
    gateway = services.gateway()
    pools = {pool.pool_id: pool for pool in services.catalog.pools_of(ALICE)}
    seen_by_worker = await services.secrets.visible(worker, pools[worker.pool_id])
    seen_by_gateway = await services.secrets.visible(gateway, pools[gateway.pool_id])
    assert set(seen_by_worker) == {"anthropic/ANTHROPIC_API_KEY", "openclaw/OPENCLAW_AUTH_TOKEN"}
    assert set(seen_by_gateway) == {"telegram/TELEGRAM_BOT_TOKEN", "openclaw/OPENCLAW_AUTH_TOKEN"}
    assert seen_by_worker["openclaw/OPENCLAW_AUTH_TOKEN"] != seen_by_gateway["openclaw/OPENCLAW_AUTH_TOKEN"]


async def test_a_builder_sees_nothing(services: Services) -> None:
    await services.tenant()
    await services.secrets.set(ALICE, SECRETS)
    builders = await services.pools.create(ALICE, PoolSpec(pool_id=PoolId("b"), role=Role.BUILDER), actor="test")
    builder = await services.operations.create_instance(ALICE, builders.pool_id, actor="test")
    assert await services.secrets.visible(builder, builders) == {}


async def test_the_token_of_an_instance_stays_the_same_over_restarts_of_the_agent(tmp_path: Path) -> None:
    async with opened(tmp_path / "state") as services:
        await services.tenant()
        before = await services.secrets.openclaw_token(services.gateway())
    async with opened(tmp_path / "state") as services:
        assert await services.secrets.openclaw_token(services.gateway()) == before


async def test_a_token_that_the_tenant_set_is_used_instead(services: Services) -> None:
    await services.tenant()
    await services.secrets.set(ALICE, {"openclaw/OPENCLAW_AUTH_TOKEN": "chosen-by-hand"})
    assert await services.secrets.openclaw_token(services.gateway()) == "chosen-by-hand"


async def test_setting_tells_what_changed_and_reaches_running_instances_at_once(services: Services) -> None:
    await services.tenant(workers=1)
    assert await services.tenants.set_secrets(ALICE, SECRETS, actor="test") == tuple(sorted(SECRETS))
    assert set(services.operations.refreshed) == {i.ref for i in services.catalog.instances_of(ALICE)}
    assert services.catalog.tenant(ALICE).secrets_epoch == 1


async def test_setting_the_same_again_changes_nothing(services: Services) -> None:
    await services.tenant()
    await services.tenants.set_secrets(ALICE, SECRETS, actor="test")
    services.operations.refreshed.clear()
    assert await services.tenants.set_secrets(ALICE, SECRETS, actor="test") == ()
    assert services.catalog.tenant(ALICE).secrets_epoch == 1
    assert services.operations.refreshed == []


async def test_others_stay_unless_they_are_to_be_pruned(services: Services) -> None:
    await services.tenant()
    await services.secrets.set(ALICE, SECRETS)
    await services.secrets.set(ALICE, {"x/Y": "other-value"})
    assert [name.path for name in await services.secrets.names(ALICE)] == sorted([*SECRETS, "x/Y"])
    assert await services.secrets.set(ALICE, {"x/Y": "other-value"}, prune=True) == tuple(sorted(SECRETS))
    assert [name.path for name in await services.secrets.names(ALICE)] == ["x/Y"]


async def test_a_key_that_two_scopes_use_differently_is_refused_and_nothing_changes(services: Services) -> None:
    await services.tenant()
    await services.secrets.set(ALICE, SECRETS)
    with pytest.raises(InvalidInput) as caught:
        await services.secrets.set(ALICE, {"other/ANTHROPIC_API_KEY": "sk-different-0123456789"})
    assert "sk-different" not in str(caught.value)
    assert await services.secrets.epoch(ALICE) == 1


async def test_rotating_makes_new_what_mvm_generated_and_delivers_it(services: Services) -> None:
    await services.tenant()
    gateway = services.gateway()
    before = await services.secrets.openclaw_token(gateway)
    await services.tenants.rotate_secrets(ALICE, None, actor="test")
    assert await services.secrets.openclaw_token(gateway) != before
    assert services.operations.refreshed == [gateway.ref]
    assert services.catalog.tenant(ALICE).secrets_epoch == 1


async def test_rotating_one_scope_leaves_the_tokens_of_instances(services: Services) -> None:
    await services.tenant()
    await services.secrets.set(ALICE, SECRETS)
    before = await services.secrets.openclaw_token(services.gateway())
    assert await services.secrets.rotate(ALICE, "telegram") == ("telegram/TELEGRAM_BOT_TOKEN",)
    assert await services.secrets.openclaw_token(services.gateway()) == before


async def test_rotating_a_scope_that_is_empty_is_an_error(services: Services) -> None:
    await services.tenant()
    with pytest.raises(NotFound, match="discord"):
        await services.secrets.rotate(ALICE, "discord")


async def test_neither_audit_nor_events_hold_a_value(services: Services) -> None:
    await services.tenant()
    await services.tenants.set_secrets(ALICE, SECRETS, actor=f"somebody with {KEY}")
    await services.chronicle.flush()
    written = (services.audit_dir / "alice.jsonl").read_text() + str(services.chronicle.events.recent())
    assert "SecretsSet" in written
    assert KEY not in written


async def test_an_epoch_that_was_not_counted_before_the_agent_died_is_counted_later(services: Services) -> None:
    await services.tenant()
    await services.secrets.set(ALICE, SECRETS)
    assert services.catalog.tenant(ALICE).secrets_epoch == 0
    await services.tenants.resume_removals()
    assert services.catalog.tenant(ALICE).secrets_epoch == 1


async def test_a_record_that_is_copied_to_another_tenant_cannot_be_opened_there(services: Services) -> None:
    await services.tenant()
    bob = await services.tenant("bob")
    await services.secrets.set(ALICE, SECRETS)
    stolen = await services.store.get("secrets/alice")
    assert stolen is not None
    await services.store.put("secrets/bob", stolen.value)
    with pytest.raises(MvmError, match="cannot be decrypted"):
        await services.secrets.reveal(bob)
    assert not await services.secrets.holds(bob, "anthropic/ANTHROPIC_API_KEY", KEY)
    await services.secrets.set(bob, SECRETS)
    assert await services.secrets.reveal(bob) == SECRETS
