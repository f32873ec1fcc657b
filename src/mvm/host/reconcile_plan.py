"""From what there is of a tenant and what is wanted of it to the actions of one pass, in order (CONTRACT 12). Pure.

First what should be is recorded (tenant, pools by priority, secrets, users), then instances follow, pool by pool: what
is new comes up, what is too much goes down, what is outdated is restarted. A plan for what is already so is empty.
What is wanted and cannot be done now is put off with its reason, and so is never forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from datetime import datetime

from mvm.host.reconcile_actions import Action, Deferral, Kind, Plan, Prune, Wanted
from mvm.host.reconcile_counts import Step, plan_counts
from mvm.host.reconcile_quota import Ledger
from mvm.host.reconcile_records import (
    NO_WORKER,
    Present,
    pool_actions,
    secret_actions,
    tenant_actions,
    user_actions,
    with_workers,
)
from mvm.host.reconcile_rolls import plan_roll
from mvm.model import quota
from mvm.model.entities import Instance, PoolSpec, User
from mvm.model.ids import InstanceId, PoolId, TenantId
from mvm.model.states import State

NO_PRUNE = Prune()


def plan_tenant(
    wanted: Wanted,
    present: Present,
    *,
    now: datetime,
    differing_secrets: Collection[str] = (),
    prune: Prune = NO_PRUNE,
) -> Plan:
    """Everything that makes a tenant what is wanted. `differing_secrets`: names whose values are to change.

    Where it has contradictions, none of it is to be done.
    """
    plan = Plan()
    ledger = Ledger(wanted.quotas, present.pools, present.instances)
    tenant_actions(wanted, present, plan)
    specs = pool_actions(wanted, present, plan, ledger, prune)
    secret_actions(wanted, plan, differing_secrets)
    users = user_actions(wanted, present, plan, specs, prune)
    if plan.contradictions:
        return plan
    planner = _Instances(wanted.tenant_id, present, plan, ledger, now)
    wanted_users = {spec.user_id for spec in wanted.users}
    for spec in by_priority(specs.values()):
        planner.plan_pool(spec, users, first_start=[user for user in users if user.user_id in wanted_users])
    return plan


def plan_upkeep(tenant_id: TenantId, present: Present, *, now: datetime, only: PoolId | None = None) -> Plan:
    """What keeps a tenant at what its own records say; `only` one of its pools where that is given."""
    assert present.tenant is not None
    plan = Plan()
    there = {instance.instance_id for instance in present.instances}
    for user in present.users.values():
        if only in (None, user.pool_id) and user.instance_id not in there:
            plan.actions.append(
                Action(Kind.BIND_USER, user.user_id, NO_WORKER, tenant_id, user.pool_id, subject=user.spec)
            )
    planner = _Instances(tenant_id, present, plan, Ledger(present.tenant.quotas, present.pools, present.instances), now)
    for pool in by_priority(present.pools.values()):
        if only in (None, pool.pool_id):
            planner.plan_pool(pool, list(present.users.values()), first_start=[])
    return plan


def by_priority(pools: Collection[PoolSpec]) -> list[PoolSpec]:
    """Pools in the order in which they come up: gateways first."""
    return sorted(pools, key=lambda pool: pool.role.reconcile_priority)


class _Instances:
    """Plans the instances of one tenant, pool by pool."""

    def __init__(self, tenant_id: TenantId, present: Present, plan: Plan, ledger: Ledger, now: datetime) -> None:
        self._tenant_id = tenant_id
        self._present = present
        self._plan = plan
        self._ledger = ledger
        self._now = now
        removed = {action.object for action in plan.actions if action.kind is Kind.REMOVE_USER}
        gone = {user.instance_id for user in present.users.values() if user.user_id in removed}
        # A worker goes with its person: nothing more is to be done about it.
        self._by_pool = {
            pool: [i for i in instances if i.instance_id not in gone] for pool, instances in present.by_pool().items()
        }
        self._short: Counter[tuple[PoolId, str]] = Counter()

    def plan_pool(self, spec: PoolSpec, users: list[User], *, first_start: list[User]) -> None:
        """Bring one pool to its counts. The workers of `first_start` run once as soon as there is room."""
        path = f"{self._tenant_id}/{spec.pool_id}"
        if (why := self._to_build(spec)) is not None and path not in self._present.waiting:
            self._plan.actions.append(Action(Kind.BUILD_POOL, path, why, self._tenant_id, spec.pool_id, spec))
        present = self._by_pool.get(spec.pool_id, [])
        fixed = self._present.fixed(present, self._now)
        idle = self._present.idle
        revision = self._present.images.get(spec.pool_id, "")
        fixed |= plan_roll(
            self._tenant_id, spec, present, self._plan, self._ledger, revision=revision, fixed=fixed, idle=idle
        )
        discarded = {a.instance for a in self._plan.actions if a.kind is Kind.DISCARD and a.pool_id == spec.pool_id}
        fixed -= {ref.instance_id for ref in discarded if ref is not None}
        own_users = [user for user in users if user.pool_id == spec.pool_id]
        members = with_workers(present, own_users, spec=spec)
        members = self._first_starts(spec, members, first_start, fixed)
        for step in plan_counts(spec.desired, members, users=len(own_users), fixed=fixed, idle=idle):
            if step.instance is not None and step.instance.ref in discarded:
                who, why = str(step.instance.ref), "first its snapshot goes, which does not fit any more"
                self._plan.deferrals.append(Deferral(who, why, self._tenant_id, spec.pool_id, step.instance.ref))
            else:
                self._take(spec, step)
        self._tell_shortage()

    def _to_build(self, spec: PoolSpec) -> str | None:
        """Why a pool needs another image; one that never had any gets its first when its first instance starts."""
        pool = self._present.pools.get(spec.pool_id)
        if pool is None or not pool.revision:
            return None
        if (spec.flake, spec.profile) != (pool.flake, pool.profile):
            return "its flake or profile changed"
        return self._present.unbuilt.get(spec.pool_id)

    def _first_starts(
        self, spec: PoolSpec, members: list[Instance], users: list[User], fixed: set[InstanceId]
    ) -> list[Instance]:
        """A worker is started once, so that its person's first message meets a warm one; policy then lets it rest."""
        names = {user.user_id for user in users if user.pool_id == spec.pool_id}
        found = []
        for member in members:
            never_ran = member.state in (State.CREATED, State.READY)
            if not never_ran or member.user not in names or member.held or member.instance_id in fixed:
                found.append(member)
                continue
            if not member.instance_id and not self._room_to_make(spec):
                continue
            request = quota.Request(vcpus=spec.vcpus, mem_mib=spec.mem_mib, running=1)
            reason = "it has never run"
            if (refusal := self._ledger.take(request, f"{self._tenant_id}/{spec.pool_id}")) is not None:
                self._short[spec.pool_id, refusal] += 1
                found.append(member.model_copy(update={"held": True}))  # for its first message
                continue
            self._plan.actions.append(
                Action(
                    Kind.START_WORKER,
                    f"{self._tenant_id}/users/{member.user}",
                    reason,
                    self._tenant_id,
                    spec.pool_id,
                    subject=next(user.spec for user in users if user.user_id == member.user),
                    instance=member.ref if member.instance_id else None,
                )
            )
            found.append(member.model_copy(update={"state": State.RUNNING}))
        return found

    def _room_to_make(self, spec: PoolSpec) -> bool:
        """Count the worker that adding a user makes."""
        request = quota.Request(disk_mib=spec.data_disk_mib, instances_in_pool=1)
        path = f"{self._tenant_id}/{spec.pool_id}"
        if (refusal := self._ledger.take(request, f"a new instance of {path}", in_pool=spec.pool_id)) is None:
            return True
        self._short[spec.pool_id, refusal] += 1
        return False

    def _take(self, spec: PoolSpec, step: Step) -> None:
        """Plan one step if nothing is in its way."""
        instance, kind = step.instance, step.kind
        path = f"{self._tenant_id}/{spec.pool_id}"
        who = str(instance.ref) if instance is not None and instance.instance_id else path
        if (obstacle := self._obstacle(spec, step)) is not None:
            ref = instance.ref if instance is not None and instance.instance_id else None
            self._plan.deferrals.append(Deferral(who, obstacle, self._tenant_id, spec.pool_id, ref))
            return
        if kind.brings_up and (refusal := self._no_room(spec, step, who)) is not None:
            self._short[spec.pool_id, refusal] += 1
            return
        subject = None
        if instance is not None and not instance.instance_id:
            kind, who = Kind.START_WORKER, f"{self._tenant_id}/users/{instance.user}"
        self._plan.actions.append(
            Action(
                kind,
                who,
                _reason(spec, step),
                self._tenant_id,
                spec.pool_id,
                subject=subject or spec,
                instance=instance.ref if instance is not None and instance.instance_id else None,
                to=step.to,
            )
        )

    def _obstacle(self, spec: PoolSpec, step: Step) -> str | None:
        """What forbids a step, whatever room there is."""
        instance = step.instance
        if instance is None or instance.state in (State.CREATED, State.READY):
            if f"{self._tenant_id}/{spec.pool_id}" in self._present.waiting:
                return self._present.waiting[f"{self._tenant_id}/{spec.pool_id}"]
            return None
        if spec.critical:
            return "its pool is critical: it is left as it is"
        if spec.pinned and not step.kind.brings_up:
            return "its pool is pinned: it is neither stopped nor put to rest"
        return None

    def _no_room(self, spec: PoolSpec, step: Step, who: str) -> str | None:
        instance = step.instance
        if instance is None:
            request = quota.Request(disk_mib=spec.data_disk_mib, instances_in_pool=1)
            refusal = self._ledger.take(request, f"a new instance of {who}", in_pool=spec.pool_id)
            if refusal is not None or step.to is State.READY:
                return refusal
        has_memory = instance is not None and instance.state is State.WARM
        return self._ledger.take(
            quota.Request(
                vcpus=0 if has_memory else spec.vcpus,
                mem_mib=0 if has_memory else spec.mem_mib,
                running=1,
                warm=1 if step.to is State.WARM else 0,
            ),
            who,
        )

    def _tell_shortage(self) -> None:
        """One deferral for all instances of a pool that one quota keeps from being there."""
        for (pool_id, refusal), count in self._short.items():
            path = f"{self._tenant_id}/{pool_id}"
            reason = refusal if count == 1 else f"{count} instances wait: {refusal}"
            self._plan.deferrals.append(Deferral(path, reason, self._tenant_id, pool_id, for_room=True))
        self._short.clear()


def _reason(spec: PoolSpec, step: Step) -> str:
    wanted = spec.desired
    if step.to is State.READY:
        return "the pool is to have one for each user and count"
    if step.to is State.STOPPED:
        return f"{wanted.running} are to run"
    count = {State.RUNNING: wanted.running, State.WARM: wanted.warm, State.SLEEPING: wanted.sleeping}[step.to]
    what = {State.RUNNING: "run", State.WARM: "be warm", State.SLEEPING: "sleep"}[step.to]
    return f"{count} {'is' if count == 1 else 'are'} to {what}"
