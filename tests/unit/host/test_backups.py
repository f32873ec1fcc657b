"""A tenant goes into a file and comes out of it, through the API."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from tests.unit.host.live_agent import SECRETS, Agent

from mvm.host import backups
from mvm.model.errors import Conflict, InvalidInput, MvmError, NotFound, Refused
from mvm.model.ids import InstanceId, PoolId, TenantId
from mvm.security import sealed_files

PASSPHRASE = "correct horse battery"
ALICE = TenantId("alice")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_files, "SCRYPT", {"log2_n": 4, "r": 1, "p": 1})
    monkeypatch.setattr(backups, "REST_PAUSE_SECONDS", 0.0)


@pytest.fixture
async def deployed(agent: Agent) -> Agent:
    """Alice's deployment; her worker has something on its data drive."""
    await agent.deploy()
    notes = data_of(agent, (await agent.worker())["instance_id"]) / "notes"
    notes.mkdir(parents=True)
    (notes / "one").write_text("remember the milk")
    return agent


def data_of(agent: Agent, instance_id: str) -> Path:
    return agent.host.directories.state(InstanceId(instance_id)) / "data"


def states(agent: Agent, tenant: str = "alice") -> set[str]:
    return {i.state.value for i in agent.host.catalog.instances_of(TenantId(tenant))}


async def exported(agent: Agent) -> bytes:
    answer = await agent.call("TenantExport", tenant_id="alice", passphrase=PASSPHRASE)
    found = b""
    while len(found) < answer["size"]:
        piece = await agent.call("TransferRead", transfer=answer["transfer"], offset=len(found))
        found += base64.b64decode(piece["data"])
    await agent.call("TransferEnd", transfer=answer["transfer"])
    return found


async def imported(agent: Agent, backup: bytes, *, passphrase: str = PASSPHRASE, **params: Any) -> dict[str, Any]:
    transfer = (await agent.call("TransferBegin"))["transfer"]
    for offset in range(0, len(backup), 1000):
        data = base64.b64encode(backup[offset : offset + 1000]).decode()
        await agent.call("TransferWrite", transfer=transfer, offset=offset, data=data)
    return await agent.call("TenantImport", transfer=transfer, passphrase=passphrase, **params)


async def test_a_tenant_is_saved_destroyed_and_made_again(deployed: Agent) -> None:
    before = await deployed.worker()
    quotas = deployed.host.catalog.tenants[ALICE].quotas
    backup = await exported(deployed)
    assert not any(value.encode() in backup for value in SECRETS.values())
    assert states(deployed) == {"running"}, "everybody is back after the export"
    await deployed.call("TenantDestroy", tenant_id="alice")
    assert (await imported(deployed, backup))["instances"] == 2
    after = await deployed.worker()
    assert (after["instance_id"], after["user"], after["state"]) == (before["instance_id"], "alice", "stopped")
    assert (data_of(deployed, after["instance_id"]) / "notes/one").read_text() == "remember the milk"
    assert deployed.host.catalog.tenants[ALICE].quotas == quotas
    assert await deployed.host.secrets.reveal(ALICE) == SECRETS
    (user,) = (await deployed.call("UserList", tenant_id="alice"))["users"]
    assert (user["telegram"], user["instance_id"]) == (["111"], after["instance_id"])
    (gateway,) = (await deployed.call("InstanceList", tenant_id="alice", pool_id="gateways"))["instances"]
    assert gateway["state"] == "running"
    woken = await deployed.call("WakeInstance", tenant_id="alice", pool_id="workers", instance_id=after["instance_id"])
    assert woken["instance"]["state"] == "running"
    assert "TenantImported" in [line["action"] for line in deployed.host.chronicle.audit.recent(ALICE, 50)]


