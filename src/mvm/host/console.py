"""The web console: tenants, instances, live events, explanations, on the port of the metrics. It changes nothing.

Everybody on this machine can connect to a loopback port, instances of the process runtime among them, and what the
console shows is of all tenants. So it asks for a token, which `mvm console` tells whoever may talk to the agent; the
browser keeps it in a cookie. Pages of other sites reach nothing here: only requests to a loopback name are answered
(that is how DNS rebinding is kept out), and the answers load nothing from anywhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import Awaitable, Callable
from importlib.resources import files

from aiohttp import web

from mvm.host.events import EventLog
from mvm.host.explanation import Explainer
from mvm.model.errors import MvmError
from mvm.model.ids import Address

HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
PAST_EVENTS = 100
HEARTBEAT_SECONDS = 15.0
COOKIE = "mvm_console"
FILES = {
    "/": ("index.html", "text/html"),
    "/console.js": ("console.js", "text/javascript"),
    "/console.css": ("console.css", "text/css"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Console:
    """Answers the console's requests."""

    def __init__(self, explainer: Explainer, events: EventLog, *, token: str) -> None:
        self._explainer = explainer
        self._events = events
        self._token = token
        self._contents = {
            path: files("mvm.host").joinpath("console_files", name).read_bytes() for path, (name, _) in FILES.items()
        }

    def link(self, port: int) -> str:
        """What a person opens in a browser of this machine."""
        return f"http://127.0.0.1:{port}/?token={self._token}"

    def add_to(self, app: web.Application) -> None:
        """Serve the console there."""
        app.router.add_get("/", self._guarded(self._page))
        for path in FILES.keys() - {"/"}:
            app.router.add_get(path, self._guarded(self._file))
        app.router.add_get("/api/overview", self._guarded(self._overview))
        app.router.add_get("/api/explain", self._guarded(self._explain))
        app.router.add_get("/api/events", self._guarded(self._stream))

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            if request.host.rpartition(":")[0] not in HOSTS:
                return _refusal(421, "this console answers to 127.0.0.1 and localhost only")
            if not self._is_token(request.cookies.get(COOKIE, "")) and not self._is_entry(request):
                return _refusal(401, "type `mvm console` on this machine: it says which address to open")
            return await handler(request)

        return guarded

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._token.encode())

    def _is_entry(self, request: web.Request) -> bool:
        """Whether somebody comes with the link of `mvm console`."""
        return request.path == "/" and self._is_token(request.query.get("token", ""))

    async def _page(self, request: web.Request) -> web.StreamResponse:
        if "token" not in request.query:
            return await self._file(request)
        # Out of the address bar, the history and what a person copies from them.
        answer = web.Response(status=303, headers={**HEADERS, "Location": "/"})
        answer.set_cookie(COOKIE, self._token, httponly=True, samesite="Strict", path="/")
        return answer

    async def _file(self, request: web.Request) -> web.StreamResponse:
        kind = FILES[request.path][1]
        return web.Response(
            body=self._contents[request.path], headers={**HEADERS, "Content-Type": f"{kind}; charset=utf-8"}
        )

    async def _overview(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._explainer.overview(), headers=HEADERS)

    async def _explain(self, request: web.Request) -> web.StreamResponse:
        try:
            found = await self._explainer.explain(Address.parse(request.query.get("address", "")))
        except MvmError as error:
            return web.json_response({"error": error.message}, status=error.code, headers=HEADERS)
        return web.json_response(found, headers=HEADERS)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: the newest of the past, or those after `Last-Event-ID`, then each new one."""
        last = request.headers.get("Last-Event-ID", "")
        since = int(last) if last.isdecimal() else max(self._events.last_number - PAST_EVENTS, 0)
        stream = self._events.subscribe(since)
        answer = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream; charset=utf-8"})
        async with contextlib.aclosing(stream):
            following = asyncio.ensure_future(anext(stream))
            try:
                await answer.prepare(request)
                while True:
                    done, _ = await asyncio.wait({following}, timeout=HEARTBEAT_SECONDS)
                    if not done:
                        await answer.write(b": still here\n\n")
                        continue
                    event = following.result()
                    following = asyncio.ensure_future(anext(stream))
                    data = event.model_dump_json(exclude_none=True)
                    await answer.write(f"id: {event.number}\ndata: {data}\n\n".encode())
            except (StopAsyncIteration, ConnectionError):
                pass  # the agent ends, or the browser is gone
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        return answer


def _refusal(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n", headers=HEADERS)
