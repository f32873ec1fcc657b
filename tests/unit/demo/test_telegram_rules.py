"""The Telegram stand-in refuses what the Bot API refuses, in its words."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from tests.standins.waiting import until
from tests.unit.demo.callers import ALICE, BOB, PNG, STRANGER, BotCall, refused

from mvm.demo.faults import Fault
from mvm.demo.telegram import FloodLimits, TelegramStandIn


async def test_says_that_it_is_a_stand_in(telegram: TelegramStandIn, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{telegram.url}/-/about") as answer:
        assert (await answer.json())["standin"] is True
        assert answer.headers["Server"] == "mvm-telegram-standin"
    assert telegram.url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("path", "code", "description"),
    [
        ("/botnonsense/getMe", 404, "Not Found"),
        ("/bot12:short/getMe", 404, "Not Found"),
        ("/bot99:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA/getMe", 401, "Unauthorized"),
        ("/bot/getMe", 404, "Not Found"),
        ("/botlonely", 404, "Not Found"),
    ],
)
async def test_tokens_that_are_malformed_or_unknown(
    telegram: TelegramStandIn, http: aiohttp.ClientSession, path: str, code: int, description: str
) -> None:
    async with http.get(telegram.url + path) as answer:
        assert (answer.status, await answer.json()) == refused(code, description)


async def test_get_me_by_get_and_in_any_case(telegram: TelegramStandIn, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{telegram.url}/bot{telegram.token}/GETME") as answer:
        body = await answer.json()
    assert (body["ok"], body["result"]["id"], body["result"]["is_bot"]) == (True, telegram.bot.id, True)


async def test_an_unknown_method(bot: BotCall) -> None:
    assert await bot("sendTelepathy") == refused(404, "Not Found: method not found")


async def test_a_revoked_token_is_unauthorized_at_once(telegram: TelegramStandIn, bot: BotCall) -> None:
    waiting = asyncio.create_task(bot("getUpdates", timeout=30))
    await until(lambda: telegram.queue().being_polled, what="a long poll")
    token = telegram.token
    telegram.revoke()
    assert await waiting == refused(401, "Unauthorized")
    async with aiohttp.ClientSession() as http, http.get(f"{telegram.url}/bot{token}/getMe") as answer:
        assert answer.status == 401


@pytest.mark.parametrize(
    ("values", "description"),
    [
        ({"chat_id": ALICE}, "Bad Request: message text is empty"),
        ({"text": "hi"}, "Bad Request: chat_id is empty"),
        ({"chat_id": STRANGER, "text": "hi"}, "Bad Request: chat not found"),
        ({"chat_id": "nobody", "text": "hi"}, "Bad Request: chat not found"),
        ({"chat_id": ALICE, "text": "x" * 4097}, "Bad Request: message is too long"),
        ({"chat_id": ALICE, "text": " \n "}, "Bad Request: text must be non-empty"),
        ({"chat_id": ALICE, "text": "x", "parse_mode": "BBCode"}, "Bad Request: unsupported parse_mode"),
        ({"chat_id": ALICE, "text": "x", "message_thread_id": 7}, "Bad Request: message thread not found"),
        (
            {"chat_id": ALICE, "text": "x", "reply_parameters": {"message_id": 1}},
            "Bad Request: message to be replied not found",
        ),
        (
            {"chat_id": ALICE, "text": "x", "reply_markup": {"inline_keyboard": [[{"text": "a"}]]}},
            "Bad Request: can't parse inline keyboard button: Text buttons are unallowed in the inline keyboard",
        ),
        (
            {
                "chat_id": ALICE,
                "text": "x",
                "reply_markup": {"inline_keyboard": [[{"text": "a", "callback_data": "d" * 65}]]},
            },
            "Bad Request: BUTTON_DATA_INVALID",
        ),
    ],
)
async def test_what_send_message_refuses(
    telegram: TelegramStandIn, bot: BotCall, values: dict[str, object], description: str
) -> None:
    await telegram.say(ALICE, "hello")
    assert await bot("sendMessage", **values) == refused(400, description)


@pytest.mark.parametrize(
    ("mode", "text", "problem"),
    [
        ("HTML", "<b>open", 'Can\'t find end tag corresponding to start tag "b"'),
        ("HTML", "é<x>y</x>", 'Unsupported start tag "x" at byte offset 2'),
        ("HTML", "<b><i>x</b></i>", 'Unmatched end tag at byte offset 7, expected "</i>", found "</b>"'),
        ("HTML", "x</b>", "Unexpected end tag at byte offset 1"),
        ("HTML", "a < b", 'Unsupported start tag "" at byte offset 2'),
        ("MarkdownV2", "Hi.", "Character '.' is reserved and must be escaped with the preceding '\\'"),
        ("MarkdownV2", "*open", "Can't find end of Bold entity at byte offset 0"),
        ("Markdown", "a_b", "Can't find end of the entity starting at byte offset 1"),
    ],
)
async def test_markup_that_cannot_be_parsed(
    telegram: TelegramStandIn, bot: BotCall, mode: str, text: str, problem: str
) -> None:
    await telegram.say(ALICE, "hello")
    answer = await bot("sendMessage", chat_id=ALICE, text=text, parse_mode=mode)
    assert answer == refused(400, f"Bad Request: can't parse entities: {problem}")


@pytest.mark.parametrize(
    ("mode", "text", "shown", "entities"),
    [
        (
            "HTML",
            "<b>né</b> &amp; <a href='http://x.y'>l</a> <code>a&lt;b</code>",
            "né & l a<b",
            [("bold", 0, 2), ("text_link", 5, 1), ("code", 7, 3)],
        ),
        ("HTML", "<pre><code class='language-py'>x</code></pre>", "x", [("pre", 0, 1)]),
        ("HTML", "😀<i>x</i>", "😀x", [("italic", 2, 1)]),
        (
            "MarkdownV2",
            "*b* _i_ __u__ ~s~ ||p|| `c` [l](http://x.y) a\\.b",
            "b i u s p c l a.b",
            [
                ("bold", 0, 1),
                ("italic", 2, 1),
                ("underline", 4, 1),
                ("strikethrough", 6, 1),
                ("spoiler", 8, 1),
                ("code", 10, 1),
                ("text_link", 12, 1),
            ],
        ),
        ("MarkdownV2", ">one\n>two\nthree", "one\ntwo\nthree", [("blockquote", 0, 7)]),
        ("Markdown", "*b* `c` \\_x", "b c _x", [("bold", 0, 1), ("code", 2, 1)]),
        (None, "see /help and https://x.y", "see /help and https://x.y", [("bot_command", 4, 5), ("url", 14, 11)]),
    ],
)
async def test_markup_as_it_is_shown(
    telegram: TelegramStandIn,
    bot: BotCall,
    mode: str | None,
    text: str,
    shown: str,
    entities: list[tuple[str, int, int]],
) -> None:
    await telegram.say(ALICE, "hello")
    given = {"chat_id": ALICE, "text": text} | ({"parse_mode": mode} if mode else {})
    _, body = await bot("sendMessage", **given)
    result = body["result"]
    assert isinstance(result, dict)
    assert result["text"] == shown
    assert [(e["type"], e["offset"], e["length"]) for e in result["entities"]] == entities


async def test_a_bot_cannot_write_first_nor_to_who_blocked_it(telegram: TelegramStandIn, bot: BotCall) -> None:
    other = telegram.add_bot("other_bot")
    await telegram.say(ALICE, "hello", bot=other)
    assert await bot("sendMessage", chat_id=ALICE, text="hi") == refused(
        403, "Forbidden: bot can't initiate conversation with a user"
    )
    await telegram.say(ALICE, "hello")
    telegram.block(ALICE)
    assert await bot("sendMessage", chat_id=ALICE, text="hi") == refused(403, "Forbidden: bot was blocked by the user")


async def test_flood_control_tells_how_long_to_wait() -> None:
    async with TelegramStandIn(limits=FloodLimits(private_burst=2, private_per_second=0.5)) as telegram:
        telegram.flood.clock = lambda: 1000.0
        await telegram.say(ALICE, "hello")
        async with aiohttp.ClientSession() as http:
            url = f"{telegram.url}/bot{telegram.token}/sendMessage"
            answers = []
            for _ in range(3):
                async with http.post(url, json={"chat_id": ALICE, "text": "hi"}) as answer:
                    answers.append((answer.status, await answer.json()))
            telegram.flood.clock = lambda: 1002.0
            async with http.post(url, json={"chat_id": ALICE, "text": "hi"}) as answer:
                after_wait = answer.status
    assert [status for status, _ in answers] == [200, 200, 429]
    assert answers[2][1] == {
        "ok": False,
        "error_code": 429,
        "description": "Too Many Requests: retry after 2",
        "parameters": {"retry_after": 2},
    }
    assert after_wait == 200


async def test_edits(telegram: TelegramStandIn, bot: BotCall) -> None:
    mine = await telegram.say(ALICE, "hello")
    _, sent = await bot("sendMessage", chat_id=ALICE, text="one")
    number = sent["result"]["message_id"]  # type: ignore[index]
    assert (await bot("editMessageText", chat_id=ALICE, message_id=number, text="two"))[0] == 200
    code, body = await bot("editMessageText", chat_id=ALICE, message_id=number, text="two")
    assert (code, str(body["description"])[:40]) == (400, "Bad Request: message is not modified: sp")
    assert await bot("editMessageText", chat_id=ALICE, message_id=1, text="x") == refused(
        400, "Bad Request: message to edit not found"
    )
    assert await bot("editMessageText", chat_id=ALICE, message_id=mine.message_id, text="x") == refused(
        400, "Bad Request: message can't be edited"
    )
    assert [entry.text for entry in telegram.transcript.answers(ALICE)] == ["two"]


async def test_deleting(telegram: TelegramStandIn, bot: BotCall) -> None:
    await telegram.say(ALICE, "hello")
    _, sent = await bot("sendMessage", chat_id=ALICE, text="one")
    number = sent["result"]["message_id"]  # type: ignore[index]
    assert (await bot("deleteMessage", chat_id=ALICE, message_id=number))[0] == 200
    assert await bot("deleteMessage", chat_id=ALICE, message_id=number) == refused(
        400, "Bad Request: message to delete not found"
    )
    assert telegram.transcript.answers(ALICE) == []


async def test_a_photo_in_can_be_downloaded(
    telegram: TelegramStandIn, bot: BotCall, http: aiohttp.ClientSession
) -> None:
    await telegram.say(ALICE, "look", photo=PNG)
    _, updates = await bot("getUpdates")
    message = updates["result"][0]["message"]  # type: ignore[index]
    _, described = await bot("getFile", file_id=message["photo"][-1]["file_id"])
    path = described["result"]["file_path"]  # type: ignore[index]
    async with http.get(f"{telegram.url}/file/bot{telegram.token}/{path}") as answer:
        assert (answer.status, await answer.read()) == (200, PNG)
    async with http.get(f"{telegram.url}/file/bot{telegram.token}/photos/other.jpg") as answer:
        assert answer.status == 404
    assert await bot("getFile", file_id="nope") == refused(400, "Bad Request: invalid file_id")
    assert message["caption"] == "look"


@pytest.mark.parametrize(("data", "status"), [(PNG, 200), (b"not a picture", 400)])
async def test_a_photo_out_must_be_one(
    telegram: TelegramStandIn, http: aiohttp.ClientSession, data: bytes, status: int
) -> None:
    await telegram.say(ALICE, "hello")
    form = aiohttp.FormData({"chat_id": str(ALICE), "caption": "<b>c</b>", "parse_mode": "HTML"})
    form.add_field("photo", data, filename="p.png", content_type="image/png")
    async with http.post(f"{telegram.url}/bot{telegram.token}/sendPhoto", data=form) as answer:
        assert answer.status == status


async def test_buttons(telegram: TelegramStandIn, bot: BotCall) -> None:
    await telegram.say(ALICE, "hello")
    keyboard = {"inline_keyboard": [[{"text": "Yes", "callback_data": "yes"}]]}
    _, sent = await bot("sendMessage", chat_id=ALICE, text="sure?", reply_markup=keyboard)
    number = sent["result"]["message_id"]  # type: ignore[index]
    with pytest.raises(ValueError, match="no button"):
        await telegram.press(ALICE, number, "no")
    await telegram.press(ALICE, number, "yes")
    _, updates = await bot("getUpdates")
    query = updates["result"][-1]["callback_query"]  # type: ignore[index]
    assert (query["data"], query["message"]["message_id"], query["from"]["id"]) == ("yes", number, ALICE)
    assert (await bot("answerCallbackQuery", callback_query_id=query["id"]))[0] == 200
    assert await bot("answerCallbackQuery", callback_query_id=query["id"]) == refused(
        400, "Bad Request: query is too old and response timeout expired or query ID is invalid"
    )


async def test_commands_are_kept_per_scope_and_checked(bot: BotCall) -> None:
    commands = [{"command": "status", "description": "How it is"}]
    assert (await bot("setMyCommands", commands=commands, scope={"type": "all_private_chats"}))[0] == 200
    assert (await bot("getMyCommands"))[1]["result"] == []
    assert (await bot("getMyCommands", scope={"type": "all_private_chats"}))[1]["result"] == commands
    assert await bot("setMyCommands", commands=[{"command": "Big", "description": "x"}]) == refused(
        400, "Bad Request: BOT_COMMAND_INVALID"
    )


async def test_in_a_group_a_bot_sees_commands_and_mentions_only(telegram: TelegramStandIn, bot: BotCall) -> None:
    telegram.world.add_group(-1001, "us", frozenset([ALICE, telegram.bot.id]))
    assert (await telegram.say(ALICE, "just talking", chat=-1001)).update_id is None
    assert (await telegram.say(ALICE, f"@{telegram.bot.username} help", chat=-1001)).update_id is not None
    _, updates = await bot("getUpdates")
    assert [update["message"]["text"] for update in updates["result"]] == [  # type: ignore[attr-defined]
        f"@{telegram.bot.username} help"
    ]


async def test_a_person_and_two_bots_have_two_conversations(telegram: TelegramStandIn, bot: BotCall) -> None:
    other = telegram.add_bot("other_bot")
    await telegram.say(ALICE, "to the other", bot=other)
    await telegram.say(BOB, "to the first")
    _, updates = await bot("getUpdates")
    assert [update["message"]["text"] for update in updates["result"]] == ["to the first"]  # type: ignore[attr-defined]


async def test_typing_must_be_a_known_action(telegram: TelegramStandIn, bot: BotCall) -> None:
    await telegram.say(ALICE, "hello")
    assert (await bot("sendChatAction", chat_id=ALICE, action="typing"))[0] == 200
    assert await bot("sendChatAction", chat_id=ALICE, action="pondering") == refused(
        400, "Bad Request: wrong parameter action in request"
    )


async def test_faults_strike_as_often_as_they_are_told_to(telegram: TelegramStandIn, bot: BotCall) -> None:
    await telegram.say(ALICE, "hello")
    telegram.faults.add(Fault("error", "sendMessage", code=500))
    telegram.faults.add(Fault("drop_after", "sendMessage"))
    assert (await bot("sendMessage", chat_id=ALICE, text="one"))[0] == 500
    with pytest.raises(aiohttp.ClientError):
        await bot("sendMessage", chat_id=ALICE, text="two")
    assert (await bot("sendMessage", chat_id=ALICE, text="three"))[0] == 200
    assert [entry.text for entry in telegram.transcript.answers(ALICE)] == ["two", "three"]
