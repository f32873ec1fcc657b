"""What the catalog does with documents that another version of mvm, or an accident, wrote."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from mvm.host.catalog import Catalog
from mvm.model.entities import Tenant, TenantNetwork
from mvm.model.errors import MvmError
from mvm.model.ids import TenantId, TenantNetId
from mvm.store.sqlite import SqliteStore

ALICE = Tenant(
    tenant_id=TenantId("alice"),
    network=TenantNetwork(tenant_net_id=TenantNetId(1), ipv4_subnet="10.240.1.0/24"),
    created_at=datetime(2026, 11, 22, tzinfo=UTC),
)


async def stored(path: Path, document: dict[str, object]) -> SqliteStore:
    store = await SqliteStore.open(path / "state.db")
    await store.put("tenants/alice", document)  # type: ignore[arg-type]
    return store


async def test_keys_of_another_version_are_passed_over_wherever_they_are(tmp_path: Path) -> None:
    document = ALICE.model_dump(mode="json")
    document["favourite_colour"] = "blue"
    document["network"]["mtu"] = 1450
    store = await stored(tmp_path, document)
    assert (await Catalog.open(store)).tenant(ALICE.tenant_id) == ALICE
    await store.close()


async def test_a_damaged_document_is_named_and_nothing_is_dropped(tmp_path: Path) -> None:
    document = ALICE.model_dump(mode="json") | {"network": "none", "favourite_colour": "blue"}
    store = await stored(tmp_path, document)
    with pytest.raises(MvmError, match="tenants/alice"):
        await Catalog.open(store)
    kept = await store.get("tenants/alice")
    assert kept is not None
    assert kept.value == document
    await store.close()


async def test_what_was_saved_is_there_after_a_restart(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "state.db")
    catalog = await Catalog.open(store)
    await catalog.save_tenant(ALICE)
    await catalog.save_tenant(ALICE.model_copy(update={"secrets_epoch": 2}))
    await store.close()
    store = await SqliteStore.open(tmp_path / "state.db")
    assert (await Catalog.open(store)).tenant(ALICE.tenant_id).secrets_epoch == 2
    await store.close()
