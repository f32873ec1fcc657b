"""The update queue of one bot: long polling with confirmation by offset, or a webhook, never both."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import cast
from urllib.parse import urlsplit

import aiohttp

from mvm.demo.telegram.errors import ApiError, bad_request, conflict
from mvm.demo.telegram.params import Params

MAX_POLL_SECONDS = 50
_KEEP_SECONDS = 24 * 3600
_NOT_BY_DEFAULT = frozenset({"chat_member", "message_reaction", "message_reaction_count"})
_TYPES = frozenset(
    [
        "message",
        "edited_message",
        "channel_post",
        "edited_channel_post",
        "business_connection",
        "business_message",
        "edited_business_message",
        "deleted_business_messages",
        "message_reaction",
        "message_reaction_count",
        "inline_query",
        "chosen_inline_result",
        "callback_query",
        "shipping_query",
        "pre_checkout_query",
        "purchased_paid_media",
        "poll",
        "poll_answer",
        "my_chat_member",
        "chat_member",
        "chat_join_request",
        "chat_boost",
        "removed_chat_boost",
    ]
)
_SECRET = re.compile(r"[A-Za-z0-9_-]{1,256}")
_RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

WebhookReply = Callable[[str, Params], Awaitable[None]]


@dataclass(frozen=True)
class Update:
    update_id: int
    kind: str
    value: dict[str, object]
    at: float

    def to_json(self) -> dict[str, object]:
        return {"update_id": self.update_id, self.kind: self.value}


@dataclass
class Webhook:
    url: str
    secret_token: str | None
    max_connections: int
    last_error_date: int | None = None
    last_error_message: str | None = None


class UpdateQueue:
    """Updates of one bot that nobody has confirmed yet. Ids grow strictly and begin at the clock's seconds."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._pending: deque[Update] = deque()
        self._next_id = int(now())
        self._allowed: frozenset[str] | None = None
        self._arrived = asyncio.Event()
        self._poller: asyncio.Future[ApiError] | None = None
        self._webhook: Webhook | None = None
        self._delivery: asyncio.Task[None] | None = None
        self.on_webhook_reply: WebhookReply | None = None

    @property
    def pending(self) -> list[Update]:
        return list(self._pending)

    @property
    def being_polled(self) -> bool:
        """Whether a long poll is waiting right now."""
        return self._poller is not None

    @property
    def next_id(self) -> int:
        return self._next_id

    def put(self, kind: str, value: dict[str, object]) -> int | None:
        """Queue an update and give its id; None when the bot has not asked for this kind."""
        wanted = kind in self._allowed if self._allowed else kind not in _NOT_BY_DEFAULT
        if not wanted:
            return None
        update = Update(self._next_id, kind, value, self._now())
        self._next_id += 1
        self._pending.append(update)
        self._arrived.set()
        return update.update_id

    async def poll(self, params: Params) -> list[dict[str, object]]:
        """getUpdates. A second poll or a webhook being set ends it with 409; with a webhook set it never begins."""
        if self._webhook is not None:
            raise conflict(
                "can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first"
            )
        offset = params.integer("offset")
        limit = params.integer("limit", 100)
        limit = 100 if limit <= 0 or limit > 100 else limit
        timeout = min(max(params.integer("timeout"), 0), MAX_POLL_SECONDS)
        self._allow(params)
        self._end_poll("terminated by other getUpdates request; make sure that only one bot instance is running")
        mine: asyncio.Future[ApiError] = asyncio.get_running_loop().create_future()
        self._poller = mine
        try:
            self._confirm(offset)
            if not self._pending and timeout:
                await self._wait_for_updates(mine, timeout)
            if mine.done():
                raise mine.result()
            return [update.to_json() for update in list(self._pending)[:limit]]
        finally:
            if self._poller is mine:
                self._poller = None

    async def _wait_for_updates(self, mine: asyncio.Future[ApiError], timeout: float) -> None:
        self._arrived.clear()
        arrival = asyncio.create_task(self._arrived.wait())
        try:
            waited: set[asyncio.Future[object]] = {cast("asyncio.Future[object]", future) for future in (arrival, mine)}
            await asyncio.wait(waited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            arrival.cancel()

    def _end_poll(self, why: str) -> None:
        if self._poller is not None and not self._poller.done():
            self._poller.set_result(conflict(why))

    def _confirm(self, offset: int) -> None:
        if offset > 0:
            while self._pending and self._pending[0].update_id < offset:
                self._pending.popleft()
        elif offset < 0:
            while len(self._pending) > -offset:
                self._pending.popleft()
        while self._pending and self._pending[0].at < self._now() - _KEEP_SECONDS:
            self._pending.popleft()

    def _allow(self, params: Params) -> None:
        wanted = params.sequence("allowed_updates")
        if wanted is not None:
            known = frozenset(kind for kind in wanted if isinstance(kind, str) and kind in _TYPES)
            self._allowed = known or None

    async def set_webhook(self, params: Params) -> str:
        url = (params.text("url") or "").strip()
        if not url:
            return await self.delete_webhook(params)
        _check_url(url)
        secret = params.text("secret_token")
        if secret and not _SECRET.fullmatch(secret):
            raise bad_request("secret token contains unallowed characters")
        connections = params.integer("max_connections", 40)
        if not 1 <= connections <= 100:
            raise bad_request("max_connections must be between 1 and 100")
        self._allow(params)
        if params.boolean("drop_pending_updates"):
            self._pending.clear()
        await self._stop_delivery()
        self._end_poll("terminated by setWebhook request")
        self._webhook = Webhook(url, secret or None, connections)
        self._delivery = asyncio.create_task(self._deliver(self._webhook), name="telegram stand-in webhook")
        return "Webhook was set"

    async def delete_webhook(self, params: Params) -> str:
        if params.boolean("drop_pending_updates"):
            self._pending.clear()
        was_set, self._webhook = self._webhook is not None, None
        await self._stop_delivery()
        return "Webhook was deleted" if was_set else "Webhook is already deleted"

    def webhook_info(self) -> dict[str, object]:
        hook = self._webhook
        info: dict[str, object] = {
            "url": hook.url if hook else "",
            "has_custom_certificate": False,
            "pending_update_count": len(self._pending),
        }
        if hook is not None:
            info["max_connections"] = hook.max_connections
            if hook.last_error_message is not None:
                info |= {"last_error_date": hook.last_error_date, "last_error_message": hook.last_error_message}
        if self._allowed:
            info["allowed_updates"] = sorted(self._allowed)
        return info

    async def close(self) -> None:
        """End the webhook's delivery; a long poll ends with its connection."""
        await self._stop_delivery()

    def reject_poller(self, problem: ApiError) -> None:
        """Answer a waiting long poll with `problem` (a revoked token)."""
        if self._poller is not None and not self._poller.done():
            self._poller.set_result(problem)

    async def _stop_delivery(self) -> None:
        task, self._delivery = self._delivery, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _deliver(self, hook: Webhook) -> None:
        failures = 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            while True:
                if not self._pending:
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                update = self._pending[0]
                problem = await self._post(session, hook, update)
                if problem is None:
                    failures = 0
                    if self._pending and self._pending[0] is update:
                        self._pending.popleft()
                    continue
                hook.last_error_date, hook.last_error_message = int(self._now()), problem
                await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
                failures += 1

    async def _post(self, session: aiohttp.ClientSession, hook: Webhook, update: Update) -> str | None:
        headers = {"X-Telegram-Bot-Api-Secret-Token": hook.secret_token} if hook.secret_token else {}
        try:
            async with session.post(hook.url, json=update.to_json(), headers=headers, allow_redirects=False) as answer:
                body = await answer.read()
                if not 200 <= answer.status < 300:
                    return f"Wrong response from the webhook: {answer.status} {answer.reason or ''}".strip()
        except TimeoutError:
            return "Read timeout expired"
        except aiohttp.ClientError:
            return "Connection refused"
        await self._run_reply(body)
        return None

    async def _run_reply(self, body: bytes) -> None:
        """A webhook may answer with a call of a method; its result is not told to anybody."""
        try:
            reply = json.loads(body) if body else None
        except ValueError:
            return
        if isinstance(reply, dict) and isinstance(reply.get("method"), str) and self.on_webhook_reply is not None:
            await self.on_webhook_reply(str(reply["method"]), Params(reply))


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "http" and _is_loopback(parts.hostname or ""):
        return  # a Bot API server of one's own takes plain HTTP; this stand-in does so for loopback only
    if parts.scheme != "https" or not parts.hostname:
        raise bad_request("bad webhook: An HTTPS URL must be provided for webhook")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
