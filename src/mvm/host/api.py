"""The agent's API server: frames of CONTRACT 9 and 15 on the local Unix socket (`mvm.host.remote`: from the network).

A request is `{"Name": {...}}` (or `"Name"`), its answer `{"NameResult": {...}}` or `{"Error": {"code", "message",
"hint"}}`, with `{"Progress": {...}}` frames before it. The server repeats the last progress while work goes on, so that
a caller can tell a slow agent from a dead one. A caller that hangs up ends its own wait; work that it asked for goes
on. What the requests are is in the tables of `api_*`; this module knows none of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import errno
import fcntl
import os
import pwd
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from mvm.host import progress
from mvm.model.base import Frozen
from mvm.model.errors import Conflict, InvalidInput, MvmError, QuotaExceeded
from mvm.model.validation import parse
from mvm.telemetry.logs import bound
from mvm.wire.frames import API_FRAME_LIMIT, FrameError, FrameFault, encode, read_frame, write_frame

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 100
"""Connections at once (CONTRACT 15)."""
HEARTBEAT_SECONDS = 10.0
"""How often the last progress is repeated while nothing new is to be said; clients give up after 60 s of silence."""
IDLE_SECONDS = 300.0
"""How long a connection may be open without a request."""
CLOSE_GRACE_SECONDS = 5.0
"""What work under way gets when the agent ends; an interrupted transition has its intent recorded."""
SOCKET_MODE = 0o660
_QUEUE_FRAMES = 256
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

S = TypeVar("S")
Json = dict[str, Any]


class Params(Frozen):
    """Parameters of a request; parsed strictly, and no error repeats a value, there may be secrets among them."""


class Call:
    """One request under way: who asks, and the way to tell them how it goes."""

    def __init__(self, actor: str, *, remote: bool = False) -> None:
        """`remote`: the request came by the network."""
        self.actor = actor
        self.remote = remote
        self._frames: asyncio.Queue[Json] = asyncio.Queue(_QUEUE_FRAMES)
        self._final: Json | None = None
        self._abandoned = False
        self._last_progress: Json = {"Progress": {"text": ""}}

    def progress(self, text: str, *, done: float | None = None, total: float | None = None) -> None:
        """Tell the caller what is being done or waited for. Never waits; a slow reader misses some."""
        body: Json = {"text": text}
        if done is not None:
            body["done"] = done
        if total is not None:
            body["total"] = total
        self._last_progress = {"Progress": body}
        if not self._abandoned and not self._frames.full():
            self._frames.put_nowait(self._last_progress)

    async def send(self, kind: str, body: Json) -> None:
        """Send a frame of a stream; waits while the caller is slow to take them."""
        await self._frames.put({kind: body})

    async def finish(self, frame: Json) -> None:
        """The answer. Nothing may be sent after it."""
        if not self._abandoned:
            self._final = frame
            await self._frames.put(frame)

    def abandon(self) -> None:
        """The caller is gone; nothing is sent any more."""
        self._abandoned = True
        while not self._frames.empty():
            self._frames.get_nowait()

    async def pump(self, writer: asyncio.StreamWriter, heartbeat: float) -> None:
        """Write every frame up to and including the answer, and the last progress whenever there is a long silence."""
        while True:
            try:
                async with asyncio.timeout(heartbeat):
                    frame = await self._frames.get()
            except TimeoutError:
                frame = self._last_progress
            await write_frame(writer, frame, limit=API_FRAME_LIMIT)
            if frame is self._final:
                return


@dataclass(frozen=True)
class Request(Generic[S]):
    """One kind of request: its parameters and what is done about it."""

    params: type[Params]
    handle: Callable[[S, Any, Call], Awaitable[Json]]
    only_waits: bool = False
    """True when nothing is done but waiting: then a caller that hangs up ends it."""


@dataclass(frozen=True)
class Peer:
    """Who is at the other end of a connection."""

    actor: str
    remote: bool = False
    admit: Callable[[], None] = lambda: None
    """Asked before each request is looked at; raises `QuotaExceeded` for one too many, which is then its answer."""


@dataclass(frozen=True)
class _Started:
    call: Call
    task: asyncio.Task[None]
    request: Request[Any]


class ApiServer(Generic[S]):
    """Serves requests to `services` on a Unix socket."""

    def __init__(
        self,
        requests: Mapping[str, Request[S]],
        services: S,
        *,
        observe: Callable[[str, str], None] = lambda kind, result: None,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """`observe` is told kind and result (`ok`, or the error's code) of each request, for the metrics."""
        self._requests = requests
        self._services = services
        self._observe = observe
        self._heartbeat = heartbeat_seconds
        self._max_connections = max_connections
        self._server: asyncio.Server | None = None
        self._socket: Path | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._work: dict[asyncio.Task[None], Request[S]] = {}

    async def start(self, path: Path) -> None:
        """Listen on `path` (mode 0660). The caller is the only agent of this run directory (`only_agent`)."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        unready = path.with_name(path.name + ".new")
        try:
            unready.unlink(missing_ok=True)
            listener.bind(str(unready))
            unready.chmod(SOCKET_MODE)  # before anybody can find it
            self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=API_FRAME_LIMIT)
            unready.replace(path)
        except OSError as error:
            listener.close()
            raise MvmError(f"the agent cannot listen on '{path}': {error.strerror or error}") from error
        self._socket = path

    async def close(self) -> None:
        """Take no more requests, let work under way finish for a few seconds, and remove the socket."""
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
        for task, request in self._work.items():
            if request.only_waits:
                task.cancel()
        if self._work:
            await asyncio.wait(self._work, timeout=CLOSE_GRACE_SECONDS)
        for task in (*self._work, *self._connections):
            task.cancel()
        await asyncio.gather(*self._work, *self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="api connection")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if len(self._connections) > self._max_connections:
                refusal = QuotaExceeded(
                    f"the agent serves {self._max_connections} connections at once and all are taken",
                    hint="try again in a moment",
                )
                await write_frame(writer, error_frame(refusal), limit=API_FRAME_LIMIT)
                return
            await self.converse(reader, writer, Peer(_actor(writer)))
        except FrameError:
            return  # the caller is gone
        except Exception:
            log.exception("api connection failed")
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        """Answer one request after the other. The next one is read ahead, which is how a hang-up is noticed."""
        ahead = asyncio.create_task(read_frame(reader, limit=API_FRAME_LIMIT, timeout=None))
        try:
            while True:
                try:
                    async with asyncio.timeout(IDLE_SECONDS):
                        frame = await ahead
                    peer.admit()
                    started = self._begin(frame, peer)
                except TimeoutError:
                    return
                except QuotaExceeded as error:
                    await self._refuse(writer, error)
                    ahead = asyncio.create_task(read_frame(reader, limit=API_FRAME_LIMIT, timeout=None))
                    continue
                except FrameError as error:
                    if error.kind is not FrameFault.CLOSED:
                        await self._refuse(writer, InvalidInput(f"not a request: {error}"))
                    return
                except InvalidInput as error:
                    return await self._refuse(writer, error)
                ahead = asyncio.create_task(read_frame(reader, limit=API_FRAME_LIMIT, timeout=None))
                if not await self._follow(started, writer, ahead):
                    return
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    async def _refuse(self, writer: asyncio.StreamWriter, error: MvmError) -> None:
        self._observe("invalid", str(error.code))
        await write_frame(writer, error_frame(error), limit=API_FRAME_LIMIT)

    def _begin(self, frame: object, peer: Peer) -> _Started:
        """Parse a request and start its work; raises `InvalidInput` for what is no request at all."""
        name, body = _named(frame)
        request = self._requests.get(name)
        if request is None:
            near = difflib.get_close_matches(name, self._requests, n=1)
            raise InvalidInput(f"request {name[:80]!r} is unknown", hint=f"did you mean {near[0]!r}?" if near else None)
        call = Call(peer.actor, remote=peer.remote)
        task = asyncio.create_task(self._carry_out(name, request, body, call), name=f"api {name}")
        self._work[task] = request
        task.add_done_callback(self._work.pop)
        return _Started(call, task, request)

    async def _follow(self, started: _Started, writer: asyncio.StreamWriter, ahead: asyncio.Task[Any]) -> bool:
        """Write what the work has to say until its answer is out. False when the caller is gone."""
        pump = asyncio.create_task(started.call.pump(writer, self._heartbeat))
        try:
            while not pump.done():
                waited_for = {pump} if ahead.done() else {pump, ahead}
                await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
                if ahead.done() and ahead.exception() is not None:
                    break
            return pump.done() and pump.exception() is None
        finally:
            if not pump.done() or pump.exception() is not None:
                started.call.abandon()
                if started.request.only_waits:
                    started.task.cancel()
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _carry_out(self, name: str, request: Request[S], body: object, call: Call) -> None:
        """Do what was asked and finish the call with the answer or the error."""
        request_id = secrets.token_hex(4)
        with bound(request=name, request_id=request_id, actor=call.actor):
            answer, result = await self._answer(name, request, body, call, request_id)
            log.debug("request answered", result=result)
        self._observe(name, result)
        await call.finish(answer)

    async def _answer(
        self, name: str, request: Request[S], body: object, call: Call, request_id: str
    ) -> tuple[Json, str]:
        """The answer, and `ok` or the error's code."""
        try:
            params = parse(request.params, body, what=name)
            with progress.reporting_to(call.progress):
                answer = {f"{name}Result": await request.handle(self._services, params, call)}
            _check_fits(name, answer)
            return answer, "ok"
        except MvmError as error:
            return error_frame(error), str(error.code)
        except Exception as error:
            log.exception("request failed")
            return error_frame(_failure(name, error, request_id)), "500"


def _failure(name: str, error: Exception, request_id: str) -> MvmError:
    """What a caller is told of an error that nobody expected; a disk that is full is no defect."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return MvmError(
            f"the agent failed at {name}: {error.strerror}" + (f" ({error.filename})" if error.filename else ""),
            hint="make room on the disk of the state directory (`mvm doctor` shows how much there is), then try again",
        )
    return MvmError(
        f"the agent failed at {name}: {type(error).__name__}",
        hint=f"this is a defect; the agent's log has more, under request_id {request_id}",
    )


def _named(frame: object) -> tuple[str, object]:
    """Name and parameters of a request frame."""
    if isinstance(frame, str):
        return frame, {}
    if isinstance(frame, dict) and len(frame) == 1:
        name, body = next(iter(frame.items()))
        return str(name), body
    raise InvalidInput("not a request", hint='a request is an object with one key, {"Name": {...}}')


def _check_fits(name: str, answer: Json) -> None:
    """Refuse an answer that no frame can hold while the caller can still be told what to do instead."""
    try:
        encode(answer, API_FRAME_LIMIT)
    except FrameError as error:
        if error.kind is not FrameFault.TOO_LONG:
            raise
        raise InvalidInput(
            f"the answer to {name} is too large for one message", hint="ask for fewer at a time (limit, after)"
        ) from error


def error_frame(error: MvmError) -> Json:
    return {"Error": {"code": error.code, "message": error.message, "hint": error.hint}}


def _actor(writer: asyncio.StreamWriter) -> str:
    """The local user at the other end, as the kernel knows it; `local` where it does not tell."""
    peer = writer.get_extra_info("socket")
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return "local"
    _pid, uid, _gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


@contextlib.contextmanager
def only_agent(path: Path) -> Iterator[None]:
    """Be the one agent that serves this socket while the block runs. Raises `Conflict` when there is another.

    Taken before the state is opened: two agents over one database would each believe what it remembers.
    """
    descriptor = os.open(path.with_name("agent.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"an agent already runs with the run directory '{path.parent}'",
                hint="use that one, or set MVM_RUN_DIR and MVM_STATE_DIR for a second one",
            ) from None
        yield
    finally:
        os.close(descriptor)
