"""The channel of a Firecracker machine, `CONNECT` one way and `v.sock_N` the other; and what it logs, within bounds."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.standins.waiting import until
from tests.unit.runtime.qemu_machines import machine

from mvm.model.errors import TimedOut, Unavailable
from mvm.runtime import bounded_log
from mvm.runtime.firecracker import logs
from mvm.runtime.firecracker.channel import Channel
from mvm.runtime.firecracker.files import LOG, METRICS, VSOCK, Files, host_port_socket

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(params=["short", "long"])
def files(short_directory: Path, request: pytest.FixtureRequest) -> Files:
    """Of an instance whose room is there; in the second case too deep for the path of a socket."""
    base = short_directory if request.param == "short" else short_directory / ("d" * 90) / ("e" * 90)
    base.mkdir(exist_ok=True, parents=True)
    files = Files.of(machine(base))
    room = files.room_for(Path("/p/firecracker"))
    room.mkdir(parents=True)
    for name in (LOG, METRICS):
        logs.make_pipe(room / name, owner=None)
    return files


@pytest.fixture
async def channel(files: Files) -> AsyncIterator[Channel]:
    channel = Channel(files, owner=None, who="alice/workers/i-1")
    yield channel
    await channel.close()


def room(files: Files) -> Path:
    assert files.room is not None
    return files.room


async def firecracker(files: Files, answer: bytes | None) -> asyncio.Server:
    """Listens as Firecracker does, and answers to `CONNECT`; then it repeats what it hears. None: it hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readline()
        if answer is not None:
            writer.write(answer)
            with suppress(ConnectionError):
                while line := await reader.readline():
                    writer.write(asked + line)
        writer.close()

    place = os.open(room(files), os.O_RDONLY)
    try:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"/proc/self/fd/{place}/{VSOCK}")
    finally:
        os.close(place)
    return await asyncio.start_unix_server(serve, sock=listener)


async def from_the_guest(files: Files, port: int) -> Stream:
    """What Firecracker does when the guest connects to a host port."""
    place = os.open(room(files), os.O_RDONLY)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{place}/{host_port_socket(port)}")
    finally:
        os.close(place)


async def test_a_guest_port_is_asked_for_by_its_number(files: Files, channel: Channel) -> None:
    server = await firecracker(files, b"OK 1073741824\n")
    reader, writer = await channel.connect(52, seconds=5)
    writer.write(b"hello\n")
    assert await reader.readline() == b"CONNECT 52\n"
    assert await reader.readline() == b"hello\n"
    writer.close()
    server.close()


@pytest.mark.parametrize("answer", [None, b"NO\n", b"OK" * 100 + b"\n", b"x" * 100_000])
async def test_whoever_does_not_say_ok_is_not_the_guest(files: Files, channel: Channel, answer: bytes | None) -> None:
    server = await firecracker(files, answer)
    with pytest.raises(Unavailable, match="guest port 52 of alice/workers/i-1"):
        await channel.connect(52, seconds=5)
    server.close()


async def test_silence_has_an_end(files: Files, channel: Channel) -> None:
    server = await firecracker(files, b"")
    with pytest.raises(TimedOut):
        await channel.connect(52, seconds=0.05)
    server.close()


async def test_without_a_machine_nobody_listens(files: Files, channel: Channel) -> None:
    with pytest.raises(Unavailable, match="port 52"):
        await channel.connect(52, seconds=5)
    for path in room(files).iterdir():
        path.unlink()
    room(files).rmdir()
    with pytest.raises(Unavailable, match="does not run"):
        await channel.connect(52, seconds=5)


async def capitals(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.readline()).upper())
    writer.close()


async def lower_case(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.readline()).lower())
    writer.close()


async def say(files: Files, port: int, words: bytes) -> bytes:
    reader, writer = await from_the_guest(files, port)
    writer.write(words)
    answer = await reader.read()
    writer.close()
    return answer


async def test_a_host_port_is_there_before_the_machine_starts(files: Files, channel: Channel) -> None:
    await channel.listen(53, capitals)
    await channel.begin(room(files))
    assert await say(files, 53, b"Hello\n") == b"HELLO\n"


async def test_who_listens_last_serves(files: Files, channel: Channel) -> None:
    first = await channel.listen(53, capitals)
    await channel.listen(53, lower_case)
    assert not first.is_serving()
    assert await say(files, 53, b"Hello\n") == b"hello\n"


async def test_a_stale_socket_of_an_earlier_agent_is_no_obstacle(files: Files, channel: Channel) -> None:
    earlier = Channel(files, owner=None, who="i-1")
    await earlier.listen(53, capitals)
    await earlier.close()
    assert (room(files) / host_port_socket(53)).is_socket()
    await channel.listen(53, lower_case)
    assert await say(files, 53, b"Hello\n") == b"hello\n"


async def test_nobody_else_may_connect(files: Files, channel: Channel) -> None:
    await channel.listen(53, capitals)
    assert (room(files) / host_port_socket(53)).stat().st_mode & 0o777 == 0o600


async def test_a_handler_that_fails_ends_its_connection_and_no_other(
    files: Files, channel: Channel, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline() == b"fail\n":
            raise RuntimeError("a defect")
        writer.write(b"fine\n")
        writer.close()

    await channel.listen(53, fails)
    with suppress(ConnectionError):
        assert await say(files, 53, b"fail\n") == b""
    assert await say(files, 53, b"go on\n") == b"fine\n"
    assert "a handler failed" in caplog.text


async def test_connections_end_with_the_process(files: Files, channel: Channel) -> None:
    served = asyncio.Event()

    async def stays(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.set()
        await asyncio.Event().wait()

    await channel.listen(53, stays)
    reader, writer = await from_the_guest(files, 53)
    await served.wait()
    await channel.process_ended()
    with suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_what_firecracker_logs_is_kept_within_bounds(files: Files, channel: Channel) -> None:
    await channel.begin(room(files))
    pipe = os.open(room(files) / LOG, os.O_WRONLY | os.O_NONBLOCK)
    for number in range(200):
        with suppress(BlockingIOError):  # as Firecracker: what finds no room is left out
            os.write(pipe, b"%04d " % number + b"x" * 4000 + b"\n")
        await asyncio.sleep(0)
    os.write(pipe, b"the last words\n")
    os.close(pipe)
    await until(lambda: bounded_log.last_words(files.log) == "the last words", what="the last words")
    assert files.log.stat().st_size <= bounded_log.LIMIT


async def test_what_is_no_pipe_is_not_read(files: Files, tmp_path: Path) -> None:
    (room(files) / LOG).unlink()
    (room(files) / LOG).symlink_to("/etc/passwd")
    with pytest.raises(OSError, match=r"pipe|symbolic"):
        logs.Copying(room(files) / LOG, tmp_path / "log")
    (room(files) / METRICS).unlink()
    (room(files) / METRICS).touch()
    with pytest.raises(OSError, match="pipe"):
        logs.Copying(room(files) / METRICS, tmp_path / "log")
