"""The router's side of host port 53: questions with time limits, and events for the operator."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mvm.guest import pipe
from mvm.wire import messages, rpc
from mvm.wire.frames import FrameError
from mvm.wire.messages import Answer, Request
from mvm.wire.schema import MessageError

log = logging.getLogger(__name__)

A = TypeVar("A", bound=Answer)

CONNECT_SECONDS = 10.0
MAX_EVENTS = 256
MAX_DETAIL = 1000
EVENT_RETRY_SECONDS = (1.0, 30.0)


class HostUnreachable(Exception):
    """The host's agent does not answer (it may be restarting)."""


class HostRefused(Exception):
    """The host says no; the text is its own."""


class Host:
    """Asks the host, one connection per question: a long wake holds up nothing else."""

    def __init__(self, connect: Callable[[], Awaitable[pipe.Connection]]) -> None:
        """`connect` opens a connection to host port 53 and raises `OSError` when it cannot."""
        self._connect = connect

    async def ask(self, request: Request[A], *, seconds: float = CONNECT_SECONDS) -> A:
        """The host's answer. Raises `HostRefused` or `HostUnreachable`."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await self._connect()
        except OSError as error:
            raise HostUnreachable(f"host port 53 cannot be reached: {error or 'no answer'}") from error
        try:
            return await rpc.call(reader, writer, request, timeout=seconds)
        except rpc.CallFailed as error:
            raise HostRefused(str(error)) from error
        except (FrameError, MessageError) as error:
            raise HostUnreachable(f"the host did not answer {request.tag}: {error}") from error
        finally:
            await pipe.close(writer)


class Events:
    """Events on their way to the host: in order, repeated while the host is away, bounded (the oldest are dropped)."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._waiting: deque[messages.ReportEvent] = deque(maxlen=MAX_EVENTS)
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def report(
        self,
        kind: str,
        detail: str | None,
        *,
        user: str | None = None,
        worker: str | None = None,
        trace: str | None = None,
    ) -> None:
        """Tell the operator, as soon as the host listens; `worker` and `trace` say whose and which message it was."""
        text = None if detail is None else detail[:MAX_DETAIL]
        self._waiting.append(messages.ReportEvent(kind=kind, user=user, detail=text, worker=worker, trace=trace))
        self._more.set()

    def start(self) -> None:
        """Begin sending."""
        self._task = asyncio.create_task(self._send_all(), name="events")

    async def close(self, grace: float = 1.0) -> None:
        """Send what waits for at most `grace` seconds, then stop."""
        if self._task is None:
            return
        self._stopping = True
        self._more.set()
        await asyncio.wait([self._task], timeout=grace)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _send_all(self) -> None:
        pause, longest = EVENT_RETRY_SECONDS
        delay = pause
        while True:
            while self._waiting:
                event = self._waiting[0]
                try:
                    await self._host.ask(event)
                except HostUnreachable as error:
                    log.warning("event %s waits: %s", event.kind, error)
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, longest)
                    continue
                except HostRefused as error:
                    log.error("the host refused the event %s: %s", event.kind, error)
                delay = pause
                # A full queue may have dropped it meanwhile.
                if self._waiting and self._waiting[0] is event:
                    self._waiting.popleft()
            if self._stopping:
                return
            self._more.clear()
            await self._more.wait()
