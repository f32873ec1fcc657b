"""What differs between the records of a tenant and what is wanted of it: tenant, pools, secrets, users. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from mvm.host.reconcile_actions import Action, Contradiction, Deferral, Kind, Plan, Prune, Wanted, listed
from mvm.host.reconcile_quota import Ledger
from mvm.model import quota
from mvm.model.entities import Instance, InstanceNetwork, OpenClawSettings, Pool, PoolSpec, Tenant, User, UserSpec
from mvm.model.errors import Conflict, InvalidInput
from mvm.model.ids import InstanceId, PoolId, UserId
from mvm.model.states import State


@dataclass(frozen=True, kw_only=True)
class Present:
    """What there is of a tenant, and what is known of its instances at this moment."""

    tenant: Tenant | None = None
    pools: Mapping[PoolId, Pool] = field(default_factory=dict)
    users: Mapping[UserId, User] = field(default_factory=dict)
    instances: Collection[Instance] = ()
    """Oldest first."""
    is_busy: Callable[[InstanceId], bool] = lambda _: False
    """Says whether an operation on an instance is under way; `idle` says what guests do."""
    idle: Collection[InstanceId] = ()
    """Whose guests are known to do nothing for anyone."""
    waiting: Mapping[str, str] = field(default_factory=dict)
    """Objects that failed lately and are left alone for a while -> why."""
    images: Mapping[PoolId, str] = field(default_factory=dict)
    """Image revision that a pool's instances should run; a pool without one runs whatever there is."""
    unbuilt: Mapping[PoolId, str] = field(default_factory=dict)
    """Pools whose last build failed -> why."""

    def by_pool(self) -> dict[PoolId, list[Instance]]:
        """Instances of each pool, oldest first."""
        found: dict[PoolId, list[Instance]] = {}
        for instance in self.instances:
            found.setdefault(instance.pool_id, []).append(instance)
        return found

    def fixed(self, instances: Iterable[Instance], now: datetime) -> set[InstanceId]:
        """Which of these reconcile leaves alone: busy with a transition, in a person's hands, or waiting to retry."""
        return {
            i.instance_id
            for i in instances
            if i.transition is not None
            or self.is_busy(i.instance_id)
            or (i.manual_until is not None and now < i.manual_until)
            or (self.waiting and str(i.ref) in self.waiting)
        }


def tenant_actions(wanted: Wanted, present: Present, plan: Plan) -> None:
    """Create or update the tenant itself."""
    tenant, name = present.tenant, wanted.tenant_id
    if tenant is None:
        plan.actions.append(Action(Kind.CREATE_TENANT, name, "it does not exist", name))
        return
    network = tenant.network
    if wanted.net_id not in (None, network.tenant_net_id) or wanted.subnet not in (None, network.ipv4_subnet):
        error = Conflict(
            f"tenant {name!r} has the network {network.ipv4_subnet} (net id {network.tenant_net_id}), and a"
            " tenant's network never changes",
            hint="leave net_id and subnet out, or destroy the tenant first",
        )
        plan.contradictions.append(Contradiction(("network",), error))
    differing = [field for field, value in wanted.settings.items() if value != _setting(tenant, field)]
    if differing:
        plan.actions.append(Action(Kind.UPDATE_TENANT, name, f"{listed(differing)} changed", name))


def _setting(tenant: Tenant, name: str) -> object:
    value: object = getattr(tenant, name)
    return OpenClawSettings() if name == "openclaw" and value is None else value


