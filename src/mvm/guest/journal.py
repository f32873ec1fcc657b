"""The router's journal of deliveries: what became of each message, keyed by its upstream id.

It is what makes a re-dispatched message run one turn only: an answer is on disk before anybody hears of it, so that a
second dispatch of the same message resends the recorded answer instead of asking the worker again. Who had no answer
yet is told so (`open`) and attaches to the turn that runs already.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from mvm.guest.database import Database

KEEP_FINISHED_SECONDS = 7 * 86400
"""How long an answered delivery is remembered; upstream queues re-dispatch within minutes."""
KEEP_OPEN_SECONDS = 30 * 86400
"""How long a delivery that was never answered is remembered."""
MAX_FINISHED = 20_000
"""Answered deliveries beyond this many are forgotten, oldest first."""

VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS deliveries (
  key TEXT PRIMARY KEY,
  peer TEXT NOT NULL,
  conversation TEXT NOT NULL,
  user TEXT NOT NULL,
  worker TEXT NOT NULL,
  state TEXT NOT NULL,
  attempts INTEGER NOT NULL,
  payload TEXT,
  reason TEXT,
  created_at REAL NOT NULL,
  updated_at REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS deliveries_by_age ON deliveries (state, updated_at)
"""


class DeliveryState(StrEnum):
    """What became of a delivery."""

    NEW = "new"
    """Accepted just now; no turn was asked for yet."""
    OPEN = "open"
    """Dispatched before and not answered: a turn may be running."""
    ANSWERED = "answered"
    """The answer is recorded; it may not have reached the person yet."""
    SENT = "sent"
    """The answer was handed to the channel."""
    FAILED = "failed"
    """Given up with a notice for the person, which counts as the answer."""

    @property
    def finished(self) -> bool:
        """True when no turn is to be run for it any more."""
        return self in (DeliveryState.ANSWERED, DeliveryState.SENT, DeliveryState.FAILED)


_FINISHED = tuple(state.value for state in DeliveryState if state.finished)


class UnknownDelivery(Exception):
    """No delivery of that key was accepted (or it has been forgotten)."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One message on its way. Times are Unix seconds."""

    key: str
    peer: str
    conversation: str
    user: str
    worker: str
    state: DeliveryState
    attempts: int
    payload: dict[str, Any] | None
    reason: str | None
    created_at: float
    updated_at: float


class DeliveryJournal:
    """Deliveries in a `Database` made with `SCHEMA`. Every method is durable when it returns."""

    def __init__(self, database: Database, *, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now

    async def accept(self, *, key: str, peer: str, conversation: str, user: str, worker: str) -> Delivery:
        """Record that a message was dispatched and tell what is known of it.

        The first time its state is NEW and `attempts` 1; again, without an answer yet, OPEN and one attempt more (and
        the worker is the one given now); an answered one is returned as it is.
        """
        now = self._now()

        def work(db: sqlite3.Connection) -> Delivery:
            known = _find(db, key)
            if known is None:
                delivery = Delivery(
                    key=key,
                    peer=peer,
                    conversation=conversation,
                    user=user,
                    worker=worker,
                    state=DeliveryState.NEW,
                    attempts=1,
                    payload=None,
                    reason=None,
                    created_at=now,
                    updated_at=now,
                )
            elif known.state.finished:
                return known
            else:
                delivery = replace(
                    known,
                    user=user,
                    worker=worker,
                    state=DeliveryState.OPEN,
                    attempts=known.attempts + 1,
                    updated_at=now,
                )
            _save(db, delivery)
            return delivery

        return await self._database.run(work)

    async def find(self, key: str) -> Delivery | None:
        """The delivery of that key."""
        return await self._database.run(lambda db: _find(db, key))

    async def answered(self, key: str, payload: dict[str, Any]) -> Delivery:
        """Record the answer; the first one recorded stays. Raises `UnknownDelivery`."""
        return await self._change(
            key,
            lambda known: (
                known if known.state.finished else replace(known, state=DeliveryState.ANSWERED, payload=payload)
            ),
        )

    async def sent(self, key: str) -> Delivery:
        """Record that the answer was handed to the channel. Raises `UnknownDelivery`."""
        return await self._change(key, lambda known: replace(known, state=DeliveryState.SENT))

    async def failed(self, key: str, *, reason: str, notice: str) -> Delivery:
        """Record that it was given up; `notice` becomes the answer unless there is one. Raises `UnknownDelivery`."""

        def change(known: Delivery) -> Delivery:
            payload = known.payload if known.payload is not None else {"text": notice}
            return replace(known, state=DeliveryState.FAILED, payload=payload, reason=reason)

        return await self._change(key, change)

    async def forget_old(self) -> int:
        """Forget what is old or too much; returns how many deliveries that were."""
        now = self._now()

        def work(db: sqlite3.Connection) -> int:
            marks = ",".join("?" * len(_FINISHED))
            removed = db.execute(
                f"DELETE FROM deliveries WHERE (state IN ({marks}) AND updated_at < ?) OR updated_at < ?",  # noqa: S608
                (*_FINISHED, now - KEEP_FINISHED_SECONDS, now - KEEP_OPEN_SECONDS),
            ).rowcount
            removed += db.execute(
                f"DELETE FROM deliveries WHERE key IN (SELECT key FROM deliveries WHERE state IN ({marks}) "  # noqa: S608
                "ORDER BY updated_at DESC LIMIT -1 OFFSET ?)",
                (*_FINISHED, MAX_FINISHED),
            ).rowcount
            return removed

        return await self._database.run(work)

    async def _change(self, key: str, change: Callable[[Delivery], Delivery]) -> Delivery:
        now = self._now()

        def work(db: sqlite3.Connection) -> Delivery:
            known = _find(db, key)
            if known is None:
                raise UnknownDelivery(key)
            changed = replace(change(known), updated_at=now)
            _save(db, changed)
            return changed

        return await self._database.run(work)


_COLUMNS = "key, peer, conversation, user, worker, state, attempts, payload, reason, created_at, updated_at"


def _find(db: sqlite3.Connection, key: str) -> Delivery | None:
    row = db.execute(f"SELECT {_COLUMNS} FROM deliveries WHERE key = ?", (key,)).fetchone()  # noqa: S608
    if row is None:
        return None
    return Delivery(
        key=row[0],
        peer=row[1],
        conversation=row[2],
        user=row[3],
        worker=row[4],
        state=DeliveryState(row[5]),
        attempts=row[6],
        payload=None if row[7] is None else json.loads(row[7]),
        reason=row[8],
        created_at=row[9],
        updated_at=row[10],
    )


def _save(db: sqlite3.Connection, delivery: Delivery) -> None:
    db.execute(
        f"INSERT OR REPLACE INTO deliveries ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)",  # noqa: S608
        (
            delivery.key,
            delivery.peer,
            delivery.conversation,
            delivery.user,
            delivery.worker,
            delivery.state.value,
            delivery.attempts,
            None if delivery.payload is None else json.dumps(delivery.payload, ensure_ascii=False),
            delivery.reason,
            delivery.created_at,
            delivery.updated_at,
        ),
    )
