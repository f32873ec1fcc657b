"""What the agent says of a tenant, pool, instance and user: the entities as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from mvm.model.entities import (
    Instance,
    InstanceNetwork,
    Pool,
    StageTiming,
    Tenant,
    TenantNetwork,
    Timeline,
    TransitionKind,
    User,
)
from mvm.model.ids import InstanceId, PoolId, TenantId, UserId, tenant_net_id
from mvm.model.roles import Role
from mvm.model.states import State

WHEN = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
ALICE = TenantId("alice")
WORKER = "alice/workers/i-0a1b2c3d"


def tenant() -> dict[str, Any]:
    network = TenantNetwork(tenant_net_id=tenant_net_id(1), ipv4_subnet="10.240.1.0/24")
    return Tenant(tenant_id=ALICE, network=network, created_at=WHEN).model_dump(mode="json")


def pool() -> dict[str, Any]:
    return Pool(
        tenant_id=ALICE, pool_id=PoolId("workers"), role=Role.CAPABILITY_OPENCLAW, mem_mib=2048, created_at=WHEN
    ).model_dump(mode="json")


def instance(number: int = 0x0A1B2C3D, state: State = State.RUNNING) -> dict[str, Any]:
    stages = (StageTiming(stage="queue", milliseconds=0.4), StageTiming(stage="service", milliseconds=9000.0))
    return Instance(
        tenant_id=ALICE,
        pool_id=PoolId("workers"),
        instance_id=InstanceId(f"i-{number:08x}"),
        role=Role.CAPABILITY_OPENCLAW,
        state=state,
        network=InstanceNetwork(guest_ip="10.240.1.4", gateway_ip="10.240.1.1"),
        runtime="process",
        user=UserId("alice"),
        created_at=WHEN,
        last_wake=Timeline(kind=TransitionKind.WAKE, began_at=WHEN, stages=stages),
    ).model_dump(mode="json")


def user() -> dict[str, Any]:
    return User(
        tenant_id=ALICE, user_id=UserId("alice"), pool_id=PoolId("workers"), telegram=("111",), created_at=WHEN
    ).model_dump(mode="json")
