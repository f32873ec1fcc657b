"""Accounting: what every user of every tenant used, by day, kept over restarts and crashes of the agent.

Time is measured on the monotonic clock while the agent lives and written every `FLUSH_SECONDS` together with the moment
and the event it was counted up to, in one transaction: nothing is counted twice, whenever the agent dies. What happened
between the last writing and the next start is taken from the instances' own records (`mvm.model.usage.unseen`), for
instances outlive the agent. Answers are counted from the event stream, which is on the disk.

Figures of a tenant outlive it, until they are `KEEP_DAYS` old.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, timedelta

import structlog
from pydantic import AwareDatetime

from mvm.host.catalog import Catalog
from mvm.host.clock import Clock
from mvm.host.documents import parsed_or
from mvm.host.events import EventLog
from mvm.host.quotas import machine_size
from mvm.model.base import Frozen
from mvm.model.entities import Instance, TransitionKind
from mvm.model.errors import MvmError
from mvm.model.ids import InstanceId, PoolId, TenantId, UserId
from mvm.model.states import State
from mvm.model.usage import Usage, by_day, held, unseen
from mvm.store.base import Store, Write

log = structlog.get_logger(__name__)

FLUSH_SECONDS = 30.0
KEEP_DAYS = 400
ANSWER_SENT = "AnswerSent"
PREFIX = "usage/"
CURSOR = "host/usage"
_POOL = "pool."
"""Begins the name of what belongs to no user: the pool's own instances. No user id has a dot in it."""

_Key = tuple[TenantId, date, str]


@dataclass(frozen=True)
class UsageRow:
    """What one user, or the instances of a pool that are nobody's, used over a time."""

    tenant_id: TenantId
    user_id: UserId | None
    pool_id: PoolId | None
    usage: Usage

    @property
    def key(self) -> str:
        """Orders rows; the next page begins after one."""
        who = f"{_POOL}{self.pool_id}" if self.user_id is None else self.user_id
        return f"{self.tenant_id}/{who}"


class _Cursor(Frozen):
    """Up to where everything was counted when it was written last."""

    counted_to: AwareDatetime
    event: int


@dataclass(frozen=True)
class _Up:
    """An instance with a process, counted up to `since` (monotonic)."""

    tenant_id: TenantId
    who: str
    state: State
    mem_mib: int
    since: float


