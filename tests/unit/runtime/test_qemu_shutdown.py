"""Asking a guest to shut down: whatever it answers, it is known soon whether its machine ended by itself."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.runtime.qemu_machines import machine

from mvm.guest import processes
from mvm.model.entities import ProcessIdentity
from mvm.model.errors import TimedOut, Unavailable
from mvm.runtime import shutdown
from mvm.runtime.base import Connection, Machine


class Supervisor:
    """A guest whose supervisor says the same to everybody, and then ends its machine or does not."""

    def __init__(self, directory: Path, says: bytes, *, ends: subprocess.Popen[bytes] | None) -> None:
        self._socket = directory / "supervisor"
        self._says = says
        self._ends = ends
        self.asked: list[bytes] = []

    async def connect(self, machine: Machine, port: int) -> Connection:
        assert port == shutdown.SUPERVISOR_PORT
        self._server = await asyncio.start_unix_server(self._serve, str(self._socket))
        return await asyncio.open_unix_connection(str(self._socket))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(await reader.readline())
        writer.write(self._says)
        writer.close()
        if self._ends is not None:
            self._ends.kill()
            self._ends.wait()
        self._server.close()


@pytest.fixture
def running() -> Iterator[subprocess.Popen[bytes]]:
    """Stands for a QEMU."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def identity(process: subprocess.Popen[bytes]) -> ProcessIdentity:
    found = processes.identity_of(process.pid)
    assert found is not None
    return ProcessIdentity(pid=found.pid, start_time=found.start_time)


@pytest.mark.parametrize(
    ("says", "clean"),
    [(b'{"ok": true}\n', True), (b'{"ok": true, "killed": ["openclaw"]}\n', False), (b"", True)],
    ids=["all services ended", "one was killed", "it hung up"],
)
async def test_a_machine_that_ends_did_so_cleanly_unless_a_service_was_killed(
    short_directory: Path, running: subprocess.Popen[bytes], says: bytes, clean: bool
) -> None:
    subject, process = machine(short_directory), identity(running)
    guest = Supervisor(short_directory, says, ends=running)
    assert await shutdown.ask(guest, subject, process, grace_seconds=2.5) is clean
    assert guest.asked == [b'{"op": "shutdown", "grace_seconds": 2.5}\n']


@pytest.mark.parametrize(
    "says",
    [b"yes\n", b"[]\n", b'{"ok": false}\n', b"[" * 60_000 + b"\n", b'{"a":' * 10_000 + b"\n"],
    ids=["no json", "no object", "refused", "deep lists", "deep objects"],
)
async def test_whatever_a_hostile_guest_answers_is_an_error_that_its_stop_survives(
    short_directory: Path, running: subprocess.Popen[bytes], says: bytes
) -> None:
    guest = Supervisor(short_directory, says, ends=None)
    with pytest.raises(Unavailable):
        await shutdown.ask(guest, machine(short_directory), identity(running), grace_seconds=1)


async def test_a_guest_that_promises_and_does_not_end_is_given_up(
    short_directory: Path, running: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutdown, "POWER_OFF_SECONDS", 0.05)
    guest = Supervisor(short_directory, b'{"ok": true}\n', ends=None)
    with pytest.raises(TimedOut):
        await shutdown.ask(guest, machine(short_directory), identity(running), grace_seconds=0.05)
