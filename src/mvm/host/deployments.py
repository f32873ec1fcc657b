"""Whole deployments (`mvm new`, `mvm deploy`): checked, reconciled, taken back if they must be whole, waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from mvm.host.catalog import Catalog
from mvm.host.channel_logins import ChannelRefused
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.contracts import InstanceOperations, RequireLogin
from mvm.host.gateways import Gateways
from mvm.host.pools import Pools
from mvm.host.progress import Progress, silent
from mvm.host.reconcile import Ask, Reconciler
from mvm.host.reconcile_actions import Prune
from mvm.host.reconcile_report import Report
from mvm.host.reports import Activity, Reports
from mvm.host.secrets import SecretStore
from mvm.host.tenants import Tenants
from mvm.host.users import Users
from mvm.model.deployment import Deployment
from mvm.model.desired import deployment_to_tenant
from mvm.model.entities import Instance
from mvm.model.errors import MvmError, TimedOut, Unavailable, error_for_code
from mvm.model.ids import Address, PoolId, TenantId, UserId
from mvm.model.roles import Role
from mvm.model.secrets import SecretName
from mvm.model.states import State
from mvm.openclaw.render import choose_model

READY_LIMIT_SECONDS = 600.0
"""How long `wait_until_ready` waits: a cold start of OpenClaw in an emulated VM takes three minutes."""
_LOOK_AGAIN_SECONDS = 1.0


class Deployments:
    """Makes what manifests ask for."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        reconciler: Reconciler,
        tenants: Tenants,
        pools: Pools,
        users: Users,
        secrets: SecretStore,
        gateways: Gateways,
        operations: InstanceOperations,
        reports: Reports,
        require_login: RequireLogin,
        chronicle: Chronicle,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._reconciler = reconciler
        self._tenants = tenants
        self._pools = pools
        self._users = users
        self._secrets = secrets
        self._gateways = gateways
        self._operations = operations
        self._reports = reports
        self._require_login = require_login
        self._chronicle = chronicle
        self._clock = clock

    async def apply(
        self,
        wanted: Deployment,
        secrets: Mapping[str, str],
        *,
        dry_run: bool = False,
        prune: bool = False,
        whole: bool = True,
        actor: str,
        progress: Progress = silent,
    ) -> Report:
        """Make a deployment what its manifest says; does nothing when it is so already.

        `secrets` are the values (`scope/KEY` -> value) of the secrets that the manifest names. What is wrong with it is
        raised before anything is done. A deployment that is to be `whole` is taken back when a step fails: everything
        that this call created is removed again, what it changed stays changed, and the step's error is raised. Any
        other keeps what could be had, and the report has the errors. `prune` destroys what the manifest does not name.
        """
        await self._check(wanted, secrets)
        ask = Ask(
            tenant=deployment_to_tenant(wanted),
            template=wanted.template,
            secrets=secrets,
            prune=Prune(pools=prune, users=prune),
        )
        report = await self._reconciler.apply(
            ask, actor=actor, progress=progress, dry_run=dry_run, all_or_nothing=whole
        )
        if whole and report.failures:
            error = report.failures[0].error
            await self._take_back(wanted.name, report, error, actor=actor, progress=progress)
            if isinstance(error, ChannelRefused):
                raise error
            raise error_for_code(
                error.code, error.message, f"`mvm events --tenant {wanted.name}` shows what happened"
            ) from error
        if report.changed:
            self._chronicle.tenant_event(
                wanted.name, "DeploymentApplied", actor=actor, detail=f"{len(report.actions)} changes"
            )
        return report

    async def _check(self, wanted: Deployment, secrets: Mapping[str, str]) -> None:
        """What can be known to fail fails here, before anything is created."""
        await self._tenants.require_own_bots(wanted.name, secrets)
        known = {SecretName.parse(path).key for path in secrets}
        if wanted.name in self._catalog.tenants:
            known |= {name.key for name in await self._secrets.names(wanted.name)}
        if any(pool.role is Role.CAPABILITY_OPENCLAW for pool in wanted.pools):
            choose_model(wanted.openclaw.model, known)

    async def _take_back(
        self, tenant_id: TenantId, report: Report, error: MvmError, *, actor: str, progress: Progress
    ) -> None:
        """Remove what a pass created, the latest first; a new tenant takes everything in it along."""
        self._chronicle.tenant_event(tenant_id, "DeploymentFailed", actor=actor, detail=error.message)
        done = report.done
        if done["tenants"]["created"]:
            made = [f"tenant {tenant_id}"]
        else:
            instances = [f"instance {path}" for path in reversed(done["instances"]["created"])]
            users = [f"user {path}" for path in reversed(done["users"]["added"])]
            made = [*users, *instances, *(f"pool {path}" for path in reversed(done["pools"]["created"]))]
        for what in made:
            progress(f"it failed; removing {what} again")
            try:
                await self._remove(tenant_id, what, actor=actor)
            except MvmError as second:
                self._chronicle.tenant_event(
                    tenant_id, "RollbackFailed", actor=actor, detail=f"{what}: {second.message}"
                )

    async def _remove(self, tenant_id: TenantId, what: str, *, actor: str) -> None:
        kind, _, path = what.partition(" ")
        name = path.rpartition("/")[2]
        match kind:
            case "tenant":
                await self._tenants.destroy(tenant_id, actor=actor)
            case "user":
                await self._users.remove(tenant_id, UserId(name), actor=actor)
            case "instance":
                await self._operations.destroy(Address.parse(path).instance, actor=actor)
            case _:
                await self._pools.destroy(tenant_id, PoolId(name), actor=actor)

    # Waiting

    async def wait_until_ready(
        self, tenant_id: TenantId, *, limit: float = READY_LIMIT_SECONDS, progress: Progress = silent
    ) -> list[Instance]:
        """Wait until the gateway answers and every worker that runs does; returns them.

        Raises `TimedOut` naming what was waited for, `Unavailable` as soon as one of them has failed for good, or when
        the gateway is up and a channel does not let it in.
        """
        self._catalog.tenant(tenant_id)
        deadline = self._clock.monotonic() + limit
        while True:
            missing = self._missing(tenant_id)
            if not missing:
                if (gateway := self._gateways.gateway_of(tenant_id)) is not None:
                    await self._require_login(gateway)
                return [i for i in self._concerned(tenant_id) if i.state is State.RUNNING]
            progress("; ".join(missing.values()))
            if (left := deadline - self._clock.monotonic()) <= 0:
                raise TimedOut(
                    f"{tenant_id} was not ready within {limit:g} s: {'; '.join(missing.values())}",
                    hint=f"`mvm events --tenant {tenant_id}` and `mvm instance logs` show why",
                )
            await self._wait_for_change(missing, min(left, _LOOK_AGAIN_SECONDS))

    async def _wait_for_change(self, missing: Mapping[Instance | None, str], seconds: float) -> None:
        waits = [asyncio.create_task(self._reports.changed(i.instance_id)) for i in missing if i is not None]
        if not waits:
            await asyncio.sleep(seconds)
            return
        _, pending = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    def _concerned(self, tenant_id: TenantId) -> list[Instance]:
        """The gateway that serves the tenant and its users' workers."""
        gateway = self._gateways.gateway_of(tenant_id)
        workers = [i for i in self._catalog.instances_of(tenant_id) if i.user is not None]
        return [*([gateway] if gateway else []), *workers]

    def _wants_gateway(self, tenant_id: TenantId) -> bool:
        """Whether there is anybody to serve: a tenant of workers alone is ready without a gateway."""
        has_pool = any(pool.role is Role.GATEWAY for pool in self._catalog.pools_of(tenant_id))
        served = self._catalog.tenant(tenant_id).gateway_tenant is not None
        return has_pool or served or bool(self._catalog.users_of(tenant_id))

    def _missing(self, tenant_id: TenantId) -> dict[Instance | None, str]:
        """What is not ready yet, each with what is waited for. An instance that sleeps is ready: a message wakes it."""
        missing: dict[Instance | None, str] = {}
        if self._gateways.gateway_of(tenant_id) is None and self._wants_gateway(tenant_id):
            missing[None] = f"waiting for a gateway that serves {tenant_id}"
        for instance in self._concerned(tenant_id):
            is_gateway = instance.role is Role.GATEWAY
            what = f"{'the gateway' if is_gateway else f'the worker of {instance.user}'} ({instance.ref})"
            answers = self._reports.latest(instance.instance_id).activity is not Activity.UNKNOWN
            if instance.transition is not None:
                missing[instance] = f"waiting for {what}: {instance.transition.kind}"
            elif instance.state is State.RUNNING and not answers:
                missing[instance] = f"waiting for {what} to answer"
            elif instance.last_error is not None and instance.state in (State.READY, State.STOPPED):
                raise Unavailable(
                    f"{what} does not run: {instance.last_error}", hint=f"`mvm instance logs {instance.ref}` shows why"
                )
            elif is_gateway and instance.state is not State.RUNNING:
                missing[instance] = f"waiting for {what}: it is {instance.state}"
        return missing
