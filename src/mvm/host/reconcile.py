"""The reconcile engine: one pass at a time brings this host to what it should be (CONTRACT 12).

`mvm new`, `mvm deploy`, `mvm agent reconcile` and the agent's own upkeep all go through it. A pass plans (pure, see
`mvm.host.reconcile_plan`), carries out, and reports; one that finds everything as it should be does nothing. It is
planned again within the pass where what came down made room for what waited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog

from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.desired_store import DesiredStore, wanted_of
from mvm.host.progress import Progress, silent
from mvm.host.reconcile_actions import Action, Deferral, Kind, Plan, Prune
from mvm.host.reconcile_apply import Executor, Run, user_path
from mvm.host.reconcile_plan import NO_PRUNE, plan_tenant, plan_upkeep
from mvm.host.reconcile_records import Present
from mvm.host.reconcile_report import Failure, Report
from mvm.host.reconcile_told import Teller
from mvm.host.removals import OF_POOL, OF_TENANT, Removals, being_removed
from mvm.host.retries import Retries
from mvm.host.secrets import SecretStore
from mvm.model.desired import DesiredState, DesiredTenant
from mvm.model.entities import Instance
from mvm.model.errors import MvmError, QuotaExceeded
from mvm.model.ids import InstanceId, PoolId, TenantId
from mvm.model.validation import Problem, ValidationProblems, describe_location

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 30.0
ACTOR = "reconcile"
TENANTS_AT_ONCE = 8
_MAX_ROUNDS = 3
"""Plans of one tenant in one pass: a later one only where an earlier one made room, or an image."""
_BREATH = 64
"""Tenants that are looked at before anybody else has their turn."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One tenant as somebody wants it."""

    tenant: DesiredTenant
    template: str | None = None
    secrets: Mapping[str, str] | None = None
    prune: Prune = NO_PRUNE


@dataclass(frozen=True)
class _Asked:
    """What a pass is about."""

    tenants: list[TenantId]
    asks: Mapping[TenantId, Ask] = field(default_factory=dict)
    unknown: list[TenantId] = field(default_factory=list)
    """Tenants that are to go."""


_Ask = Callable[[], Awaitable[_Asked]]
"""Called when its pass begins: what was recorded while it waited for another one counts."""


