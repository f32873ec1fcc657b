"""Which gateway serves whom (CONTRACT 6, "One gateway for many tenants").

A tenant is served by its own gateway, or by another tenant's when both sides say so: it names that tenant in
`gateway_tenant`, and that one names it in `accepts`. Nothing is remembered beside that, so either side ends it at once.
"""

from __future__ import annotations

from mvm.host.catalog import Catalog
from mvm.model.entities import Instance, Tenant, User
from mvm.model.ids import TenantId
from mvm.model.roles import Role


class Gateways:
    """Answers from the catalog as it is now."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def serving_tenant(self, tenant_id: TenantId) -> Tenant | None:
        """The tenant whose gateway serves this one: itself, or the other when that one consents; None otherwise."""
        tenant = self._catalog.tenants.get(tenant_id)
        if tenant is None or tenant.gateway_tenant is None:
            return tenant
        other = self._catalog.tenants.get(tenant.gateway_tenant)
        # A gateway that is itself served by another one serves nobody: there is no chain.
        return other if other and other.gateway_tenant is None and tenant_id in other.accepts else None

    def gateway_of(self, tenant_id: TenantId) -> Instance | None:
        """The gateway instance that serves a tenant, the oldest when there are several."""
        serving = self.serving_tenant(tenant_id)
        if serving is None:
            return None
        return next((i for i in self._catalog.instances_of(serving.tenant_id) if i.role is Role.GATEWAY), None)

    def tenants_served_by(self, tenant_id: TenantId) -> list[Tenant]:
        """Every tenant whose messages go through this tenant's gateway, itself included when it has its own."""
        hub = self._catalog.tenants.get(tenant_id)
        candidates = [] if hub is None else [tenant_id, *hub.accepts]
        return [
            self._catalog.tenants[candidate]
            for candidate in dict.fromkeys(candidates)
            if (serving := self.serving_tenant(candidate)) is not None and serving.tenant_id == tenant_id
        ]

    def users_served_by(self, tenant_id: TenantId) -> list[User]:
        """Everybody whom this tenant's gateway serves."""
        return [
            user for tenant in self.tenants_served_by(tenant_id) for user in self._catalog.users_of(tenant.tenant_id)
        ]

    def granted(self, caller: Instance, target: Instance) -> bool:
        """True when `caller` may wake and query `target`: a gateway in its tenant, or the one that serves its user."""
        if caller.role is not Role.GATEWAY:
            return False
        if caller.tenant_id == target.tenant_id:
            return True
        serving = self.serving_tenant(target.tenant_id)
        if serving is None or serving.tenant_id != caller.tenant_id or target.user is None:
            return False
        user = self._catalog.users.get((target.tenant_id, target.user))
        return user is not None and user.instance_id == target.instance_id
