"""What the agent says of a tenant, pool, instance and user: the entities as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from mvm.image.base import FILES, ImageFile, Manifest, Source
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


def manifest(digest: str, source: Source | None = None) -> dict[str, Any]:
    """What an image says of itself."""
    return Manifest(
        digest=digest,
        builder="debian" if source is None else "nix",
        source=source,
        profile="minimal",
        architecture="x86_64",
        kernel_release="6.1.0-1-cloud-amd64",
        kernel_arguments=(),
        modules=("erofs",),
        node="24.16.0",
        openclaw="2026.9.6",
        zipapp="0" * 64,
        packages={"python3": "3.11.2-1"},
        files={name: ImageFile(sha256="0" * 64, size=2**20) for name in FILES},
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


QUOTAS = {"max_running": {"limit": 16, "used": 3}, "max_disk_gib": {"limit": 500, "used": 1.5}}
LINE = {
    "address": WORKER,
    "state": "running",
    "user": "alice",
    "why": "awake: it is busy",
    "blocks_sleep": "it is busy",
}
POLICY = {"warm_after_idle_seconds": 300, "sleep_after_idle_seconds": 900}
RECENT = [
    {"timestamp": "2026-11-22T18:00:00Z", "tenant_id": "alice", "action": "InstanceWoken", "actor": "message by i-1"}
]


def connect() -> dict[str, Any]:
    worker = {"address": WORKER, "state": "sleeping", "activity": "unknown", "next_alarm_at": None, "last_error": None}
    return {
        "tenant": "alice",
        "channels": ["telegram"],
        "served_by": "alice",
        "gateway": {"address": "alice/gateways/i-00000001", "state": "running", "guest_ip": "x", "last_error": None},
        "users": [
            {"user_id": "alice", "peers": ["telegram:111"], "paired": True, "worker": worker},
            {"user_id": "bob", "peers": [], "paired": False, "worker": None},
        ],
    }


def explained_tenant() -> dict[str, Any]:
    return {
        "address": "alice",
        "gateway": {"address": "alice/gateways/i-00000001", "state": "running"},
        "users": 2,
        "states": {"running": 1, "sleeping": 2},
        "quotas": QUOTAS,
        "pools": [{"address": "alice/workers", "role": "worker", "desired": {"running": 1}, "states": {"sleeping": 2}}],
        "errors": [{"address": WORKER, "error": "its process ended"}],
        "recent": RECENT,
    }


def explained_pool() -> dict[str, Any]:
    return {
        "address": "alice/workers",
        "role": "capability-openclaw",
        "desired": {"running": 0, "warm": 0, "sleeping": 0},
        "states": {"running": 1, "sleeping": 201},
        "vcpus": 2,
        "mem_mib": 2048,
        "pinned": True,
        "critical": False,
        "runtime_policy": POLICY,
        "instances": [LINE],
        "instances_left_out": 201,
        "recent": RECENT,
    }


def explained_instance() -> dict[str, Any]:
    return {
        **LINE,
        "role": "capability-openclaw",
        "runtime": "process",
        "activity": "busy",
        "in_flight": 2,
        "idle_seconds": None,
        "in_state_seconds": 75,
        "transition": None,
        "next_alarm_at": "2099-01-01T07:00:00+00:00",
        "alarm_wake_at": None,
        "last_error": None,
        "last_transitions": RECENT,
        "last_wake": {**instance()["last_wake"], "total_ms": 9000.4, "actor": "message by i-1"},
        "last_sleep": None,
        "runtime_policy": POLICY,
        "holds": {"vcpus": 2, "mem_mib": 2048},
        "quotas": QUOTAS,
    }
