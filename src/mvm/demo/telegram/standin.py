"""The Telegram stand-in: one object that serves the Bot API and plays the people who write to its bots."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

from aiohttp import web

from mvm.demo.faults import FaultBoard
from mvm.demo.loopback import LoopbackServer
from mvm.demo.telegram import admin, botapi
from mvm.demo.telegram.entities import find_entities
from mvm.demo.telegram.errors import unauthorized
from mvm.demo.telegram.flood import TELEGRAM_LIMITS, FloodControl, FloodLimits
from mvm.demo.telegram.methods_send import photo_sizes
from mvm.demo.telegram.params import Params
from mvm.demo.telegram.transcript import Entry, Transcript
from mvm.demo.telegram.updates import UpdateQueue
from mvm.demo.telegram.world import Bot, Json, World

SERVER_NAME = "mvm-telegram-standin"
ABOUT = "a stand-in for the Telegram Bot API, part of mvm; nothing here reaches Telegram"
_MAX_REQUEST_BYTES = 60 * 1024 * 1024


@dataclass(frozen=True)
class Sent:
    """What a person did: ids of the message and its update (None: not for the bot), number in the transcript."""

    message_id: int
    update_id: int | None
    number: int


class TelegramStandIn:
    """A Bot API on a loopback port; an async context manager.

    `token` registers the first bot with that token, otherwise it gets a new one (`standin.token`). `limits` None
    switches flood control off. People appear when they first write; a bot cannot write to them before.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        token: str | None = None,
        username: str = "mvm_standin_bot",
        admin_token: str | None = None,
        limits: FloodLimits | None = TELEGRAM_LIMITS,
        now: Callable[[], float] = time.time,
    ) -> None:
        endless = FloodLimits(*[float("inf")] * 6)
        self.world = World(now)
        self.faults = FaultBoard()
        self.flood = FloodControl(limits or endless)
        self.calls: list[botapi.CallRecord] = []
        self.admin_token = admin_token or secrets.token_urlsafe(24)
        self._queues: dict[int, UpdateQueue] = {}
        self.bot = self.add_bot(username, token)
        app = web.Application(client_max_size=_MAX_REQUEST_BYTES)
        botapi.add_routes(app, self)
        admin.add_routes(app, self)
        self._server = LoopbackServer(app, name=SERVER_NAME, about=ABOUT, port=port)

    @property
    def url(self) -> str:
        """The API root, as `apiRoot` of OpenClaw takes it."""
        return self._server.url

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def token(self) -> str:
        """The token of the first bot."""
        return self.bot.token

    @property
    def transcript(self) -> Transcript:
        return self.world.transcript

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        for queue in self._queues.values():
            await queue.close()
        await self._server.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def add_bot(self, username: str, token: str | None = None) -> Bot:
        """Another bot; ValueError when `token` is not of a token's form."""
        bot = self.world.add_bot(username, token)
        queue = UpdateQueue(self.world.now)

        async def run_reply(method: str, params: Params) -> None:
            await botapi.run_method(self, bot, method, params)

        queue.on_webhook_reply = run_reply
        self._queues[bot.id] = queue
        return bot

    def queue(self, bot: Bot | None = None) -> UpdateQueue:
        return self._queues[(bot or self.bot).id]

    def revoke(self, bot: Bot | None = None) -> None:
        """Make the bot's token invalid from now on, also for a long poll that waits right now."""
        chosen = bot or self.bot
        self.world.revoke(chosen)
        self.queue(chosen).reject_poller(unauthorized())

    def block(self, person: int, bot: Bot | None = None, *, blocked: bool = True) -> None:
        """The person blocks the bot (403 for it), or lets it write again."""
        self.world.person(person)
        self.world.dialog(bot or self.bot, person).blocked = blocked

    async def say(
        self,
        person: int,
        text: str = "",
        *,
        photo: bytes | None = None,
        chat: int | None = None,
        bot: Bot | None = None,
        reply_to: int | None = None,
        first_name: str | None = None,
    ) -> Sent:
        """The person writes `text` (or sends a photo with it as caption) to the bot, or in a group both belong to."""
        chosen, chat_id = bot or self.bot, person if chat is None else chat
        sender = self.world.person(person, first_name=first_name)
        dialog = self.world.dialog(chosen, chat_id)
        if dialog.blocked:
            raise ValueError(f"person {person} has blocked the bot")
        dialog.started = True
        found = find_entities(text)
        content: Json = {}
        if photo is not None:
            stored = self.world.store_file("photos", "photo.jpg", "image/jpeg", photo)
            content["photo"] = photo_sizes(stored)
        if text:
            content["text" if photo is None else "caption"] = text
            if found:
                content["entities" if photo is None else "caption_entities"] = cast(object, found)
        message = self.world.add_message(chosen, chat_id, sender.to_json(), content, from_bot=False)
        message.reply_to = reply_to
        body = message.to_json()
        if reply_to in dialog.messages:
            body["reply_to_message"] = dialog.messages[reply_to].to_json()
        entry = await self.transcript.add(
            bot_id=chosen.id,
            chat_id=chat_id,
            direction="in",
            kind="message",
            message_id=message.message_id,
            text=text,
            detail={"content": content},
        )
        seen = chat_id > 0 or text.startswith("/") or f"@{chosen.username}" in text or reply_to is not None
        update_id = self.queue(chosen).put("message", body) if seen else None
        return Sent(message.message_id, update_id, entry.number)

    async def edit(self, person: int, message_id: int, text: str, *, bot: Bot | None = None) -> Sent:
        """The person changes one of their messages; KeyError when there is none with this id."""
        chosen = bot or self.bot
        message = self.world.dialog(chosen, person).messages[message_id]
        message.content = {"text": text}
        message.edit_date = int(self.world.now())
        entry = await self.transcript.add(
            bot_id=chosen.id, chat_id=person, direction="in", kind="edit", message_id=message_id, text=text
        )
        return Sent(message_id, self.queue(chosen).put("edited_message", message.to_json()), entry.number)

    async def press(self, person: int, message_id: int, data: str, *, bot: Bot | None = None) -> Sent:
        """The person presses an inline button that carries `data`; ValueError when the message has no such button."""
        chosen = bot or self.bot
        message = self.world.dialog(chosen, person).messages.get(message_id)
        if message is None or data not in _button_data(message.reply_markup):
            raise ValueError(f"message {message_id} has no button with data {data!r}")
        query_id = f"{person}-{secrets.randbits(48)}"
        chosen.open_callbacks.add(query_id)
        entry = await self.transcript.add(
            bot_id=chosen.id, chat_id=person, direction="in", kind="callback", message_id=message_id, text=data
        )
        update_id = self.queue(chosen).put(
            "callback_query",
            {
                "id": query_id,
                "from": self.world.person(person).to_json(),
                "message": message.to_json(),
                "chat_instance": str(chosen.id ^ person),
                "data": data,
            },
        )
        return Sent(message_id, update_id, entry.number)

    async def wait_for_answers(
        self, chat: int, count: int = 1, *, after: int = 0, timeout: float = 60.0, bot: Bot | None = None
    ) -> list[Entry]:
        """The bot's messages in a chat since transcript number `after`, once there are `count`; else TimeoutError."""
        bot_id = (bot or self.bot).id
        await self.transcript.wait(
            lambda: len(self.transcript.answers(chat, bot_id=bot_id, after=after)) >= count, timeout=timeout
        )
        return self.transcript.answers(chat, bot_id=bot_id, after=after)

    def remembered(self) -> Json:
        """What a stand-in that is started again must still know: the bots, the people and who has written to whom."""
        return {
            "bots": [{"username": bot.username, "token": bot.token} for bot in self.world.bots.values()],
            "people": [
                {"id": person.id, "first_name": person.first_name, "username": person.username}
                for person in self.world.people.values()
            ],
            "started": [list(key) for key, dialog in self.world.dialogs.items() if dialog.started and key[1] > 0],
        }

    def remember(self, memory: Json) -> None:
        """Take over what a former stand-in `remembered`."""
        for known in cast(list[dict[str, str]], memory.get("bots", [])):
            if self.world.bot_by_token(known["token"]) is None:
                self.add_bot(known["username"], known["token"])
        for person in cast(list[dict[str, object]], memory.get("people", [])):
            self.world.person(
                int(str(person["id"])),
                first_name=cast(str, person["first_name"]),
                username=cast(str | None, person["username"]),
            )
        for bot_id, person_id in cast(list[tuple[int, int]], memory.get("started", [])):
            if bot_id in self.world.bots and person_id in self.world.people:
                self.world.dialog(self.world.bots[bot_id], person_id).started = True


def _button_data(markup: Json | None) -> list[object]:
    rows = (markup or {}).get("inline_keyboard", [])
    return [button.get("callback_data") for row in cast(list[list[Json]], rows) for button in row]
