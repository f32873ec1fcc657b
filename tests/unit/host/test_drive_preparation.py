"""What an instance finds on its config and secrets drives, and when the numbers of what is there grow."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.unit.host.services import ALICE, WORKERS, Services, opened

from mvm.host.machines import InstanceDirectories
from mvm.host.tenants import TenantChanges
from mvm.model.entities import Instance, OpenClawSettings, Pool
from mvm.model.errors import Conflict, InvalidInput
from mvm.model.ids import UserId
from mvm.openclaw.render import LIVE_SECRETS
from mvm.runtime.base import GuestLayout, Machine

KEY = "sk-ant-0123456789abcdef"
BOT = "123456789:AAE-abcdefghijklmnopqrstuvwxyz012345"
SECRETS = {"anthropic/ANTHROPIC_API_KEY": KEY, "telegram/TELEGRAM_BOT_TOKEN": BOT}
BOB = UserId("bob")
LAYOUT = GuestLayout(
    run="/run", data="/data", secrets="/run/secrets", config="/etc/mvm-config", plugin_dir="/opt/mvm/openclaw-plugin"
)


class Drives:
    """Where the drives of the instances of a test are written to."""

    def __init__(self, services: Services, directory: Path) -> None:
        self._services = services
        self._directories = InstanceDirectories(
            state_dir=directory / "s", run_dir=directory / "r", secrets_dir=directory / "shm"
        )

    def machine(self, instance: Instance) -> Machine:
        pool: Pool = self._services.catalog.pool(instance.tenant_id, instance.pool_id)
        network = self._services.catalog.tenant(instance.tenant_id).network
        machine = self._directories.machine(instance, pool, network, {})
        self._directories.prepare(machine)
        return machine

    async def prepare(self, instance: Instance, layout: GuestLayout | None = LAYOUT) -> Instance:
        return await self._services.preparer.prepare(instance, self.machine(instance), layout)

    def config(self, instance: Instance, name: str = "config.json") -> Any:
        return json.loads((self.machine(instance).config / name).read_text())

    def secrets(self, instance: Instance) -> Mapping[str, str]:
        root = self.machine(instance).secrets
        return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def drives(services: Services, tmp_path: Path) -> Drives:
    return Drives(services, tmp_path)


async def deployed(services: Services) -> tuple[Instance, Instance]:
    """A gateway and the worker of bob, with secrets."""
    await services.tenant()
    await services.users.add(ALICE, BOB, telegram=["111"], discord=["5"], actor="test")
    await services.secrets.set(ALICE, SECRETS)
    return services.gateway(), services.catalog.instances_of(ALICE, WORKERS)[0]


def numbers(instance: Instance) -> tuple[int, int]:
    return instance.secrets_epoch, instance.config_version


async def test_a_gateway_finds_its_routes_its_users_and_the_tokens_of_their_workers(
    services: Services, drives: Drives
) -> None:
    gateway, worker = await deployed(services)
    await drives.prepare(gateway)
    (first, second) = drives.config(gateway, "routes.json")["routes"]
    assert first["match_rule"] == {"peer": "telegram:111"}
    assert second["match_rule"] == {"peer": "discord:5"}
    assert first["target"]["instance_id"] == worker.instance_id
    (user,) = drives.config(gateway, "users.json")["users"]
    assert user == {
        "worker_key": "alice.bob",
        "tenant_id": "alice",
        "user_id": "bob",
        "pool_id": "workers",
        "instance_id": worker.instance_id,
        "peers": ["telegram:111", "discord:5"],
    }
    assert drives.secrets(gateway) == {
        "telegram/TELEGRAM_BOT_TOKEN": BOT,
        "openclaw/OPENCLAW_AUTH_TOKEN": await services.secrets.openclaw_token(gateway),
        "workers/alice.bob": await services.secrets.openclaw_token(worker),
    }


async def test_a_worker_finds_who_may_deliver_to_it_and_where_to_post(services: Services, drives: Drives) -> None:
    gateway, worker = await deployed(services)
    await drives.prepare(worker)
    config = drives.config(worker)
    assert config["user"] == "bob"
    assert config["role"] == "capability-openclaw"
    assert config["guest_ip"] == worker.network.guest_ip
    assert config["openclaw"] == {
        "port": 18789,
        "router_port": 18791,
        "outbox_port": 18792,
        "plugin_dir": "/opt/mvm/openclaw-plugin",
        "forwarder_port": 18789,
        "outbound_port": 18790,
        "live_secrets": sorted(LIVE_SECRETS),
        "delivery_sources": [gateway.network.guest_ip],
        "gateway_url": f"http://{gateway.network.guest_ip}:18790",
        "worker_key": "alice.bob",
    }
    assert drives.secrets(worker) == {
        "anthropic/ANTHROPIC_API_KEY": KEY,
        "openclaw/OPENCLAW_AUTH_TOKEN": await services.secrets.openclaw_token(worker),
    }


async def test_no_secret_is_ever_on_the_config_drive(services: Services, drives: Drives) -> None:
    for instance in await deployed(services):
        await drives.prepare(instance)
        written = "".join(p.read_text() for p in drives.machine(instance).config.iterdir())
        for value in drives.secrets(instance).values():
            assert value not in written


async def test_the_gateway_url_of_the_manifest_comes_before_the_gateways_own(
    services: Services, drives: Drives
) -> None:
    _, worker = await deployed(services)
    settings = OpenClawSettings(gateway_url="https://elsewhere.example")
    await services.tenants.update(ALICE, TenantChanges(openclaw=settings), actor="test")
    await drives.prepare(worker)
    assert drives.config(worker)["openclaw"]["gateway_url"] == "https://elsewhere.example"


async def test_without_a_gateway_nobody_may_deliver_to_a_worker(services: Services, drives: Drives) -> None:
    gateway, worker = await deployed(services)
    await services.operations.destroy(gateway.ref, actor="test")
    await drives.prepare(worker)
    section = drives.config(worker)["openclaw"]
    assert section["delivery_sources"] == []
    assert "gateway_url" not in section


async def test_a_shared_gateway_serves_the_users_of_both_tenants(services: Services, drives: Drives) -> None:
    gateway, _ = await deployed(services)
    carols = await services.tenant("carols", gateway=False)
    await services.users.add(carols, UserId("carol"), telegram=["222"], actor="test")
    await services.secrets.set(carols, SECRETS)
    await services.tenants.update(ALICE, TenantChanges(accepts=(carols,)), actor="test")
    await services.tenants.update(carols, TenantChanges(gateway_tenant=ALICE), actor="test")
    await drives.prepare(gateway)
    assert [u["worker_key"] for u in drives.config(gateway, "users.json")["users"]] == ["alice.bob", "carols.carol"]
    assert "workers/carols.carol" in drives.secrets(gateway)
    (carols_worker,) = services.catalog.instances_of(carols, WORKERS)
    await drives.prepare(carols_worker)
    assert drives.config(carols_worker)["openclaw"]["delivery_sources"] == [gateway.network.guest_ip]
    await services.tenants.update(carols, TenantChanges(gateway_tenant=None), actor="test")
    await drives.prepare(gateway)
    assert "workers/carols.carol" not in drives.secrets(gateway)


async def test_numbers_grow_with_the_content_and_only_then(services: Services, drives: Drives) -> None:
    gateway, _ = await deployed(services)
    first = await drives.prepare(gateway)
    assert numbers(await drives.prepare(first, None)) == numbers(first)
    await services.users.link(ALICE, BOB, {"telegram": ["222"]}, actor="test")
    second = await drives.prepare(first, None)
    assert numbers(second) == (first.secrets_epoch, first.config_version + 1)
    await services.secrets.set(ALICE, {"telegram/TELEGRAM_BOT_TOKEN": BOT.replace("AAE", "BBE")})
    third = await drives.prepare(second, None)
    assert third.secrets_epoch > second.secrets_epoch
    assert third.config_version == second.config_version
    written = drives.config(gateway)
    assert (written["secrets_epoch"], written["config_version"]) == numbers(third)


async def test_a_secret_that_an_instance_does_not_see_does_not_touch_it(services: Services, drives: Drives) -> None:
    _, worker = await deployed(services)
    before = await drives.prepare(worker)
    await services.secrets.set(ALICE, {"telegram/TELEGRAM_BOT_TOKEN": BOT.replace("AAE", "BBE")})
    assert numbers(await drives.prepare(before, None)) == numbers(before)


async def test_numbers_go_on_over_a_restart_of_the_agent(tmp_path: Path) -> None:
    async with opened(tmp_path / "state") as services:
        gateway, _ = await deployed(services)
        before = await Drives(services, tmp_path).prepare(gateway)
    async with opened(tmp_path / "state") as services:
        drives = Drives(services, tmp_path)
        assert numbers(await drives.prepare(services.gateway(), None)) == numbers(before)
        await services.users.link(ALICE, BOB, {"telegram": ["222"]}, actor="test")
        after = await drives.prepare(services.gateway(), None)
        assert after.config_version == before.config_version + 1


async def test_what_was_written_before_the_record_of_an_instance_is_told_to_it_later(
    services: Services, drives: Drives
) -> None:
    gateway, _ = await deployed(services)
    first = await drives.prepare(gateway)
    await services.users.link(ALICE, BOB, {"telegram": ["222"]}, actor="test")
    await drives.prepare(first, None)  # and the agent dies before it saves what comes back
    assert numbers(await drives.prepare(first, None)) != numbers(first)


async def test_a_running_instance_keeps_the_layout_of_its_start(services: Services, drives: Drives) -> None:
    gateway, _ = await deployed(services)
    ports = GuestLayout(**{**LAYOUT.__dict__, "openclaw_port": 40001, "router_port": 40002})
    await drives.prepare(gateway, ports)
    await drives.prepare(gateway, None)
    assert drives.config(gateway)["openclaw"]["router_port"] == 40002
    assert drives.config(gateway, "openclaw.json")["gateway"]["port"] == 40001


async def test_an_instance_that_never_started_has_no_layout_to_keep(services: Services, drives: Drives) -> None:
    gateway, _ = await deployed(services)
    with pytest.raises(Conflict, match="never prepared"):
        await drives.prepare(gateway, None)


async def test_a_gateway_at_a_new_address_is_noticed(services: Services, drives: Drives) -> None:
    gateway, _ = await deployed(services)
    moved: list[str] = []
    services.preparer.on_gateway_moved = lambda instance: moved.append(instance.network.guest_ip)
    await drives.prepare(gateway)
    await drives.prepare(gateway)
    network = gateway.network.model_copy(update={"guest_ip": "127.240.1.9"})
    await drives.prepare(gateway.model_copy(update={"network": network}))
    assert moved == [gateway.network.guest_ip, "127.240.1.9"]


async def test_a_worker_without_any_model_key_is_refused_with_what_is_missing(
    services: Services, drives: Drives
) -> None:
    await services.tenant(workers=1)
    (worker,) = services.catalog.instances_of(ALICE, WORKERS)
    with pytest.raises(InvalidInput, match="no model provider's key"):
        await drives.prepare(worker)


async def test_an_instance_that_is_gone_leaves_no_record(services: Services, drives: Drives) -> None:
    gateway, _ = await deployed(services)
    await drives.prepare(gateway)
    await services.preparer.forget(gateway)
    stored = await services.everything()
    assert f"drives/{gateway.instance_id}" not in stored
    assert f"tokens/{ALICE}/{gateway.instance_id}" not in stored


async def test_the_digest_of_secrets_is_not_stored_in_the_clear(services: Services, drives: Drives) -> None:
    gateway, _ = await deployed(services)
    await drives.prepare(gateway)
    document = await services.store.get(f"drives/{gateway.instance_id}")
    assert document is not None
    assert isinstance(document.value, dict)
    assert str(document.value["sealed_secrets_digest"]).startswith("v1.")
