"""Requests about tenants, their secrets and pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mvm.host.api import Call, Json, Params, Request
from mvm.host.explanation import states_of
from mvm.host.tenants import TenantChanges
from mvm.model.base import PoolIdField, TenantIdField
from mvm.model.entities import OPENCLAW_QUOTAS, Count, OpenClawSettings, PoolSpec, Quotas, default_policy
from mvm.model.errors import InvalidInput
from mvm.model.ids import TenantId
from mvm.model.secrets import visible_secrets
from mvm.model.validation import parse

if TYPE_CHECKING:
    from mvm.host.app import Host

_TEMPLATE_QUOTAS = {"openclaw": OPENCLAW_QUOTAS}


class Nothing(Params):
    """A request that is only its name."""


class OfTenant(Params):
    tenant_id: TenantIdField


class OfPool(OfTenant):
    pool_id: PoolIdField


class TenantCreate(OfTenant):
    template: str | None = None
    quotas: dict[str, int] | None = None
    net_id: int | None = None
    subnet: str | None = None


class TenantUpdate(OfTenant):
    quotas: dict[str, int] | None = None
    accepts: tuple[TenantIdField, ...] | None = None
    gateway_tenant: TenantIdField | None = None
    openclaw: OpenClawSettings | None = None


class SecretsSet(OfTenant):
    secrets: dict[str, str]
    prune: bool = False


class SecretsRotate(OfTenant):
    scope: str | None = None


class NewPool(PoolSpec):
    """A pool with whose it is; without a policy it gets the one of its role."""

    tenant_id: TenantIdField

    @property
    def spec(self) -> PoolSpec:
        given = {name: getattr(self, name) for name in PoolSpec.model_fields}
        if "runtime_policy" not in self.model_fields_set:
            given["runtime_policy"] = default_policy(self.role)
        return PoolSpec(**given)


class PoolCreate(Params):
    pool: NewPool


class PoolScale(OfPool):
    running: Count | None = None
    warm: Count | None = None
    sleeping: Count | None = None


def dumped(entities: Any) -> list[Json]:
    """Entities as JSON."""
    return [entity.model_dump(mode="json") for entity in entities]


def _pools(host: Host, tenant_id: TenantId) -> list[Json]:
    """A tenant's pools, each with the `states` that its instances are in beside those that are `desired`."""
    return [
        {
            **pool.model_dump(mode="json"),
            "states": states_of(host.catalog.instances_of(tenant_id, pool.pool_id)),
        }
        for pool in host.catalog.pools_of(tenant_id)
    ]


def _quotas(before: Quotas, changes: dict[str, int]) -> Quotas:
    return parse(Quotas, {**before.model_dump(), **changes}, what="quotas")


async def tenant_list(host: Host, params: Nothing, call: Call) -> Json:
    tenants = sorted(host.catalog.tenants.values(), key=lambda tenant: tenant.tenant_id)
    return {"tenants": dumped(tenants)}


async def tenant_info(host: Host, params: OfTenant, call: Call) -> Json:
    tenant = host.catalog.tenant(params.tenant_id)
    return {
        "tenant": tenant.model_dump(mode="json"),
        "pools": _pools(host, tenant.tenant_id),
        "users": dumped(host.catalog.users_of(tenant.tenant_id)),
    }


async def tenant_create(host: Host, params: TenantCreate, call: Call) -> Json:
    if params.template is not None and params.template not in _TEMPLATE_QUOTAS:
        raise InvalidInput(
            f"template {params.template[:80]!r} is unknown", hint=f"the templates are: {', '.join(_TEMPLATE_QUOTAS)}"
        )
    quotas = _quotas(_TEMPLATE_QUOTAS.get(params.template or "", Quotas()), params.quotas or {})
    tenant = await host.tenants.create(
        params.tenant_id,
        changes=TenantChanges(quotas=quotas),
        net_id=params.net_id,
        subnet=params.subnet,
        template=params.template,
        actor=call.actor,
    )
    return {"tenant": tenant.model_dump(mode="json")}


async def tenant_update(host: Host, params: TenantUpdate, call: Call) -> Json:
    given = {name: getattr(params, name) for name in params.model_fields_set - {"tenant_id", "quotas"}}
    if params.quotas is not None:
        given["quotas"] = _quotas(host.catalog.tenant(params.tenant_id).quotas, params.quotas)
    tenant = await host.tenants.update(params.tenant_id, TenantChanges(**given), actor=call.actor)
    return {"tenant": tenant.model_dump(mode="json")}


