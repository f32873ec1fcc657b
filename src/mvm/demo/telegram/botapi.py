"""The HTTP face of the Bot API: `/bot<token>/<method>` and `/file/bot<token>/<path>`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from mvm.demo.faults import Fault, endure
from mvm.demo.loopback import hang_up
from mvm.demo.telegram import methods_account, methods_chat, methods_send
from mvm.demo.telegram.calls import Call, Described, Handler
from mvm.demo.telegram.errors import ApiError, not_found, unauthorized
from mvm.demo.telegram.params import Params
from mvm.demo.telegram.world import TOKEN_FORM, Bot

if TYPE_CHECKING:
    from mvm.demo.telegram.standin import TelegramStandIn

METHODS: dict[str, Handler] = methods_account.METHODS | methods_send.METHODS | methods_chat.METHODS
_BY_LOWER_NAME = {name.lower(): name for name in METHODS}


@dataclass(frozen=True)
class CallRecord:
    """One call that reached the Bot API, for tests: when it was answered and how."""

    at: float
    bot_id: int | None
    method: str
    status: int


def add_routes(app: web.Application, standin: TelegramStandIn) -> None:
    """Serve the Bot API in `app`; every other path is its 404."""

    async def call(request: web.Request) -> web.StreamResponse:
        return await _answer_call(standin, request)

    async def download(request: web.Request) -> web.StreamResponse:
        try:
            bot = _authenticate(standin, request.match_info["token"])
        except ApiError as problem:
            return _error(problem)
        del bot
        for stored in standin.world.files.values():
            if stored.path == request.match_info["path"]:
                return web.Response(body=stored.data, content_type="application/octet-stream")
        return _error(not_found())

    async def elsewhere(_request: web.Request) -> web.StreamResponse:
        return _error(not_found())

    app.router.add_route("*", "/bot{token}/{method}", call)
    app.router.add_get("/file/bot{token}/{path:.+}", download)
    app.router.add_route("*", "/bot{rest:.*}", elsewhere)


async def _answer_call(standin: TelegramStandIn, request: web.Request) -> web.StreamResponse:
    method = _BY_LOWER_NAME.get(request.match_info["method"].lower(), request.match_info["method"])
    bot: Bot | None = None
    try:
        if request.method not in ("GET", "POST"):
            raise not_found()
        bot = _authenticate(standin, request.match_info["token"])
        fault = standin.faults.take(method)
        if fault is not None:
            await _suffer(fault, request)
        params = await Params.read(request)
        result = await run_method(standin, bot, method, params)
        if fault is not None and fault.action == "drop_after":
            hang_up(request)
    except ApiError as problem:
        standin.calls.append(CallRecord(standin.world.now(), bot.id if bot else None, method, problem.code))
        return _error(problem)
    standin.calls.append(CallRecord(standin.world.now(), bot.id, method, 200))
    body: dict[str, object] = {"ok": True, "result": result}
    if isinstance(result, Described):
        body = {"ok": True, "result": result.result, "description": result.description}
    return web.json_response(body)


async def run_method(standin: TelegramStandIn, bot: Bot, method: str, params: Params) -> object:
    """Call a method for a bot that is known; `ApiError` as the real API answers."""
    handler = METHODS.get(_BY_LOWER_NAME.get(method.lower(), method))
    if handler is None:
        raise not_found("method not found")
    return await handler(Call(method, bot, params, standin.world, standin.queue(bot), standin.flood))


def _authenticate(standin: TelegramStandIn, token: str) -> Bot:
    if not TOKEN_FORM.fullmatch(token):
        raise not_found()
    bot = standin.world.bot_by_token(token)
    if bot is None:
        raise unauthorized()
    return bot


async def _suffer(fault: Fault, request: web.Request) -> None:
    await endure(fault)
    if fault.action == "drop":
        hang_up(request)
        raise web.HTTPServiceUnavailable
    if fault.action == "error":
        raise ApiError(fault.code, fault.description, retry_after=fault.retry_after)


def _error(problem: ApiError) -> web.Response:
    return web.json_response(problem.body(), status=problem.code)
