"""What a tenant, a pool or an instance is doing and why, put together from all that the agent knows (`mvm explain`)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

from mvm.host.audit import AuditAction
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.gateways import Gateways
from mvm.host.observation import Observer
from mvm.host.policy_loop import PolicyLoop
from mvm.host.quotas import QuotaKeeper, machine_size
from mvm.model import policy
from mvm.model.entities import Instance, Pool, Tenant, Timeline
from mvm.model.explain import blocks_sleep, why
from mvm.model.ids import Address
from mvm.model.states import State

Json = dict[str, Any]

MAX_INSTANCES = 200
"""Of a pool that are listed: those that are up first."""
RECENT = 10
"""Lines of the audit that are quoted."""
TRANSITIONS = frozenset(
    {
        AuditAction.INSTANCE_CREATED,
        AuditAction.INSTANCE_STARTED,
        AuditAction.INSTANCE_STOPPED,
        AuditAction.INSTANCE_WARMED,
        AuditAction.INSTANCE_RESUMED,
        AuditAction.INSTANCE_SLEPT,
        AuditAction.INSTANCE_WOKEN,
        AuditAction.WAKE_REQUESTED,
        AuditAction.TRANSITION_DEFERRED,
        AuditAction.QUOTA_EXCEEDED,
        AuditAction.SNAPSHOT_REJECTED,
    }
)


class Explainer:
    """Reads; changes nothing."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        observer: Observer,
        quotas: QuotaKeeper,
        gateways: Gateways,
        policy: PolicyLoop,
        chronicle: Chronicle,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._observer = observer
        self._quotas = quotas
        self._gateways = gateways
        self._policy = policy
        self._chronicle = chronicle
        self._clock = clock

    async def explain(self, address: Address) -> Json:
        """Whatever the address names. Raises `NotFound`."""
        tenant = self._catalog.tenant(address.tenant_id)
        if address.pool_id is None:
            return {"tenant": await self.tenant(tenant)}
        pool = self._catalog.pool(tenant.tenant_id, address.pool_id)
        if address.instance_id is None:
            return {"pool": await self.pool(pool)}
        return {"instance": await self.instance(self._catalog.instance(address.instance))}

    def overview(self) -> Json:
        """Every tenant in a line, and all instances by state."""
        by_tenant: dict[str, list[Instance]] = {}
        for instance in self._catalog.instances.values():
            by_tenant.setdefault(instance.tenant_id, []).append(instance)
        users = Counter(user.tenant_id for user in self._catalog.users.values())
        lines = []
        for tenant_id in sorted(self._catalog.tenants):
            instances = by_tenant.get(tenant_id, [])
            gateway = self._gateways.gateway_of(tenant_id)
            lines.append(
                {
                    "address": tenant_id,
                    "gateway": gateway and {"address": str(gateway.ref), "state": gateway.state.value},
                    "users": users[tenant_id],
                    "states": states_of(instances),
                    "errors": sum(i.last_error is not None for i in instances),
                }
            )
        return {"states": states_of(self._catalog.instances.values()), "tenants": lines}

    async def tenant(self, tenant: Tenant) -> Json:
        """A tenant: who serves it, what is up, what it uses of its quotas, what went wrong."""
        instances = self._catalog.instances_of(tenant.tenant_id)
        gateway = self._gateways.gateway_of(tenant.tenant_id)
        return {
            "address": tenant.tenant_id,
            "gateway": None if gateway is None else {"address": str(gateway.ref), "state": gateway.state.value},
            "users": len(self._catalog.users_of(tenant.tenant_id)),
            "states": states_of(instances),
            "quotas": self._quotas_of(tenant),
            "pools": [
                {
                    "address": f"{pool.tenant_id}/{pool.pool_id}",
                    "role": pool.role.value,
                    "desired": pool.desired.model_dump(),
                    "states": states_of(i for i in instances if i.pool_id == pool.pool_id),
                }
                for pool in self._catalog.pools_of(tenant.tenant_id)
            ],
            "errors": [{"address": str(i.ref), "error": i.last_error} for i in instances if i.last_error],
            "recent": await asyncio.to_thread(self._chronicle.audit.recent, tenant.tenant_id, RECENT),
        }

    async def pool(self, pool: Pool) -> Json:
        """A pool: what it should be, and each of its instances in a line."""
        instances = self._catalog.instances_of(pool.tenant_id, pool.pool_id)
        shown = sorted(instances, key=lambda i: not i.state.has_process)[:MAX_INSTANCES]
        recent = await asyncio.to_thread(self._chronicle.audit.recent, pool.tenant_id, RECENT, pool_id=pool.pool_id)
        return {
            "address": f"{pool.tenant_id}/{pool.pool_id}",
            "role": pool.role.value,
            "desired": pool.desired.model_dump(),
            "states": states_of(instances),
            "vcpus": pool.vcpus,
            "mem_mib": pool.mem_mib,
            "disk_mib_per_second": pool.disk_mib_per_second,
            "disk_ops_per_second": pool.disk_ops_per_second,
            "network_mib_per_second": pool.network_mib_per_second,
            "pinned": pool.pinned,
            "critical": pool.critical,
            "runtime_policy": pool.runtime_policy.model_dump(),
            "instances": [self._line(instance, pool) for instance in shown],
            "instances_left_out": len(instances) - len(shown),
            "recent": recent,
        }

    async def instance(self, instance: Instance) -> Json:
        """An instance: what it does, why it is awake or asleep, what blocks its sleep, how it came to that."""
        pool = self._catalog.pool(instance.tenant_id, instance.pool_id)
        seen = self._observer.observe(instance)
        recent = await asyncio.to_thread(
            self._chronicle.audit.recent,
            instance.tenant_id,
            RECENT,
            actions=TRANSITIONS,
            pool_id=instance.pool_id,
            instance_id=instance.instance_id,
        )
        alarm = instance.next_alarm_at
        resting = alarm is not None and instance.role.runs_openclaw and not instance.state.has_process
        up = instance.state.has_process
        return {
            **self._line(instance, pool, recent=recent),
            "role": instance.role.value,
            "runtime": instance.runtime,
            "activity": seen.status if instance.state is State.RUNNING else None,
            "in_flight": seen.in_flight,
            "idle_seconds": None if seen.idle_for_seconds is None else round(seen.idle_for_seconds),
            "in_state_seconds": None if seen.in_state_for_seconds is None else round(seen.in_state_for_seconds),
            "transition": instance.transition and instance.transition.model_dump(mode="json"),
            "next_alarm_at": alarm and alarm.isoformat(),
            "alarm_wake_at": self._policy.alarm_wake_at(instance).isoformat() if resting else None,
            "last_error": instance.last_error,
            "last_transitions": recent,
            "last_wake": _timeline(instance.last_wake),
            "last_sleep": _timeline(instance.last_sleep),
            "runtime_policy": pool.runtime_policy.model_dump(),
            "holds": dict(zip(("vcpus", "mem_mib"), machine_size(instance, pool) if up else (0, 0), strict=True)),
            "quotas": self._quotas_of(self._catalog.tenant(instance.tenant_id)),
        }

    def _line(self, instance: Instance, pool: Pool, *, recent: Iterable[dict[str, str]] = ()) -> Json:
        decision = policy.decide(instance, pool, self._observer.observe(instance), now=self._clock.now())
        actors = [line["actor"] for line in recent if line["action"] != AuditAction.TRANSITION_DEFERRED]
        return {
            "address": str(instance.ref),
            "state": instance.state.value,
            "user": instance.user,
            "why": why(instance, decision, last_actor=actors[-1] if actors else None),
            "blocks_sleep": blocks_sleep(instance, decision, now=self._clock.now()),
        }

    def _quotas_of(self, tenant: Tenant) -> Json:
        """Quota -> limit and use; of the quota per pool, the use of the fullest one."""
        use = self._quotas.full_use(tenant.tenant_id)
        per_pool = Counter(i.pool_id for i in self._catalog.instances_of(tenant.tenant_id))
        used = {
            "max_vcpus": use.vcpus,
            "max_mem_mib": use.mem_mib,
            "max_running": use.running,
            "max_warm": use.warm,
            "max_pools": use.pools,
            "max_instances_per_pool": max(per_pool.values(), default=0),
            "max_disk_gib": round(use.disk_mib / 1024, 2),
        }
        return {name: {"limit": getattr(tenant.quotas, name), "used": used[name]} for name in used}


def states_of(instances: Iterable[Instance]) -> dict[str, int]:
    """How many of them are in each state that one of them is in."""
    return dict(sorted(Counter(instance.state.value for instance in instances).items()))


def _timeline(timeline: Timeline | None) -> Json | None:
    if timeline is None:
        return None
    return {**timeline.model_dump(mode="json"), "total_ms": round(timeline.total_ms, 3)}
