"""Carrying out the plan of one tenant: records one after the other, then instances side by side.

Nothing that fails keeps the rest from being done; it is in the report with what it was about. What a guest or a quota
refuses for now (a turn is under way, no place is free) is put off, not failed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from mvm.host.catalog import Catalog
from mvm.host.channel_logins import ChannelRefused
from mvm.host.contracts import InstanceOperations, LastWords
from mvm.host.pools import Pools
from mvm.host.progress import Progress, silent
from mvm.host.quotas import counts_as_running
from mvm.host.reconcile_actions import Action, Deferral, Kind, Wanted
from mvm.host.reconcile_report import Failure, Report
from mvm.host.tenants import TenantChanges, Tenants
from mvm.host.users import Users
from mvm.model.entities import Instance, Pool, PoolSpec, UserSpec
from mvm.model.errors import Conflict, MvmError, Refused, error_for_code
from mvm.model.ids import InstanceRef, TenantId
from mvm.model.states import State

log = structlog.get_logger(__name__)

_PLACES_SECONDS = 0.01
"""Pause between looks at whether a start has been recorded, which takes a write to the disk."""


class Images(Protocol):
    """What reconcile needs of image revisions."""

    async def build(self, pool: Pool, *, actor: str, progress: Progress) -> Pool:
        """Make the image that the pool asks for its own; raises when it cannot be built."""

    async def roll_back(self, pool: Pool, *, actor: str, reason: str) -> Pool | None:
        """Go back to the revision before, whose instances came up; None when there is none."""


@dataclass
class Run:
    """One pass under way over one tenant."""

    report: Report
    actor: str
    progress: Progress = silent
    secrets: Mapping[str, str] | None = None
    all_or_nothing: bool = False
    """True: after the first failure nothing more is begun."""
    begun: int = 0
    total: int = 0
    """Actions of the plan that is carried out, and how many of them have been begun."""

    @property
    def given_up(self) -> bool:
        return self.all_or_nothing and bool(self.report.failures)

    def begin(self, action: Action) -> None:
        """Tell that an action begins, as which of how many."""
        self.begun += 1
        self.progress(f"{action.kind} {action.object}", done=self.begun, total=self.total)


@dataclass
class _Rise:
    """One instance that is being brought up; its ref as soon as it is known."""

    action: Action
    task: asyncio.Task[None]
    ref: InstanceRef | None = None


class Executor:
    """Does what plans say."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        tenants: Tenants,
        pools: Pools,
        users: Users,
        operations: InstanceOperations,
        images: Images | None,
        last_words: LastWords,
    ) -> None:
        self._catalog = catalog
        self._tenants = tenants
        self._pools = pools
        self._users = users
        self._operations = operations
        self._images = images
        self._last_words = last_words

    async def carry_out(self, wanted: Wanted | None, actions: Iterable[Action], run: Run) -> None:
        """Do all of it, in order."""
        todo = list(actions)
        run.begun, run.total = 0, len(todo)
        for action in (action for action in todo if action.kind.is_about_records):
            await self._guarded(action, run, self._record(wanted, action, run))
        if run.given_up:
            return
        for action in todo:
            if action.kind is Kind.BUILD_POOL:
                await self._guarded(action, run, self._build(action, run))
        await self._bring_up([action for action in todo if action.kind.brings_up], run)
        if run.given_up:
            return
        await self._bring_down([a for a in todo if a.kind in (Kind.STOP, Kind.WARM, Kind.SLEEP)], run)
        await asyncio.gather(
            *(self._guarded(a, run, self._renew(a, run)) for a in todo if a.kind is Kind.RENEW),
            *(self._guarded(a, run, self._discard(a, run)) for a in todo if a.kind is Kind.DISCARD),
        )

    async def _guarded(self, action: Action, run: Run, work: Coroutine[object, object, None]) -> None:
        """Do one thing; what goes wrong is noted where it belongs."""
        if run.given_up:
            return work.close()
        path = action.object if "/" in action.object else _path(action)
        try:
            await work
        except Refused as refusal:
            run.report.refusals.append(refusal)
            deferral = Deferral(path, refusal.message, action.tenant_id, action.pool_id, action.instance)
            run.report.deferrals.append(deferral)
        except MvmError as error:
            run.report.failures.append(Failure(path, error))
        except Exception as error:
            log.exception("reconcile failed at one thing", action=action.kind, object=action.object)
            defect = MvmError(f"{action.kind} failed: {type(error).__name__}", hint="the agent's log has more")
            run.report.failures.append(Failure(path, defect))

    # Records

    async def _record(self, wanted: Wanted | None, action: Action, run: Run) -> None:
        tenant_id, actor, subject = action.tenant_id, run.actor, action.subject
        run.begin(action)
        match action.kind, subject:
            case Kind.DESTROY_TENANT, _:
                await self._tenants.destroy(tenant_id, actor=actor, progress=run.progress)
                run.report.note("tenants", "pruned", tenant_id)
            case Kind.CREATE_TENANT, _ if wanted is not None:
                await self._tenants.create(
                    tenant_id,
                    changes=TenantChanges.model_validate(wanted.settings),
                    net_id=wanted.net_id,
                    subnet=wanted.subnet,
                    template=wanted.template,
                    actor=actor,
                )
                run.report.note("tenants", "created", tenant_id)
            case Kind.UPDATE_TENANT, _ if wanted is not None:
                await self._tenants.update(tenant_id, TenantChanges.model_validate(wanted.settings), actor=actor)
                run.report.note("tenants", "updated", tenant_id)
            case Kind.SET_SECRETS, _:
                changed = await self._tenants.set_secrets(tenant_id, run.secrets or {}, actor=actor)
                run.report.done["secrets"]["set"] += changed
            case _, UserSpec():
                await self._record_user(action, subject, run)
            case _:
                await self._record_pool(action, run)

    async def _record_pool(self, action: Action, run: Run) -> None:
        tenant_id, pool_id = action.tenant_id, action.pool_id
        assert pool_id is not None
        path = f"{tenant_id}/{pool_id}"
        match action.kind, action.subject:
            case Kind.CREATE_POOL, PoolSpec() as spec:
                await self._pools.create(tenant_id, spec, actor=run.actor)
                run.report.note("pools", "created", path)
            case Kind.UPDATE_POOL, PoolSpec() as spec:
                await self._pools.update(tenant_id, spec, actor=run.actor)
                run.report.note("pools", "updated", path)
            case Kind.DESTROY_POOL, _:
                instances = [str(i.ref) for i in self._catalog.instances_of(tenant_id, pool_id)]
                await self._pools.destroy(tenant_id, pool_id, actor=run.actor, progress=run.progress)
                run.report.note("pools", "pruned", path)
                run.report.done["instances"]["destroyed"] += instances
            case unknown:
                raise AssertionError(f"no way to do {unknown}")

    async def _record_user(self, action: Action, user: UserSpec, run: Run) -> None:
        tenant_id, actor, path = action.tenant_id, run.actor, _path(action)
        before = {i.instance_id for i in self._catalog.instances_of(tenant_id)}
        match action.kind:
            case Kind.ADD_USER:
                await self._users.add(
                    tenant_id,
                    user.user_id,
                    telegram=user.telegram,
                    discord=user.discord,
                    pool_id=user.pool_id,
                    budget=user.budget,
                    actor=actor,
                )
                run.report.note("users", "added", path)
            case Kind.UPDATE_USER:
                await self._users.change(tenant_id, user, actor=actor)
                run.report.note("users", "updated", path)
            case Kind.REMOVE_USER:
                await self._users.remove(tenant_id, user.user_id, actor=actor, progress=run.progress)
                run.report.note("users", "removed", path)
            case Kind.BIND_USER:
                await self._users.bind(self._users.get(tenant_id, user.user_id), actor=actor)
                await self._users.refresh_gateway(tenant_id, actor=actor)
        after = {i.instance_id: i.ref for i in self._catalog.instances_of(tenant_id)}
        for instance_id in after.keys() - before:
            run.report.note("instances", "created", str(after[instance_id]))

    async def _build(self, action: Action, run: Run) -> None:
        assert self._images is not None
        assert action.pool_id is not None
        run.begin(action)
        pool = self._catalog.pool(action.tenant_id, action.pool_id)
        await self._images.build(pool, actor=run.actor, progress=run.progress)
        run.report.note("pools", "built", action.object)

    # Instances

    async def _bring_up(self, actions: list[Action], run: Run) -> None:
        """Bring up everything at once, but let whoever has priority take their places in the quotas first."""
        rises: list[_Rise] = []

        async def rise(index: int, action: Action, before: list[_Rise]) -> None:
            while waiting := [r.task for r in before if not (r.task.done() or self._has_its_place(r))]:
                await asyncio.wait(waiting, timeout=_PLACES_SECONDS)
            await self._guarded(action, run, self._raise(action, run, rises[index]))

        for index, action in enumerate(actions):
            before = [r for r in rises if self._priority(r.action) < self._priority(action)]
            task = asyncio.create_task(rise(index, action, before), name=f"{action.kind} {action.object}")
            rises.append(_Rise(action, task))
        await asyncio.gather(*(r.task for r in rises))

    def _priority(self, action: Action) -> int:
        pool = self._catalog.pools.get((action.tenant_id, action.pool_id)) if action.pool_id else None
        return pool.role.reconcile_priority if pool is not None else 0

    def _has_its_place(self, rise: _Rise) -> bool:
        instance = self._catalog.instances.get(rise.ref.instance_id) if rise.ref is not None else None
        return instance is not None and counts_as_running(instance)

    async def _raise(self, action: Action, run: Run, rise: _Rise) -> None:
        """Have one instance where it is to be: made if need be, started, then put to rest if that is what is wanted."""
        run.begin(action)
        rise.ref = ref = await self._ref_of(action, run)
        if action.to is State.READY:
            return
        await self._start(ref, run, what=_STARTED.get(action.kind, "started"))
        if action.to is State.WARM:
            await self._operations.warm(ref, actor=run.actor)
            run.report.note("instances", "warmed", str(ref))
        elif action.to is State.SLEEPING:
            await self._operations.sleep(ref, actor=run.actor, force=True)
            run.report.note("instances", "slept", str(ref))

    async def _ref_of(self, action: Action, run: Run) -> InstanceRef:
        if action.instance is not None:
            return action.instance
        assert action.pool_id is not None
        if isinstance(action.subject, UserSpec):
            bound = self._users.get(action.tenant_id, action.subject.user_id).instance_id
            if bound is None or bound not in self._catalog.instances:
                raise Conflict(f"user {action.subject.user_id!r} has no worker yet")
            return self._catalog.instances[bound].ref
        made = await self._operations.create_instance(action.tenant_id, action.pool_id, actor=run.actor)
        run.report.note("instances", "created", str(made.ref))
        return made.ref

    async def _start(self, ref: InstanceRef, run: Run, *, what: str) -> None:
        try:
            await self._operations.start(ref, actor=run.actor, unless_held=True)
        except (Refused, ChannelRefused):
            raise
        except MvmError as error:
            raise await self._told(ref, error) from error
        run.report.note("instances", what, str(ref))

    async def _told(self, ref: InstanceRef, error: MvmError) -> MvmError:
        """The error with what the instance's log says of it."""
        instance = self._catalog.instances.get(ref.instance_id)
        words = await self._last_words(instance) if instance is not None else None
        return error if words is None else error_for_code(error.code, f"{error.message}: {words}", error.hint)

    async def _bring_down(self, actions: list[Action], run: Run) -> None:
        """The least important first, those of one priority at once."""
        priorities = sorted({self._priority(action) for action in actions}, reverse=True)
        for priority in priorities:
            group = [action for action in actions if self._priority(action) == priority]
            await asyncio.gather(*(self._guarded(a, run, self._lower(a, run)) for a in group))

    async def _lower(self, action: Action, run: Run) -> None:
        assert action.instance is not None
        run.begin(action)
        match action.kind:
            case Kind.STOP:
                await self._operations.stop(action.instance, actor=run.actor, hold=False)
                run.report.note("instances", "stopped", str(action.instance))
            case Kind.WARM:
                await self._operations.warm(action.instance, actor=run.actor)
                run.report.note("instances", "warmed", str(action.instance))
            case _:
                await self._operations.sleep(action.instance, actor=run.actor)
                run.report.note("instances", "slept", str(action.instance))

    # Rolls

    async def _renew(self, action: Action, run: Run) -> None:
        """Restart one idle instance so that it takes on what its pool says; a message meanwhile finds it coming up."""
        assert action.instance is not None
        before = self._catalog.instance(action.instance)
        run.begin(action)
        await self._operations.stop(action.instance, actor=run.actor, hold=False)
        try:
            await self._start(action.instance, run, what="restarted")
        except MvmError as error:
            if not isinstance(error, _NOT_OF_THE_IMAGE) and before.instance_id in self._catalog.instances:
                await self._back_to_what_ran(before, error, run)
            raise

    async def _back_to_what_ran(self, before: Instance, error: MvmError, run: Run) -> None:
        """A canary that does not come up on a new image takes its pool back to the image that did."""
        pool = self._catalog.pool(before.tenant_id, before.pool_id)
        if self._images is None or before.image_revision in ("", pool.revision):
            return
        if await self._images.roll_back(pool, actor=run.actor, reason=error.message) is None:
            return
        with contextlib.suppress(Refused):  # a person has stopped it meanwhile, or somebody has taken its place
            await self._operations.start(before.ref, actor=run.actor, unless_held=True)

    async def _discard(self, action: Action, run: Run) -> None:
        assert action.instance is not None
        run.begin(action)
        await self._operations.discard(action.instance, actor=run.actor)
        run.report.note("instances", "discarded", str(action.instance))


_NOT_OF_THE_IMAGE = (Refused, Conflict, ChannelRefused)
"""Why an instance does not come up that says nothing of its image: no place, ended by somebody, a token of its own."""
_STARTED = {Kind.WAKE: "woken", Kind.RESUME: "resumed"}


def _path(action: Action) -> str:
    """Where in the state the thing is that an action is about."""
    match action.subject:
        case UserSpec(user_id=user):
            return user_path(action.tenant_id, user)
        case PoolSpec(pool_id=pool):
            return f"{action.tenant_id}/{pool}"
    return action.object


def user_path(tenant_id: TenantId, user_id: str) -> str:
    """How reports name a user."""
    return f"{tenant_id}/users/{user_id}"