class Reconciler:
    """Plans, carries out and reports passes; keeps the desired state between them."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        executor: Executor,
        is_busy: Callable[[InstanceId], bool],
        secrets: SecretStore,
        removals: Removals,
        desired: DesiredStore,
        retries: Retries,
        is_idle: Callable[[Instance], bool],
        chronicle: Chronicle,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._executor = executor
        self._is_busy = is_busy
        self._secrets = secrets
        self._removals = removals
        self._desired = desired
        self._retries = retries
        self._is_idle = is_idle
        self._clock = clock
        self._pass = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._teller = Teller(catalog, chronicle)
        self._unbuilt: dict[tuple[TenantId, PoolId], str] = {}
        self.observe: Callable[[float, int], None] = lambda seconds, errors: None
        """Told how long each pass took and how many errors it had."""

    # What others ask for

    async def apply(
        self,
        ask: Ask,
        *,
        actor: str,
        progress: Progress = silent,
        dry_run: bool = False,
        all_or_nothing: bool = False,
    ) -> Report:
        """Make one tenant what is asked for. What fails is in the report; `all_or_nothing` ends at the first failure.

        Raises, before anything is done, for what cannot be had without losing something.
        """
        return await self._apply(_settled(_of([ask])), actor, progress, dry_run=dry_run, all_or_nothing=all_or_nothing)

    async def apply_change(
        self,
        tenant_id: TenantId,
        change: Callable[[DesiredTenant], DesiredTenant],
        *,
        actor: str,
        progress: Progress = silent,
        dry_run: bool = False,
    ) -> Report:
        """Make one tenant what `change` makes of what should be of it when the pass begins; otherwise as `apply`.

        It is called once before, too: what is wrong with it is told at once.
        """
        change(await self._desired.tenant(tenant_id))

        async def asked() -> _Asked:
            return _of([Ask(tenant=change(await self._desired.tenant(tenant_id)))])

        return await self._apply(asked, actor, progress, dry_run=dry_run)

    async def apply_state(
        self, state: DesiredState, *, actor: str, progress: Progress = silent, dry_run: bool = False
    ) -> Report:
        """Make this host what a desired state says; it prunes in this pass what its flags allow, and never later."""
        prune = Prune(pools=state.prune_unknown_pools)
        asks = [Ask(tenant=tenant, prune=prune) for tenant in state.tenants]
        asked_for = {tenant.tenant_id for tenant in state.tenants}
        unknown = [tenant_id for tenant_id in sorted(self._catalog.tenants) if tenant_id not in asked_for]
        report = await self._apply(
            _settled(_of(asks, unknown if state.prune_unknown_tenants else [])), actor, progress, dry_run=dry_run
        )
        if not state.prune_unknown_tenants:
            report.unknown += [Deferral(name, "nobody asks for this tenant", name) for name in unknown]
        return report

    async def bring_about(
        self, tenant_id: TenantId, pool_id: PoolId, *, actor: str, progress: Progress = silent
    ) -> Report:
        """Bring one pool to what its record says; raises what kept it from that when everything else is done."""
        report = await self._one_pass(_settled(_Asked([tenant_id])), actor, progress, only=pool_id)
        if report.failures:
            raise report.failures[0].error
        if report.refusals:
            raise report.refusals[0]
        if short := [deferral for deferral in report.deferrals if deferral.for_room]:
            hint = f"`mvm tenant info {tenant_id}` shows the quotas; what fits is there"
            raise QuotaExceeded(short[0].reason, hint=hint)
        return report

    async def keep_up(self) -> Report:
        """The agent's own pass: everything is brought to what the records say, and pending wishes are tried again."""

        async def asked() -> _Asked:
            pending = {t.tenant_id: Ask(tenant=t, template=template) for t, template in await self._desired.pending()}
            return _Asked([*self._catalog.tenants, *(t for t in pending if t not in self._catalog.tenants)], pending)

        return await self._one_pass(asked, ACTOR, silent)

    async def desired(self, node_id: str) -> DesiredState:
        """What this host should run."""
        return await self._desired.state(node_id)

    def kick(self) -> None:
        """Something changed: the next pass of the agent's own comes at once."""
        self._wanted.set()

    async def run(self) -> None:
        """Keep up for ever: at once, whenever something changed, and every `INTERVAL_SECONDS`."""
        while True:
            self._wanted.clear()
            try:
                report = await self.keep_up()
            except Exception:
                log.exception("a reconcile pass failed")
            else:
                if report.done["instances"]["restarted"] and not report.failures:
                    continue  # a pool is being rolled: the next instance follows
            try:
                async with asyncio.timeout(INTERVAL_SECONDS):  # see `Networks._keep` for why not `wait_for`
                    await self._wanted.wait()
            except TimeoutError:
                continue

    # One pass

    async def _apply(
        self, asked: _Ask, actor: str, progress: Progress, *, dry_run: bool, all_or_nothing: bool = False
    ) -> Report:
        if self._pass.locked():
            progress("waiting for another reconcile pass to end")
        report = await self._one_pass(asked, actor, progress, dry_run=dry_run, all_or_nothing=all_or_nothing)
        if report.done["instances"]["restarted"]:
            self.kick()
        return report

    async def _one_pass(
        self,
        asked: _Ask,
        actor: str,
        progress: Progress,
        *,
        only: PoolId | None = None,
        dry_run: bool = False,
        all_or_nothing: bool = False,
    ) -> Report:
        """Plan all of it, then carry it out; the time that it takes and its errors are told at the end."""
        async with self._pass:
            began, own = self._clock.monotonic(), actor == ACTOR
            run = Run(Report(dry_run=dry_run), actor, progress, all_or_nothing=all_or_nothing)
            found = await asked()
            plans = await self._plans(found, only, self._retries.waiting() if own else {}, own=own, report=run.report)
            prunes = Plan()
            for tenant_id in found.unknown:
                self._plan_prune(tenant_id, prunes)
            for plan in (prunes, *plans.values()):
                run.report.actions += plan.actions
                run.report.deferrals += plan.deferrals
                run.report.unknown += plan.unknown
            if not dry_run:
                await self._executor.carry_out(None, prunes.actions, run)
                await self._carry_out(plans, found.asks, only, run)
                self._teller.tell(run.report, actor=actor, whole_host=own)
                self.observe(self._clock.monotonic() - began, len(run.report.failures))
            return run.report

    async def _plans(
        self, asked: _Asked, only: PoolId | None, waiting: Mapping[str, str], *, own: bool, report: Report
    ) -> dict[TenantId, Plan]:
        """A plan for each tenant that has anything to it. Contradictions are raised together, or noted by `own`."""
        removing = await self._removing()
        plans: dict[TenantId, Plan] = {}
        problems: list[tuple[TenantId, tuple[str | int, ...], MvmError]] = []
        for number, tenant_id in enumerate(asked.tenants):
            if number % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
            if (tenant_id,) in removing and tenant_id in self._catalog.tenants:
                if tenant_id in asked.asks and not own:
                    problems.append((tenant_id, (), being_removed(tenant_id)))
                continue
            plan = await self._plan(tenant_id, asked.asks.get(tenant_id), only, waiting, removing)
            problems += [(tenant_id, c.location, c.error) for c in plan.contradictions]
            if plan.actions or plan.deferrals or plan.unknown or (tenant_id in asked.asks):
                plans[tenant_id] = plan
        if problems and own:
            report.failures += [Failure(tenant_id, error) for tenant_id, _, error in problems]
            for tenant_id, _, _ in problems:
                plans.pop(tenant_id, None)
        elif len(problems) == 1:
            raise problems[0][2]
        elif problems:
            raise ValidationProblems(
                "desired state",
                [Problem(f"{t}: {describe_location(where)}", e.message, e.hint) for t, where, e in problems],
            )
        return plans

    async def _plan(
        self,
        tenant_id: TenantId,
        ask: Ask | None,
        only: PoolId | None,
        waiting: Mapping[str, str],
        removing: set[tuple[str, ...]],
    ) -> Plan:
        present, now = self._present(tenant_id, waiting, removing), self._clock.now()
        if ask is None:
            return plan_upkeep(tenant_id, present, now=now, only=only) if present.tenant is not None else Plan()
        differing = await self._secrets.differing(tenant_id, ask.secrets) if ask.secrets else ()
        wanted = wanted_of(ask.tenant, template=ask.template)
        return plan_tenant(wanted, present, now=now, differing_secrets=differing, prune=ask.prune)

    def _present(self, tenant_id: TenantId, waiting: Mapping[str, str], removing: set[tuple[str, ...]]) -> Present:
        pools = {p.pool_id: p for p in self._catalog.pools_of(tenant_id) if (tenant_id, p.pool_id) not in removing}
        return Present(
            tenant=self._catalog.tenants.get(tenant_id),
            pools=pools,
            users={u.user_id: u for u in self._catalog.users_of(tenant_id) if u.pool_id in pools},
            instances=[i for i in self._catalog.instances_of(tenant_id) if i.pool_id in pools],
            is_busy=self._is_busy,
            idle={i.instance_id for i in self._catalog.awake_of(tenant_id) if self._is_idle(i)},
            waiting=waiting,
            images={pool.pool_id: pool.revision for pool in pools.values() if pool.revision},
            unbuilt={pool_id: why for (owner, pool_id), why in self._unbuilt.items() if owner == tenant_id},
        )

    async def _removing(self) -> set[tuple[str, ...]]:
        """Ids of tenants and pools that are being removed: nothing is made in them any more."""
        return {*await self._removals.recorded_of(OF_TENANT), *await self._removals.recorded_of(OF_POOL)}

    def _plan_prune(self, tenant_id: TenantId, plan: Plan) -> None:
        kept = [pool for pool in self._catalog.pools_of(tenant_id) if pool.critical or pool.pinned]
        if kept:
            reason = f"it is not pruned: {kept[0].pool_id} is {'critical' if kept[0].critical else 'pinned'}"
            plan.deferrals.append(Deferral(tenant_id, reason, tenant_id))
        else:
            plan.actions.append(Action(Kind.DESTROY_TENANT, tenant_id, "nobody asks for it", tenant_id))

    async def _carry_out(
        self, plans: dict[TenantId, Plan], asks: Mapping[TenantId, Ask], only: PoolId | None, run: Run
    ) -> None:
        places = asyncio.Semaphore(TENANTS_AT_ONCE)

        async def one(tenant_id: TenantId, plan: Plan) -> None:
            async with places:
                await self._carry_out_one(tenant_id, plan, asks.get(tenant_id), only, run)

        await asyncio.gather(*(one(tenant_id, plan) for tenant_id, plan in plans.items()))

    async def _carry_out_one(
        self, tenant_id: TenantId, plan: Plan, ask: Ask | None, only: PoolId | None, run: Run
    ) -> None:
        """Carry out a tenant's plan; plan again while that makes room for what waits."""
        wanted = wanted_of(ask.tenant, template=ask.template) if ask is not None else None
        secrets = dict(ask.secrets or {}) if ask is not None else {}
        first = plan
        for _ in range(_MAX_ROUNDS):
            if not plan.actions:
                break
            before, built = run.report.came_down, len(run.report.done["pools"]["built"])
            own = Run(run.report, run.actor, run.progress, secrets, run.all_or_nothing)
            await self._executor.carry_out(wanted, plan.actions, own)
            self._note_failures(run.report)
            self._note_builds(plan, run.report)
            made_room = run.report.came_down > before and any(d.for_room for d in plan.deferrals)
            if run.given_up or not (made_room or len(run.report.done["pools"]["built"]) > built):
                break
            failed = {failure.object: "it failed just now" for failure in run.report.failures}
            told = plan.deferrals
            plan = await self._plan(tenant_id, ask, only, failed, await self._removing())
            run.report.actions += plan.actions
            run.report.deferrals = [d for d in run.report.deferrals if d not in told] + plan.deferrals
        if ask is not None and not run.all_or_nothing:
            await self._keep(ask, first)

    def _note_builds(self, plan: Plan, report: Report) -> None:
        """Remember the builds that failed, until they do not."""
        failed = {failure.object: failure.error.message for failure in report.failures}
        for action in plan.actions:
            if action.kind is Kind.BUILD_POOL and action.pool_id is not None:
                self._unbuilt.pop((action.tenant_id, action.pool_id), None)
                if (why := failed.get(action.object)) is not None:
                    self._unbuilt[action.tenant_id, action.pool_id] = f"its last build failed: {why}"

    def _note_failures(self, report: Report) -> None:
        """What failed is not tried again at once by the agent's own passes."""
        for failure in report.failures:
            if self._retries.may_try(failure.object):
                self._retries.tried(failure.object)

    async def _keep(self, ask: Ask, plan: Plan) -> None:
        """Remember what could not be recorded."""
        tenant_id = ask.tenant.tenant_id
        records = any(action.kind.is_about_records for action in plan.actions)
        if not records and not any(deferral.for_room for deferral in plan.deferrals):
            return await self._desired.is_recorded(tenant_id)
        left = await self._plan(tenant_id, Ask(tenant=ask.tenant), None, {}, set())
        waits = {f"{tenant_id}/{p.pool_id}" for p in ask.tenant.pools} | {
            user_path(tenant_id, u.user_id) for u in ask.tenant.users
        }
        unrecorded = any(a.kind.is_about_records for a in left.actions) or any(
            d.object in waits and d.for_room and d.pool_id not in self._pools_of(tenant_id) for d in left.deferrals
        )
        if unrecorded:
            await self._desired.keep(ask.tenant, template=ask.template)
        else:
            await self._desired.is_recorded(tenant_id)

    def _pools_of(self, tenant_id: TenantId) -> set[PoolId]:
        return {pool.pool_id for pool in self._catalog.pools_of(tenant_id)}


def _of(asks: list[Ask], unknown: list[TenantId] | None = None) -> _Asked:
    by_tenant = {ask.tenant.tenant_id: ask for ask in asks}
    return _Asked(list(by_tenant), by_tenant, unknown or [])


def _settled(asked: _Asked) -> _Ask:
    """What does not hang on the moment in which its pass begins."""

    async def same() -> _Asked:
        return asked

    return same
