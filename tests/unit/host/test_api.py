"""How the agent answers on its local socket, whatever the other end does."""

import asyncio
import contextlib
import errno
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mvm.host.api import ApiServer, Call, Params, Request, only_agent
from mvm.host.client import AgentClient, Progress
from mvm.model.errors import Conflict, InvalidInput, MvmError, NotFound, QuotaExceeded, TimedOut, Unavailable
from mvm.wire.frames import API_FRAME_LIMIT, read_frame, write_frame

LIMIT = 10.0


@dataclass
class Desk:
    """What the requests of these tests work on."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[tuple[str, str]] = field(default_factory=list)


class Nothing(Params):
    pass


class Stream(Params):
    follow: bool


class Named(Params):
    name: str
    token: str = ""


async def greet(desk: Desk, params: Named, call: Call) -> dict[str, Any]:
    return {"greeting": f"hello {params.name}", "actor": call.actor}


async def work(desk: Desk, params: Nothing, call: Call) -> dict[str, Any]:
    call.progress("working", done=1, total=2)
    desk.began.set()
    try:
        await desk.gate.wait()
    except asyncio.CancelledError:
        desk.cancelled.set()
        raise
    desk.done.set()
    return {}


async def fail(desk: Desk, params: Named, call: Call) -> dict[str, Any]:
    errors: dict[str, Exception] = {
        "missing": NotFound("tenant 'x' does not exist", hint="look again"),
        "quota": QuotaExceeded("too many"),
        "defect": RuntimeError("s3cret"),
        "full": OSError(errno.ENOSPC, "No space left on device", "/state/x"),
    }
    raise errors[params.name]


async def large(desk: Desk, params: Nothing, call: Call) -> dict[str, Any]:
    return {"text": "x" * (API_FRAME_LIMIT + 1)}


async def count(desk: Desk, params: Stream, call: Call) -> dict[str, Any]:
    for number in range(1000):
        await call.send("Event", {"number": number})
    return {}


REQUESTS: dict[str, Request[Desk]] = {
    "Greet": Request(Named, greet),
    "Work": Request(Nothing, work),
    "Wait": Request(Nothing, work, only_waits=True),
    "Fail": Request(Named, fail),
    "Large": Request(Nothing, large),
    "Events": Request(Stream, count, only_waits=True),
}


@dataclass
class Running:
    desk: Desk
    client: AgentClient
    socket: Path
    server: ApiServer[Desk]


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Short enough for a socket, which pytest's own directories need not be."""
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))
    yield directory
    shutil.rmtree(directory)


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(run_dir: Path) -> AsyncIterator[Start]:
    servers: list[ApiServer[Desk]] = []

    async def begin(**options: Any) -> Running:
        desk = Desk()
        server = ApiServer(REQUESTS, desk, observe=lambda kind, result: desk.seen.append((kind, result)), **options)
        await server.start(run_dir / "agent.sock")
        servers.append(server)
        return Running(desk, AgentClient(run_dir / "agent.sock"), run_dir / "agent.sock", server)

    yield begin
    for server in servers:
        await server.close()


@contextlib.asynccontextmanager
async def connected(socket: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def happens(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), LIMIT)


async def test_a_request_is_answered_and_knows_who_asked(start: Start) -> None:
    agent = await start()
    answer = await agent.client.call("Greet", {"name": "alice"})
    assert answer == {"greeting": "hello alice", "actor": pwd.getpwuid(os.getuid()).pw_name}
    assert agent.desk.seen == [("Greet", "ok")]


async def test_several_requests_may_use_one_connection(start: Start) -> None:
    agent = await start()
    async with connected(agent.socket) as (reader, writer):
        for name in ("alice", "bob"):
            await write_frame(writer, {"Greet": {"name": name}})
        answers = [await read_frame(reader), await read_frame(reader)]
    assert [a["GreetResult"]["greeting"] for a in answers] == ["hello alice", "hello bob"]  # type: ignore[call-overload,index]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("missing", NotFound, "tenant 'x' does not exist"),
        ("quota", QuotaExceeded, "too many"),
    ],
)
async def test_an_error_arrives_as_what_it_was(start: Start, name: str, error: type[MvmError], message: str) -> None:
    agent = await start()
    with pytest.raises(error, match=message):
        await agent.client.call("Fail", {"name": name})


async def test_a_hint_arrives_with_its_error(start: Start) -> None:
    agent = await start()
    with pytest.raises(NotFound) as caught:
        await agent.client.call("Fail", {"name": "missing"})
    assert caught.value.hint == "look again"


async def test_a_defect_is_told_without_its_text(start: Start) -> None:
    agent = await start()
    with pytest.raises(MvmError) as caught:
        await agent.client.call("Fail", {"name": "defect"})
    assert "RuntimeError" in caught.value.message
    assert "s3cret" not in caught.value.message


async def test_a_full_disk_is_no_defect(start: Start) -> None:
    agent = await start()
    with pytest.raises(MvmError, match=r"No space left on device \(/state/x\)") as caught:
        await agent.client.call("Fail", {"name": "full"})
    assert "make room" in (caught.value.hint or "")


async def test_wrong_parameters_are_named_without_their_values(start: Start) -> None:
    agent = await start()
    with pytest.raises(InvalidInput) as caught:
        await agent.client.call("Greet", {"name": 7, "token": "s3cret", "tokn": "s3cret"})
    assert "name" in caught.value.message
    assert "tokn" in caught.value.message
    assert "s3cret" not in caught.value.message


