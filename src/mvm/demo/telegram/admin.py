"""The admin API of the Telegram stand-in, for tests and the demo that run in another process.

Everything under `/-/admin/` wants `Authorization: Bearer <admin token>` and speaks JSON.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from aiohttp import web

from mvm.demo.faults import Fault
from mvm.demo.loopback import JsonObject, read_object, require_bearer

if TYPE_CHECKING:
    from mvm.demo.telegram.standin import TelegramStandIn
    from mvm.demo.telegram.world import Bot

_MAX_WAIT_SECONDS = 600.0


def add_routes(app: web.Application, standin: TelegramStandIn) -> None:
    """Serve the admin API in `app`."""
    desk = _Desk(standin)
    app.router.add_post("/-/admin/bots", desk.add_bot)
    app.router.add_post("/-/admin/revoke", desk.revoke)
    app.router.add_post("/-/admin/say", desk.say)
    app.router.add_post("/-/admin/press", desk.press)
    app.router.add_post("/-/admin/block", desk.block)
    app.router.add_get("/-/admin/transcript", desk.transcript)
    app.router.add_get("/-/admin/answers", desk.answers)
    app.router.add_get("/-/admin/state", desk.state)
    app.router.add_post("/-/admin/faults", desk.add_fault)
    app.router.add_delete("/-/admin/faults", desk.clear_faults)


class _Desk:
    def __init__(self, standin: TelegramStandIn) -> None:
        self._standin = standin

    async def _body(self, request: web.Request) -> JsonObject:
        require_bearer(request, self._standin.admin_token)
        return await read_object(request)

    def _bot(self, given: object) -> Bot | None:
        if given is None:
            return None
        bot = self._standin.world.bots.get(_number(given, "bot"))
        if bot is None:
            raise web.HTTPNotFound(text=f"no bot {given}")
        return bot

    async def add_bot(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        token = body.get("token")
        try:
            bot = self._standin.add_bot(str(body.get("username", "another_bot")), None if token is None else str(token))
        except ValueError as problem:
            raise web.HTTPBadRequest(text=str(problem)) from problem
        return web.json_response({"bot": bot.id, "username": bot.username, "token": bot.token})

    async def revoke(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        self._standin.revoke(self._bot(body.get("bot")))
        return web.json_response({"ok": True})

    async def block(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        self._standin.block(
            _number(body.get("from"), "from"), self._bot(body.get("bot")), blocked=body.get("blocked") is not False
        )
        return web.json_response({"ok": True})

    async def say(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        photo = body.get("photo")
        reply_to, chat, name = body.get("reply_to"), body.get("chat"), body.get("first_name")
        try:
            sent = await self._standin.say(
                _number(body.get("from"), "from"),
                str(body.get("text", "")),
                photo=None if photo is None else base64.b64decode(str(photo), validate=True),
                chat=None if chat is None else _number(chat, "chat"),
                bot=self._bot(body.get("bot")),
                reply_to=None if reply_to is None else _number(reply_to, "reply_to"),
                first_name=None if name is None else str(name),
            )
        except (ValueError, KeyError, binascii.Error) as problem:
            raise web.HTTPBadRequest(text=str(problem)) from problem
        return web.json_response(vars(sent))

    async def press(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        try:
            sent = await self._standin.press(
                _number(body.get("from"), "from"),
                _number(body.get("message_id"), "message_id"),
                str(body.get("data")),
                bot=self._bot(body.get("bot")),
            )
        except ValueError as problem:
            raise web.HTTPBadRequest(text=str(problem)) from problem
        return web.json_response(vars(sent))

    async def transcript(self, request: web.Request) -> web.Response:
        require_bearer(request, self._standin.admin_token)
        chat, after = request.query.get("chat"), request.query.get("after", "0")
        entries = self._standin.transcript.entries(
            chat_id=None if chat is None else _number(chat, "chat"), after=_number(after, "after")
        )
        return web.json_response({"entries": [entry.to_json() for entry in entries]})

    async def answers(self, request: web.Request) -> web.Response:
        """The bot's messages in `chat` since `after`, once there are `count`, or 504 after `timeout` seconds."""
        require_bearer(request, self._standin.admin_token)
        query = request.query
        chat, after = _number(query.get("chat"), "chat"), _number(query.get("after", "0"), "after")
        count = _number(query.get("count", "1"), "count")
        timeout = min(float(query.get("timeout", "60")), _MAX_WAIT_SECONDS)
        bot = self._bot(query.get("bot"))
        try:
            answers = await self._standin.wait_for_answers(chat, count, after=after, timeout=timeout, bot=bot)
        except TimeoutError:
            held = len(self._standin.transcript.answers(chat, bot_id=(bot or self._standin.bot).id, after=after))
            raise web.HTTPGatewayTimeout(text=f"{held} of {count} answers in chat {chat} after {timeout:g} s") from None
        return web.json_response({"answers": [entry.to_json() for entry in answers]})

    async def state(self, request: web.Request) -> web.Response:
        """Per bot: whether it is polled or has a webhook, and how much it has not confirmed."""
        require_bearer(request, self._standin.admin_token)
        bots = [
            {
                "bot": bot.id,
                "username": bot.username,
                "being_polled": self._standin.queue(bot).being_polled,
                "webhook": self._standin.queue(bot).webhook_info()["url"],
                "pending": len(self._standin.queue(bot).pending),
            }
            for bot in self._standin.world.bots.values()
        ]
        return web.json_response({"bots": bots, "calls": len(self._standin.calls)})

    async def add_fault(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        try:
            self._standin.faults.add(Fault.parse(body))
        except ValueError as problem:
            raise web.HTTPBadRequest(text=str(problem)) from problem
        return web.json_response({"ok": True})

    async def clear_faults(self, request: web.Request) -> web.Response:
        require_bearer(request, self._standin.admin_token)
        self._standin.faults.clear()
        return web.json_response({"ok": True})


def _number(given: object, name: str) -> int:
    try:
        return int(str(given))
    except ValueError:
        raise web.HTTPBadRequest(text=f"{name}: a whole number is expected") from None
