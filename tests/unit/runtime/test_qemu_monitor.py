"""QEMU's monitor: what it refuses, when it hangs and when it hangs up are told apart, and every wait ends."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mvm.model.errors import MvmError, TimedOut
from mvm.runtime.qemu.monitor import MonitorClosed, open_monitor

GREETING = {"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}
Answer = Callable[[str, dict[str, Any]], list[dict[str, Any]] | None]


async def requests(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """What a client asks: JSON documents one after the other, without anything in between."""
    text, decoder = "", json.JSONDecoder()
    while data := await reader.read(4096):
        text += data.decode()
        while text := text.lstrip():
            try:
                request, end = decoder.raw_decode(text)
            except ValueError:
                break
            text = text[end:]
            yield request


@asynccontextmanager
async def scripted(path: Path, answer: Answer, *, greet: bool = True) -> AsyncIterator[Path]:
    """A monitor that answers as it is told: messages for a command, None hangs up, an empty list is silence."""

    connections: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = asyncio.current_task()
        assert own is not None
        connections.append(own)
        if greet:
            writer.write(json.dumps(GREETING).encode() + b"\n")
        async for request in requests(reader):
            command = request["execute"]
            known = {"qmp_capabilities", "getfd", "migrate-set-capabilities"}
            messages = [{"return": {}}] if command in known else answer(command, request.get("arguments", {}))
            if messages is None:
                break
            for message in messages:
                tied = {"id": request["id"]} if "event" not in message and "id" in request else {}
                writer.write(json.dumps({**message, **tied}).encode() + b"\n")
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, str(path))
    try:
        yield path
    finally:
        server.close()
        if connections:  # their clients have hung up
            await asyncio.wait(connections, timeout=10)


def event(status: str) -> dict[str, Any]:
    stamp = {"seconds": 1, "microseconds": 0}
    return {"event": "MIGRATION", "data": {"status": status}, "timestamp": stamp}


@pytest.fixture
def socket(short_directory: Path) -> Path:
    return short_directory / "qmp.sock"


async def test_an_answer_is_returned(socket: Path) -> None:
    async with (
        scripted(socket, lambda command, arguments: [{"return": {"status": "running"}}]),
        open_monitor(socket, who="it") as monitor,
    ):
        assert await monitor.status() == "running"


async def test_a_refusal_is_an_error_with_qemus_words(socket: Path) -> None:
    refusal = {"error": {"class": "GenericError", "desc": "the moon is not full"}}
    async with (
        scripted(socket, lambda command, arguments: [refusal]),
        open_monitor(socket, who="it") as monitor,
    ):
        with pytest.raises(MvmError, match="refuses cont: the moon is not full"):
            await monitor.execute("cont")


async def test_silence_ends_at_its_deadline(socket: Path) -> None:
    async with (
        scripted(socket, lambda command, arguments: []),
        open_monitor(socket, who="it") as monitor,
    ):
        with pytest.raises(TimedOut, match=r"did not answer to stop within 0\.1 s"):
            await monitor.execute("stop", seconds=0.1)


async def test_hanging_up_is_told_from_a_refusal(socket: Path) -> None:
    async with (
        scripted(socket, lambda command, arguments: None),
        open_monitor(socket, who="it") as monitor,
    ):
        with pytest.raises(MonitorClosed, match="ended at stop"):
            await monitor.execute("stop")


async def test_nobody_there(socket: Path) -> None:
    with pytest.raises(MonitorClosed, match="does not answer"):
        async with open_monitor(socket, who="it"):
            pass


async def test_no_greeting(socket: Path) -> None:
    async with scripted(socket, lambda command, arguments: [], greet=False):
        with pytest.raises(TimedOut, match="does not answer"):
            async with open_monitor(socket, who="it", seconds=0.1):
                pass


@pytest.mark.parametrize(
    ("status", "migration", "waits"),
    [("inmigrate", {}, True), ("inmigrate", {"status": "active"}, False), ("running", {}, False)],
)
async def test_one_that_was_told_what_to_load_does_not_wait_for_it(
    socket: Path, status: str, migration: dict[str, str], waits: bool
) -> None:
    answers = {"query-status": {"status": status}, "query-migrate": migration}
    async with (
        scripted(socket, lambda command, arguments: [{"return": answers[command]}]),
        open_monitor(socket, who="it") as monitor,
    ):
        assert await monitor.waits_for_devices() is waits


async def test_a_snapshot_is_complete_when_qemu_says_so(socket: Path) -> None:
    done = [{"return": {}}, event("setup"), event("active"), event("completed")]
    async with (
        scripted(socket, lambda command, arguments: done),
        open_monitor(socket, who="it") as monitor,
    ):
        await monitor.save_devices(os.open(os.devnull, os.O_WRONLY))


async def test_a_failed_snapshot_says_why(socket: Path) -> None:
    def answer(command: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        if command == "query-migrate":
            return [{"return": {"status": "failed", "error-desc": "no space left"}}]
        return [{"return": {}}, event("failed")]

    async with scripted(socket, answer), open_monitor(socket, who="it") as monitor:
        with pytest.raises(MvmError, match="failed: no space left"):
            await monitor.save_devices(os.open(os.devnull, os.O_WRONLY))


async def test_a_qemu_that_ends_while_it_loads_is_noticed_at_once(socket: Path) -> None:
    def answer(command: str, arguments: dict[str, Any]) -> list[dict[str, Any]] | None:
        return None

    async with scripted(socket, answer), open_monitor(socket, who="it") as monitor:
        with pytest.raises(MonitorClosed):
            await asyncio.wait_for(monitor.load_devices(os.open(os.devnull, os.O_RDONLY)), 5)
