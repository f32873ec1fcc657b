"""The first turn before a machine is copied: the provider it asks, and what OpenClaw's state is left without."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from tests.unit.guest.agent_world import free_ports

from mvm.guest.control import ControlError
from mvm.guest.http_client import call
from mvm.guest.openclaw_state import forget_who_it_is
from mvm.guest.paths import GuestPaths
from mvm.guest.services import Role
from mvm.guest.warm_up import ANSWER, warm_up


@asynccontextmanager
async def openclaw(paths: GuestPaths, provider: int, answers: list[bytes], warm: bytes) -> AsyncIterator[None]:
    """Answers `warm` to WARM_UP, after asking the provider on the port `provider` as a turn would."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readline()).strip()
        if line == b"WARM_UP":
            body = json.dumps({"model": "m", "stream": True}).encode()
            answer = await call("127.0.0.1", provider, "POST", "/v1/messages", body=body, seconds=10)
            answers.append(answer.body)
        writer.write((warm if line == b"WARM_UP" else b'{"ok": true, "ready": true}') + b"\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, str(paths.control_socket))
    async with server:
        yield


@pytest.fixture
def paths(tmp_path: Path) -> GuestPaths:
    paths = GuestPaths(tmp_path)
    paths.prepare()
    return paths


async def test_the_turn_is_answered_in_this_very_machine(paths: GuestPaths) -> None:
    (port,) = free_ports(1)
    answers: list[bytes] = []
    async with openclaw(paths, port, answers, b'{"ok": true}'):
        await warm_up(paths, Role.CAPABILITY_OPENCLAW, port=port, seconds=30)
    events = [json.loads(line[6:]) for line in answers[0].decode().splitlines() if line.startswith("data: ")]
    assert "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta") == ANSWER
    assert [event["type"] for event in events][-1] == "message_stop"
    with pytest.raises(OSError, match=r"[Cc]onnect"):
        await call("127.0.0.1", port, "GET", "/", seconds=5)


async def test_a_turn_that_fails_is_told(paths: GuestPaths) -> None:
    (port,) = free_ports(1)
    async with openclaw(paths, port, [], b'{"ok": false, "detail": "no model"}'):
        with pytest.raises(ControlError, match="no model"):
            await warm_up(paths, Role.CAPABILITY_OPENCLAW, port=port, seconds=30)


async def test_a_gateway_takes_no_turn(paths: GuestPaths) -> None:
    async with openclaw(paths, 1, [], b'{"ok": false, "detail": "a gateway runs no turn"}'):
        await warm_up(paths, Role.GATEWAY, seconds=30)


async def test_an_openclaw_that_never_comes_up_is_not_waited_for_for_ever(paths: GuestPaths) -> None:
    with pytest.raises(TimeoutError):
        await warm_up(paths, Role.GATEWAY, seconds=0.01)


def test_keys_and_traces_go_and_all_else_stays(tmp_path: Path) -> None:
    state, agent = tmp_path / "state/openclaw.sqlite", tmp_path / "agents/main/agent/openclaw-agent.sqlite"
    for database, script in (
        (state, "CREATE TABLE device_identities (k); INSERT INTO device_identities VALUES (1);"),
        (state, "CREATE TABLE cron_jobs (k); INSERT INTO cron_jobs VALUES (1);"),
        (
            agent,
            "CREATE TABLE session_transcript_archives (session_key); INSERT INTO session_transcript_archives VALUES"
            " ('agent:main:mvm-warm-up'), ('agent:main:other');",
        ),
    ):
        database.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(database)) as connection:
            connection.executescript(script)
    (tmp_path / "config-journal-fingerprint.key").write_bytes(b"k")
    forget_who_it_is(tmp_path)
    with closing(sqlite3.connect(state)) as connection:
        assert connection.execute("SELECT count(*) FROM device_identities").fetchall() == [(0,)]
        assert connection.execute("SELECT count(*) FROM cron_jobs").fetchall() == [(1,)]
    with closing(sqlite3.connect(agent)) as connection:
        rows = connection.execute("SELECT session_key FROM session_transcript_archives").fetchall()
    assert rows == [("agent:main:other",)]
    assert not (tmp_path / "config-journal-fingerprint.key").exists()
    forget_who_it_is(tmp_path)
