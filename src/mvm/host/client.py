"""The agent's client: what the command line (and everyone else on this host) talks to the agent with.

One connection per request. The agent repeats its last progress while it works, so that silence means that it is gone,
not that it is busy; closing the connection ends the caller's wait, never the work.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvm.model.errors import InvalidInput, MvmError, Refused, TimedOut, Unavailable, error_for_code
from mvm.wire.frames import API_FRAME_LIMIT, FrameError, FrameFault, encode, read_frame, write_frame

CONNECT_TIMEOUT = 10.0
"""Seconds for the agent to accept a connection and take the request."""
SILENCE_LIMIT = 60.0
"""Seconds without any frame after which the agent counts as gone; it sends one at least every 10 s (api.py)."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """What the agent is doing or waiting for, and how far it is, where that is known."""

    text: str
    done: float | None = None
    total: float | None = None


OnProgress = Callable[[Progress], None]


class NoAgent(Unavailable):
    """Nobody listens where the agent would."""


class AgentClient:
    """Calls to the agent that listens on `socket`."""

    def __init__(self, socket: Path, *, connect_timeout: float = CONNECT_TIMEOUT) -> None:
        self.socket = socket
        self._connect_timeout = connect_timeout

    async def call(
        self,
        name: str,
        params: Mapping[str, Any] | None = None,
        *,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> Json:
        """Send the request `name` and return the body of its answer.

        `timeout` bounds the whole call in seconds (None: as long as the agent keeps saying that it works on it).
        Raises the `MvmError` that the agent answered with, `Unavailable` when there is no agent, `TimedOut`.
        """
        try:
            async with asyncio.timeout(timeout):
                async with contextlib.aclosing(self._frames(name, params)) as frames:
                    last: Progress | None = None
                    async for kind, body in frames:
                        if kind == f"{name}Result":
                            return _object(body)
                        if kind == "Progress":
                            progress = _progress(body)
                            if on_progress is not None and progress.text and progress != last:
                                on_progress(progress)
                            last = progress
        except TimeoutError:
            raise TimedOut(
                f"the agent did not finish {name} within {timeout:g} s",
                hint="it goes on working; `mvm events` shows what happens",
            ) from None
        raise AssertionError("the stream of frames ends with an answer or an error")

    async def events(
        self,
        *,
        tenant_id: str | None = None,
        since: int | None = None,
        limit: int | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[Json]:
        """Events, oldest first; with `follow` it goes on with each new one until the caller stops."""
        wanted = {"tenant_id": tenant_id, "since": since, "limit": limit, "follow": follow}
        params = {key: value for key, value in wanted.items() if value is not None}
        async with contextlib.aclosing(self._frames("Events", params)) as frames:
            async for kind, body in frames:
                if kind == "Event":
                    yield _object(body)
                elif kind == "EventsResult":
                    return

    async def _frames(self, name: str, params: Mapping[str, Any] | None) -> AsyncGenerator[tuple[str, Any]]:
        """Send a request and yield (kind, body) of every frame that comes back; raises on an `Error` frame."""
        request = {name: dict(params or {})}
        try:
            encode(request, API_FRAME_LIMIT)
        except FrameError as error:
            raise InvalidInput(
                f"what was given for {name} cannot be sent to the agent: {error}",
                hint="look at the arguments and files: is one too large, not text, or a number out of all bounds?",
            ) from error
        reader, writer = await self._connect()
        try:
            await write_frame(writer, request, limit=API_FRAME_LIMIT, timeout=self._connect_timeout)
            while True:
                frame = await read_frame(reader, limit=API_FRAME_LIMIT, timeout=SILENCE_LIMIT)
                kind, body = _single_key(frame)
                if kind == "Error":
                    raise _error(body)
                yield kind, body
        except FrameError as error:
            raise self._broken(name, error) from error
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(self._connect_timeout):
                return await asyncio.open_unix_connection(str(self.socket))
        except FileNotFoundError:
            raise NoAgent(
                f"no agent runs: there is no socket '{self.socket}'", hint="start one with `mvm agent serve`"
            ) from None
        except ConnectionRefusedError:
            raise NoAgent(
                f"no agent runs: nobody listens on '{self.socket}'", hint="start one with `mvm agent serve`"
            ) from None
        except PermissionError:
            raise Refused(
                f"you may not talk to the agent at '{self.socket}'{_owner(self.socket)}",
                hint="run mvm as that user, or join the group that owns the socket",
            ) from None
        except TimeoutError:
            raise TimedOut(
                f"the agent at '{self.socket}' did not accept a connection within {self._connect_timeout:g} s",
                hint="see the agent's log; it may be overloaded",
            ) from None
        except OSError as error:
            raise Unavailable(
                f"no agent can be reached at '{self.socket}': {error.strerror or error}",
                hint="is the run directory the right one? `mvm doctor` shows where it comes from",
            ) from None

    def _broken(self, name: str, error: FrameError) -> MvmError:
        """What it means for a caller that the answer to `name` could not be had."""
        return _transport_error(name, error)

    async def answers(self) -> bool:
        """True when an agent answers on the socket; `Refused` when there is one that this user may not talk to."""
        try:
            await self.call("NodeInfo", timeout=self._connect_timeout)
        except Unavailable:
            return False
        return True


def _owner(path: Path) -> str:
    """` (owned by NAME, group NAME)`, as far as it can be found out."""
    try:
        return f" (owned by {path.owner()}, group {path.group()})"
    except (OSError, KeyError):
        return ""


def _transport_error(name: str, error: FrameError) -> MvmError:
    if error.kind in (FrameFault.CLOSED, FrameFault.SHORT):
        return Unavailable(f"the agent closed the connection before it answered {name}", hint="see the agent's log")
    if error.kind is FrameFault.TIMEOUT:
        return TimedOut(f"the agent has been silent for {SILENCE_LIMIT:g} s over {name}", hint="see the agent's log")
    if error.kind is FrameFault.TOO_LONG:
        return InvalidInput(f"{name} does not fit one message to or from the agent: {error}")
    return MvmError(
        f"{name} could not be sent or its answer not be read: {error}", hint="is the agent of this version?"
    )


def _single_key(frame: object) -> tuple[str, Any]:
    if isinstance(frame, dict) and len(frame) == 1:
        return next(iter(frame.items()))
    raise MvmError("the agent sent a frame that is no answer", hint="is it of another version?")


def _object(body: object) -> Json:
    if isinstance(body, dict):
        return body
    raise MvmError("the agent sent an answer without a body", hint="is it of another version?")


def _progress(body: object) -> Progress:
    fields = _object(body)
    return Progress(text=str(fields.get("text", "")), done=fields.get("done"), total=fields.get("total"))


def _error(body: object) -> MvmError:
    fields = _object(body)
    return error_for_code(int(fields.get("code", 500)), str(fields.get("message", "")), fields.get("hint"))
