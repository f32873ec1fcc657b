"""Messages that must arrive: a durable queue and the courier that carries it, in order, until each is taken.

Both ends of worker-to-person messages use it: the worker's outbox (towards the gateway) and the gateway's router
(towards OpenClaw). Messages wait in lanes: order holds within a lane, and a lane that is stuck holds up no other.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mvm.guest.database import Database, StorageError

log = logging.getLogger(__name__)

KEEP_SECONDS = 7 * 86400
"""How long a message is tried, and how long its id is remembered so that a repetition is known for one."""
MAX_QUEUED_PER_LANE = 1000
MAX_QUEUED = 10_000
FIRST_DELAY = 0.5
LONGEST_DELAY = 60.0

VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  lane TEXT NOT NULL,
  id TEXT NOT NULL,
  body TEXT,
  state TEXT NOT NULL,
  reason TEXT,
  created_at REAL NOT NULL,
  updated_at REAL NOT NULL,
  UNIQUE (lane, id)
) STRICT;
CREATE INDEX IF NOT EXISTS messages_by_state ON messages (state, lane, seq)
"""


class Verdict(Enum):
    """What became of one attempt."""

    TAKEN = "taken"
    LATER = "later"
    NEVER = "never"
    """The receiver says that this message will never be taken; trying again is useless."""


@dataclass(frozen=True)
class Attempt:
    """Outcome of one attempt to deliver."""

    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True)
class Message:
    """One message in a lane. `created_at` is in Unix seconds."""

    seq: int
    lane: str
    id: str
    body: dict[str, Any]
    created_at: float


class QueueFull(Exception):
    """Too many messages wait already."""


