"""The event stream of a host: everything that an operator may want to follow, numbered.

Events are for eyes and dashboards, the audit is the record: the newest `CAPACITY` are kept in memory, about as many on
the disk, so that `mvm events` also tells what was before a restart. Numbers grow and go on after a restart; a power cut
may cost the last second of events, whose numbers are then used again.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mvm.host.line_files import LineFile, Syncer
from mvm.model.errors import Unavailable
from mvm.model.ids import InstanceId, PoolId, TenantId, UserId
from mvm.telemetry.printable import printable
from mvm.telemetry.redaction import redact

CAPACITY = 10_000
BATCH = 256
"""Events that a subscriber holds at a time beyond those that are kept anyway."""
MAX_SUBSCRIBERS = 100
MAX_DETAIL = 4096
EVENTS_MISSED = "EventsMissed"
"""Kind of the event that tells a subscriber how many it missed."""

_ROTATE_BYTES = 4 * 1024 * 1024
_log = logging.getLogger(__name__)


class Event(BaseModel):
    """Something that happened. `kind` is a PascalCase word: an audit action or another one such as `DeliveryFailed`."""

    model_config = ConfigDict(frozen=True)

    number: int
    timestamp: datetime
    kind: str
    tenant_id: TenantId | None = None
    pool_id: PoolId | None = None
    instance_id: InstanceId | None = None
    user_id: UserId | None = None
    actor: str | None = None
    detail: str | None = None


class EventLog:
    """The events of this host, in one directory. Belongs to one event loop; `close` when done."""

    def __init__(
        self, directory: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC), *, capacity: int = CAPACITY
    ) -> None:
        self._clock = clock
        self._file = LineFile(directory / "events.jsonl", limit=_ROTATE_BYTES, kept=1, now=clock())
        self._syncer = Syncer("mvm-events")
        self._ring: deque[Event] = deque(_read(self._file), maxlen=capacity)
        self._next = self._ring[-1].number + 1 if self._ring else 1
        self._subscribers: set[asyncio.Event] = set()
        self._closed = False

    @property
    def last_number(self) -> int:
        """Number of the newest event; 0 before the first."""
        return self._next - 1

    def record(
        self,
        kind: str,
        *,
        tenant_id: TenantId | None = None,
        pool_id: PoolId | None = None,
        instance_id: InstanceId | None = None,
        user_id: UserId | None = None,
        actor: str | None = None,
        detail: str | None = None,
    ) -> Event:
        """Number an event, keep it and tell the subscribers. Registered secrets are taken out of its texts.

        A disk that cannot be written costs the events after a restart, never what is being done.
        """
        event = Event(
            number=self._next,
            timestamp=self._clock(),
            kind=kind,
            tenant_id=tenant_id,
            pool_id=pool_id,
            instance_id=instance_id,
            user_id=user_id,
            actor=None if actor is None else _clean(actor),
            detail=None if detail is None else _clean(detail),
        )
        self._next += 1
        self._ring.append(event)
        try:
            self._file.append(event.model_dump_json(exclude_none=True).encode())
            self._syncer.wrote(self._file.path)
        except OSError:
            _log.exception("event %d (%s) cannot be written", event.number, kind)
        for stirred in self._subscribers:
            stirred.set()
        return event

    def recent(self, limit: int | None = None, *, since: int = 0, tenant_id: TenantId | None = None) -> list[Event]:
        """The newest `limit` events (all that are kept when None) after number `since`, oldest first."""
        found = [event for event in self._after(since) if tenant_id in (None, event.tenant_id)]
        return found if limit is None else found[max(len(found) - limit, 0) :]

    async def subscribe(
        self, since: int | None = None, *, tenant_id: TenantId | None = None
    ) -> AsyncGenerator[Event, None]:
        """Kept events after number `since` (None: none of them), then each new one, until it is closed.

        A subscriber that falls behind by more than what is kept gets one `EventsMissed` in the place of what is gone.
        Ends when the log is closed. Raises `Unavailable` when there are too many subscribers.
        """
        if len(self._subscribers) >= MAX_SUBSCRIBERS:
            raise Unavailable(
                f"{MAX_SUBSCRIBERS} callers follow the events already", hint="end one of the `mvm events --follow`"
            )
        reached = self.last_number if since is None else min(since, self.last_number)
        stirred = asyncio.Event()
        self._subscribers.add(stirred)
        try:
            while True:
                stirred.clear()
                while batch := list(islice(self._after(reached), BATCH)):
                    if batch[0].number > reached + 1 and reached:
                        yield self._missed(reached, batch[0])
                    for event in batch:
                        reached = event.number
                        if tenant_id in (None, event.tenant_id):
                            yield event
                if self._closed:
                    return
                await stirred.wait()
        finally:
            self._subscribers.discard(stirred)

    async def flush(self) -> None:
        """Every event so far is on the disk when this returns."""
        await asyncio.to_thread(self._syncer.flush)

    async def close(self) -> None:
        """Flush, end the subscriptions and let go of the files. Idempotent."""
        self._closed = True
        for stirred in self._subscribers:
            stirred.set()
        await asyncio.to_thread(self._syncer.close)

    def _after(self, number: int) -> Iterator[Event]:
        """Kept events after that number; in the ring they follow each other without gaps but one at a repair."""
        if not self._ring or number >= self._ring[-1].number:
            return iter(())
        start = max(len(self._ring) - (self._ring[-1].number - number), 0)
        return (event for event in islice(self._ring, start, None) if event.number > number)

    def _missed(self, reached: int, event: Event) -> Event:
        count = event.number - reached - 1
        return Event(
            number=event.number - 1,
            timestamp=event.timestamp,
            kind=EVENTS_MISSED,
            detail=f"{count} events before this one are no longer kept",
        )


def _clean(text: str) -> str:
    return printable(redact(text)[:MAX_DETAIL].encode(errors="replace").decode())


def _read(file: LineFile) -> Iterator[Event]:
    """Events on the disk, oldest first; a line that is none (a damaged disk) is skipped and told to the log."""
    for path in file.files():
        for line in path.read_bytes().splitlines():
            try:
                yield Event.model_validate_json(line)
            except ValidationError:
                _log.warning("%s has a line that is no event: %s", path, json.dumps(line[:80].decode(errors="replace")))