async def test_an_unknown_request_names_the_nearest_and_ends_the_connection(start: Start) -> None:
    agent = await start()
    async with connected(agent.socket) as (reader, writer):
        await write_frame(writer, {"Great": {}})
        answer = await read_frame(reader)
        assert answer["Error"]["code"] == 400  # type: ignore[call-overload,index]
        assert "Greet" in answer["Error"]["hint"]  # type: ignore[call-overload,index]
        assert await reader.read() == b""


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\x00\x00\x02{]", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x00\x00\x00\x02[]", b"\x00\x00\x00\x01\xff"],
)
async def test_what_is_no_frame_is_answered_with_an_error_and_closed(start: Start, garbage: bytes) -> None:
    agent = await start()
    async with connected(agent.socket) as (reader, writer):
        writer.write(garbage)
        answer = await read_frame(reader)
        assert answer["Error"]["code"] == 400  # type: ignore[call-overload,index]
        assert await reader.read() == b""
    assert (await agent.client.call("Greet", {"name": "bob"}))["greeting"] == "hello bob"


async def test_progress_comes_before_the_answer_and_is_not_repeated_to_the_person(start: Start) -> None:
    agent = await start(heartbeat_seconds=0.01)
    heard: list[Progress] = []
    call = asyncio.create_task(agent.client.call("Work", on_progress=heard.append))
    async with connected(agent.socket) as (reader, writer):
        await write_frame(writer, "Work")
        beats = [await read_frame(reader) for _ in range(4)]  # the second call proves that the beat goes on
        agent.desk.gate.set()
    assert {"Progress": {"text": "working", "done": 1, "total": 2}} == beats[0] == beats[3]
    assert await call == {}
    assert heard == [Progress("working", 1, 2)]


async def test_hanging_up_does_not_cancel_work(start: Start) -> None:
    agent = await start()
    async with connected(agent.socket) as (_, writer):
        await write_frame(writer, {"Work": {}})
        await happens(agent.desk.began)
    agent.desk.gate.set()
    await happens(agent.desk.done)
    assert not agent.desk.cancelled.is_set()


async def test_hanging_up_ends_what_only_waits(start: Start) -> None:
    agent = await start()
    async with connected(agent.socket) as (_, writer):
        await write_frame(writer, {"Wait": {}})
        await happens(agent.desk.began)
    await happens(agent.desk.cancelled)


async def test_a_caller_that_gives_up_says_so(start: Start) -> None:
    agent = await start()
    with pytest.raises(TimedOut, match="did not finish Work"):
        await agent.client.call("Work", timeout=0.05)
    agent.desk.gate.set()
    await happens(agent.desk.done)


async def test_an_answer_that_fits_no_frame_is_an_error_that_says_what_to_do(start: Start) -> None:
    agent = await start()
    with pytest.raises(InvalidInput) as caught:
        await agent.client.call("Large")
    assert "limit" in str(caught.value.hint)


async def test_a_stream_arrives_whole_and_in_order(start: Start) -> None:
    agent = await start()
    assert [event["number"] async for event in agent.client.events()] == list(range(1000))


async def test_a_reader_that_stops_in_the_middle_of_a_stream_harms_nobody(start: Start) -> None:
    agent = await start()
    async with contextlib.aclosing(agent.client.events()) as events:
        async for _ in events:
            break
    assert (await agent.client.call("Greet", {"name": "bob"}))["greeting"] == "hello bob"


async def test_one_connection_too_many_is_told_so(start: Start) -> None:
    agent = await start(max_connections=1)
    async with connected(agent.socket) as (_, writer):
        await write_frame(writer, {"Work": {}})
        await happens(agent.desk.began)
        with pytest.raises(QuotaExceeded):
            await agent.client.call("Greet", {"name": "alice"})
    agent.desk.gate.set()


async def test_the_socket_is_for_its_owner_and_group(start: Start) -> None:
    agent = await start()
    assert stat.S_IMODE(agent.socket.stat().st_mode) == 0o660


def test_a_second_agent_on_the_same_directory_is_refused(run_dir: Path) -> None:
    second = only_agent(run_dir / "agent.sock")
    with only_agent(run_dir / "agent.sock"), pytest.raises(Conflict, match="already runs"):
        second.__enter__()
    with only_agent(run_dir / "agent.sock"):
        pass  # the lock went with its holder


async def test_a_socket_left_by_a_dead_agent_is_taken_over(start: Start, run_dir: Path) -> None:
    left = await asyncio.start_unix_server(lambda reader, writer: None, str(run_dir / "agent.sock"))
    left.close()
    assert (run_dir / "agent.sock").exists()
    agent = await start()
    assert (await agent.client.call("Greet", {"name": "alice"}))["greeting"] == "hello alice"


async def test_closing_ends_waits_at_once_and_leaves_no_socket(start: Start) -> None:
    agent = await start()
    waiting = asyncio.create_task(agent.client.call("Wait"))
    await happens(agent.desk.began)
    await agent.server.close()
    with pytest.raises(MvmError):
        await waiting
    assert not agent.socket.exists()
    with pytest.raises(Unavailable, match="no agent runs"):
        await agent.client.call("Greet", {"name": "alice"})


async def test_a_place_where_no_socket_can_be_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for socket in (tmp_path / "file/agent.sock", tmp_path / ("x" * 200) / "agent.sock"):
        with pytest.raises(Unavailable, match="no agent"):
            await AgentClient(socket).call("NodeInfo")
