"""How a pool's instances take on a new size or image: one after the other, and only while they do nothing. Pure.

The first one to be restarted is the canary: a restart ends only when its service answers, and the next one is planned
only when none has failed. An instance that sleeps loses its snapshot, which fits no more, and boots anew at its wake.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mvm.host.reconcile_actions import Action, Deferral, Kind, Plan
from mvm.host.reconcile_quota import Ledger
from mvm.model import quota
from mvm.model.entities import Instance, PoolSpec
from mvm.model.ids import InstanceId, TenantId
from mvm.model.states import State

_ALIVE = (State.RUNNING, State.WARM, State.SLEEPING)


def outdated(instance: Instance, spec: PoolSpec, revision: str) -> str | None:
    """In what an instance differs from what its pool says now; None when in nothing, or when it is not known."""
    if instance.state not in _ALIVE:
        return None
    if instance.vcpus and (instance.vcpus, instance.mem_mib) != (spec.vcpus, spec.mem_mib):
        return (
            f"it has {instance.vcpus} vCPUs and {instance.mem_mib} MiB, its pool says {spec.vcpus} and {spec.mem_mib}"
        )
    if revision and instance.image_revision and instance.image_revision != revision:
        return f"its image is {instance.image_revision[:12]}, its pool's {revision[:12]}"
    return None


def plan_roll(
    tenant_id: TenantId,
    spec: PoolSpec,
    instances: Sequence[Instance],
    plan: Plan,
    ledger: Ledger,
    *,
    revision: str,
    fixed: Collection[InstanceId],
    idle: Collection[InstanceId],
) -> set[InstanceId]:
    """Plan the next step; returns the instances that it is about, which nothing else is to be done to."""
    old = {i.instance_id: why for i in instances if (why := outdated(i, spec, revision)) is not None}
    if not old:
        return set()
    path = f"{tenant_id}/{spec.pool_id}"
    concerned = [i for i in instances if i.instance_id in old]

    def defer(instance: Instance, reason: str) -> None:
        plan.deferrals.append(Deferral(str(instance.ref), reason, tenant_id, spec.pool_id, instance.ref))

    if spec.critical or spec.pinned:
        why = f"its pool is {'critical' if spec.critical else 'pinned'}; restart it to change that"
        for instance in concerned:
            defer(instance, f"{old[instance.instance_id]}, but {why}")
        return set()
    failed = next((i for i in instances if _failed(i, spec, revision)), None)
    if failed is not None:
        reason = f"{failed.instance_id} did not come up with what the pool says now: {failed.last_error}"
        plan.deferrals.append(Deferral(path, reason, tenant_id, spec.pool_id, failed.ref))
        return set(old)
    running = [i for i in concerned if i.state is State.RUNNING]
    free = [i for i in running if i.instance_id not in fixed and i.instance_id in idle]
    for instance in free:
        more = quota.Request(vcpus=max(spec.vcpus - instance.vcpus, 0), mem_mib=max(spec.mem_mib - instance.mem_mib, 0))
        if (refusal := ledger.take(more, str(instance.ref))) is not None:
            plan.deferrals.append(
                Deferral(str(instance.ref), refusal, tenant_id, spec.pool_id, instance.ref, for_room=True)
            )
            continue
        why = old[instance.instance_id]
        plan.actions.append(_action(Kind.RENEW, tenant_id, spec, instance, why))
        if others := len(concerned) - 1:
            plan.deferrals.append(Deferral(path, f"{others} more follow, one after the other", tenant_id, spec.pool_id))
        return set(old)
    for instance in running:
        if instance not in free:
            defer(instance, f"{old[instance.instance_id]}: it takes that on as soon as it is idle and left alone")
    if not running:
        for instance in concerned:
            if instance.instance_id in fixed:
                defer(instance, f"{old[instance.instance_id]}: it takes that on as soon as it is left alone")
            else:
                plan.actions.append(_action(Kind.DISCARD, tenant_id, spec, instance, old[instance.instance_id]))
    return set(old)


def _failed(instance: Instance, spec: PoolSpec, revision: str) -> bool:
    """True for one that was started with what the pool says now, and did not come up."""
    if instance.last_error is None or instance.held or instance.state not in (State.READY, State.STOPPED):
        return False
    fits = (instance.vcpus, instance.mem_mib) == (spec.vcpus, spec.mem_mib)
    return fits and (not revision or instance.image_revision == revision)


def _action(kind: Kind, tenant_id: TenantId, spec: PoolSpec, instance: Instance, reason: str) -> Action:
    to = State.RUNNING if kind is Kind.RENEW else State.SLEEPING
    return Action(kind, str(instance.ref), reason, tenant_id, spec.pool_id, instance=instance.ref, to=to)
