"""The event stream: numbers, restarts, followers of every speed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mvm.host import events
from mvm.host.events import EVENTS_MISSED, Event, EventLog
from mvm.model.errors import Unavailable
from mvm.model.ids import TenantId

ALICE, BOB = TenantId("alice"), TenantId("bob")
NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EventLog]:
    log = EventLog(tmp_path, clock=lambda: NOW, capacity=100)
    yield log
    await log.close()


async def take(events: AsyncGenerator[Event, None], count: int) -> list[Event]:
    async with asyncio.timeout(10):
        return [await anext(events) for _ in range(count)]


async def test_events_are_numbered_from_one(log: EventLog) -> None:
    assert log.last_number == 0
    assert log.record("DeliveryFailed", tenant_id=ALICE, actor="router", detail="worker\ud800 gone").number == 1
    assert log.record("StrangerRefused").number == 2
    [first, second] = log.recent()
    assert (first.kind, first.tenant_id, first.detail, first.timestamp) == (
        "DeliveryFailed",
        "alice",
        "worker? gone",
        NOW,
    )
    assert second.kind == "StrangerRefused"


async def test_the_newest_are_kept_and_can_be_asked_for(log: EventLog) -> None:
    for number in range(250):
        log.record("Tick", tenant_id=ALICE if number % 2 else BOB)
    assert [event.number for event in log.recent()] == list(range(151, 251))
    assert [event.number for event in log.recent(3)] == [248, 249, 250]
    assert [event.number for event in log.recent(since=247)] == [248, 249, 250]
    assert [event.number for event in log.recent(2, tenant_id=ALICE)] == [248, 250]
    assert log.recent(0) == log.recent(since=250) == log.recent(since=999) == []


async def test_numbers_and_events_go_on_after_a_restart(log: EventLog, tmp_path: Path) -> None:
    for _ in range(5):
        log.record("Tick")
    before = log.recent()
    again = EventLog(tmp_path, clock=lambda: NOW)  # the first one is not closed: as after a kill
    assert again.recent() == before
    assert again.record("Tock").number == 6
    await again.close()


async def test_a_damaged_file_costs_only_the_damaged_lines(log: EventLog, tmp_path: Path) -> None:
    for _ in range(3):
        log.record("Tick")
    await log.close()
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    (tmp_path / "events.jsonl").write_bytes(lines[0] + b"\nnonsense\n" + lines[2] + b'\n{"number": 4, "kin')
    again = EventLog(tmp_path)
    assert [event.number for event in again.recent()] == [1, 3]
    assert [event.number for event in again.recent(since=1)] == [3]
    assert again.record("Tock").number == 4
    await again.close()


async def test_the_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_ROTATE_BYTES", 5000)
    log = EventLog(tmp_path)
    for _ in range(500):
        log.record("Tick")
    await log.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000
    again = EventLog(tmp_path)
    assert again.last_number == 500
    await again.close()


async def test_a_subscriber_gets_what_is_kept_and_then_what_comes(log: EventLog) -> None:
    for _ in range(3):
        log.record("Tick")
    async with aclosing(log.subscribe(since=1)) as following:
        assert [event.number for event in await take(following, 2)] == [2, 3]
        waiting = asyncio.create_task(take(following, 2))
        await asyncio.sleep(0)
        log.record("Tock")
        log.record("Tock")
        assert [event.number for event in await waiting] == [4, 5]


async def test_a_subscriber_of_what_is_new_gets_nothing_old(log: EventLog) -> None:
    log.record("Tick")
    async with aclosing(log.subscribe()) as following:
        waiting = asyncio.create_task(take(following, 1))
        await asyncio.sleep(0)
        log.record("Tock")
        assert [event.number for event in await waiting] == [2]


async def test_a_subscriber_may_want_one_tenant_only(log: EventLog) -> None:
    for tenant in (ALICE, BOB, None, ALICE):
        log.record("Tick", tenant_id=tenant)
    async with aclosing(log.subscribe(0, tenant_id=ALICE)) as following:
        assert [event.number for event in await take(following, 2)] == [1, 4]


async def test_a_slow_subscriber_is_told_what_it_missed(log: EventLog) -> None:
    log.record("Tick")
    async with aclosing(log.subscribe(0)) as following:
        await take(following, 1)
        for _ in range(500):
            log.record("Tick")
        missed, *rest = await take(following, 101)
    assert missed.kind == EVENTS_MISSED
    assert missed.detail == "400 events before this one are no longer kept"
    assert [event.number for event in rest] == list(range(402, 502))


async def test_subscribers_are_bounded(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_SUBSCRIBERS", 2)
    log.record("Tick")
    async with aclosing(log.subscribe(0)) as first, aclosing(log.subscribe(0)) as second:
        await take(first, 1)
        await take(second, 1)
        with pytest.raises(Unavailable):
            await anext(log.subscribe(0))
    async with aclosing(log.subscribe(0)) as third:
        assert len(await take(third, 1)) == 1


async def test_closing_ends_subscriptions(log: EventLog) -> None:
    following = log.subscribe()
    waiting = asyncio.create_task(anext(following, None))
    await asyncio.sleep(0)
    await log.close()
    async with asyncio.timeout(10):
        assert await waiting is None


async def test_a_disk_that_cannot_be_written_stops_nothing(log: EventLog, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    assert log.record("Tick").number == 1
    assert log.recent()[0].kind == "Tick"
    (tmp_path / "events.jsonl").rmdir()
    assert log.record("Tick").number == 2
