"""Pools: creating, changing, scaling and destroying them."""

from __future__ import annotations

from mvm.host.audit import AuditAction
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.contracts import InstanceOperations
from mvm.host.progress import Progress, silent
from mvm.host.quotas import QuotaKeeper
from mvm.host.refreshes import Refreshes
from mvm.host.removals import OF_POOL, Removals
from mvm.model import quota
from mvm.model.entities import DesiredCounts, Pool, PoolSpec
from mvm.model.errors import Conflict, InvalidInput, MvmError, Refused
from mvm.model.ids import PoolId, TenantId


class Pools:
    """The pools of this host's tenants."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        operations: InstanceOperations,
        quotas: QuotaKeeper,
        refreshes: Refreshes,
        removals: Removals,
        chronicle: Chronicle,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._operations = operations
        self._quotas = quotas
        self._refreshes = refreshes
        self._removals = removals
        self._chronicle = chronicle
        self._clock = clock

    async def create(self, tenant_id: TenantId, spec: PoolSpec, *, actor: str) -> Pool:
        """Make a pool; reconcile makes its instances, or users get them. Raises `Conflict`, `QuotaExceeded`."""
        tenant = self._catalog.tenant(tenant_id)
        _require_room(spec)
        async with self._quotas.lock(tenant_id):
            if (tenant_id, spec.pool_id) in self._catalog.pools:
                raise Conflict(
                    f"pool '{tenant_id}/{spec.pool_id}' exists already", hint=f"`mvm pool list {tenant_id}` shows it"
                )
            who = f"{tenant_id}/{spec.pool_id}"
            quota.check(tenant.quotas, self._quotas.full_use(tenant_id), quota.Request(pools=1), who=who)
            pool = await self._catalog.save_pool(
                Pool.from_spec(spec, tenant_id=tenant_id, created_at=self._clock.now())
            )
        self._chronicle.record_tenant(
            tenant_id, AuditAction.POOL_CREATED, actor=actor, pool_id=pool.pool_id, detail=str(pool.role)
        )
        return pool

    async def update(self, tenant_id: TenantId, spec: PoolSpec, *, actor: str) -> Pool:
        """Make a pool what `spec` says. Resources count from the next start, everything else at once.

        Raises `InvalidInput` when the role would change: whatever runs in its instances is made for it. Raises
        `QuotaExceeded` when the drives of its instances would become too large.
        """
        pool = self._catalog.pool(tenant_id, spec.pool_id)
        if spec == pool.spec:
            return pool
        _require_room(spec)
        if spec.role is not pool.role:
            raise InvalidInput(
                f"pool '{tenant_id}/{pool.pool_id}' has the role {pool.role}, which never changes",
                hint=f"make another pool of role {spec.role}, and destroy this one",
            )
        changed = sorted(name for name in PoolSpec.model_fields if getattr(spec, name) != getattr(pool, name))
        settings = {name: getattr(spec, name) for name in PoolSpec.model_fields}
        async with self._quotas.lock(tenant_id):
            self._quotas.check_larger_drives(pool, data_disk_mib=spec.data_disk_mib)
            pool = await self._catalog.save_pool(pool.model_copy(update=settings))
        self._chronicle.record_tenant(
            tenant_id, AuditAction.POOL_UPDATED, actor=actor, pool_id=pool.pool_id, detail=", ".join(changed)
        )
        if set(changed) != {"desired"}:
            await self._refreshes.tell(self._catalog.instances_of(tenant_id, pool.pool_id), actor=actor)
        return pool

    async def set_counts(
        self,
        tenant_id: TenantId,
        pool_id: PoolId,
        *,
        running: int | None = None,
        warm: int | None = None,
        sleeping: int | None = None,
        actor: str,
    ) -> Pool:
        """Change how many instances a pool is to have in each state; None leaves a count as it is."""
        pool = self._catalog.pool(tenant_id, pool_id)
        given = {"running": running, "warm": warm, "sleeping": sleeping}
        counts = {name: count for name, count in given.items() if count is not None}
        desired = DesiredCounts.model_validate({**pool.desired.model_dump(), **counts})
        return await self.update(tenant_id, pool.spec.model_copy(update={"desired": desired}), actor=actor)

    async def destroy(self, tenant_id: TenantId, pool_id: PoolId, *, actor: str, progress: Progress = silent) -> None:
        """Remove a pool with its instances. Refused while users have their workers in it."""
        self._catalog.pool(tenant_id, pool_id)
        users = [user.user_id for user in self._catalog.users_of(tenant_id) if user.pool_id == pool_id]
        if users:
            raise Refused(
                f"pool '{tenant_id}/{pool_id}' holds the workers of {', '.join(users)}",
                hint=f"remove them first: `mvm user remove {tenant_id} {users[0]}`",
            )
        async with self._removals.recorded(OF_POOL, tenant_id, pool_id, actor=actor):
            if (tenant_id, pool_id) not in self._catalog.pools:
                return  # somebody else destroyed it while this call waited
            await self._remove(tenant_id, pool_id, actor=actor, progress=progress)

    async def resume_removals(self) -> None:
        """After a start of the agent: finish removals that were begun. One that fails does not keep the others."""
        for removal in await self._removals.pending(OF_POOL):
            tenant_id, pool_id = TenantId(removal.parts[0]), PoolId(removal.parts[1])
            try:
                async with self._removals.recorded(OF_POOL, tenant_id, pool_id, actor=removal.actor):
                    if (tenant_id, pool_id) in self._catalog.pools:
                        await self._remove(tenant_id, pool_id, actor=removal.actor, progress=silent)
            except MvmError as error:
                self._chronicle.tenant_event(
                    tenant_id, "PoolRemovalFailed", actor="recovery", detail=f"{pool_id}: {error.message}"
                )

    async def _remove(self, tenant_id: TenantId, pool_id: PoolId, *, actor: str, progress: Progress) -> None:
        gone = False
        while not gone:
            instances = self._catalog.instances_of(tenant_id, pool_id)
            for number, instance in enumerate(instances, 1):
                progress(f"destroying {instance.ref}", done=number, total=len(instances))
                await self._operations.destroy(instance.ref, actor=actor)
            # Instances are made under this lock: none is made in a pool that is just going.
            async with self._quotas.lock(tenant_id):
                if gone := not self._catalog.instances_of(tenant_id, pool_id):
                    await self._catalog.remove_pool(tenant_id, pool_id)
        self._chronicle.record_tenant(tenant_id, AuditAction.POOL_DESTROYED, actor=actor, pool_id=pool_id)
        # A gateway that is gone leaves workers that nobody may deliver to any more.
        await self._refreshes.tell_tenant(tenant_id, actor=actor)


def _require_room(spec: PoolSpec) -> None:
    """Raise `InvalidInput` for a size in which its instances could never work."""
    if (problem := spec.role.size_problem(spec.mem_mib)) is not None:
        raise InvalidInput(f"pool '{spec.pool_id}': {problem[0]}", hint=problem[1])
