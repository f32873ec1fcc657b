"""What each user may use: wakes in an hour, running minutes in a day. Checked before a wake for them, never in between.

Wakes by an operator's command are not counted. What was used is kept over a restart of the agent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from mvm.host.audit import AuditAction
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.model.entities import Budget, Instance, User
from mvm.model.errors import Refused
from mvm.model.ids import TenantId, UserId
from mvm.model.states import State
from mvm.store.base import Store

PREFIX = "budgets/"
_HOUR = timedelta(hours=1)

RunningSeconds = Callable[[TenantId, UserId], Awaitable[float]]
"""How long a user's worker has run today (UTC)."""


class OverBudget(Refused):
    """A user has used up what they may use for now; the message is for them."""


class Budgets:
    """Remembers the wakes of users who have a budget, and says no when it is used up."""

    def __init__(
        self, *, catalog: Catalog, store: Store, running_today: RunningSeconds, chronicle: Chronicle, clock: Clock
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._running_today = running_today
        self._chronicle = chronicle
        self._clock = clock

    async def check(self, instance: Instance) -> None:
        """Raise `OverBudget` when the user of an instance at rest may not have it woken now."""
        user = self._user(instance)
        if user is None or instance.state is State.RUNNING:
            return
        if (why := await self._used_up(user, paused=instance.state is State.WARM)) is not None:
            self._chronicle.record(instance, AuditAction.WAKE_REFUSED, actor="budget", detail=why)
            raise OverBudget(why, hint=f"the budget of user {user.user_id!r} is in the deployment's file")

    async def woken(self, instance: Instance) -> None:
        """Count a wake; call it with the instance as it was before. To go on after a pause is none."""
        user = self._user(instance)
        if user is None or user.budget.wakes_per_hour is None or instance.state.has_process:
            return
        recent = [*await self._wakes(user), self._clock.now()][-user.budget.wakes_per_hour - 1 :]
        await self._store.put(_key(user), [at.isoformat() for at in recent], durable=False)

    def _user(self, instance: Instance) -> User | None:
        """The user of an instance if they have a budget."""
        user = self._catalog.users.get((instance.tenant_id, instance.user)) if instance.user is not None else None
        return user if user is not None and user.budget != Budget() else None

    async def _used_up(self, user: User, *, paused: bool) -> str | None:
        """What is used up and until when; None when nothing is."""
        budget = user.budget
        if budget.wakes_per_hour is not None and not paused:
            wakes = await self._wakes(user)
            if len(wakes) >= budget.wakes_per_hour:
                # Of wakes in the last hour, the one that must be forgotten before another one is allowed.
                again = wakes[-budget.wakes_per_hour] + _HOUR if budget.wakes_per_hour else None
                until = f"; it can be woken again at {again:%H:%M} UTC" if again is not None else ""
                return f"it may be woken {_times(budget.wakes_per_hour)} an hour{until}"
        if (limit := budget.running_minutes_per_day) is not None:
            used = await self._running_today(user.tenant_id, user.user_id)
            if used >= 60 * limit:
                return f"it may run {limit} minutes a day; it can be woken again after midnight UTC"
        return None

    async def _wakes(self, user: User) -> list[datetime]:
        """Wakes of the last hour, oldest first; one in the future (the clock went back) counts as just now."""
        document = await self._store.get(_key(user))
        now = self._clock.now()
        kept = document.value if document is not None and isinstance(document.value, list) else []
        times = [min(at, now) for at in map(_moment, kept) if at is not None]
        return [at for at in times if now - at < _HOUR]


def _moment(value: object) -> datetime | None:
    """A time as it was written; None for what is none."""
    try:
        return datetime.fromisoformat(str(value)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _key(user: User) -> str:
    return f"{PREFIX}{user.tenant_id}/{user.user_id}"
