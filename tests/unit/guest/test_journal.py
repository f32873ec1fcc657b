"""The delivery journal: one turn per message, whatever dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mvm.guest import journal
from mvm.guest.database import Database, StorageError
from mvm.guest.journal import DeliveryJournal, DeliveryState, UnknownDelivery

DAY = 86400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def aside() -> list[str]:
    return []


@pytest.fixture
async def database(tmp_path: Path, aside: list[str]) -> AsyncIterator[Database]:
    database = Database(
        tmp_path / "mvm" / "journal.db", schema=journal.SCHEMA, version=journal.VERSION, on_set_aside=aside.append
    )
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def deliveries(database: Database, clock: Clock) -> DeliveryJournal:
    return DeliveryJournal(database, now=clock)


async def accept(deliveries: DeliveryJournal, key: str = "k1", worker: str = "alice.alice") -> journal.Delivery:
    return await deliveries.accept(key=key, peer="telegram:1", conversation="c", user="alice", worker=worker)


async def test_a_message_is_new_once_and_then_open(deliveries: DeliveryJournal) -> None:
    first = await accept(deliveries)
    again = await accept(deliveries, worker="alice.other")
    assert (first.state, first.attempts) == (DeliveryState.NEW, 1)
    assert (again.state, again.attempts, again.worker) == (DeliveryState.OPEN, 2, "alice.other")


async def test_the_first_recorded_answer_stays(deliveries: DeliveryJournal) -> None:
    await accept(deliveries)
    await deliveries.answered("k1", {"text": "one"})
    await deliveries.answered("k1", {"text": "two"})
    again = await accept(deliveries)
    assert (again.state, again.payload) == (DeliveryState.ANSWERED, {"text": "one"})


async def test_sent_is_remembered_with_its_answer(deliveries: DeliveryJournal) -> None:
    await accept(deliveries)
    await deliveries.answered("k1", {"text": "one"})
    await deliveries.sent("k1")
    assert (await accept(deliveries)).state is DeliveryState.SENT


async def test_a_failure_counts_as_answered_with_its_notice(deliveries: DeliveryJournal) -> None:
    await accept(deliveries)
    await deliveries.failed("k1", reason="no worker", notice="Sorry.")
    again = await accept(deliveries)
    assert (again.state, again.payload, again.reason) == (DeliveryState.FAILED, {"text": "Sorry."}, "no worker")
    assert again.state.finished


async def test_a_failure_to_send_keeps_the_answer(deliveries: DeliveryJournal) -> None:
    await accept(deliveries)
    await deliveries.answered("k1", {"text": "one"})
    await deliveries.failed("k1", reason="channel down", notice="Sorry.")
    assert (await accept(deliveries)).payload == {"text": "one"}


async def test_an_unknown_key_is_an_error(deliveries: DeliveryJournal) -> None:
    with pytest.raises(UnknownDelivery):
        await deliveries.answered("nothing", {"text": "x"})


async def test_old_and_surplus_entries_are_forgotten(
    deliveries: DeliveryJournal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await accept(deliveries, "old")
    await deliveries.sent("old")
    await accept(deliveries, "waiting")
    clock.now += 8 * DAY
    for key in ("a", "b", "c"):
        clock.now += 1
        await accept(deliveries, key)
        await deliveries.sent(key)
    monkeypatch.setattr(journal, "MAX_FINISHED", 2)
    assert await deliveries.forget_old() == 2
    kept = [key for key in ("old", "waiting", "a", "b", "c") if await deliveries.find(key) is not None]
    assert kept == ["waiting", "b", "c"]


async def test_a_corrupt_journal_is_set_aside_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    told: list[str] = []
    for _ in range(4):
        path.write_bytes(b"not a database at all" * 100)
        database = Database(path, schema=journal.SCHEMA, version=1, on_set_aside=told.append)
        await database.open()
        assert (await accept(DeliveryJournal(database))).state is DeliveryState.NEW
        await database.close()
    assert len(told) == 4
    assert "journal.db was damaged" in told[0]
    assert len([name for name in os.listdir(tmp_path) if ".corrupt-" in name]) == 2


async def test_a_journal_that_breaks_while_open_is_replaced(
    tmp_path: Path, deliveries: DeliveryJournal, database: Database, aside: list[str]
) -> None:
    for number in range(200):
        await accept(deliveries, f"k{number}")
    await database.run(lambda db: None)
    await database.close()
    path = tmp_path / "mvm" / "journal.db"
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    again = Database(path, schema=journal.SCHEMA, version=1, on_set_aside=aside.append)
    assert (await accept(DeliveryJournal(again), "after")).state is DeliveryState.NEW
    assert aside
    await again.close()


async def test_a_journal_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    told: list[str] = []
    newer = Database(tmp_path / "j.db", schema=journal.SCHEMA, version=9, on_set_aside=told.append)
    await newer.open()
    await newer.close()
    older = Database(tmp_path / "j.db", schema=journal.SCHEMA, version=1, on_set_aside=told.append)
    await older.open()
    await older.close()
    assert "newer mvm" in told[0]


async def test_a_journal_that_cannot_be_written_is_an_error_and_not_lost(
    deliveries: DeliveryJournal, database: Database
) -> None:
    await accept(deliveries)
    pages = await database.run(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    await database.run(lambda db: db.execute(f"PRAGMA max_page_count={pages}").fetchone())
    with pytest.raises(StorageError, match="full"):
        await accept(deliveries, "k2" * 50_000)
    await database.run(lambda db: db.execute("PRAGMA max_page_count=100000").fetchone())
    assert await deliveries.find("k1") is not None
    assert await deliveries.find("k2" * 50_000) is None


async def test_the_file_is_private(database: Database, tmp_path: Path) -> None:
    assert (tmp_path / "mvm" / "journal.db").stat().st_mode & 0o077 == 0


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from mvm.guest import journal
from mvm.guest.database import Database
async def main():
    database = Database(Path(sys.argv[1]), schema=journal.SCHEMA, version=1, on_set_aside=print)
    deliveries = journal.DeliveryJournal(database)
    await deliveries.accept(key="k", peer="telegram:1", conversation="c", user="alice", worker="alice.alice")
    await deliveries.answered("k", {"text": "kept"})
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def test_an_answer_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(path))
    assert await asyncio.wait_for(killed.wait(), 30) == -signal.SIGKILL
    told: list[str] = []
    database = Database(path, schema=journal.SCHEMA, version=1, on_set_aside=told.append)
    known = await DeliveryJournal(database).find("k")
    assert known is not None
    assert (known.state, known.payload) == (DeliveryState.ANSWERED, {"text": "kept"})
    assert told == []
    await database.close()
