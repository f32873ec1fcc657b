"""Requests that bring this host, or one deployment, to what somebody wants it to be."""

from __future__ import annotations

import socket
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mvm.host.api import Call, Json, Params, Request
from mvm.host.api_tenants import Nothing, OfPool, OfTenant, dumped
from mvm.host.host_networks import host_networks
from mvm.model import addresses
from mvm.model.deployment import Deployment
from mvm.model.desired import DesiredPool, DesiredState, DesiredTenant, validate_desired
from mvm.model.errors import InvalidInput, Refused
from mvm.model.manifest_tables import PoolSettings

if TYPE_CHECKING:
    from mvm.host.app import Host

LOCAL = "local"
"""Stands for whichever node it is."""


class ApplyDeployment(Params):
    deployment: Deployment
    secrets: dict[str, str] = Field(default_factory=dict)
    dry_run: bool = False
    prune: bool = False
    whole: bool = True


class PoolUpdate(OfPool):
    settings: PoolSettings
    dry_run: bool = False


class Reconcile(Params):
    desired: dict[str, Any]
    dry_run: bool = False


async def apply_deployment(host: Host, params: ApplyDeployment, call: Call) -> Json:
    report = await host.deployments.apply(
        params.deployment,
        params.secrets,
        dry_run=params.dry_run,
        prune=params.prune,
        whole=params.whole,
        actor=call.actor,
        progress=call.progress,
    )
    return {"tenant_id": params.deployment.name, **report.to_json()}


async def deployment_ready(host: Host, params: OfTenant, call: Call) -> Json:
    instances = await host.deployments.wait_until_ready(params.tenant_id, progress=call.progress)
    return {"tenant_id": params.tenant_id, "instances": dumped(instances)}


async def pool_update(host: Host, params: PoolUpdate, call: Call) -> Json:
    """Change settings of a pool; what is not named stays. Its instances follow as after a change of a manifest."""

    def changed(tenant: DesiredTenant) -> DesiredTenant:
        pool = host.catalog.pool(params.tenant_id, params.pool_id)
        spec = params.settings.applied_to(pool.spec)
        if (problem := spec.role.size_problem(spec.mem_mib)) is not None:
            raise InvalidInput(f"pool '{pool.tenant_id}/{pool.pool_id}': {problem[0]}", hint=problem[1])
        others = [other for other in tenant.pools if other.pool_id != pool.pool_id]
        return tenant.model_copy(update={"pools": (*others, DesiredPool.from_spec(spec))})

    report = await host.reconciler.apply_change(
        params.tenant_id, changed, actor=call.actor, progress=call.progress, dry_run=params.dry_run
    )
    now = host.catalog.pool(params.tenant_id, params.pool_id)
    return {"pool": now.model_dump(mode="json"), **report.to_json()}


async def reconcile(host: Host, params: Reconcile, call: Call) -> Json:
    """Validated whole before anything is done; a state that is meant for another node is refused."""
    if call.remote and host.locations.production:
        raise Refused(
            "in production mode a state of the whole host is not taken from the network unsigned",
            hint="run `mvm agent reconcile --desired FILE` on the host itself",
        )
    state = validate_desired(params.desired, host_networks=_networks_in_the_way(host, params.desired))
    here = socket.gethostname()
    if state.node_id not in (LOCAL, here):
        raise InvalidInput(
            f"node_id: this state is for the node {state.node_id!r}, and this one is {here!r}",
            hint=f"write {LOCAL!r} where it is for whichever node it is given to",
        )
    report = await host.reconciler.apply_state(state, actor=call.actor, dry_run=params.dry_run, progress=call.progress)
    return report.to_json()


def _networks_in_the_way(host: Host, document: dict[str, Any]) -> dict[str, str]:
    """The host's own networks, and those of tenants that the state does not speak of."""
    named = {t.get("tenant_id") for t in _tables(document.get("tenants")) if isinstance(t.get("tenant_id"), str)}
    goes = document.get("prune_unknown_tenants") is True
    others = {
        f"tenant {tenant.tenant_id!r}": tenant.network.ipv4_subnet
        for tenant in host.catalog.tenants.values()
        if tenant.tenant_id not in named and not goes
    }
    present = [IPv4Network(tenant.network.ipv4_subnet) for tenant in host.catalog.tenants.values()]
    own = {
        name: str(network)
        for name, network in host_networks().items()
        # One as wide as all of ours is no obstacle: a tenant's /24 is the nearer route.
        if network.prefixlen > addresses.CLUSTER_RANGE.prefixlen and not any(network.overlaps(one) for one in present)
    }
    return {**own, **others}


def _tables(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


async def desired(host: Host, params: Nothing, call: Call) -> Json:
    """What this host keeps to: as `Reconcile` takes it, and pruning nothing."""
    state: DesiredState = await host.reconciler.desired(LOCAL)
    return {"desired": state.to_json()}


REQUESTS: dict[str, Request[Host]] = {
    "ApplyDeployment": Request(ApplyDeployment, apply_deployment),
    "DeploymentReady": Request(OfTenant, deployment_ready, only_waits=True),
    "PoolUpdate": Request(PoolUpdate, pool_update),
    "Reconcile": Request(Reconcile, reconcile),
    "DesiredState": Request(Nothing, desired),
}
