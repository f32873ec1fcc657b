"""Preparing a sleep, and every way back from it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from tests.unit.guest.guest_world import until

from mvm.guest import machine
from mvm.guest.config import Integration
from mvm.guest.control import ControlAbsent, ControlError, ControlSocket, OpenClawStatus
from mvm.guest.deliveries import Deliveries
from mvm.guest.drives import Drives
from mvm.guest.integrations import Integrations
from mvm.guest.paths import GuestPaths
from mvm.guest.services import Programs
from mvm.guest.sleep import SleepDesk
from mvm.guest.status import StatusBoard
from mvm.wire.messages import IntegrationPhase

ALARM = datetime(2026, 11, 23, 6, tzinfo=UTC)


class Control:
    """An OpenClaw that can be held."""

    def __init__(self) -> None:
        self.held = False
        self.error: ControlError | None = None
        self.asked: list[str] = []

    async def checkpoint(self, drain_seconds: float) -> datetime | None:
        self.asked.append("checkpoint")
        if self.error is not None:
            raise self.error
        self.held = True
        return ALARM

    async def restore(self) -> None:
        self.asked.append("restore")
        if isinstance(self.error, ControlAbsent):
            raise self.error
        self.held = False


class Doors:
    """Forwarder and outbox, open or not."""

    def __init__(self) -> None:
        self.open_now = True
        self.in_flight = 0
        self.pending = 0
        self.board: StatusBoard | None = None
        self.on_close = lambda: None

    async def open(self) -> None:
        self.open_now = True

    async def close_for_sleep(self, seconds: float) -> bool:
        self.open_now = False
        self.on_close()
        return self.in_flight == 0

    def nudge(self) -> None:
        pass


class Guest:
    """A sleep desk with everything around it."""

    def __init__(self, directory: Path, *, abandoned_after: float = 600.0) -> None:
        self.paths = GuestPaths(directory)
        self.paths.prepare()
        self.control = Control()
        self.doors = Doors()
        self.board = StatusBoard(
            runs_openclaw=True, deliveries=lambda: self.doors.in_flight, outbound=lambda: self.doors.pending
        )
        self.board.set_reachable(True)
        self.board.set_openclaw(OpenClawStatus(ready=True), healthy=True)
        self.events: list[tuple[str, str]] = []
        programs = Programs(python="python3", zipapp="guest.pyz", node="node", openclaw="openclaw")
        self.integrations = Integrations(self.paths, programs, lambda kind, detail: self.events.append((kind, detail)))
        self.desk = SleepDesk(
            self.paths,
            board=self.board,
            control=cast(ControlSocket, self.control),
            integrations=self.integrations,
            drives=Drives(self.paths),
            deliveries=cast(Deliveries, self.doors),
            lock=asyncio.Lock(),
            abandoned_after=abandoned_after,
        )

    @property
    def goes_on(self) -> bool:
        return self.doors.open_now and not self.control.held


async def test_after_success_nothing_moves_and_undoing_lets_everything_go_on(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    ack = await guest.desk.prepare(1)
    assert (ack.success, ack.next_alarm_at) == (True, ALARM)
    assert (guest.doors.open_now, guest.control.held, guest.desk.prepared) == (False, True, True)
    assert await guest.desk.undo(1) == {}
    assert guest.goes_on
    assert not guest.desk.prepared


@pytest.mark.parametrize("reason", ["delivery", "outbound", "command", "openclaw", "down", "restart"])
async def test_whatever_is_under_way_refuses_and_everything_goes_on(tmp_path: Path, reason: str) -> None:
    guest = Guest(tmp_path)
    guest.doors.in_flight, guest.doors.pending = int(reason == "delivery"), int(reason == "outbound")
    guest.desk.restarting = reason == "restart"
    if reason == "openclaw":
        guest.control.error = ControlError("busy: turn")
    if reason == "down":
        guest.board.set_openclaw(None, healthy=False)
    if reason == "command":
        with guest.board.work():
            ack = await guest.desk.prepare(0)
    else:
        ack = await guest.desk.prepare(0)
    told = {
        "delivery": "1 deliveries are still open",
        "outbound": "1 messages wait to be delivered",
        "command": "a command is being run",
        "openclaw": "busy: turn",
        "down": "OpenClaw is not up (yet), so nobody knows what it is doing",
        "restart": "OpenClaw is being restarted",
    }
    assert (ack.success, ack.detail) == (False, told[reason])
    assert guest.goes_on
    assert not guest.desk.prepared


async def test_the_outbox_is_waited_for(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.doors.pending = 1
    guest.board.changed()
    prepare = asyncio.create_task(guest.desk.prepare(60))
    await until(lambda: not guest.doors.open_now, "the closed door")
    guest.doors.pending = 0
    guest.board.changed()
    assert (await prepare).success


async def test_a_reminder_in_the_last_moment_still_refuses(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    checkpoint = guest.control.checkpoint

    async def with_reminder(drain_seconds: float) -> datetime | None:
        guest.doors.pending = 1
        return await checkpoint(drain_seconds)

    guest.control.checkpoint = with_reminder  # type: ignore[method-assign]
    ack = await guest.desk.prepare(0)
    assert ack.detail == "1 messages wait to be delivered"
    assert guest.goes_on


async def test_a_sleep_that_never_comes_is_undone(tmp_path: Path) -> None:
    guest = Guest(tmp_path, abandoned_after=0.01)
    assert (await guest.desk.prepare(1)).success
    await until(lambda: guest.goes_on, "the way back")
    assert not guest.desk.prepared
    assert (await guest.desk.checkpoint((), 1)).success
    guest.control.held = True
    await until(lambda: guest.goes_on, "the way back from a checkpoint alone")
    await guest.desk.close()


async def test_openclaw_that_cannot_be_let_go_on_is_told(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    assert (await guest.desk.prepare(1)).success

    async def refuse() -> None:
        raise ControlError("no")

    guest.control.restore = refuse  # type: ignore[method-assign]
    assert await guest.desk.undo(1) == {"openclaw": "no"}
    assert guest.doors.open_now


async def test_a_restore_that_takes_long_goes_on_by_itself(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    go = tmp_path / "go"
    wait = f"while [ ! -e {go} ]; do sleep 0.01; done"
    guest.integrations.configure([Integration(name="slow", restore_cmd=("/bin/sh", "-c", wait))])
    assert (await guest.desk.checkpoint(("slow",), 5)).success
    assert await guest.desk.undo(60, patience=0) == {}
    (state,) = await guest.integrations.status()
    assert state.status is IntegrationPhase.PENDING
    checkpoint = asyncio.create_task(guest.desk.checkpoint(("slow",), 5))
    await asyncio.sleep(0)
    assert not checkpoint.done(), "one thing at a time"
    go.touch()
    assert (await checkpoint).success
    (state,) = await guest.integrations.status()
    assert state.status is IntegrationPhase.PAUSED
    await guest.desk.close()
    await guest.integrations.close()


async def test_a_restore_that_fails_is_told_and_tried_again_next_time(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.integrations.configure([Integration(name="notes", restore_cmd=("/bin/sh", "-c", "exit 4"))])
    assert (await guest.desk.checkpoint(("notes",), 5)).success
    assert await guest.desk.undo(5, patience=60) == {"notes": "'/bin/sh' ended with status 4"}
    assert guest.events == [("IntegrationFailed", "notes: '/bin/sh' ended with status 4")]
    guest.integrations.configure([Integration(name="notes", restore_cmd=("/bin/sh", "-c", "exit 0"))])
    assert await guest.desk.undo(5, patience=60) == {}
    (state,) = await guest.integrations.status()
    assert state.status is IntegrationPhase.ACTIVE


def test_a_guest_without_a_machine_of_its_own_leaves_the_hosts_clock_alone(tmp_path: Path) -> None:
    paths = GuestPaths(tmp_path)
    before = datetime.now(UTC)
    behind = machine.set_clock(paths, before + timedelta(hours=1))
    assert 3590 < behind <= 3600
    assert datetime.now(UTC) - before < timedelta(minutes=1)
    machine.add_entropy(paths, b"x" * 64)
    machine.add_entropy(paths, b"")
