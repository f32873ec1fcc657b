"""The client of OpenClaw's control socket, against good and hostile servers."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mvm.guest.control import ControlAbsent, ControlError, ControlSocket

Serve = Callable[[Callable[[str], bytes]], Awaitable[ControlSocket]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server that answers each line with what the given function makes of it."""
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))
    servers: list[asyncio.Server] = []

    async def start(answer: Callable[[str], bytes]) -> ControlSocket:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            line = await reader.readline()
            writer.write(answer(line.decode().strip()))
            writer.close()

        servers.append(await asyncio.start_unix_server(handle, str(directory / "control.sock")))
        return ControlSocket(directory / "control.sock")

    yield start
    for server in servers:
        server.close()
    shutil.rmtree(directory)


async def test_a_checkpoint_says_how_long_to_drain_and_gives_the_next_alarm(serve: Serve) -> None:
    asked: list[str] = []

    def answer(line: str) -> bytes:
        asked.append(line)
        return b'{"ok":true,"next_alarm_at":"2026-11-23T06:00:00Z"}\n'

    control = await serve(answer)
    assert await control.checkpoint(12.9) == datetime(2026, 11, 23, 6, tzinfo=UTC)
    assert asked == ["CHECKPOINT 12"]


async def test_a_refusal_carries_openclaws_reason(serve: Serve) -> None:
    control = await serve(lambda _: b'{"ok":false,"detail":"busy: turn"}\n')
    with pytest.raises(ControlError, match="busy: turn"):
        await control.checkpoint(0)


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\n",
        b"[]\n",
        b"{}\n",
        b'{"ok":true,"in_flight":-1}\n',
        b'{"ok":true,"in_flight":"many"}\n',
        b'{"ok":true,"next_alarm_at":"tomorrow"}\n',
        b'{"ok":true,"next_alarm_at":5}\n',
        b'{"ok":true,"x":"' + b"y" * 100_000 + b'"}\n',
        b"[" * 5000 + b"\n",
    ],
)
async def test_nonsense_is_an_error_and_nothing_worse(serve: Serve, answer: bytes) -> None:
    control = await serve(lambda _: answer)
    with pytest.raises(ControlError):
        await control.status()


@pytest.mark.parametrize("answer", [b"", b'{"ok":tr'])
async def test_a_connection_that_ends_early_means_that_openclaw_is_gone(serve: Serve, answer: bytes) -> None:
    control = await serve(lambda _: answer)
    with pytest.raises(ControlAbsent):
        await control.restore()


async def test_nobody_there_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ControlAbsent):
        await ControlSocket(tmp_path / "control.sock").restore()


async def test_an_answer_that_never_comes_is_not_waited_for(serve: Serve) -> None:
    control = await serve(lambda _: b"")
    reached = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        await reader.read()
        writer.close()

    directory = Path(tempfile.mkdtemp(prefix="mvm-"))
    server = await asyncio.start_unix_server(silent, str(directory / "s"))
    control = ControlSocket(directory / "s")
    with pytest.raises(ControlError, match=r"did not answer RESTORE within 0\.05 s"):
        await control.request("RESTORE", 0.05)
    assert reached.is_set()
    server.close()
    shutil.rmtree(directory)


async def test_following_gives_each_status_and_ends_with_openclaw(serve: Serve) -> None:
    control = await serve(lambda _: b'{"ok":true,"ready":true}\n{"ok":true,"ready":true,"in_flight":1,"queued":2}\n')
    seen = []

    async def follow() -> None:
        async with aclosing(control.follow()) as statuses:
            async for status in statuses:
                seen.append((status.ready, status.in_flight, status.queued))

    with pytest.raises(ControlAbsent):
        await follow()
    assert seen == [(True, 0, 0), (True, 1, 2)]