class Accounting:
    """Counts what instances use. Belongs to one event loop."""

    def __init__(self, catalog: Catalog, events: EventLog, store: Store, clock: Clock) -> None:
        self._catalog = catalog
        self._events = events
        self._store = store
        self._clock = clock
        self._up: dict[InstanceId, _Up] = {}
        self._pending: dict[_Key, Usage] = {}
        self._counted_event = 0
        self._counting = False
        self._writing = asyncio.Lock()
        self._forgot_on: date | None = None

    async def run(self) -> None:
        """Count for ever, from what an earlier agent left on. Begin it when every instance is recovered."""
        await self.begin()
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self.flush()
                await self.forget_old()
            except MvmError:
                log.exception("usage cannot be written; it is counted on and tried again")

    async def begin(self) -> None:
        """Take up what happened since the last writing, and count from now on."""
        document = await self._store.get(CURSOR)
        now = self._clock.now()
        cursor = parsed_or(_Cursor, document, _Cursor(counted_to=now, event=self._events.last_number))
        if document is not None:
            self._counted_event = min(cursor.event, self._events.last_number)
            for instance in self._catalog.instances.values():
                for day, usage in unseen(instance, self._mem_mib(instance), since=cursor.counted_to, now=now):
                    self._count((instance.tenant_id, day, _who(instance)), usage)
        for instance in self._catalog.instances.values():
            self._follow(instance)
        self._catalog.watchers.append(self._instance_changed)
        self._counting = True
        await self.flush()

    async def flush(self) -> None:
        """Write everything counted so far. Does nothing before `begin`."""
        if not self._counting:
            return
        async with self._writing:
            self._count_time()
            counted_event = self._count_answers()
            batch, self._pending = self._pending, {}
            try:
                await self._write(batch, counted_event)
            except Exception:
                for key, usage in batch.items():
                    self._count(key, usage)
                raise

    async def rows(self, tenant_id: TenantId | None, *, since: date) -> list[UsageRow]:
        """What was used from that day (UTC) on, by tenant and user, everything up to now included."""
        await self.flush()
        total: dict[tuple[TenantId, str], Usage] = {}
        prefix = PREFIX if tenant_id is None else f"{PREFIX}{tenant_id}/"
        for document in await self._store.list(prefix):
            tenant, day, who = document.key.removeprefix(PREFIX).split("/")
            if date.fromisoformat(day) >= since:
                key = TenantId(tenant), who
                total[key] = total.get(key, Usage()) + parsed_or(Usage, document, Usage())
        return [_row(tenant, who, usage) for (tenant, who), usage in sorted(total.items(), key=lambda item: item[0])]

    async def running_today(self, tenant_id: TenantId, user_id: UserId) -> float:
        """Seconds that a user's worker has run today (UTC), up to now."""
        await self.flush()
        document = await self._store.get(f"{PREFIX}{tenant_id}/{self._today().isoformat()}/{user_id}")
        return parsed_or(Usage, document, Usage()).running_seconds

    def _instance_changed(self, before: Instance | None, after: Instance | None) -> None:
        instance = after or before
        assert instance is not None
        if after is None or before is None or (before.state, before.user) != (after.state, after.user):
            self._close(instance.instance_id)
            if after is not None:
                self._follow(after)
        if before is None or after is None or after.last_wake in (None, before.last_wake):
            return
        if after.last_wake is not None and after.last_wake.kind is TransitionKind.WAKE:
            self._count((after.tenant_id, self._today(), _who(after)), Usage(wakes=1))

    def _follow(self, instance: Instance) -> None:
        if instance.state.has_process:
            self._up[instance.instance_id] = _Up(
                tenant_id=instance.tenant_id,
                who=_who(instance),
                state=instance.state,
                mem_mib=self._mem_mib(instance),
                since=self._clock.monotonic(),
            )

    def _close(self, instance: InstanceId) -> None:
        """Count an instance up to now; it is not followed any more."""
        up = self._up.pop(instance, None)
        if up is None:
            return
        now = self._clock.now()
        elapsed = self._clock.monotonic() - up.since
        for day, seconds in by_day(now - timedelta(seconds=elapsed), now):
            self._count((up.tenant_id, day, up.who), held(up.state, up.mem_mib, seconds))

    def _count_time(self) -> None:
        """Count every instance that is up until now."""
        for instance_id in list(self._up):
            self._close(instance_id)
            if (instance := self._catalog.instances.get(instance_id)) is not None:
                self._follow(instance)

    def _count_answers(self) -> int:
        """Count the answers told since the last time; returns the number of the newest event."""
        newest = self._events.last_number
        answers: Counter[_Key] = Counter()
        for event in self._events.recent(since=self._counted_event):
            if event.kind == ANSWER_SENT and event.tenant_id is not None and event.user_id is not None:
                answers[event.tenant_id, event.timestamp.astimezone(UTC).date(), event.user_id] += 1
        for key, count in answers.items():
            self._count(key, Usage(messages=count))
        self._counted_event = newest
        return newest

    async def _write(self, batch: dict[_Key, Usage], counted_event: int) -> None:
        writes = [
            Write(CURSOR, {"counted_to": self._clock.now().isoformat(), "event": counted_event}),
        ]
        for (tenant, day, who), usage in batch.items():
            key = f"{PREFIX}{tenant}/{day.isoformat()}/{who}"
            document = await self._store.get(key)
            before = parsed_or(Usage, document, Usage())
            writes.append(Write(key, (before + usage).model_dump(mode="json")))
        await self._store.put_many(writes, durable=False)

    async def forget_old(self) -> None:
        """Once a day: remove what is older than `KEEP_DAYS`."""
        today = self._today()
        if self._forgot_on == today:
            return
        oldest = today - timedelta(days=KEEP_DAYS)
        old = [d.key for d in await self._store.list(PREFIX) if date.fromisoformat(d.key.split("/")[2]) < oldest]
        for key in old:
            await self._store.delete(key)
        self._forgot_on = today

    def _count(self, key: _Key, usage: Usage) -> None:
        self._pending[key] = self._pending.get(key, Usage()) + usage

    def _mem_mib(self, instance: Instance) -> int:
        pool = self._catalog.pools.get((instance.tenant_id, instance.pool_id))
        return machine_size(instance, pool)[1] if pool is not None else 0

    def _today(self) -> date:
        return self._clock.now().astimezone(UTC).date()


def _who(instance: Instance) -> str:
    return instance.user or f"{_POOL}{instance.pool_id}"


def _row(tenant: TenantId, who: str, usage: Usage) -> UsageRow:
    if who.startswith(_POOL):
        return UsageRow(tenant, None, PoolId(who.removeprefix(_POOL)), usage)
    return UsageRow(tenant, UserId(who), None, usage)
