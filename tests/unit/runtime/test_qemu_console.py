"""A guest's console is kept within bounds, newest first."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mvm.runtime import bounded_log
from mvm.runtime.qemu import console


def test_a_log_never_grows_beyond_its_bound_and_keeps_the_newest(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    for number in range(3000):
        bounded_log.append(log, b"%06d " % number + b"x" * 300 + b"\n")
    assert log.stat().st_size <= bounded_log.LIMIT
    assert log.read_bytes().splitlines()[-1].startswith(b"002999 ")
    assert log.read_bytes()[:2] == b"00"


def test_the_last_words_are_printable(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    assert bounded_log.last_words(log) == "nothing"
    log.write_bytes(b"booting\n\x1b[31mthe guest cannot start: \xff no root\r\n\n")
    assert bounded_log.last_words(log).endswith("no root")
    assert bounded_log.last_words(log).isprintable()


async def test_what_comes_from_the_socket_is_kept_until_it_ends(tmp_path: Path, short_directory: Path) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"last words\n")
        writer.close()

    server = await asyncio.start_unix_server(speak, str(short_directory / "console"))
    await asyncio.wait_for(console.copy(short_directory / "console", tmp_path / "log"), 5)
    assert (tmp_path / "log").read_text() == "last words\n"
    server.close()


async def test_a_guest_that_writes_byte_by_byte_without_end_does_not_keep_the_agent_busy(
    tmp_path: Path, short_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[bytes] = []
    monkeypatch.setattr(bounded_log, "append", lambda log, data: pieces.append(data))

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(250):
            writer.write(bytes([number]))
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_unix_server(speak, str(short_directory / "console"))
    await asyncio.wait_for(console.copy(short_directory / "console", tmp_path / "log"), 20)
    assert b"".join(pieces) == bytes(range(250))
    assert len(pieces) < 100, "what has come is taken together"
    server.close()


async def test_nobody_at_the_socket_is_no_error(tmp_path: Path) -> None:
    await console.copy(tmp_path / "none", tmp_path / "log")
    assert not (tmp_path / "log").exists()
