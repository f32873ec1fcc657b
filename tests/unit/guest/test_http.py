"""The small HTTP server and client: what they take, what they refuse, what survives."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator

import pytest
from tests.standins.waiting import until

from mvm.guest import http_server
from mvm.guest.http import HttpError, Request, Response, TakeOver
from mvm.guest.http_client import call, call_json
from mvm.guest.http_server import HttpServer


async def echo(request: Request) -> Response | TakeOver:
    if request.path == "/fail":
        raise RuntimeError("secret detail")
    if request.path == "/refuse":
        raise HttpError(409, "not now")
    if request.wants_upgrade:

        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            while data := await reader.read(100):
                writer.write(data.upper())
                await writer.drain()

        return TakeOver(run)
    return Response.json(
        200,
        {
            "method": request.method,
            "segments": request.segments,
            "body": request.body.decode(),
            "peer": request.peer,
            "bearer": request.bearer,
            "q": request.query("q"),
        },
    )


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    server = HttpServer(echo, max_body=1000, header_timeout=0.5, body_timeout=0.5, keep_alive=5)
    await server.start("127.0.0.1", 0)
    yield server
    await server.close()


async def talk(port: int, data: bytes, *, eof: bool = False) -> bytes:
    """Everything the server says to these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        if eof:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(-1), 5)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("target", ["//[/x", "//[v1.x]/x", "/[::1]?q=]", "/a?b?c#d"])
async def test_a_target_that_no_address_has_is_a_path_like_any_other(server: HttpServer, target: str) -> None:
    answer = await talk(server.port, f"GET {target} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_request_arrives_whole(server: HttpServer) -> None:
    answer = await call(
        "127.0.0.1",
        server.port,
        "POST",
        "/v1/a%2Fb/c?q=%C3%A9",
        headers={"Authorization": "Bearer x y"},
        body=b"hello",
    )
    assert answer.status == 200
    assert answer.json_value() == {
        "method": "POST",
        "segments": ["v1", "a/b", "c"],
        "body": "hello",
        "peer": "127.0.0.1",
        "bearer": "x y",
        "q": "é",
    }


async def test_the_source_address_is_the_one_asked_for(server: HttpServer) -> None:
    answer = await call("127.0.0.1", server.port, "GET", "/", source="127.0.0.9")
    assert answer.json_value()["peer"] == "127.0.0.9"


async def test_a_chunked_body_is_put_together(server: HttpServer) -> None:
    said = await talk(
        server.port,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        b"3;x=1\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: 1\r\n\r\n",
    )
    assert b'"body":"abcde"' in said


async def test_one_connection_serves_several_requests(server: HttpServer) -> None:
    said = await talk(server.port, b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert said.count(b"HTTP/1.1 200 OK") == 2
    assert b'"segments":["1"]' in said
    assert b'"segments":["2"]' in said


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nBad Header: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET http://elsewhere/ HTTP/1.1\r\n\r\n", 400),
        (b"GET /%ff HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n", 413),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 40_000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc", 408),
    ],
)
async def test_a_malformed_request_is_refused_and_the_connection_closed(
    server: HttpServer, sent: bytes, status: int
) -> None:
    said = await talk(server.port, sent)
    assert said.startswith(f"HTTP/1.1 {status} ".encode())
    assert said.count(b"\r\nConnection: close\r\n") == 1
    assert (await call("127.0.0.1", server.port, "GET", "/")).status == 200


async def test_a_silent_caller_is_hung_up_on(server: HttpServer) -> None:
    assert await talk(server.port, b"GET / HT") == b""


async def test_a_failing_handler_says_nothing_of_its_inside(server: HttpServer) -> None:
    answer = await call("127.0.0.1", server.port, "GET", "/fail")
    assert answer.status == 500
    assert b"secret detail" not in answer.body


async def test_a_handler_refuses_with_a_status(server: HttpServer) -> None:
    answer = await call_json("127.0.0.1", server.port, "POST", "/refuse", {})
    assert (answer.status, answer.json_value()) == (409, {"error": "not now"})


async def test_an_upgrade_hands_the_connection_over(server: HttpServer) -> None:
    said = await talk(
        server.port, b"GET /ws HTTP/1.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nearly", eof=True
    )
    assert said.endswith(b"\r\n\r\nEARLY")


