"""From what there is of a deployment to what its manifest asks for: an ordered list of actions. Pure.

The forerunner of the reconcile engine: `plan` compares and gives reasons, `mvm.host.deployments` carries out. A plan
for what is already so is empty. What the manifest does not mention (a pool or user added by hand) is left alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from mvm.host.scaling import Do, plan_counts
from mvm.model.deployment import Deployment
from mvm.model.entities import Instance, InstanceNetwork, OpenClawSettings, Pool, PoolSpec, Tenant, User, UserSpec
from mvm.model.errors import Conflict, InvalidInput
from mvm.model.ids import InstanceId, PoolId, TenantId, UserId
from mvm.model.states import State


class Kind(StrEnum):
    """What an action does."""

    CREATE_TENANT = "create tenant"
    UPDATE_TENANT = "update tenant"
    CREATE_POOL = "create pool"
    UPDATE_POOL = "update pool"
    SET_SECRETS = "set secrets"
    ADD_USER = "add user"
    UPDATE_USER = "update user"
    BIND_USER = "make worker"
    SCALE_POOL = "scale pool"
    START_WORKER = "start worker"


@dataclass(frozen=True)
class Action:
    """One thing to do."""

    kind: Kind
    object: str
    """What it is done to: `alice`, `alice/workers`, or a user id."""
    reason: str
    subject: Tenant | PoolSpec | UserSpec | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, str]:
        return {"action": self.kind.value, "object": self.object, "reason": self.reason}


@dataclass(frozen=True, kw_only=True)
class Present:
    """What there is of a deployment."""

    tenant: Tenant | None = None
    pools: Mapping[PoolId, Pool] = field(default_factory=dict)
    users: Mapping[UserId, User] = field(default_factory=dict)
    instances: Collection[Instance] = ()


def plan(wanted: Deployment, present: Present, *, differing_secrets: Collection[str]) -> list[Action]:
    """Actions in the order in which they are to be done. `differing_secrets`: names whose values are to change.

    Raises `InvalidInput` or `Conflict` for what cannot be had without losing something; nothing is to be done then.
    """
    return [
        *_tenant_actions(wanted, present.tenant),
        *_pool_actions(wanted, present),
        *_secret_actions(wanted, differing_secrets),
        *_user_actions(wanted, present),
        *_count_actions(wanted, present),
        *_worker_actions(wanted, present),
    ]


def _tenant_actions(wanted: Deployment, tenant: Tenant | None) -> Iterator[Action]:
    if tenant is None:
        yield Action(Kind.CREATE_TENANT, wanted.name, "it does not exist")
        return
    network = tenant.network
    if wanted.net_id not in (None, network.tenant_net_id) or wanted.subnet not in (None, network.ipv4_subnet):
        raise Conflict(
            f"tenant {wanted.name!r} has the network {network.ipv4_subnet} (net id {network.tenant_net_id}), and a"
            " tenant's network never changes",
            hint="leave net_id and subnet out, or destroy the tenant first",
        )
    differing = [name for name, value in tenant_settings(wanted).items() if value != _present_setting(tenant, name)]
    if differing:
        yield Action(Kind.UPDATE_TENANT, wanted.name, f"{_listed(differing)} changed")


def tenant_settings(wanted: Deployment) -> dict[str, Any]:
    """What a deployment says of its tenant, as fields of one."""
    return {
        "quotas": wanted.quotas,
        "openclaw": wanted.openclaw,
        "gateway_tenant": wanted.gateway_tenant,
        "accepts": wanted.accepts,
    }


def _present_setting(tenant: Tenant, name: str) -> Any:
    value = getattr(tenant, name)
    return OpenClawSettings() if name == "openclaw" and value is None else value


def _pool_actions(wanted: Deployment, present: Present) -> Iterator[Action]:
    for spec in by_priority(wanted.pools):
        path = f"{wanted.name}/{spec.pool_id}"
        pool = present.pools.get(spec.pool_id)
        if pool is None:
            yield Action(Kind.CREATE_POOL, path, "it does not exist", spec)
            continue
        if pool.role is not spec.role:
            raise InvalidInput(
                f"pool '{path}' has the role {pool.role}, which never changes",
                hint=f"name a new pool for the role {spec.role}, and destroy this one",
            )
        differing = [name for name in PoolSpec.model_fields if getattr(spec, name) != getattr(pool, name)]
        if differing:
            yield Action(Kind.UPDATE_POOL, path, f"{_listed(differing)} changed", spec)


def by_priority(pools: Collection[PoolSpec]) -> list[PoolSpec]:
    """Pools in the order in which they come up: gateways first."""
    return sorted(pools, key=lambda pool: pool.role.reconcile_priority)


def _secret_actions(wanted: Deployment, differing: Collection[str]) -> Iterator[Action]:
    if differing:
        yield Action(Kind.SET_SECRETS, wanted.name, f"{_listed(sorted(differing))} differ from what is stored")


def _user_actions(wanted: Deployment, present: Present) -> Iterator[Action]:
    for spec in wanted.users:
        user = present.users.get(spec.user_id)
        if user is None:
            paired = _listed(spec.peers) if spec.peers else "not paired yet"
            yield Action(Kind.ADD_USER, spec.user_id, f"it does not exist ({paired})", spec)
            continue
        if user.pool_id != spec.pool_id:
            raise InvalidInput(
                f"user {spec.user_id!r} has their worker in the pool {user.pool_id!r}, not in {spec.pool_id!r}",
                hint="a worker does not move with its data: remove the user first, or name the pool that holds it",
            )
        known = merged_peers(spec, user)
        if known.peers != user.peers:
            change = f"from {_listed(user.peers) or 'nobody'} to {_listed(known.peers)}"
            yield Action(Kind.UPDATE_USER, spec.user_id, f"their addresses change {change}", known)
        if user.instance_id is None:
            yield Action(Kind.BIND_USER, spec.user_id, "they have no worker yet", spec)


def merged_peers(spec: UserSpec, user: User) -> UserSpec:
    """The addresses that a user is to have: a channel that the manifest names is as it says, others stay as paired."""
    return UserSpec(
        user_id=spec.user_id,
        pool_id=spec.pool_id,
        telegram=spec.telegram or user.telegram,
        discord=spec.discord or user.discord,
    )


def _count_actions(wanted: Deployment, present: Present) -> Iterator[Action]:
    for spec in by_priority(wanted.pools):
        there = [i for i in present.instances if i.pool_id == spec.pool_id]
        users = {user.user_id for user in present.users.values() if user.pool_id == spec.pool_id}
        users |= {user.user_id for user in wanted.users if user.pool_id == spec.pool_id}
        bound = {i.user for i in there}
        # Workers that adding the users will have made by the time that counts are looked at.
        unbound = sum(i.user is None for i in there)
        to_make = sorted(users - bound)[unbound:]
        simulated = [*there, *(_ready(wanted.name, spec, user) for user in to_make)]
        steps = plan_counts(spec.desired, simulated, users=len(users))
        if steps:
            counts = {action: sum(action in step.actions for step in steps) for action in Do}
            doings = [f"{count} to {action}" for action, count in counts.items() if count]
            yield Action(Kind.SCALE_POOL, f"{wanted.name}/{spec.pool_id}", f"instances: {_listed(doings)}", spec)


def _worker_actions(wanted: Deployment, present: Present) -> Iterator[Action]:
    """A worker is started once, so that its person's first message meets a warm one; policy then puts it to rest."""
    workers = {instance.instance_id: instance for instance in present.instances}
    for spec in wanted.users:
        user = present.users.get(spec.user_id)
        worker = workers.get(user.instance_id) if user is not None and user.instance_id is not None else None
        if worker is None or worker.state in (State.CREATED, State.READY):
            yield Action(Kind.START_WORKER, spec.user_id, "it has never run", spec)


def _ready(tenant_id: TenantId, spec: PoolSpec, user: UserId) -> Instance:
    """A stand-in for an instance that is not there yet; `plan_counts` looks at state and user only."""
    return Instance(
        tenant_id=tenant_id,
        pool_id=spec.pool_id,
        instance_id=InstanceId("i-00000000"),
        role=spec.role,
        state=State.READY,
        network=InstanceNetwork(guest_ip="", gateway_ip=""),
        user=user,
        created_at=datetime.max.replace(tzinfo=UTC),
    )


def _listed(words: Collection[str]) -> str:
    return ", ".join(words)
