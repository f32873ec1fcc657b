"""Carrying out a deployment (`mvm new`): plan, apply, roll back when a step fails, wait until it is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.contracts import InstanceOperations, LastWords
from mvm.host.gateways import Gateways
from mvm.host.plan import Action, Kind, Present, plan, tenant_settings
from mvm.host.pools import Pools
from mvm.host.progress import Progress, silent
from mvm.host.quotas import counts_as_running
from mvm.host.reports import Activity, Reports
from mvm.host.secrets import SecretStore
from mvm.host.tenants import TenantChanges, Tenants
from mvm.host.users import Users
from mvm.model.deployment import Deployment
from mvm.model.entities import Instance, PoolSpec, UserSpec
from mvm.model.errors import MvmError, QuotaExceeded, TimedOut, Unavailable, error_for_code
from mvm.model.ids import TenantId
from mvm.model.roles import Role
from mvm.model.secrets import SecretName
from mvm.model.states import State
from mvm.openclaw.render import choose_model

READY_LIMIT_SECONDS = 600.0
"""How long `wait_until_ready` waits: a cold start of OpenClaw in an emulated VM takes three minutes."""
_LOOK_AGAIN_SECONDS = 1.0
_PLACES_SECONDS = 0.01
"""Pause between looks at whether a start has been recorded, which takes a write to the disk."""

_STARTS = (Kind.SCALE_POOL, Kind.START_WORKER)

Undo = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Outcome:
    """What applying a deployment did, or with a dry run would do."""

    actions: tuple[Action, ...]
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "changed": bool(self.actions) and not self.dry_run,
            "dry_run": self.dry_run,
            "actions": [action.to_json() for action in self.actions],
        }


@dataclass
class _Run:
    """One application under way: what it did, and how to take that back."""

    wanted: Deployment
    secrets: Mapping[str, str]
    actor: str
    progress: Progress
    undo: list[tuple[str, Undo]] = field(default_factory=list)


class Deployments:
    """Makes what manifests ask for."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        tenants: Tenants,
        pools: Pools,
        users: Users,
        secrets: SecretStore,
        gateways: Gateways,
        operations: InstanceOperations,
        reports: Reports,
        chronicle: Chronicle,
        clock: Clock,
        last_words: LastWords,
    ) -> None:
        self._last_words = last_words
        self._catalog = catalog
        self._tenants = tenants
        self._pools = pools
        self._users = users
        self._secrets = secrets
        self._gateways = gateways
        self._operations = operations
        self._reports = reports
        self._chronicle = chronicle
        self._clock = clock
        self._locks: dict[TenantId, asyncio.Lock] = {}

    async def apply(
        self,
        wanted: Deployment,
        secrets: Mapping[str, str],
        *,
        dry_run: bool = False,
        actor: str,
        progress: Progress = silent,
    ) -> Outcome:
        """Make a deployment what its manifest says; does nothing when it is so already.

        `secrets` are the values (`scope/KEY` -> value) of the secrets that the manifest names. When a step fails,
        everything that this call created is removed again, what it changed stays changed, and the step's error is
        raised. A second call goes on from whatever there is.
        """
        async with self._locks.setdefault(wanted.name, asyncio.Lock()):
            await self._check(wanted, secrets)
            actions = tuple(await self._plan(wanted, secrets))
            if dry_run or not actions:
                return Outcome(actions, dry_run)
            run = _Run(wanted, secrets, actor, progress)
            try:
                await self._carry_out(run, actions)
            except Exception as error:
                told = await self._told(wanted.name, error)
                await self._roll_back(run, told)
                raise told from error
            self._chronicle.tenant_event(
                wanted.name, "DeploymentApplied", actor=actor, detail=f"{len(actions)} changes"
            )
            return Outcome(actions)

    async def _check(self, wanted: Deployment, secrets: Mapping[str, str]) -> None:
        """What can be known to fail fails here, before anything is created."""
        await self._tenants.require_own_bots(wanted.name, secrets)
        known = {SecretName.parse(path).key for path in secrets}
        if wanted.name in self._catalog.tenants:
            known |= {name.key for name in await self._secrets.names(wanted.name)}
        if any(pool.role is Role.CAPABILITY_OPENCLAW for pool in wanted.pools):
            choose_model(wanted.openclaw.model, known)

    async def _plan(self, wanted: Deployment, secrets: Mapping[str, str]) -> list[Action]:
        tenant = self._catalog.tenants.get(wanted.name)
        present = Present(
            tenant=tenant,
            pools={pool.pool_id: pool for pool in self._catalog.pools_of(wanted.name)},
            users={user.user_id: user for user in self._catalog.users_of(wanted.name)},
            instances=self._catalog.instances_of(wanted.name),
        )
        return plan(wanted, present, differing_secrets=await self._secrets.differing(wanted.name, secrets))

    async def _carry_out(self, run: _Run, actions: tuple[Action, ...]) -> None:
        records = [action for action in actions if action.kind not in _STARTS]
        for number, action in enumerate(records):
            run.progress(f"{action.kind} {action.object}", done=number, total=len(actions))
            await self._do(run, action)
        await self._bring_up(run, [action for action in actions if action.kind in _STARTS])

    async def _do(self, run: _Run, action: Action) -> None:
        tenant_id, actor = run.wanted.name, run.actor
        match action.kind, action.subject:
            case Kind.CREATE_TENANT, _:
                await self._create_tenant(run)
            case Kind.UPDATE_TENANT, _:
                await self._tenants.update(tenant_id, _tenant_changes(run.wanted), actor=actor)
            case Kind.CREATE_POOL, PoolSpec() as pool:
                await self._pools.create(tenant_id, pool, actor=actor)
                run.undo.append((f"pool {pool.pool_id}", lambda: self._remove_pool(run, pool)))
            case Kind.UPDATE_POOL, PoolSpec() as pool:
                await self._pools.update(tenant_id, pool, actor=actor)
            case Kind.SET_SECRETS, _:
                await self._tenants.set_secrets(tenant_id, run.secrets, actor=actor)
            case Kind.ADD_USER, UserSpec() as user:
                await self._users.add(
                    tenant_id,
                    user.user_id,
                    telegram=user.telegram,
                    discord=user.discord,
                    pool_id=user.pool_id,
                    actor=actor,
                )
                run.undo.append((f"user {user.user_id}", lambda: self._remove_user(run, user)))
            case Kind.UPDATE_USER, UserSpec() as user:
                await self._users.set_peers(
                    tenant_id, user.user_id, telegram=user.telegram, discord=user.discord, actor=actor
                )
            case Kind.BIND_USER, UserSpec() as user:
                await self._users.bind(self._users.get(tenant_id, user.user_id), actor=actor)
            case unknown:
                raise AssertionError(f"no way to do {unknown}")

    async def _create_tenant(self, run: _Run) -> None:
        wanted = run.wanted
        await self._tenants.create(
            wanted.name,
            changes=_tenant_changes(wanted),
            net_id=wanted.net_id,
            subnet=wanted.subnet,
            template=wanted.template,
            actor=run.actor,
        )
        run.undo.append((f"tenant {wanted.name}", lambda: self._tenants.destroy(wanted.name, actor=run.actor)))

    async def _remove_pool(self, run: _Run, pool: PoolSpec) -> None:
        await self._pools.destroy(run.wanted.name, pool.pool_id, actor=run.actor)

    async def _remove_user(self, run: _Run, user: UserSpec) -> None:
        await self._users.remove(run.wanted.name, user.user_id, actor=run.actor)

    async def _bring_up(self, run: _Run, starts: list[Action]) -> None:
        """Start what is to run, all at once; a failure of one is raised when all have come to an end.

        Pools take their places first: a worker may be left for later when the quota is short, a gateway may not.
        """
        pools = [spec for action in starts if isinstance(spec := action.subject, PoolSpec)]
        users = [spec for action in starts if isinstance(spec := action.subject, UserSpec)]
        rising = {asyncio.ensure_future(self._bring_pool_up(run, pool)): pool for pool in pools}

        async def start_worker(user: UserSpec) -> None:
            while waiting := [task for task, pool in rising.items() if not (task.done() or self._is_placed(run, pool))]:
                await asyncio.wait(waiting, timeout=_PLACES_SECONDS)
            await self._start_worker(run, user)

        for result in await asyncio.gather(*rising, *map(start_worker, users), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _is_placed(self, run: _Run, spec: PoolSpec) -> bool:
        """True when as many of a pool's instances run, or are about to, as its manifest asks for."""
        instances = self._catalog.instances_of(run.wanted.name, spec.pool_id)
        return sum(counts_as_running(instance) for instance in instances) >= spec.desired.running

    async def _start_worker(self, run: _Run, spec: UserSpec) -> None:
        bound = self._users.get(run.wanted.name, spec.user_id).instance_id
        if bound is None or (worker := self._catalog.instances.get(bound)) is None:
            return
        run.progress(f"starting the worker of {spec.user_id}")
        try:
            await self._operations.start(worker.ref, actor=run.actor)
        except QuotaExceeded as full:
            # More users than may run at once: this one's worker comes up with their first message.
            run.progress(f"the worker of {spec.user_id} is left for later: {full.message}")

    async def _bring_pool_up(self, run: _Run, spec: PoolSpec) -> None:
        pool = self._catalog.pool(run.wanted.name, spec.pool_id)

        def remember(made: Instance) -> None:
            run.undo.append((f"instance {made.ref}", lambda: self._operations.destroy(made.ref, actor=run.actor)))

        await self._pools.bring_about(pool, actor=run.actor, progress=run.progress, on_made=remember)

    async def _told(self, tenant_id: TenantId, error: Exception) -> Exception:
        """The error with what the logs say of it, which are removed together with what was created."""
        if not isinstance(error, MvmError):
            return error
        failed = [i for i in self._catalog.instances_of(tenant_id) if i.last_error and i.last_error in error.message]
        words = [said for instance in failed if (said := await self._last_words(instance)) is not None]
        return error_for_code(error.code, f"{error.message}: {words[0]}", error.hint) if words else error

    async def _roll_back(self, run: _Run, error: Exception) -> None:
        """Remove what this run created, the latest first; a new tenant takes everything in it along."""
        reason = error.message if isinstance(error, MvmError) else f"{type(error).__name__}: {error}"
        self._chronicle.tenant_event(run.wanted.name, "DeploymentFailed", actor=run.actor, detail=reason)
        steps = run.undo[:1] if run.undo and run.undo[0][0].startswith("tenant ") else run.undo[::-1]
        for what, undo in steps:
            run.progress(f"it failed; removing {what} again")
            try:
                await undo()
            except MvmError as second:
                self._chronicle.tenant_event(
                    run.wanted.name, "RollbackFailed", actor=run.actor, detail=f"{what}: {second.message}"
                )

    # Waiting

    async def wait_until_ready(
        self, tenant_id: TenantId, *, limit: float = READY_LIMIT_SECONDS, progress: Progress = silent
    ) -> list[Instance]:
        """Wait until the gateway answers and every worker that runs does; returns them.

        Raises `TimedOut` naming what was waited for, `Unavailable` as soon as one of them has failed for good.
        """
        self._catalog.tenant(tenant_id)
        deadline = self._clock.monotonic() + limit
        while True:
            missing = self._missing(tenant_id)
            if not missing:
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

    def _missing(self, tenant_id: TenantId) -> dict[Instance | None, str]:
        """What is not ready yet, each with what is waited for. An instance that sleeps is ready: a message wakes it."""
        missing: dict[Instance | None, str] = {}
        if self._gateways.gateway_of(tenant_id) is None:
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


def _tenant_changes(wanted: Deployment) -> TenantChanges:
    return TenantChanges(**tenant_settings(wanted))
