"""What a tenant uses of its quotas right now, with everything that is about to start counted in.

An intent to run is part of the instance's record before anything starts, and check and record happen under one lock per
tenant, so two starts at once cannot both take the last place.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Mapping

from mvm.host.catalog import Catalog
from mvm.model import quota
from mvm.model.entities import Instance, Pool
from mvm.model.ids import PoolId, TenantId
from mvm.model.states import State


def _holds_memory(instance: Instance) -> bool:
    """True when the instance holds memory and vCPUs now, or is about to."""
    return instance.state.has_process or _will_run(instance)


def _will_run(instance: Instance) -> bool:
    return instance.transition is not None and instance.transition.to is State.RUNNING


def _will_be_warm(instance: Instance) -> bool:
    return instance.transition is not None and instance.transition.to is State.WARM


def counts_as_running(instance: Instance) -> bool:
    """True when the instance takes one of the tenant's `max_running` places."""
    return instance.state is State.RUNNING or _will_run(instance)


def use_of(instances: Iterable[Instance], pools: Mapping[PoolId, Pool]) -> quota.Use:
    """What these instances of one tenant use of what awake instances use, transitions under way counted in.

    One that is being warmed has its running place and its warm one until it is.
    """
    awake = [i for i in instances if i.state.has_process or i.transition is not None]
    held = [machine_size(i, pools[i.pool_id]) for i in awake if _holds_memory(i)]
    return quota.Use(
        vcpus=sum(vcpus for vcpus, _ in held),
        mem_mib=sum(mem_mib for _, mem_mib in held),
        running=sum(counts_as_running(i) for i in awake),
        warm=sum((i.state is State.WARM and not _will_run(i)) or _will_be_warm(i) for i in awake),
        in_flight=sum(_will_run(i) for i in awake),
    )


def machine_size(instance: Instance, pool: Pool) -> tuple[int, int]:
    """vCPUs and MiB of memory that an instance has, or would have if it were started now."""
    if instance.state.has_process and instance.vcpus:
        return instance.vcpus, instance.mem_mib
    return pool.vcpus, pool.mem_mib


class QuotaKeeper:
    """Checks requests against quotas; raises `QuotaExceeded` naming quota, limit, use and request."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._locks: dict[TenantId, asyncio.Lock] = {}

    def lock(self, tenant: TenantId) -> asyncio.Lock:
        """Held while checking a quota and recording what was allowed."""
        return self._locks.setdefault(tenant, asyncio.Lock())

    def use(self, tenant: TenantId, *, without: Instance | None = None) -> quota.Use:
        """What is in use of what awake instances use; `without` leaves out the one that the request is about."""
        instances = [
            i for i in self._catalog.awake_of(tenant) if without is None or i.instance_id != without.instance_id
        ]
        return use_of(instances, {i.pool_id: self._catalog.pool(tenant, i.pool_id) for i in instances})

    def full_use(self, tenant: TenantId, *, in_pool: Pool | None = None) -> quota.Use:
        """What is in use of every quota; looks at all instances of the tenant, the sleeping ones too."""
        pools = {pool.pool_id: pool for pool in self._catalog.pools_of(tenant)}
        instances = self._catalog.instances_of(tenant)
        return dataclasses.replace(
            self.use(tenant),
            pools=len(pools),
            disk_mib=sum(pools[i.pool_id].data_disk_mib for i in instances),
            instances_in_pool=sum(in_pool is not None and i.pool_id == in_pool.pool_id for i in instances),
        )

    def check_run(self, instance: Instance, pool: Pool) -> None:
        """May this instance run now?"""
        tenant = self._catalog.tenant(instance.tenant_id)
        quota.check(
            tenant.quotas,
            self.use(tenant.tenant_id, without=instance),
            quota.Request(vcpus=pool.vcpus, mem_mib=pool.mem_mib, running=1),
            who=str(instance.ref),
        )

    def places_are_short(self, instance: Instance) -> bool:
        """True when this instance could run were it not for `max_running`: then a warm one gives no room."""
        pool = self._catalog.pool(instance.tenant_id, instance.pool_id)
        request = quota.Request(vcpus=pool.vcpus, mem_mib=pool.mem_mib)
        use = self.use(instance.tenant_id, without=instance)
        return not quota.exceeded(self._catalog.tenant(instance.tenant_id).quotas, use, request, who="")

    def check_warm(self, instance: Instance) -> None:
        """May this instance be kept warm?"""
        tenant = self._catalog.tenant(instance.tenant_id)
        use = self.use(tenant.tenant_id, without=instance)
        quota.check(tenant.quotas, use, quota.Request(warm=1), who=str(instance.ref))

    def check_create_instance(self, pool: Pool) -> None:
        """May this pool have one more instance?"""
        tenant = self._catalog.tenant(pool.tenant_id)
        quota.check(
            tenant.quotas,
            self.full_use(tenant.tenant_id, in_pool=pool),
            quota.Request(disk_mib=pool.data_disk_mib, instances_in_pool=1),
            who=f"a new instance of {pool.tenant_id}/{pool.pool_id}",
        )

    def check_larger_drives(self, pool: Pool, *, data_disk_mib: int) -> None:
        """May the data drives of this pool's instances have that size?"""
        tenant = self._catalog.tenant(pool.tenant_id)
        instances = len(self._catalog.instances_of(pool.tenant_id, pool.pool_id))
        quota.check(
            tenant.quotas,
            self.full_use(tenant.tenant_id),
            quota.Request(disk_mib=(data_disk_mib - pool.data_disk_mib) * instances),
            who=f"larger drives of {pool.tenant_id}/{pool.pool_id}",
        )
