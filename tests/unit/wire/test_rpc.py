"""Requests and answers over a real connection, with peers that keep no rule."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mvm.wire import messages as m
from mvm.wire.frames import FrameError, FrameFault, encode, read_frame, write_frame
from mvm.wire.rpc import CallFailed, Refusal, call, serve_connection
from mvm.wire.schema import MessageError
from mvm.wire.tagged import Answer

Handler = Callable[[m.HostToGuest], Awaitable[Answer]]
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Guest:
    """Serves a Unix socket; tells when a connection has been served to its end."""

    def __init__(self, path: Path, handler: Handler, timeout: float) -> None:
        self.path = str(path)
        self.served: asyncio.Queue[BaseException | None] = asyncio.Queue()
        self._handler = handler
        self._timeout = timeout

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve_connection(reader, writer, self._handler, parse=m.parse_request, timeout=self._timeout)
        except BaseException as error:
            self.served.put_nowait(error)
            raise
        self.served.put_nowait(None)

    async def ended(self) -> BaseException | None:
        async with asyncio.timeout(10):
            return await self.served.get()


@asynccontextmanager
async def guest(tmp_path: Path, handler: Handler, *, timeout: float = 5.0) -> AsyncIterator[Guest]:
    served = Guest(tmp_path / "guest.sock", handler, timeout)
    server = await asyncio.start_unix_server(served.serve, served.path)
    try:
        yield served
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def connected(served: Guest) -> AsyncIterator[Ends]:
    reader, writer = await asyncio.open_unix_connection(served.path)
    try:
        yield reader, writer
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def echo(request: m.HostToGuest) -> Answer:
    match request:
        case m.Ping():
            return m.Pong()
        case m.Exec(argv=argv):
            return m.ExecResult(status=0, stdout=" ".join(argv).encode())
        case m.SleepPrep(drain_timeout_secs=0):
            raise Refusal("busy: a turn is under way")
        case m.SleepPrep():
            return m.SleepPrepAck(success=True)
        case m.Stats():
            raise RuntimeError("/root/secret-path does not exist")
        case m.Logs():
            return m.Pong()  # not what was asked for
        case m.IntegrationStatus():
            log = m.ServiceLog(service="x", text="\x00" * m.MAX_LOG_TEXT)
            return m.LogsResult(logs=(log,) * 10)  # far too large
    raise AssertionError(request)


async def test_a_request_gets_its_answer_typed(tmp_path: Path) -> None:
    async with guest(tmp_path, echo) as served, connected(served) as (reader, writer):
        assert await call(reader, writer, m.Ping()) == m.Pong()
        result = await call(reader, writer, m.Exec(argv=("a", "b")))
        assert result.stdout == b"a b"
        assert (await call(reader, writer, m.SleepPrep(drain_timeout_secs=1))).success


async def test_a_refusal_is_told_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with guest(tmp_path, echo) as served, connected(served) as (reader, writer):
        with pytest.raises(CallFailed, match="busy: a turn is under way"):
            await call(reader, writer, m.SleepPrep(drain_timeout_secs=0))
        assert await call(reader, writer, m.Ping()) == m.Pong()


async def test_a_failing_handler_tells_the_log_and_not_the_peer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with guest(tmp_path, echo) as served, connected(served) as (reader, writer):
        with caplog.at_level(logging.ERROR), pytest.raises(CallFailed) as failure:
            await call(reader, writer, m.Stats())
        assert str(failure.value) == "internal error"
        assert "secret-path" in caplog.text
        assert await call(reader, writer, m.Ping()) == m.Pong()


async def test_an_answer_to_something_else_is_no_answer(tmp_path: Path) -> None:
    async with guest(tmp_path, echo) as served, connected(served) as (reader, writer):
        with pytest.raises(MessageError, match="Pong"):
            await call(reader, writer, m.Logs())


async def test_an_answer_that_is_too_large_becomes_an_error(tmp_path: Path) -> None:
    async with guest(tmp_path, echo) as served, connected(served) as (reader, writer):
        with pytest.raises(CallFailed, match="too large"):
            await call(reader, writer, m.IntegrationStatus())
        assert await call(reader, writer, m.Ping()) == m.Pong()


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"\x7f\xff\xff\xff", "may have 262144"),
        (b"\x00\x00\x00\x00", "no bytes"),
        (b"\x00\x00\x00\x02{]", "not JSON"),
        (b"\x00\x00\x00\x02\xff\xff", "not UTF-8"),
        (encode("Nonsense"), "unknown message"),
        (encode({"Exec": {"argv": [1], "timeout_secs": 1}}), "Exec.argv[0]"),
        (encode(None), "got null"),
    ],
)
async def test_a_bad_frame_is_answered_with_an_error_and_the_end(tmp_path: Path, sent: bytes, told: str) -> None:
    async with guest(tmp_path, echo) as served, connected(served) as (reader, writer):
        writer.write(sent)
        answer: Any = await read_frame(reader)
        assert told in answer["Error"]["message"]
        assert await reader.read() == b""
        assert await served.ended() is None


@pytest.mark.parametrize("sent", [b"", b"\x00", b"\x00\x00\x00\x10{"])
async def test_a_peer_that_leaves_gets_no_answer(tmp_path: Path, sent: bytes) -> None:
    async with guest(tmp_path, echo) as served, connected(served) as (reader, writer):
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == b""
        assert await served.ended() is None


@pytest.mark.parametrize("sent", [b"", b"\x00", b"\x00\x00\x00\x10{"])
async def test_a_silent_peer_is_cut(tmp_path: Path, sent: bytes) -> None:
    async with guest(tmp_path, echo, timeout=0.05) as served, connected(served) as (reader, writer):
        writer.write(sent)
        answer: Any = await read_frame(reader)
        assert "within 0.05 s" in answer["Error"]["message"]
        assert await reader.read() == b""
        assert await served.ended() is None


async def test_a_peer_that_takes_no_answers_is_cut(tmp_path: Path) -> None:
    async def talkative(_: m.HostToGuest) -> Answer:
        return m.ExecResult(status=0, stdout=b"x" * m.MAX_OUTPUT)

    async with guest(tmp_path, talkative, timeout=0.1) as served, connected(served) as (reader, writer):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(100):
            writer.write(encode({"Exec": {"argv": ["x"], "timeout_secs": 1}}))
        assert await served.ended() is None


async def test_a_peer_that_hangs_up_does_not_cancel_the_handler(tmp_path: Path) -> None:
    entered, leave, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(_: m.HostToGuest) -> Answer:
        entered.set()
        await leave.wait()
        done.set()
        return m.Pong()

    async with guest(tmp_path, slow) as served:
        async with connected(served) as (_, writer):
            await write_frame(writer, "Ping")
            await entered.wait()
        leave.set()
        assert await served.ended() is None
        assert done.is_set()


async def test_a_call_is_given_up_when_its_time_is_over(tmp_path: Path) -> None:
    async def never(_: m.HostToGuest) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    async with guest(tmp_path, never, timeout=0.05) as served:
        serving = asyncio.all_tasks()
        async with connected(served) as (reader, writer):
            with pytest.raises(FrameError, match=r"no answer to Ping within 0\.05 s") as failure:
                await call(reader, writer, m.Ping(), timeout=0.05)
            assert failure.value.kind is FrameFault.TIMEOUT
        for task in asyncio.all_tasks() - serving:
            task.cancel()
        assert isinstance(await served.ended(), asyncio.CancelledError)


async def test_a_call_to_a_peer_that_closes_is_a_frame_error(tmp_path: Path) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_unix_server(hang_up, str(tmp_path / "s"))
    async with server:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        with pytest.raises(FrameError) as failure:
            await call(reader, writer, m.Ping())
        assert failure.value.kind in (FrameFault.CLOSED, FrameFault.SHORT)
        writer.close()


async def test_connections_are_served_side_by_side(tmp_path: Path) -> None:
    everyone = asyncio.Barrier(20)

    async def meet(_: m.HostToGuest) -> Answer:
        await everyone.wait()
        return m.Pong()

    async def ask(served: Guest) -> Answer:
        async with connected(served) as (reader, writer):
            return await call(reader, writer, m.Ping())

    async with guest(tmp_path, meet) as served:
        assert await asyncio.gather(*(ask(served) for _ in range(20))) == [m.Pong()] * 20


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=1, max_size=40) | st.sampled_from([encode("Ping"), encode("Nonsense")]), max_size=6))
async def test_whatever_is_sent_the_server_ends_in_order(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]
) -> None:
    async with guest(tmp_path_factory.mktemp("s"), echo) as served, connected(served) as (reader, writer):
        for chunk in chunks:
            writer.write(chunk)
        writer.write_eof()
        async with asyncio.timeout(10):
            await asyncio.gather(reader.read(), return_exceptions=True)
        assert await served.ended() is None