async def test_a_copy_beside_the_original_has_ids_and_a_network_of_its_own(deployed: Agent) -> None:
    backup = await exported(deployed)
    with pytest.raises(Conflict, match="exists already") as caught:
        await imported(deployed, backup)
    assert "`mvm tenant destroy alice` makes room" in (caught.value.hint or "")
    with pytest.raises(Conflict, match="only one gateway can listen") as caught:
        await imported(deployed, backup, tenant_id="copy")
    assert (caught.value.hint or "").startswith("destroy the original first")
    assert "`mvm tenant destroy alice`" in (caught.value.hint or "")
    assert "`mvm tenant secrets set alice --file telegram_token=FILE`" in (caught.value.hint or "")
    await deployed.call("SecretsSet", tenant_id="alice", secrets={"x/Y": "another-value"}, prune=True)
    await imported(deployed, backup, tenant_id="copy", start=False)
    catalog = deployed.host.catalog
    assert sorted(i.tenant_id for i in catalog.instances.values()) == ["alice", "alice", "copy", "copy"]
    assert len({tenant.network.ipv4_subnet for tenant in catalog.tenants.values()}) == 2
    assert states(deployed, "copy") == {"stopped"}
    for _ in range(2):
        await deployed.host.reconciler.keep_up()
        await deployed.host.policy.tick_and_wait()
    assert states(deployed, "copy") == {"stopped"}, "its gateway waits for a person"
    (gateway,) = catalog.instances_of(TenantId("copy"), PoolId("gateways"))
    await deployed.call("InstanceStart", address=str(gateway.ref))
    assert states(deployed, "copy") == {"running", "stopped"}


@pytest.mark.parametrize(
    ("damage", "passphrase", "error"),
    [
        (lambda b: b, "another passphrase", Refused),
        (lambda b: b[:-1], PASSPHRASE, InvalidInput),
        (lambda b: b[:300] + bytes([b[300] ^ 1]) + b[301:], PASSPHRASE, InvalidInput),
        (lambda b: b"", PASSPHRASE, InvalidInput),
    ],
    ids=["wrong passphrase", "cut off", "changed", "empty"],
)
async def test_what_cannot_be_read_creates_nothing(
    deployed: Agent, damage: Any, passphrase: str, error: type[MvmError]
) -> None:
    backup = damage(await exported(deployed))
    known = set(deployed.host.catalog.instances)
    with pytest.raises(error):
        await imported(deployed, backup, passphrase=passphrase, tenant_id="copy")
    assert set(deployed.host.catalog.tenants) == {"alice"}
    assert set(deployed.host.catalog.instances) == known


async def test_an_import_that_fails_in_the_middle_leaves_nothing(
    deployed: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = await exported(deployed)
    await deployed.call("TenantDestroy", tenant_id="alice")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(backups, "unpack", full)
    with pytest.raises(MvmError):
        await imported(deployed, backup)
    assert not deployed.host.catalog.tenants
    assert not deployed.host.catalog.instances
    assert list((deployed.host.locations.state_dir / "instances").iterdir()) == []


async def test_one_that_works_all_the_time_is_not_saved_and_goes_on(deployed: Agent) -> None:
    worker = await deployed.worker()
    deployed.runtime.guest(InstanceId(worker["instance_id"])).refuse_sleep = "a turn is under way"
    with pytest.raises(Refused, match="a turn is under way"):
        await exported(deployed)
    assert states(deployed) == {"running"}
    assert list((deployed.host.locations.state_dir / "transfers").iterdir()) == []


async def test_transfers_are_private_and_go_forward_only(agent: Agent) -> None:
    with pytest.raises(NotFound):
        await agent.call("TransferRead", transfer="../state.db", offset=0)
    transfer = (await agent.call("TransferBegin"))["transfer"]
    path = agent.host.locations.state_dir / "transfers" / transfer
    assert path.stat().st_mode & 0o777 == 0o600
    await agent.call("TransferWrite", transfer=transfer, offset=0, data="aGVsbG8=")
    with pytest.raises(Conflict, match="begins at 5"):
        await agent.call("TransferWrite", transfer=transfer, offset=0, data="aGVsbG8=")
    await agent.call("TransferEnd", transfer=transfer)
    assert not path.exists()
    with pytest.raises(NotFound):
        await agent.call("TransferRead", transfer=transfer, offset=0)
