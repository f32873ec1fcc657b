"""Updates reach one reader, in order, until they are confirmed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from tests.standins.waiting import until
from tests.unit.demo.callers import ALICE, BotCall, refused

from mvm.demo.telegram import TelegramStandIn


def ids(answer: tuple[int, dict[str, object]]) -> list[int]:
    result = answer[1]["result"]
    assert isinstance(result, list)
    return [update["update_id"] for update in result]


async def test_updates_come_again_until_the_offset_passes_them(telegram: TelegramStandIn, bot: BotCall) -> None:
    sent = [(await telegram.say(ALICE, f"m{n}")).update_id for n in range(3)]
    assert ids(await bot("getUpdates")) == sent
    assert ids(await bot("getUpdates")) == sent
    assert sent[1] is not None
    assert ids(await bot("getUpdates", offset=sent[1])) == sent[1:]
    assert ids(await bot("getUpdates", offset=0)) == sent[1:]
    assert ids(await bot("getUpdates", offset=-1)) == sent[2:]
    assert ids(await bot("getUpdates", limit=1)) == sent[2:]


async def test_ids_grow_strictly_over_a_restart() -> None:
    seen: list[int | None] = []
    for now in (1_800_000_000.0, 1_800_000_100.0):
        async with TelegramStandIn(now=lambda now=now: now) as telegram:  # type: ignore[misc]
            for _ in range(3):
                sent = await telegram.say(ALICE, "hello")
                seen.append(sent.update_id)
    assert all(earlier < later for earlier, later in itertools.pairwise(n for n in seen if n is not None))
    assert len(seen) == 6


async def test_a_long_poll_ends_with_the_first_message(telegram: TelegramStandIn, bot: BotCall) -> None:
    waiting = asyncio.create_task(bot("getUpdates", timeout=50))
    await until(lambda: telegram.queue().being_polled, what="a long poll")
    sent = await telegram.say(ALICE, "hello")
    assert ids(await waiting) == [sent.update_id]


async def test_a_long_poll_ends_empty_after_its_time(bot: BotCall) -> None:
    assert ids(await bot("getUpdates", timeout=1)) == []


async def test_the_second_poller_ends_the_first(telegram: TelegramStandIn, bot: BotCall) -> None:
    first = asyncio.create_task(bot("getUpdates", timeout=50))
    await until(lambda: telegram.queue().being_polled, what="a long poll")
    second = asyncio.create_task(bot("getUpdates", timeout=50))
    assert await first == refused(
        409,
        "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running",
    )
    sent = await telegram.say(ALICE, "hello")
    assert ids(await second) == [sent.update_id]


async def test_a_poller_that_went_away_keeps_nothing(telegram: TelegramStandIn, bot: BotCall) -> None:
    gone = asyncio.create_task(bot("getUpdates", timeout=50))
    await until(lambda: telegram.queue().being_polled, what="a long poll")
    gone.cancel()
    await until(lambda: not telegram.queue().being_polled, what="the end of the long poll")
    sent = await telegram.say(ALICE, "hello")
    assert ids(await bot("getUpdates", timeout=50)) == [sent.update_id]


async def test_kinds_that_are_not_asked_for_stay_away(telegram: TelegramStandIn, bot: BotCall) -> None:
    await bot("getUpdates", allowed_updates=["callback_query"])
    assert (await telegram.say(ALICE, "hello")).update_id is None
    await bot("getUpdates", allowed_updates=[])
    assert (await telegram.say(ALICE, "hello")).update_id is not None


class Listener:
    """A webhook: what it got, and the statuses that it answers first (then 200)."""

    def __init__(self) -> None:
        self.url = ""
        self.got: list[tuple[str | None, dict[str, object]]] = []
        self.statuses: list[int] = []
        self.reply: dict[str, object] | None = None

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((request.headers.get("X-Telegram-Bot-Api-Secret-Token"), await request.json()))
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        return web.json_response(self.reply) if self.reply else web.Response()


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    hook = Listener()
    app = web.Application()
    app.router.add_post("/hook", hook.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hook.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield hook
    await runner.cleanup()


async def test_a_webhook_gets_updates_in_order_and_again_after_a_failure(
    telegram: TelegramStandIn, bot: BotCall, listener: Listener
) -> None:
    listener.statuses = [500]
    _, body = await bot("setWebhook", url=listener.url, secret_token="s3cret")
    assert body["description"] == "Webhook was set"
    sent = [(await telegram.say(ALICE, text)).update_id for text in ("one", "two")]
    await until(lambda: not telegram.queue().pending, what="delivery of everything")
    assert [update["update_id"] for _, update in listener.got] == [sent[0], *sent]
    assert {secret for secret, _ in listener.got} == {"s3cret"}
    _, info = await bot("getWebhookInfo")
    assert info["result"]["last_error_message"] == (  # type: ignore[index]
        "Wrong response from the webhook: 500 Internal Server Error"
    )


async def test_polling_and_a_webhook_exclude_each_other(
    telegram: TelegramStandIn, bot: BotCall, listener: Listener
) -> None:
    waiting = asyncio.create_task(bot("getUpdates", timeout=50))
    await until(lambda: telegram.queue().being_polled, what="a long poll")
    await bot("setWebhook", url=listener.url)
    assert await waiting == refused(409, "Conflict: terminated by setWebhook request")
    code, body = await bot("getUpdates")
    assert (code, str(body["description"])[:48]) == (409, "Conflict: can't use getUpdates method while webh")
    assert (await bot("deleteWebhook"))[1]["description"] == "Webhook was deleted"
    assert (await bot("deleteWebhook"))[1]["description"] == "Webhook is already deleted"
    assert (await bot("getUpdates"))[0] == 200


async def test_a_webhook_may_answer_with_a_method(telegram: TelegramStandIn, bot: BotCall, listener: Listener) -> None:
    listener.reply = {"method": "sendMessage", "chat_id": ALICE, "text": "from the webhook"}
    await bot("setWebhook", url=listener.url)
    await telegram.say(ALICE, "hello")
    answers = await telegram.wait_for_answers(ALICE, timeout=10)
    assert [entry.text for entry in answers] == ["from the webhook"]


@pytest.mark.parametrize(
    ("values", "description"),
    [
        ({"url": "http://example.com/x"}, "Bad Request: bad webhook: An HTTPS URL must be provided for webhook"),
        (
            {"url": "https://example.com/x", "secret_token": "no spaces"},
            "Bad Request: secret token contains unallowed characters",
        ),
    ],
)
async def test_webhooks_that_are_refused(bot: BotCall, values: dict[str, object], description: str) -> None:
    assert await bot("setWebhook", **values) == refused(400, description)


async def test_the_admin_api_plays_a_person(telegram: TelegramStandIn, http: aiohttp.ClientSession) -> None:
    admin = {"Authorization": f"Bearer {telegram.admin_token}"}
    async with http.get(f"{telegram.url}/-/admin/transcript") as answer:
        assert answer.status == 401
    async with http.post(f"{telegram.url}/-/admin/say", json={"from": ALICE, "text": "hi"}, headers=admin) as answer:
        sent = await answer.json()
    url = f"{telegram.url}/bot{telegram.token}/sendMessage"
    async with http.post(url, json={"chat_id": ALICE, "text": "hello back"}) as answer:
        assert answer.status == 200
    query = {"chat": ALICE, "after": sent["number"], "count": 1, "timeout": 10}
    async with http.get(f"{telegram.url}/-/admin/answers", params=query, headers=admin) as answer:
        assert [entry["text"] for entry in (await answer.json())["answers"]] == ["hello back"]
    query |= {"count": 2, "timeout": 0}
    async with http.get(f"{telegram.url}/-/admin/answers", params=query, headers=admin) as answer:
        assert (answer.status, await answer.text()) == (504, f"1 of 2 answers in chat {ALICE} after 0 s")
