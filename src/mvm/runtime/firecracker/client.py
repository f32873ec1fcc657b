"""The client of one Firecracker's API, over its Unix socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from pydantic import ValidationError

from mvm.model.errors import MvmError, TimedOut, Unavailable
from mvm.runtime.firecracker import api
from mvm.runtime.firecracker.api import A, Body, Call, Command, Query
from mvm.runtime.firecracker.versions import Features, Version, features
from mvm.runtime.short_paths import Reachable

CALL_SECONDS = 10.0
CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 0.001
_MAX_ANSWER_BYTES = 1024 * 1024


class FirecrackerError(MvmError):
    """Firecracker refused a request; the message holds its `fault_message`."""

    def __init__(self, call: Call, status: int, fault_message: str) -> None:
        super().__init__(f"Firecracker refuses {call.method} {call.path} ({status}): {fault_message}")
        self.status = status
        self.fault_message = fault_message


class Ended(Unavailable):
    """Nobody listens on the socket, or the connection broke: this Firecracker has ended."""


class Client:
    """One at a time per socket: Firecracker answers requests one after the other. Use it in `async with`."""

    def __init__(self, socket: Path, *, who: str) -> None:
        """`who` is what messages call the machine."""
        self._reachable = Reachable(socket)
        self._who = who
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        path = self._reachable.__enter__()
        self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=path, limit=1))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        try:
            await self._session.close()
        finally:
            self._reachable.__exit__(kind, error, trace)

    async def wait_until_listening(self, *, seconds: float = CONNECT_SECONDS) -> None:
        """Return when it answers, for one that has just been started. Raises `Ended` when it never does."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        await self.ask(api.GET_VERSION)
                    except Ended:
                        await asyncio.sleep(_RETRY_SECONDS)
                    else:
                        return
        except TimeoutError:
            raise Ended(f"the Firecracker of {self._who} does not listen within {seconds:g} s") from None

    async def negotiate(self) -> tuple[Version, Features]:
        """What runs there. Raises `Unavailable` when it is too old."""
        version = Version.parse((await self.ask(api.GET_VERSION)).firecracker_version)
        return version, features(version)

    async def state(self) -> api.MachineState:
        """Whether its machine has started, and whether it is paused."""
        return (await self.ask(api.GET_INSTANCE)).state

    async def ask(self, query: Query[A], *, seconds: float = CALL_SECONDS) -> A:
        """Ask for information. Raises `FirecrackerError` when it is refused, `Ended` when nobody answers."""
        content = await self._request(query, query.path, None, seconds)
        try:
            return query.answer.model_validate_json(content)
        except ValidationError as error:
            raise Unavailable(
                f"the Firecracker of {self._who} answers {query.method} {query.path} with something else: "
                f"{content[:80]!r}"
            ) from error

    async def tell(self, command: Command, body: Body, *, seconds: float = CALL_SECONDS) -> None:
        """Have something done. Raises `FirecrackerError` when it is refused, `Ended` when nobody answers."""
        if type(body) is not command.request:
            raise TypeError(f"{command.method} {command.path} does not carry {type(body).__name__}")
        content = body.encode()
        if len(content) > api.MAX_BODY_BYTES:
            raise ValueError(f"{command.method} {command.path} would carry more than {api.MAX_BODY_BYTES} bytes")
        await self._request(command, command.path_for(body), content, seconds)

    async def _request(self, call: Call, path: str, body: bytes | None, seconds: float) -> bytes:
        assert self._session is not None
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.request(call.method, f"http://localhost{path}", data=body, headers=headers) as response,
            ):
                content = await response.content.read(_MAX_ANSWER_BYTES)
                status = response.status
        except TimeoutError:
            raise TimedOut(
                f"the Firecracker of {self._who} does not answer {call.method} {path} within {seconds:g} s"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Ended(f"the Firecracker of {self._who} does not take {call.method} {path}: {error}") from error
        if status != call.status:
            raise FirecrackerError(call, status, fault_message(content))
        return content


def fault_message(content: bytes) -> str:
    """What an error's body says, printable and bounded."""
    try:
        found = json.loads(content)
        text = str(found["fault_message"])
    except (ValueError, KeyError, TypeError):
        text = content.decode(errors="replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()[:500] or "it gives no reason"