async def tenant_destroy(host: Host, params: OfTenant, call: Call) -> Json:
    await host.tenants.destroy(params.tenant_id, actor=call.actor, progress=call.progress)
    return {"tenant_id": params.tenant_id}


async def secrets_set(host: Host, params: SecretsSet, call: Call) -> Json:
    changed = await host.tenants.set_secrets(params.tenant_id, params.secrets, prune=params.prune, actor=call.actor)
    return {"changed": list(changed), "secrets_epoch": host.catalog.tenant(params.tenant_id).secrets_epoch}


async def secrets_rotate(host: Host, params: SecretsRotate, call: Call) -> Json:
    rotated = await host.tenants.rotate_secrets(params.tenant_id, params.scope, actor=call.actor)
    return {"rotated": list(rotated), "secrets_epoch": host.catalog.tenant(params.tenant_id).secrets_epoch}


async def secrets_list(host: Host, params: OfTenant, call: Call) -> Json:
    tenant = host.catalog.tenant(params.tenant_id)
    names = {name.path: name for name in await host.secrets.names(tenant.tenant_id)}
    pools = host.catalog.pools_of(tenant.tenant_id)
    seen = {pool.pool_id: visible_secrets(pool.role, pool.secret_scopes, names) for pool in pools}
    return {
        "secrets": list(names),
        "pools": {path: [pool for pool, visible in seen.items() if path in visible] for path in names},
        "secrets_epoch": tenant.secrets_epoch,
    }


async def pool_create(host: Host, params: PoolCreate, call: Call) -> Json:
    pool = await host.pools.create(params.pool.tenant_id, params.pool.spec, actor=call.actor)
    try:
        await host.reconciler.bring_about(pool.tenant_id, pool.pool_id, actor=call.actor, progress=call.progress)
    except Exception:
        await host.pools.destroy(pool.tenant_id, pool.pool_id, actor=call.actor, progress=call.progress)
        raise
    return {"pool": pool.model_dump(mode="json")}


async def pool_list(host: Host, params: OfTenant, call: Call) -> Json:
    tenant = host.catalog.tenant(params.tenant_id)
    return {"pools": _pools(host, tenant.tenant_id)}


async def pool_info(host: Host, params: OfPool, call: Call) -> Json:
    pool = host.catalog.pool(params.tenant_id, params.pool_id)
    instances = host.catalog.instances_of(pool.tenant_id, pool.pool_id)
    return {"pool": pool.model_dump(mode="json"), "instances": dumped(instances)}


async def pool_scale(host: Host, params: PoolScale, call: Call) -> Json:
    pool = await host.pools.set_counts(
        params.tenant_id,
        params.pool_id,
        running=params.running,
        warm=params.warm,
        sleeping=params.sleeping,
        actor=call.actor,
    )
    await host.reconciler.bring_about(pool.tenant_id, pool.pool_id, actor=call.actor, progress=call.progress)
    return {"pool": pool.model_dump(mode="json")}


async def pool_destroy(host: Host, params: OfPool, call: Call) -> Json:
    await host.pools.destroy(params.tenant_id, params.pool_id, actor=call.actor, progress=call.progress)
    return {"tenant_id": params.tenant_id, "pool_id": params.pool_id}


REQUESTS: dict[str, Request[Host]] = {
    "TenantList": Request(Nothing, tenant_list),
    "TenantInfo": Request(OfTenant, tenant_info),
    "TenantCreate": Request(TenantCreate, tenant_create),
    "TenantUpdate": Request(TenantUpdate, tenant_update),
    "TenantDestroy": Request(OfTenant, tenant_destroy),
    "SecretsSet": Request(SecretsSet, secrets_set),
    "SecretsRotate": Request(SecretsRotate, secrets_rotate),
    "SecretsList": Request(OfTenant, secrets_list),
    "PoolCreate": Request(PoolCreate, pool_create),
    "PoolList": Request(OfTenant, pool_list),
    "PoolInfo": Request(OfPool, pool_info),
    "PoolScale": Request(PoolScale, pool_scale),
    "PoolDestroy": Request(OfPool, pool_destroy),
}
