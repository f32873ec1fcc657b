"""Busy or idle: how it is decided, and how it is told to the host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.unit.guest.guest_world import until

from mvm.guest.control import OpenClawStatus
from mvm.guest.paths import GuestPaths
from mvm.guest.reporter import Reporter
from mvm.guest.router_host import Host, HostRefused, HostUnreachable
from mvm.guest.status import Markers, StatusBoard
from mvm.wire.messages import Ok, ReportStatus, WorkStatus

UP = OpenClawStatus(ready=True)


class Counts:
    def __init__(self) -> None:
        self.deliveries = 0
        self.outbound = 0


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def board(counts: Counts) -> StatusBoard:
    board = StatusBoard(
        runs_openclaw=True, deliveries=lambda: counts.deliveries, outbound=lambda: counts.outbound, now=_noon
    )
    board.set_reachable(True)
    return board


def _noon() -> datetime:
    return datetime(2026, 11, 22, 12, tzinfo=UTC)


def test_it_is_unknown_until_openclaw_answers_its_health_check(board: StatusBoard) -> None:
    assert board.current().status is WorkStatus.UNKNOWN
    board.set_openclaw(replace(UP, ready=False), healthy=False)
    assert board.current().status is WorkStatus.UNKNOWN
    board.set_openclaw(UP, healthy=False)
    assert board.current().status is WorkStatus.UNKNOWN
    board.set_openclaw(UP, healthy=True)
    assert board.current().status is WorkStatus.IDLE
    board.set_restarting(True)
    assert board.current().status is WorkStatus.UNKNOWN


def test_a_worker_that_nobody_can_reach_is_unknown(board: StatusBoard) -> None:
    board.set_openclaw(UP, healthy=True)
    board.set_reachable(False)
    assert board.current().status is WorkStatus.UNKNOWN


@pytest.mark.parametrize(
    "work", ["turn", "queued", "delivery", "outbound", "command"], ids=lambda work: f"because of a {work}"
)
def test_anything_under_way_makes_it_busy(board: StatusBoard, counts: Counts, work: str) -> None:
    board.set_openclaw(
        replace(UP, in_flight=int(work == "turn"), queued=int(work == "queued")),
        healthy=True,
    )
    counts.deliveries, counts.outbound = int(work == "delivery"), int(work == "outbound")
    if work == "command":
        with board.work():
            status = board.current()
    else:
        status = board.current()
    assert (status.status, status.in_flight) == (WorkStatus.BUSY, 1)


def test_the_last_busy_moment_is_the_latest_that_anybody_knows(board: StatusBoard, counts: Counts) -> None:
    earlier = datetime(2026, 11, 22, 11, tzinfo=UTC)
    board.set_openclaw(replace(UP, last_busy_at=earlier), healthy=True)
    assert board.current().last_busy_at == earlier
    counts.deliveries = 1
    board.changed()
    counts.deliveries = 0
    board.changed()
    assert board.current().last_busy_at == _noon()


def test_a_guest_without_openclaw_is_ready() -> None:
    assert StatusBoard(runs_openclaw=False).current().status is WorkStatus.READY


def test_listeners_hear_of_changes_only(board: StatusBoard) -> None:
    heard: list[WorkStatus] = []
    board.listen(lambda: heard.append(board.current().status))
    for _ in range(3):
        board.set_openclaw(UP, healthy=True)
    for _ in range(3):
        board.set_openclaw(replace(UP, in_flight=1), healthy=True)
    assert heard == [WorkStatus.IDLE, WorkStatus.BUSY]


def test_the_files_say_what_holds(tmp_path: Path) -> None:
    paths = GuestPaths(tmp_path)
    paths.prepare()
    markers = Markers(paths)

    def shown(status: WorkStatus) -> set[str]:
        markers.show(status)
        return {path.name for path in paths.mvm_run.iterdir()}

    assert shown(WorkStatus.IDLE) == {"ready", "idle"}
    assert shown(WorkStatus.BUSY) == {"ready", "busy"}
    assert shown(WorkStatus.UNKNOWN) == set()


class Desk(Host):
    """A host that remembers what it was told, or is away."""

    def __init__(self) -> None:
        self.heard: list[ReportStatus] = []
        self.error: Exception | None = None

    async def ask(self, request: Any, *, seconds: float = 0) -> Any:
        if self.error is not None:
            raise self.error
        self.heard.append(request)
        return Ok()

    @property
    def words(self) -> list[WorkStatus]:
        return [report.status for report in self.heard]


@asynccontextmanager
async def reporting(board: StatusBoard, desk: Desk, **times: float) -> AsyncIterator[None]:
    reporter = Reporter(board, desk, **{"debounce": 0.01, "heartbeat": 600.0, "retry": 0.01, **times})
    task = asyncio.create_task(reporter.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_host_hears_the_present_state_and_each_change(board: StatusBoard) -> None:
    desk = Desk()
    async with reporting(board, desk):
        await until(lambda: desk.words == [WorkStatus.UNKNOWN], "the first word")
        board.set_openclaw(UP, healthy=True)
        await until(lambda: desk.words[1:] == [WorkStatus.IDLE], "idle")
        board.set_openclaw(replace(UP, in_flight=2), healthy=True)
        await until(lambda: desk.words[2:] == [WorkStatus.BUSY], "busy")
        assert desk.heard[-1].in_flight == 2


async def test_becoming_busy_is_not_held_back(board: StatusBoard) -> None:
    desk = Desk()
    board.set_openclaw(UP, healthy=True)
    async with reporting(board, desk, debounce=600.0):
        await until(lambda: desk.words == [WorkStatus.IDLE], "idle")
        board.set_openclaw(replace(UP, in_flight=1), healthy=True)
        await until(lambda: desk.words == [WorkStatus.IDLE, WorkStatus.BUSY], "busy at once")


async def test_work_that_came_and_went_between_two_reports_is_told(board: StatusBoard) -> None:
    desk = Desk()
    board.set_openclaw(UP, healthy=True)
    async with reporting(board, desk):
        await until(lambda: desk.words == [WorkStatus.IDLE], "idle")
        board.set_openclaw(replace(UP, in_flight=1), healthy=True)
        board.set_openclaw(UP, healthy=True)
        await until(lambda: desk.words == [WorkStatus.IDLE, WorkStatus.BUSY, WorkStatus.IDLE], "busy and idle")


async def test_it_repeats_itself_regularly_and_when_the_host_was_away(board: StatusBoard) -> None:
    desk = Desk()
    desk.error = HostUnreachable("away")
    async with reporting(board, desk, heartbeat=0.01):
        board.set_openclaw(UP, healthy=True)
        desk.error = None
        await until(lambda: desk.words[-3:] == [WorkStatus.IDLE] * 3, "heartbeats")
        desk.error = HostRefused("no")
        await asyncio.sleep(0)
        desk.error = None
        count = len(desk.heard)
        await until(lambda: len(desk.heard) > count, "a report after a refusal")


async def test_waiting_for_the_board_ends_with_the_change_or_the_time(board: StatusBoard, counts: Counts) -> None:
    assert await board.wait_for(lambda: counts.outbound == 0, 0)
    counts.outbound = 1
    board.changed()
    assert not await board.wait_for(lambda: counts.outbound == 0, 0.01)
    waiting = asyncio.create_task(board.wait_for(lambda: counts.outbound == 0, 60))
    await asyncio.sleep(0)
    counts.outbound = 0
    board.changed()
    assert await waiting
