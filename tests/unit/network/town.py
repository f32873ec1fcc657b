"""A catalog that is filled by hand, for tests of who may reach whom."""

from __future__ import annotations

from datetime import UTC, datetime

from mvm.host.catalog import Catalog
from mvm.host.gateways import Gateways
from mvm.model import addresses
from mvm.model.entities import Instance, Pool, Tenant, User
from mvm.model.ids import InstanceId, PoolId, TenantId, TenantNetId, UserId
from mvm.model.roles import Role
from mvm.network.picture import Picture, Resolvers, draw

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
ALICE, BOB = TenantId("alice"), TenantId("bob")
GATEWAYS, PEOPLE = PoolId("gateways"), PoolId("people")


class Town:
    """A catalog that is filled by hand."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    async def tenant(self, tenant_id: TenantId, net_id: int, **settings: object) -> None:
        network = addresses.tenant_network(TenantNetId(net_id))
        tenant = Tenant(tenant_id=tenant_id, network=network, created_at=NOW)
        await self.catalog.save_tenant(tenant.model_copy(update=settings))
        for pool, role in ((GATEWAYS, Role.GATEWAY), (PEOPLE, Role.CAPABILITY_OPENCLAW)):
            await self.catalog.save_pool(Pool(tenant_id=tenant_id, pool_id=pool, role=role, created_at=NOW))

    async def instance(self, tenant_id: TenantId, pool_id: PoolId, *, user: str | None = None) -> Instance:
        number = len(self.catalog.instances) + 1
        tenant, pool = self.catalog.tenant(tenant_id), self.catalog.pool(tenant_id, pool_id)
        octets = {i.network.host_octet for i in self.catalog.instances_of(tenant_id)}
        instance = Instance(
            tenant_id=tenant_id,
            pool_id=pool_id,
            instance_id=InstanceId(f"i-{number:08x}"),
            role=pool.role,
            network=addresses.allocate_instance(tenant.network, used_octets=octets),
            created_at=NOW,
            user=None if user is None else UserId(user),
        )
        if user is not None:
            await self.catalog.save_user(
                User(
                    tenant_id=tenant_id,
                    user_id=UserId(user),
                    pool_id=pool_id,
                    instance_id=instance.instance_id,
                    created_at=NOW,
                )
            )
        return await self.catalog.save_instance(instance)

    def picture(self) -> Picture:
        gateways = Gateways(self.catalog)
        return draw(
            self.catalog.tenants,
            self.catalog.pools,
            self.catalog.instances.values(),
            serving=lambda tenant: s.tenant_id if (s := gateways.serving_tenant(tenant)) else None,
            granted=gateways.granted,
            resolvers=Resolvers(),
        )
