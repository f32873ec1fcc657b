"""A small HTTP server on 127.0.0.1 that says that it is a stand-in.

Long polls and event streams end at once when their client goes away or the server stops: a handler is cancelled with
its connection.
"""

from __future__ import annotations

import secrets
from types import TracebackType
from typing import Self

from aiohttp import web

from mvm.model.errors import Unavailable

LOOPBACK = "127.0.0.1"
_STOP_SECONDS = 1.0

JsonObject = dict[str, object]


class LoopbackServer:
    """Serves one aiohttp application on a loopback port; an async context manager.

    `port` 0 takes a free one. `name` is the `Server` header, `about` the answer of `/-/about`.
    """

    def __init__(self, app: web.Application, *, name: str, about: str, port: int = 0) -> None:
        self._app = app
        self._name = name
        self._about = about
        self._wanted_port = port
        self._runner: web.AppRunner | None = None
        self._port = 0
        app.on_response_prepare.append(self._label)
        app.router.add_get("/-/about", self._tell_about)

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    async def start(self) -> None:
        """Bind and serve; `Unavailable` when the wanted port is taken."""
        runner = web.AppRunner(
            self._app, access_log=None, handle_signals=False, shutdown_timeout=_STOP_SECONDS, handler_cancellation=True
        )
        await runner.setup()
        site = web.TCPSite(runner, LOOPBACK, self._wanted_port, backlog=1024)
        try:
            await site.start()
        except OSError as problem:
            await runner.cleanup()
            raise Unavailable(
                f"{self._name}: cannot listen on {LOOPBACK}:{self._wanted_port}: {problem.strerror or problem}",
                hint="choose another port, or 0 for a free one",
            ) from problem
        self._runner = runner
        self._port = int(runner.addresses[0][1])

    async def stop(self) -> None:
        """End every connection and release the port; a second call does nothing."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _label(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = self._name

    async def _tell_about(self, _request: web.Request) -> web.Response:
        return web.json_response({"standin": True, "name": self._name, "about": self._about})


def require_bearer(request: web.Request, token: str) -> None:
    """Refuse a request to an admin path that does not carry `token`."""
    given = request.headers.get("Authorization", "")
    if not secrets.compare_digest(given.encode(), f"Bearer {token}".encode()):
        raise web.HTTPUnauthorized(text="the admin API wants its bearer token")


async def read_object(request: web.Request) -> JsonObject:
    """The JSON object in the body of an admin request (an empty body is an empty object)."""
    if not await request.read():
        return {}
    try:
        body = await request.json()
    except ValueError as problem:
        raise web.HTTPBadRequest(text=f"not JSON: {problem}") from problem
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="a JSON object is expected")
    return body


def hang_up(request: web.Request) -> None:
    """Close the connection of `request` without an answer, as a broken network does."""
    if request.transport is not None:
        request.transport.abort()
