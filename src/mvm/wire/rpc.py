"""One request, one answer, over a stream of frames: the calling side and the serving side of CONTRACT 9.

Neither side trusts the other: every wait has a time limit, a malformed frame ends the connection, and what goes wrong
inside a handler reaches the peer as a sentence without internals (the log has the rest).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mvm.wire.frames import (
    DEFAULT_TIMEOUT,
    GUEST_FRAME_LIMIT,
    FrameError,
    FrameFault,
    JsonValue,
    read_frame,
    write_frame,
)
from mvm.wire.schema import MessageError
from mvm.wire.tagged import Answer, Error, Request, answers_to, render

_log = logging.getLogger(__name__)

A = TypeVar("A", bound=Answer)
R = TypeVar("R")

_QUIET = (FrameFault.CLOSED, FrameFault.SHORT)


class CallFailed(Exception):
    """The peer answered a request with `Error`; the text is its own."""


class Refusal(Exception):
    """Raised by a handler to refuse a request: the text is sent to the peer as it is."""


async def call(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    request: Request[A],
    *,
    timeout: float = DEFAULT_TIMEOUT,
    limit: int = GUEST_FRAME_LIMIT,
) -> A:
    """Send a request and return its answer; `timeout` (seconds) covers both.

    Raises `CallFailed` when the peer refuses, `FrameError` when the connection or the peer's frame is bad or too slow,
    `MessageError` when the answer is no message or not one to this request. After any but `CallFailed` the connection
    must not be used again.
    """
    try:
        async with asyncio.timeout(timeout):
            await write_frame(writer, render(request), limit=limit, timeout=None)
            value = await read_frame(reader, limit=limit, timeout=None)
    except TimeoutError:
        raise FrameError(FrameFault.TIMEOUT, f"no answer to {request.tag} within {timeout:g} s") from None
    answer = answers_to(type(request)).parse(value)
    if isinstance(answer, Error):
        raise CallFailed(answer.message)
    return answer


async def serve_connection(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    handler: Callable[[R], Awaitable[Answer]],
    *,
    parse: Callable[[JsonValue], R],
    limit: int = GUEST_FRAME_LIMIT,
    timeout: float = DEFAULT_TIMEOUT,
) -> None:
    """Answer the requests of one connection, in order, until the peer ends it, breaks a rule or keeps silent too long.

    `parse` is the parser of the requests that are served here (`parse_request` in the guest, `parse_host_request` on
    the host). `timeout` (seconds) bounds the wait for each frame and for the peer to take each answer, not the handler.
    A peer that hangs up does not cancel a handler under way. The connection is closed on return, whatever happens.
    """
    try:
        while True:
            try:
                request = parse(await read_frame(reader, limit=limit, timeout=timeout))
            except (FrameError, MessageError) as error:
                if not (isinstance(error, FrameError) and error.kind in _QUIET):
                    await write_frame(writer, render(Error(message=str(error))), limit=limit, timeout=timeout)
                return
            answer = await _answer(request, handler)
            try:
                await write_frame(writer, answer, limit=limit, timeout=timeout)
            except FrameError as error:
                if error.kind in (FrameFault.CLOSED, FrameFault.TIMEOUT):
                    return
                _log.exception("the answer to a request cannot be sent")
                await write_frame(writer, render(Error(message="the answer is too large")), timeout=timeout)
    except FrameError:
        return  # the peer does not take our error either
    finally:
        await _close(writer)


async def _answer(request: R, handler: Callable[[R], Awaitable[Answer]]) -> JsonValue:
    try:
        return render(await handler(request))
    except Refusal as refusal:
        return render(Error(message=str(refusal)))
    except Exception:
        _log.exception("handling %s failed", type(request).__name__)
        return render(Error(message="internal error"))


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close, and cut a peer that does not take what is still buffered."""
    writer.close()
    try:
        async with asyncio.timeout(1):
            await writer.wait_closed()
    except OSError:  # TimeoutError is one
        writer.transport.abort()
