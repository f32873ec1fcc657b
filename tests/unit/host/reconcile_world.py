"""Tenants as values for the pure planner."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from mvm.host.reconcile_actions import Kind, Plan, Wanted
from mvm.host.reconcile_plan import plan_tenant
from mvm.host.reconcile_records import Present
from mvm.model.entities import (
    Instance,
    InstanceNetwork,
    OpenClawSettings,
    Pool,
    PoolSpec,
    Quotas,
    Tenant,
    TenantNetwork,
    User,
    UserSpec,
)
from mvm.model.ids import InstanceId, PoolId, TenantId, TenantNetId, UserId
from mvm.model.roles import Role
from mvm.model.states import State

ALICE = TenantId("alice")
GATEWAYS, WORKERS = PoolId("gateways"), PoolId("workers")
NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
LARGE = Quotas(max_running=100, max_warm=100, max_vcpus=1000, max_mem_mib=10**7, max_instances_per_pool=100)


def pool_spec(pool_id: PoolId = WORKERS, **more: Any) -> PoolSpec:
    role = Role.GATEWAY if pool_id == GATEWAYS else Role.CAPABILITY_OPENCLAW
    return PoolSpec(pool_id=pool_id, **{"role": role, **more})


def instance(number: int, state: State = State.RUNNING, pool: PoolId = WORKERS, **more: Any) -> Instance:
    settings: dict[str, Any] = {"vcpus": 2, "mem_mib": 1024} if state not in (State.READY, State.CREATED) else {}
    return Instance(
        tenant_id=ALICE,
        pool_id=pool,
        instance_id=InstanceId(f"i-{number:08x}"),
        role=Role.GATEWAY if pool == GATEWAYS else Role.CAPABILITY_OPENCLAW,
        state=state,
        network=InstanceNetwork(guest_ip="10.240.1.3", gateway_ip="10.240.1.1"),
        created_at=NOW + timedelta(seconds=number),
        **{**settings, **more},
    )


def user(name: str, worker: Instance | None = None, **more: Any) -> User:
    bound = worker.instance_id if worker is not None else None
    return User(tenant_id=ALICE, user_id=UserId(name), pool_id=WORKERS, instance_id=bound, created_at=NOW, **more)


def wanted(*pools: PoolSpec, users: tuple[UserSpec, ...] = (), quotas: Quotas = LARGE, **more: Any) -> Wanted:
    settings = {"quotas": quotas, "openclaw": OpenClawSettings(), "gateway_tenant": None, "accepts": ()}
    return Wanted(tenant_id=ALICE, settings=settings, quotas=quotas, pools=pools, users=users, **more)


def present(
    *pools: PoolSpec,
    instances: tuple[Instance, ...] = (),
    users: tuple[User, ...] = (),
    quotas: Quotas = LARGE,
    **more: Any,
) -> Present:
    more.setdefault("idle", {i.instance_id for i in instances})
    return Present(
        tenant=Tenant(
            tenant_id=ALICE,
            network=TenantNetwork(tenant_net_id=TenantNetId(1), ipv4_subnet="10.240.1.0/24"),
            quotas=quotas,
            created_at=NOW,
        ),
        pools={spec.pool_id: Pool.from_spec(spec, tenant_id=ALICE, created_at=NOW) for spec in pools},
        users={one.user_id: one for one in users},
        instances=instances,
        **more,
    )


def plan(want: Wanted, there: Present, **more: Any) -> Plan:
    return plan_tenant(want, there, now=NOW, **more)


def kinds(of: Plan) -> list[Kind]:
    return [action.kind for action in of.actions]


def reasons(of: Plan) -> str:
    return " | ".join(f"{deferral.object}: {deferral.reason}" for deferral in of.deferrals)