async def test_closing_lets_a_request_under_way_end() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: Request) -> Response:
        begun.set()
        await go_on.wait()
        return Response(200, b"done")

    server = HttpServer(slow)
    await server.start("127.0.0.1", 0)
    port = server.port
    asking = asyncio.create_task(call("127.0.0.1", port, "GET", "/"))
    await begun.wait()
    closing = asyncio.create_task(server.close(5))
    await asyncio.sleep(0)
    go_on.set()
    assert (await asking).body == b"done"
    await closing
    with pytest.raises(ConnectionRefusedError):
        await call("127.0.0.1", port, "GET", "/")


async def test_the_client_bounds_and_checks_answers() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers.pop(0))
        writer.close()

    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n",
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nuntil the end",
    ]
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(HttpError, match="longer than"):
        await call("127.0.0.1", port, "GET", "/")
    with pytest.raises(HttpError, match="not HTTP"):
        await call("127.0.0.1", port, "GET", "/")
    with pytest.raises(ConnectionResetError):
        await call("127.0.0.1", port, "GET", "/")
    assert (await call("127.0.0.1", port, "GET", "/")).body == b"until the end"
    server.close()
    await server.wait_closed()


async def test_the_client_gives_up_in_time() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    with pytest.raises(TimeoutError):
        await call("127.0.0.1", server.sockets[0].getsockname()[1], "GET", "/", seconds=0.05)
    server.close()
    await server.wait_closed()


async def test_the_client_sends_no_smuggled_header(server: HttpServer) -> None:
    with pytest.raises(ValueError, match="control character"):
        await call("127.0.0.1", server.port, "GET", "/", headers={"A": "b\r\nC: d"})


async def test_one_caller_cannot_take_all_connections() -> None:
    server = HttpServer(echo, max_per_caller=2)
    await server.start("127.0.0.1", 0)
    held = [await asyncio.open_connection("127.0.0.1", server.port, local_addr=("127.0.0.2", 0)) for _ in range(2)]
    assert (await call("127.0.0.1", server.port, "GET", "/", source="127.0.0.2")).status == 503
    assert (await call("127.0.0.1", server.port, "GET", "/", source="127.0.0.3")).status == 200
    for _, writer in held:
        writer.close()
        await writer.wait_closed()
    await server.close()


MUCH = 8 << 20
"""Bytes that no kernel keeps for one connection."""


async def much(_: Request) -> Response:
    return Response(200, bytes(MUCH))


async def greedy(server: HttpServer, asked: bytes) -> socket.socket:
    """Who asks and reads nothing."""
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.setblocking(False)
    await asyncio.get_running_loop().sock_connect(caller, ("127.0.0.1", server.port))
    await asyncio.get_running_loop().sock_sendall(caller, asked)
    return caller


@pytest.mark.parametrize("then", [b"GET / HTTP/1.1\r\n\r\n", b"no request\r\n\r\n"])
async def test_nothing_is_kept_for_a_caller_that_takes_no_answer(monkeypatch: pytest.MonkeyPatch, then: bytes) -> None:
    monkeypatch.setattr(http_server, "CLOSE_SECONDS", 0.05, raising=False)
    server = HttpServer(much, body_timeout=0.05, max_per_caller=1)
    await server.start("127.0.0.1", 0)
    caller = await greedy(server, b"GET / HTTP/1.1\r\n\r\n" + then)
    with caller:
        await until(lambda: caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET, what="the reset")
    await server.close()


async def test_a_last_answer_is_sent_whole_however_long_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "CLOSE_SECONDS", 0.0, raising=False)
    server = HttpServer(much)
    await server.start("127.0.0.1", 0)
    said = await talk(server.port, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert len(said.partition(b"\r\n\r\n")[2]) == MUCH
    await server.close()


async def test_a_server_that_ends_cuts_off_who_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "CLOSE_SECONDS", 0.05, raising=False)
    asked = asyncio.Event()

    async def answer(request: Request) -> Response:
        asked.set()
        return await much(request)

    server = HttpServer(answer)
    await server.start("127.0.0.1", 0)
    with await greedy(server, b"GET / HTTP/1.1\r\n\r\n") as caller:
        await asked.wait()
        await server.close()
        assert caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