def pool_actions(wanted: Wanted, present: Present, plan: Plan, ledger: Ledger, prune: Prune) -> dict[PoolId, PoolSpec]:
    """Create, update or prune pools; returns the pools as they are to be then."""
    specs: dict[PoolId, PoolSpec] = {}
    asked_for = {spec.pool_id for spec in wanted.pools}
    for pool_id, pool in present.pools.items():
        path = f"{wanted.tenant_id}/{pool_id}"
        if pool_id in asked_for:
            continue
        if not prune.pools:
            specs[pool_id] = pool.spec
            plan.unknown.append(Deferral(path, "nobody asks for this pool", wanted.tenant_id, pool_id))
        elif pool.critical or pool.pinned:
            specs[pool_id] = pool.spec
            reason = f"it is not pruned: it is {'critical' if pool.critical else 'pinned'}"
            plan.deferrals.append(Deferral(path, reason, wanted.tenant_id, pool_id))
        else:
            reason = "nobody asks for it"
            plan.actions.append(Action(Kind.DESTROY_POOL, path, reason, wanted.tenant_id, pool_id))
            ledger.give(quota.Request(pools=1))
    for index, spec in sorted(enumerate(wanted.pools), key=lambda entry: entry[1].role.reconcile_priority):
        if (kept := _pool_action(index, spec, wanted, present, plan, ledger)) is not None:
            specs[spec.pool_id] = kept
    return specs


def _pool_action(
    index: int, spec: PoolSpec, wanted: Wanted, present: Present, plan: Plan, ledger: Ledger
) -> PoolSpec | None:
    """What is done about one pool that is asked for; returns it as it will be, None when it will not be there."""
    tenant_id, path = wanted.tenant_id, f"{wanted.tenant_id}/{spec.pool_id}"
    pool = present.pools.get(spec.pool_id)
    if pool is None:
        if (refusal := ledger.take(quota.Request(pools=1), path)) is not None:
            plan.deferrals.append(Deferral(path, refusal, tenant_id, spec.pool_id, for_room=True))
            return None
        plan.actions.append(Action(Kind.CREATE_POOL, path, "it does not exist", tenant_id, spec.pool_id, spec))
        return spec
    if pool.role is not spec.role:
        error = InvalidInput(
            f"pool '{path}' has the role {pool.role}, which never changes",
            hint=f"name a new pool for the role {spec.role}, and destroy this one",
        )
        plan.contradictions.append(Contradiction(("pools", index, "role"), error))
        return pool.spec
    differing = [name for name in PoolSpec.model_fields if getattr(spec, name) != getattr(pool, name)]
    if not differing:
        return pool.spec
    if pool.critical and spec.critical:
        reason = f"it is critical, so {listed(differing)} stays; write critical = false to change it"
        plan.deferrals.append(Deferral(path, reason, tenant_id, spec.pool_id))
        return pool.spec
    instances = sum(i.pool_id == spec.pool_id for i in present.instances)
    more = max(spec.data_disk_mib - pool.data_disk_mib, 0) * instances
    if (refusal := ledger.take(quota.Request(disk_mib=more), path)) is not None:
        plan.deferrals.append(Deferral(path, refusal, tenant_id, spec.pool_id, for_room=True))
        return pool.spec
    plan.actions.append(Action(Kind.UPDATE_POOL, path, f"{listed(differing)} changed", tenant_id, spec.pool_id, spec))
    return spec


def secret_actions(wanted: Wanted, plan: Plan, differing: Collection[str]) -> None:
    """Set the secrets whose values differ from what is stored."""
    if differing:
        reason = f"{listed(sorted(differing))} differ from what is stored"
        plan.actions.append(Action(Kind.SET_SECRETS, wanted.tenant_id, reason, wanted.tenant_id))


