"""A machine that wakes as another than it was: what is made anew before anybody is let in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.guest.guest_world import config

from mvm.guest import config as config_files
from mvm.guest import identity, machine, tokens
from mvm.guest.config import GuestConfig
from mvm.guest.control import ControlError, ControlSocket
from mvm.guest.drives import DriveError, Drives
from mvm.guest.paths import GuestPaths
from mvm.guest.sleep import SleepDesk
from mvm.guest.status import StatusBoard
from mvm.guest.supervisor_socket import SupervisorClient
from mvm.guest.wake import WakeDesk
from mvm.wire.clock import parse_timestamp
from mvm.wire.messages import Wake, WakeAck


class Scene:
    """Everything around the desk; writes down in which order it is asked."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, *, role: str, another: bool) -> None:
        self.steps: list[str] = []
        self.prepared = self.restarting = self.catching_up = False
        self.forgets = True
        self.paths = GuestPaths(directory)
        self.paths.prepare()
        self.paths.config_dir.mkdir(parents=True)
        self.paths.config.write_text(json.dumps(config(role=role)))
        self.paths.openclaw_config_source.write_text("{}")
        self.paths.openclaw_config.write_text("{}")
        monkeypatch.setattr(machine, "set_clock", lambda *_: self.steps.append("clock"))
        monkeypatch.setattr(machine, "add_entropy", lambda *_: self.steps.append("entropy"))
        monkeypatch.setattr(identity, "take", lambda *_: self.take_identity(another))
        monkeypatch.setattr(tokens, "renew_all", lambda *_: self.steps.append("tokens"))
        board = StatusBoard(runs_openclaw=True)
        self.desk = WakeDesk(
            self.paths,
            config=self.config,
            reread_config=lambda: None,
            board=board,
            control=cast(ControlSocket, self),
            supervisor=cast(SupervisorClient, self),
            sleep=cast(SleepDesk, self),
            drives=cast(Drives, self),
            deliveries=None,
            openclaw_ended=lambda: asyncio.sleep(0),
            on_event=lambda kind, _: self.steps.append(kind),
            lock=asyncio.Lock(),
        )

    def step(self, name: str) -> None:
        self.steps.append(name)

    def take_identity(self, another: bool) -> bool:
        self.step("identity")
        return another

    def config(self) -> GuestConfig:
        return config_files.read(self.paths.config).config

    def interrupt(self) -> None: ...

    def take_in(self) -> None:
        self.step("drives")

    async def undo(self, *_: Any, **__: Any) -> dict[str, str]:
        self.step("doors")
        return {}

    async def forget_randomness(self) -> None:
        self.step("randomness")
        if not self.forgets:
            raise ControlError("it does not know how")

    async def restart(self, service: str, *, grace: float) -> None:
        self.step(f"restart {service}")

    async def start(self, service: str) -> None: ...

    async def stop(self, service: str, *, grace: float) -> None: ...

    async def checkpoint(self, _: float) -> None: ...

    async def wake(self) -> WakeAck:
        moment = parse_timestamp("2026-11-22T12:00:00Z")
        ack = await self.desk.wake(Wake(host_time=moment, secrets_epoch=1, config_version=1, entropy=b"x" * 64))
        await self.desk.close()
        return ack


@pytest.mark.parametrize(("role", "more"), [("gateway", ["restart router"]), ("capability-openclaw", [])])
async def test_everything_of_its_own_is_made_anew_before_the_doors_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, more: list[str]
) -> None:
    scene = Scene(tmp_path, monkeypatch, role=role, another=True)
    assert (await scene.wake()).success
    assert scene.steps == ["clock", "entropy", "drives", "identity", "tokens", "randomness", *more, "doors"]


async def test_one_that_stays_who_it_was_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch, role="gateway", another=False)
    assert (await scene.wake()).success
    assert scene.steps == ["clock", "entropy", "drives", "identity", "doors"]


async def test_an_openclaw_that_keeps_its_random_numbers_does_not_keep_the_machine_from_waking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, role="capability-openclaw", another=True)
    scene.forgets = False
    ack = await scene.wake()
    assert (ack.success, ack.detail) == (True, None)


async def test_drives_that_cannot_be_read_are_said_and_nothing_is_taken_for_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, role="gateway", another=True)

    def broken() -> None:
        raise DriveError("the drive 'config' cannot be read")

    monkeypatch.setattr(scene, "take_in", broken)
    ack = await scene.wake()
    assert "config" in str(ack.detail)
    assert scene.steps == ["clock", "entropy", "ConfigRejected", "doors"]
