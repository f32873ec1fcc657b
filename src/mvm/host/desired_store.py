"""The desired state that the agent keeps (CONTRACT 12): its own records, and what could not be recorded yet.

Tenants, pools and users are records of what should be; a person who changes one by a command changes the desired state.
What a deployment or a desired state asked for and could not be recorded (a network was taken, a quota was full) is kept
beside them and tried again, until it is there or somebody changes the tenant's records by another way: the latest word
counts.
"""

from __future__ import annotations

import hashlib
import json

from mvm.host.catalog import Catalog
from mvm.host.documents import parsed_or
from mvm.host.reconcile_actions import Wanted
from mvm.model.base import Frozen
from mvm.model.desired import DesiredNetwork, DesiredPool, DesiredState, DesiredTenant, desired_of
from mvm.model.entities import OpenClawSettings
from mvm.model.ids import TenantId, UserId
from mvm.store.base import Store

PREFIX = "desired/"


class _Pending(Frozen):
    """What could not be recorded yet."""

    tenant: DesiredTenant
    template: str | None = None
    based_on: str
    """Digest of the records when it was kept."""
    senders: dict[UserId, tuple[str, ...]] | None = None
    """User -> their senders on record then; None in what an mvm of before kept."""


class DesiredStore:
    """Answers what should be, and remembers what is still to be recorded."""

    def __init__(self, catalog: Catalog, store: Store) -> None:
        self._catalog = catalog
        self._store = store

    async def state(self, node_id: str) -> DesiredState:
        """Everything that this host should run, as a desired state that prunes nothing."""
        tenants = {tenant_id: self._recorded(tenant_id) for tenant_id in sorted(self._catalog.tenants)}
        for tenant_id, kept in (await self._kept()).items():
            tenants[tenant_id] = kept.tenant
        return desired_of(tenants, node_id=node_id)

    async def tenant(self, tenant_id: TenantId) -> DesiredTenant:
        """What should be of one tenant. Raises `NotFound`."""
        recorded, kept = self._recorded(tenant_id), (await self._kept()).get(tenant_id)
        return recorded if kept is None else kept.tenant

    async def pending(self) -> list[tuple[DesiredTenant, str | None]]:
        """Tenants that are still to be recorded, each with its template; what somebody overtook is dropped."""
        found = []
        for tenant_id, kept in (await self._kept()).items():
            if kept.based_on == self._digest(tenant_id):
                found.append((kept.tenant, kept.template))
            else:
                await self._store.delete(PREFIX + tenant_id)
        return found

    async def _kept(self) -> dict[TenantId, _Pending]:
        """What is kept, by tenant. One that cannot be read keeps nobody else waiting: the records count then."""
        documents = await self._store.list(PREFIX)
        read = {TenantId(d.key.removeprefix(PREFIX)): parsed_or(_Pending, d, None) for d in documents}
        return {tenant_id: self._with_senders(kept) for tenant_id, kept in read.items() if kept is not None}

    def _with_senders(self, kept: _Pending) -> _Pending:
        """What is kept, with the senders of those users whose own were changed since: the latest word counts."""
        if kept.senders is None:
            return kept
        users = []
        for user in kept.tenant.users:
            known = self._catalog.users.get((kept.tenant.tenant_id, user.user_id))
            if known is not None and set(known.peers) != set(kept.senders.get(user.user_id, ())):
                user = user.model_copy(update={"telegram": known.telegram, "discord": known.discord})
            users.append(user)
        return kept.model_copy(update={"tenant": kept.tenant.model_copy(update={"users": tuple(users)})})

    async def keep(self, tenant: DesiredTenant, *, template: str | None) -> None:
        """Remember a tenant that could not be recorded as a whole."""
        kept = _Pending(
            tenant=tenant,
            template=template,
            based_on=self._digest(tenant.tenant_id),
            senders={user.user_id: user.peers for user in self._catalog.users_of(tenant.tenant_id)},
        )
        await self._store.put(PREFIX + tenant.tenant_id, kept.model_dump(mode="json"))

    async def is_recorded(self, tenant_id: TenantId) -> None:
        """The records say all that is wanted of a tenant. Idempotent."""
        if await self._store.get(PREFIX + tenant_id) is not None:
            await self._store.delete(PREFIX + tenant_id)

    def _recorded(self, tenant_id: TenantId) -> DesiredTenant:
        """What the records say of a tenant."""
        tenant = self._catalog.tenant(tenant_id)
        return DesiredTenant(
            tenant_id=tenant_id,
            network=DesiredNetwork(**tenant.network.model_dump()),
            quotas=tenant.quotas,
            pools=tuple(DesiredPool.from_spec(pool.spec) for pool in self._catalog.pools_of(tenant_id)),
            users=tuple(user.spec for user in self._catalog.users_of(tenant_id)),
            openclaw=tenant.openclaw,
            gateway_tenant=tenant.gateway_tenant,
            accepts=tenant.accepts,
        )

    def _digest(self, tenant_id: TenantId) -> str:
        """Of a tenant's records, but for the senders of its users, who pair by themselves."""
        if tenant_id not in self._catalog.tenants:
            return ""
        recorded = self._recorded(tenant_id).model_dump(mode="json")
        recorded["users"] = [user["user_id"] for user in recorded["users"]]
        return hashlib.sha256(json.dumps(recorded, sort_keys=True).encode()).hexdigest()


def wanted_of(tenant: DesiredTenant, *, template: str | None = None) -> Wanted:
    """What a tenant of a desired state asks for."""
    network = tenant.network or DesiredNetwork()
    return Wanted(
        tenant_id=tenant.tenant_id,
        template=template,
        net_id=network.tenant_net_id,
        subnet=network.ipv4_subnet,
        settings={
            "quotas": tenant.quotas,
            "openclaw": tenant.openclaw or OpenClawSettings(),
            "gateway_tenant": tenant.gateway_tenant,
            "accepts": tenant.accepts,
        },
        quotas=tenant.quotas,
        pools=tuple(pool.spec() for pool in tenant.pools),
        users=tenant.users,
    )