class Courier:
    """Carries queued messages with `deliver`, retried with exponential back-off, until taken or too old.

    `deliver` must not raise for what may happen on the way; what it raises all the same is logged and tried again.
    `on_given_up` hears of each message that will not be tried any more, with the reason; `on_change` is called whenever
    `pending` changes.
    """

    def __init__(
        self,
        database: Database,
        deliver: Callable[[Message], Awaitable[Attempt]],
        *,
        on_given_up: Callable[[Message, str], None],
        on_change: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.time,
        max_per_lane: int = MAX_QUEUED_PER_LANE,
        first_delay: float = FIRST_DELAY,
        longest_delay: float = LONGEST_DELAY,
    ) -> None:
        self._database = database
        self._deliver = deliver
        self._on_given_up = on_given_up
        self._on_change = on_change
        self._now = now
        self._max_per_lane = max_per_lane
        self._first_delay = first_delay
        self._longest_delay = longest_delay
        self._pending: dict[str, int] = {}
        self._writing: dict[str, int] = {}
        self._lanes: dict[str, asyncio.Task[None]] = {}
        self._nudges: dict[str, asyncio.Event] = {}
        self._started = False

    @property
    def pending(self) -> int:
        """Messages that are not delivered yet."""
        return sum(self._pending.values())

    async def start(self) -> None:
        """Take up what an earlier run left."""
        rows = await self._database.run(
            lambda db: db.execute("SELECT lane, count(*) FROM messages WHERE state='queued' GROUP BY lane").fetchall()
        )
        self._started = True
        for lane, count in rows:
            self._pending[lane] = count
            self._attend(lane)

    async def put(self, lane: str, id: str, body: dict[str, Any]) -> bool:
        """Queue a message; it is on disk when this returns. False when this lane had one of that id before.

        Raises `QueueFull` or `StorageError`; then it is not queued.
        """
        if self._pending.get(lane, 0) >= self._max_per_lane or self.pending >= MAX_QUEUED:
            raise QueueFull(f"{self.pending} messages wait already")
        # A caller that goes away must not leave the count and the file in disagreement.
        return await asyncio.shield(self._put(lane, id, body))

    async def _put(self, lane: str, id: str, body: dict[str, Any]) -> bool:
        now = self._now()

        def work(db: sqlite3.Connection) -> bool:
            return bool(
                db.execute(
                    "INSERT OR IGNORE INTO messages (lane, id, body, state, created_at, updated_at) "
                    "VALUES (?, ?, ?, 'queued', ?, ?)",
                    (lane, id, json.dumps(body, ensure_ascii=False), now, now),
                ).rowcount
            )

        # Counted before it is written: between the two, a guest must not look idle.
        self._count_pending(lane, 1)
        self._count(self._writing, lane, 1)
        added = False
        try:
            added = await self._database.run(work)
        finally:
            self._count(self._writing, lane, -1)
            if not added:
                self._count_pending(lane, -1)
        if self._started:
            self._attend(lane)
        return added

    def nudge(self) -> None:
        """Try again at once whatever waits for its next attempt (something it needs came back)."""
        for event in self._nudges.values():
            event.set()

    async def forget_old(self) -> None:
        """Forget the ids of messages that were done with long ago."""
        limit = self._now() - KEEP_SECONDS
        await self._database.run(
            lambda db: db.execute("DELETE FROM messages WHERE state != 'queued' AND updated_at < ?", (limit,))
        )

    async def close(self, grace: float = 0.0) -> None:
        """Let attempts under way end within `grace` seconds, then stop; what is not delivered stays queued on disk."""
        self._started = False
        self.nudge()
        tasks = set(self._lanes.values())
        if tasks and grace > 0:
            await asyncio.wait(tasks, timeout=grace)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lanes.clear()

    def _count_pending(self, lane: str, change: int) -> None:
        self._count(self._pending, lane, change)
        self._on_change()

    @staticmethod
    def _count(counts: dict[str, int], lane: str, change: int) -> None:
        left = counts.get(lane, 0) + change
        if left > 0:
            counts[lane] = left
        else:
            counts.pop(lane, None)

    def _attend(self, lane: str) -> None:
        """Have a task for the lane; one that is there looks for its next message itself."""
        task = self._lanes.get(lane)
        if lane in self._pending and (task is None or task.done()):
            self._nudges[lane] = asyncio.Event()
            self._lanes[lane] = asyncio.create_task(self._carry(lane), name=f"courier {lane}")

    async def _carry(self, lane: str) -> None:
        delay = self._first_delay
        while self._started and lane in self._pending:
            try:
                message = await self._next(lane)
                if message is None:
                    if lane in self._writing:
                        await self._pause(lane, self._first_delay)
                    else:
                        self._count_pending(lane, -self._pending.get(lane, 0))  # its file was set aside
                    continue
                attempt = await self._try(message)
                if attempt.verdict is Verdict.LATER:
                    log.warning(
                        "message %s of %s waits %.1f s: %s", message.id, lane or "outbox", delay, attempt.reason
                    )
                    await self._pause(lane, delay * random.uniform(0.75, 1.25))  # noqa: S311 - spreads retries only
                    delay = min(delay * 2, self._longest_delay)
                    continue
                await self._finish(message, attempt)
                delay = self._first_delay
            except StorageError as error:
                log.error("the queue cannot be read or written: %s", error)
                await self._pause(lane, self._longest_delay)

    async def _try(self, message: Message) -> Attempt:
        if self._now() - message.created_at > KEEP_SECONDS:
            return Attempt(Verdict.NEVER, f"it could not be delivered for {KEEP_SECONDS // 86400} days")
        try:
            return await self._deliver(message)
        except Exception as error:  # the task's top: one message must not end the courier
            log.exception("delivering message %s failed", message.id)
            return Attempt(Verdict.LATER, f"{type(error).__name__}: {error}")

    async def _pause(self, lane: str, seconds: float) -> None:
        event = self._nudges[lane]
        event.clear()
        if not self._started:
            return
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return

    async def _next(self, lane: str) -> Message | None:
        row = await self._database.run(
            lambda db: db.execute(
                "SELECT seq, id, body, created_at FROM messages WHERE state='queued' AND lane=? ORDER BY seq LIMIT 1",
                (lane,),
            ).fetchone()
        )
        return None if row is None else Message(row[0], lane, row[1], json.loads(row[2]), row[3])

    async def _finish(self, message: Message, attempt: Attempt) -> None:
        state = "taken" if attempt.verdict is Verdict.TAKEN else "failed"
        now = self._now()
        # The text is somebody's private matter and no longer needed; the id stays, to know a repetition.
        await self._database.run(
            lambda db: db.execute(
                "UPDATE messages SET state=?, reason=?, body=NULL, updated_at=? WHERE seq=?",
                (state, attempt.reason or None, now, message.seq),
            )
        )
        self._count_pending(message.lane, -1)
        if attempt.verdict is Verdict.NEVER:
            log.error("message %s is given up: %s", message.id, attempt.reason)
            self._on_given_up(message, attempt.reason)
