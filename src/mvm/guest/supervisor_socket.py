"""The supervisor's control socket and its clients: one JSON line per request, one per answer.

`{"op": "status"}`, `{"op": "start"|"stop"|"restart", "service": "openclaw", "grace_seconds"?: 30}`, `{"op": "freeze"}`,
`{"op": "thaw"}`, `{"op": "shutdown", "grace_seconds"?: 15}` (answered with `"killed"`, the services that did not end by
themselves). Answers are `{"ok": true, ...}` or `{"ok": false, "error": "..."}`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mvm.guest.sockets import check_length, uncancelled

log = logging.getLogger(__name__)

MAX_LINE = 64 * 1024
ANSWER_MARGIN_SECONDS = 15.0


class OperationRefused(Exception):
    """An operation that is not possible now; the text goes to whoever asked."""


class SupervisorUnreachable(Exception):
    """Nobody answers on the supervisor's socket."""


Operate = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]


class SupervisorSocket:
    """Serves the supervisor's operations to whoever may open the socket's file."""

    def __init__(self, path: Path, operate: Operate) -> None:
        self._path = path
        self._operate = operate
        self._server: asyncio.Server | None = None
        self._busy: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Listen, replacing a socket that a dead supervisor left. Raises `OSError`."""
        check_length(self._path)
        self._path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(uncancelled(self._serve), str(self._path), limit=MAX_LINE)
        finally:
            os.umask(mask)

    async def finish(self, seconds: float = 1.0) -> None:
        """Let answers that are being given reach their callers."""
        if self._server is not None:
            self._server.close()
        if self._busy:
            await asyncio.wait(self._busy, timeout=seconds)

    def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
        for task in self._busy:
            task.cancel()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                task = asyncio.ensure_future(self._answer(line, writer))
                self._busy.add(task)
                task.add_done_callback(self._busy.discard)
                # A caller that hangs up does not undo what it asked for.
                await asyncio.shield(task)
        except (OSError, ValueError) as error:
            log.debug("a caller of the supervisor is gone: %s", error)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        answer = await self._answer_to(line)
        with suppress(OSError):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()

    async def _answer_to(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict) or not isinstance(request.get("op"), str):
                raise OperationRefused('a request is an object with "op"')
            return {"ok": True, **await self._operate(request["op"], request)}
        except OperationRefused as refusal:
            return {"ok": False, "error": str(refusal)}
        except (ValueError, RecursionError):
            return {"ok": False, "error": "a request is one line of JSON"}
        except Exception as error:
            log.exception("an operation failed")
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}


def seconds_of(request: Mapping[str, Any], key: str, default: float) -> float:
    """A number of seconds in a request. Raises `OperationRefused` when it is none."""
    value = request.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 3600:
        raise OperationRefused(f"{key} has to be a number of seconds between 0 and 3600")
    return float(value)


class SupervisorClient:
    """Asks the supervisor, one connection per request."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def status(self) -> dict[str, Any]:
        """What `{"op": "status"}` answers."""
        return await self.ask({"op": "status"})

    async def start(self, service: str) -> None:
        """Have a service run; nothing happens when it does."""
        await self.ask({"op": "start", "service": service})

    async def stop(self, service: str, *, grace: float) -> None:
        """Have nothing of a service run, after at most `grace` seconds and a SIGKILL."""
        await self.ask({"op": "stop", "service": service, "grace_seconds": grace}, grace)

    async def restart(self, service: str, *, grace: float) -> None:
        """Stop and start a service, so that it reads its environment anew."""
        await self.ask({"op": "restart", "service": service, "grace_seconds": grace}, grace)

    async def run(self, step: str, *, seconds: float) -> None:
        """Have something done to its end that is no service but a step; where systemd supervises only."""
        await self.ask({"op": "start", "service": step}, seconds)

    async def ask(self, request: dict[str, Any], seconds: float = 0.0) -> dict[str, Any]:
        """One request, which may take `seconds`.

        Raises `OperationRefused` with the supervisor's reason, `SupervisorUnreachable` without an answer.
        """
        try:
            async with asyncio.timeout(seconds + ANSWER_MARGIN_SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(self._path), limit=MAX_LINE)
                try:
                    writer.write(json.dumps(request).encode() + b"\n")
                    await writer.drain()
                    answer = json.loads(await reader.readline())
                finally:
                    writer.close()
                    with suppress(OSError):
                        await writer.wait_closed()
        except (OSError, ValueError) as error:
            raise SupervisorUnreachable(f"the supervisor does not answer on {self._path}: {error}") from error
        if not answer.pop("ok", False):
            raise OperationRefused(str(answer.get("error", "the supervisor refused without a reason")))
        return dict(answer)
