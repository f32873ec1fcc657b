"""A machine that QEMU itself has stopped is helped on, or ended so that it can boot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.unit.runtime.qemu_machines import machine
from tests.unit.runtime.test_qemu_monitor import scripted

from mvm.guest import processes
from mvm.runtime import spawning
from mvm.runtime.qemu import halted, launching
from mvm.runtime.qemu.files import Files
from mvm.runtime.records import Record


@dataclass
class Qemu:
    """A QEMU by what its monitor says of it; without space a guest that goes on stops again."""

    status: str = "running"
    space: bool = False
    looks: int = 0
    told: list[str] = field(default_factory=list)

    def answer(self, command: str, _: dict[str, Any]) -> list[dict[str, Any]]:
        if command == "query-status":
            self.looks += 1
            return [{"return": {"status": self.status}}]
        self.told.append(command)
        if command == "cont" and self.space:
            self.status = "running"
        return [{"return": {}}]

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait for it, and for two looks more."""
        async with asyncio.timeout(20):
            while not happened():
                await asyncio.sleep(0.01)
            enough = self.looks + 2
            while self.looks < enough:
                await asyncio.sleep(0.01)


@pytest.fixture
def files(short_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setattr(halted, "LOOK_SECONDS", 0.01)
    return Files.of(machine(short_directory))


@asynccontextmanager
async def watched(files: Files, qemu: Qemu) -> AsyncIterator[asyncio.Lock]:
    turn = asyncio.Lock()
    async with scripted(files.monitor, qemu.answer):
        watching = asyncio.create_task(halted.watch(files, turn, who="alice/workers/i-1"))
        try:
            yield turn
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def test_one_that_had_no_space_goes_on_when_there_is_some(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    qemu = Qemu(status="io-error")
    caplog.set_level(logging.INFO, logger=halted.__name__)
    async with watched(files, qemu):
        await qemu.until(lambda: qemu.told.count("cont") > 2)
        assert qemu.status == "io-error"
        qemu.space = True
        await qemu.until(lambda: qemu.status == "running")
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [
        ("WARNING", "alice/workers/i-1 stands still: its drive cannot be written, the host's disk is full"),
        ("INFO", "alice/workers/i-1 goes on: its drive can be written again"),
    ]


@pytest.mark.parametrize("status", ["running", "paused", "postmigrate", "inmigrate", "finish-migrate", "prelaunch"])
async def test_one_that_runs_or_was_stopped_by_mvm_is_left_alone(files: Files, status: str) -> None:
    qemu = Qemu(status=status)
    async with watched(files, qemu):
        await qemu.until(lambda: True)
    assert qemu.told == []


async def test_one_that_never_goes_on_is_ended_as_if_it_had_crashed(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    identity = spawning.spawn(
        ["sleep", "600"],
        environment={launching.MARKER: str(files.run_dir)},
        directory=Path("/"),
        output=files.output,
        held=(),
    )
    Record(identity=identity).write(files.record)
    qemu = Qemu(status="internal-error")
    async with watched(files, qemu):
        async with asyncio.timeout(20):
            await spawning.wait_for_end(identity)
        await qemu.until(lambda: True)  # it looks on when there is nothing left to end
    assert not processes.alive(identity)
    assert "internal-error" in caplog.text
    await launching.end_all(files, who="it")


async def test_it_waits_for_its_turn_at_the_monitor_and_survives_one_that_hangs_up(files: Files) -> None:
    qemu = Qemu()
    turn = asyncio.Lock()
    watching = asyncio.create_task(halted.watch(files, turn, who="it"))
    await asyncio.sleep(0.05)  # nobody answers yet
    async with turn, scripted(files.monitor, qemu.answer):
        await asyncio.sleep(0.05)
        assert qemu.looks == 0
        turn.release()
        await qemu.until(lambda: qemu.looks > 0)
        await turn.acquire()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