def user_actions(wanted: Wanted, present: Present, plan: Plan, pools: Collection[PoolId], prune: Prune) -> list[User]:
    """Add, change, bind or prune users; returns the users as they are to be, whoever has no worker yet among them."""
    left = list(_kept_users(wanted, present, plan, pools, prune))
    for index, spec in enumerate(wanted.users):
        path = f"{wanted.tenant_id}/users/{spec.user_id}"
        user = present.users.get(spec.user_id)
        if spec.pool_id not in pools:
            reason = f"the pool {spec.pool_id!r} of their worker is not there yet"
            plan.deferrals.append(Deferral(path, reason, wanted.tenant_id))
            continue
        if user is None:
            paired = listed(spec.peers) if spec.peers else "not paired yet"
            reason = f"it does not exist ({paired})"
            plan.actions.append(
                Action(Kind.ADD_USER, spec.user_id, reason, wanted.tenant_id, spec.pool_id, subject=spec)
            )
            left.append(User(tenant_id=wanted.tenant_id, created_at=_NEVER, **spec.model_dump()))
            continue
        if user.pool_id != spec.pool_id:
            error = InvalidInput(
                f"user {spec.user_id!r} has their worker in the pool {user.pool_id!r}, not in {spec.pool_id!r}",
                hint="a worker does not move with its data: remove the user first, or name the pool that holds it",
            )
            plan.contradictions.append(Contradiction(("users", index, "pool_id"), error))
            continue
        left.append(user)
        for kind, reason, subject in _user_changes(spec, user):
            plan.actions.append(Action(kind, spec.user_id, reason, wanted.tenant_id, spec.pool_id, subject=subject))
    return left


_NEVER = datetime.max
NO_WORKER = "they have no worker yet"


def _kept_users(
    wanted: Wanted, present: Present, plan: Plan, pools: Collection[PoolId], prune: Prune
) -> Iterator[User]:
    """Users whom nobody asks for and who stay all the same; the others are removed first of all."""
    asked_for = {spec.user_id for spec in wanted.users}
    for user in present.users.values():
        if user.user_id in asked_for:
            continue
        pool_goes = user.pool_id in present.pools and user.pool_id not in pools
        if pool_goes or prune.users:
            reason = "their pool is destroyed" if pool_goes else "nobody asks for them"
            action = Action(Kind.REMOVE_USER, user.user_id, reason, wanted.tenant_id, user.pool_id, subject=user.spec)
            # Before pools, which are not destroyed while they hold somebody's worker.
            first = next((n for n, a in enumerate(plan.actions) if a.kind is Kind.DESTROY_POOL), len(plan.actions))
            plan.actions.insert(first, action)
        else:
            path = f"{wanted.tenant_id}/users/{user.user_id}"
            plan.unknown.append(Deferral(path, "nobody asks for this user", wanted.tenant_id))
            yield user


def _user_changes(spec: UserSpec, user: User) -> Iterator[tuple[Kind, str, UserSpec]]:
    known = merged_peers(spec, user)
    if known.peers != user.peers:
        change = f"from {listed(user.peers) or 'nobody'} to {listed(known.peers)}"
        yield Kind.UPDATE_USER, f"their addresses change {change}", known
    elif known != user.spec:
        yield Kind.UPDATE_USER, "their budget changed", known
    if user.instance_id is None:
        yield Kind.BIND_USER, NO_WORKER, spec


def merged_peers(spec: UserSpec, user: User) -> UserSpec:
    """What a user is to be: a channel that the manifest names is as it says, others stay as paired."""
    return spec.model_copy(update={"telegram": spec.telegram or user.telegram, "discord": spec.discord or user.discord})


def with_workers(instances: list[Instance], users: Iterable[User], *, spec: PoolSpec) -> list[Instance]:
    """The instances of a pool as they are once each of these users has one: an unbound one is taken, else one made.

    The ones that are made are stand-ins with the user's name and no id.
    """
    bound = {i.user for i in instances}
    free = [n for n, i in enumerate(instances) if i.user is None]
    found = list(instances)
    for user in users:
        if user.user_id in bound:
            continue
        if free:
            index = free.pop(0)
            found[index] = found[index].model_copy(update={"user": user.user_id})
        else:
            found.append(_stand_in(spec, user))
    return found


def _stand_in(spec: PoolSpec, user: User) -> Instance:
    """An instance that is not there yet; a plan looks at these fields only."""
    return Instance.model_construct(
        tenant_id=user.tenant_id,
        pool_id=spec.pool_id,
        instance_id=InstanceId(""),
        role=spec.role,
        state=State.READY,
        network=InstanceNetwork(guest_ip="", gateway_ip=""),
        user=user.user_id,
        created_at=_NEVER,
    )
