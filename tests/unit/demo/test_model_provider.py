"""The model stand-in keeps the rules of the Messages API and answers sensibly."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import cast

import aiohttp
import pytest
from tests.unit.demo.callers import PNG, Json, request_body

from mvm.demo.model_provider import DEFAULT_MODEL, ModelStandIn, Reply, ToolUse, Trouble

TOOL: Json = {"name": "automations", "description": "", "input_schema": {"type": "object", "properties": {}}}
USE: Json = {"type": "tool_use", "id": "toolu_1", "name": "automations", "input": {}}
RESULT: Json = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "fine"}


def user(content: object) -> Json:
    return {"role": "user", "content": content}


def assistant(content: object) -> Json:
    return {"role": "assistant", "content": content}


def picture(media: str = "image/png", data: bytes = PNG) -> Json:
    source = {"type": "base64", "media_type": media, "data": base64.b64encode(data).decode()}
    return {"type": "image", "source": source}


async def post(
    http: aiohttp.ClientSession, model: ModelStandIn, headers: dict[str, str], body: object, path: str = "/v1/messages"
) -> tuple[int, Json]:
    async with http.post(model.url + path, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


def events(text: str) -> list[tuple[str, Json]]:
    """The events of a stream."""
    found = []
    for block in text.strip().split("\n\n"):
        first, second = block.split("\n")
        found.append((first.removeprefix("event: "), json.loads(second.removeprefix("data: "))))
    return found


async def test_it_repeats_what_it_is_told(
    http: aiohttp.ClientSession, model: ModelStandIn, headers: dict[str, str]
) -> None:
    status, body = await post(http, model, headers, request_body())
    assert (status, body["role"], body["stop_reason"]) == (200, "assistant", "end_turn")
    assert body["content"] == [{"type": "text", "text": "You said: hello"}]


@pytest.mark.parametrize(
    ("headers", "status", "kind", "message"),
    [
        ({"anthropic-version": "2023-06-01"}, 401, "authentication_error", "x-api-key header is required"),
        (
            {"anthropic-version": "2023-06-01", "x-api-key": "sk-ant-wrong"},
            401,
            "authentication_error",
            "invalid x-api-key",
        ),
        ({"x-api-key": "KEY"}, 400, "invalid_request_error", "anthropic-version: header is required"),
        (
            {"x-api-key": "KEY", "anthropic-version": "2022-01-01"},
            400,
            "invalid_request_error",
            'anthropic-version: "2022-01-01" is not a valid version',
        ),
    ],
)
async def test_headers_that_are_refused(
    http: aiohttp.ClientSession, model: ModelStandIn, headers: dict[str, str], status: int, kind: str, message: str
) -> None:
    given = {name: model.key if value == "KEY" else value for name, value in headers.items()}
    got, body = await post(http, model, given, request_body())
    assert (got, body["type"], body["error"]) == (status, "error", {"type": kind, "message": message})


async def test_a_revoked_key_is_refused_everywhere(
    http: aiohttp.ClientSession, model: ModelStandIn, headers: dict[str, str]
) -> None:
    async with http.get(f"{model.url}/v1/models", headers=headers) as answer:
        assert [found["id"] for found in (await answer.json())["data"]] == list(model.models)
    model.revoke()
    async with http.get(f"{model.url}/v1/models", headers=headers) as answer:
        assert answer.status == 401
    assert (await post(http, model, headers, request_body()))[0] == 401


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": DEFAULT_MODEL, "max_tokens": 1}, 400, "messages: Field required"),
        ({"model": DEFAULT_MODEL, "messages": [user("x")]}, 400, "max_tokens: Field required"),
        (request_body(max_tokens=0), 400, "max_tokens: must be greater than or equal to 1"),
        (
            request_body(max_tokens=64001),
            400,
            f"max_tokens: 64001 > 64000, which is the maximum allowed number of output tokens for {DEFAULT_MODEL}",
        ),
        (request_body(model="claude-none"), 404, "model: claude-none"),
        (request_body(seed=1), 400, "seed: Extra inputs are not permitted"),
        (request_body(messages=[]), 400, "messages: at least one message is required"),
        (request_body({"role": "bot", "content": "x"}), 400, "messages.0.role: Input should be 'user' or 'assistant'"),
        (request_body(user("")), 400, "messages.0: user messages must have non-empty content"),
        (request_body(assistant("x"), user("y")), 400, 'messages: first message must use the "user" role'),
        (
            request_body(user([{"type": "text", "text": ""}])),
            400,
            "messages: text content blocks must be non-empty",
        ),
        (
            request_body(user("a"), assistant([USE]), user("b")),
            400,
            "messages.2: `tool_use` ids were found without `tool_result` blocks immediately after: toolu_1. Each "
            "`tool_use` block must have a corresponding `tool_result` block in the next message.",
        ),
        (
            request_body(user([RESULT])),
            400,
            "messages.0.content.0: unexpected `tool_use_id` found in `tool_result` blocks: toolu_1. Each `tool_result` "
            "block must have a corresponding `tool_use` block in the previous message.",
        ),
        (
            request_body(user("a"), assistant([USE]), user([RESULT]), assistant([USE]), user([RESULT])),
            400,
            "messages: `tool_use` ids must be unique",
        ),
        (request_body(tools=[TOOL, TOOL]), 400, "tools: Tool names must be unique."),
        (
            request_body(tools=[TOOL | {"name": "a.b"}]),
            400,
            "tools.0.custom.name: String should match pattern '^[a-zA-Z0-9_-]{1,128}$'",
        ),
        (
            request_body(tools=[TOOL | {"input_schema": {"type": "string"}}]),
            400,
            "tools.0.custom.input_schema.type: Input should be 'object'",
        ),
        (
            request_body(user([picture("image/jpeg")])),
            400,
            "messages.0.content.0.image.source.base64.data: Image does not match the provided media type image/jpeg",
        ),
        (
            request_body(user([picture("image/bmp")])),
            400,
            "messages.0.content.0.image.source.base64.media_type: Input should be 'image/jpeg', 'image/png', "
            "'image/gif', 'image/webp'",
        ),
        (
            request_body(user([{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}] * 5)),
            400,
            "A maximum of 4 blocks with cache_control may be provided. Found 5.",
        ),
        (
            request_body(thinking={"type": "enabled", "budget_tokens": 2000}),
            400,
            "`max_tokens` must be greater than `thinking.budget_tokens`.",
        ),
    ],
)
async def test_requests_that_are_refused(
    http: aiohttp.ClientSession,
    model: ModelStandIn,
    headers: dict[str, str],
    body: Json,
    status: int,
    message: str,
) -> None:
    got, answer = await post(http, model, headers, body)
    assert (got, cast(Json, answer["error"])["message"]) == (status, message)


async def test_the_stream_has_the_order_of_the_api(
    http: aiohttp.ClientSession, model: ModelStandIn, headers: dict[str, str]
) -> None:
    model.script(ToolUse("automations", {"a": 1}, text="one two"))
    async with http.post(
        f"{model.url}/v1/messages", json=request_body(stream=True, tools=[TOOL]), headers=headers
    ) as answer:
        assert answer.content_type == "text/event-stream"
        got = events(await answer.text())
    assert [name for name, _ in got] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    deltas = [cast(Json, data["delta"]) for name, data in got if name == "content_block_delta"]
    assert "".join(str(delta["text"]) for delta in deltas if delta["type"] == "text_delta") == "one two"
    pieces = [str(delta["partial_json"]) for delta in deltas if delta["type"] == "input_json_delta"]
    assert json.loads("".join(pieces)) == {"a": 1}
    assert cast(Json, got[-2][1]["delta"])["stop_reason"] == "tool_use"


async def test_an_answer_is_cut_at_max_tokens(
    http: aiohttp.ClientSession, model: ModelStandIn, headers: dict[str, str]
) -> None:
    model.script(Reply("x" * 100))
    _, body = await post(http, model, headers, request_body(max_tokens=5))
    assert (body["stop_reason"], body["content"]) == ("max_tokens", [{"type": "text", "text": "x" * 20}])


async def test_a_picture_is_noticed(http: aiohttp.ClientSession, model: ModelStandIn, headers: dict[str, str]) -> None:
    body = request_body(user([picture(), {"type": "text", "text": "what is it?"}]))
    _, answer = await post(http, model, headers, body)
    assert answer["content"] == [{"type": "text", "text": "You sent 1 picture (image/png) and said: what is it?"}]


async def test_a_reminder_is_set_with_the_tool_for_it(http: aiohttp.ClientSession) -> None:
    async with ModelStandIn(now=lambda: 1_800_000_000.0) as model:
        headers = {"x-api-key": model.key, "anthropic-version": "2023-06-01"}
        wish = user("[Sun 2026-11-22 19:20 UTC] Remind me in 30 seconds to stretch.")
        _, body = await post(http, model, headers, request_body(wish, tools=[TOOL]))
        use = cast(list[Json], body["content"])[0]
        job = cast(Json, cast(Json, use["input"])["job"])
        assert (use["name"], job["schedule"]) == ("automations", {"kind": "at", "at": "2027-01-15T08:00:30.000Z"})
        assert job["payload"] == {"kind": "agentTurn", "message": "Reminder: stretch"}
        done = user([{"type": "tool_result", "tool_use_id": use["id"], "content": '{"ok": true}'}])
        messages = (wish, assistant([use]), done)
        _, body = await post(http, model, headers, request_body(*messages, tools=[TOOL]))
        assert body["content"] == [{"type": "text", "text": "Done. I will remind you in 30 seconds: stretch"}]
        assert [call.fresh for call in model.journal.select(containing="stretch")] == [True, False]
        assert len(model.journal.turns(containing="stretch")) == 1


async def test_a_reminder_finds_its_tool_in_a_catalog(
    http: aiohttp.ClientSession, model: ModelStandIn, headers: dict[str, str]
) -> None:
    tools = [TOOL | {"name": "tool_search"}, TOOL | {"name": "tool_call"}]
    wish = user("remind me in 2 minutes to stretch")
    _, body = await post(http, model, headers, request_body(wish, tools=tools))
    search = cast(list[Json], body["content"])[0]
    found = user([{"type": "tool_result", "tool_use_id": search["id"], "content": '[{"name": "automations"}]'}])
    _, body = await post(http, model, headers, request_body(wish, assistant([search]), found, tools=tools))
    call = cast(list[Json], body["content"])[0]
    assert (search["name"], call["name"], cast(Json, call["input"])["id"]) == (
        "tool_search",
        "tool_call",
        "automations",
    )


async def test_a_due_reminder_is_said(
    http: aiohttp.ClientSession, model: ModelStandIn, headers: dict[str, str]
) -> None:
    fired = user("[cron:1234 Reminder: stretch] Reminder: stretch\n\nReply with the result.")
    _, body = await post(http, model, headers, request_body(fired))
    assert body["content"] == [{"type": "text", "text": "Reminder: stretch"}]


async def test_the_words_of_a_person_are_found_among_context(
    http: aiohttp.ClientSession, model: ModelStandIn, headers: dict[str, str]
) -> None:
    said = '[Sun 2026-11-22 19:18 UTC] Conversation info: ⟦openclaw:ctx⟧\n```json\n{"sender":1}\n```\n\nhow are you?'
    context = "<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>\nanything\n<<<END_OPENCLAW_INTERNAL_CONTEXT>>>"
    messages = (user("earlier"), assistant("You said: earlier"), user(said), user([{"type": "text", "text": context}]))
    _, body = await post(http, model, headers, request_body(*messages))
    assert body["content"] == [{"type": "text", "text": "You said: how are you?"}]
    assert [call.words for call in model.journal.turns()] == ["how are you?"]


async def test_rules_come_first_and_end(
    http: aiohttp.ClientSession, model: ModelStandIn, headers: dict[str, str]
) -> None:
    model.script(Trouble(529), Trouble(429, retry_after=3), Reply("at last"), contains="hello", times=3)
    answers = []
    for _ in range(4):
        async with http.post(f"{model.url}/v1/messages", json=request_body(), headers=headers) as answer:
            body = await answer.json()
            answers.append((answer.status, answer.headers.get("retry-after"), body.get("error") or body["content"]))
    assert answers[0] == (529, None, {"type": "overloaded_error", "message": "Overloaded"})
    assert answers[1][:2] == (429, "3")
    assert [answer[2] for answer in answers[2:]] == [
        [{"type": "text", "text": "at last"}],
        [{"type": "text", "text": "You said: hello"}],
    ]
    assert [call.status for call in model.journal.calls] == [529, 429, 200, 200]


async def test_a_caller_that_gives_up_is_in_the_journal(
    http: aiohttp.ClientSession, model: ModelStandIn, headers: dict[str, str]
) -> None:
    model.script(Trouble(0))
    waiting = asyncio.create_task(post(http, model, headers, request_body()))
    await model.wait_for_turns(1, containing="hello")
    waiting.cancel()
    await model.journal.wait(lambda: model.journal.calls[0].status == 0, timeout=10)


async def test_a_stream_can_break_off(
    http: aiohttp.ClientSession, model: ModelStandIn, headers: dict[str, str]
) -> None:
    model.script(Trouble(-1), times=1)
    with pytest.raises(aiohttp.ClientError):
        async with http.post(f"{model.url}/v1/messages", json=request_body(stream=True), headers=headers) as answer:
            await answer.text()
    assert (await post(http, model, headers, request_body()))[0] == 200


async def test_counting_tokens_needs_no_max_tokens(
    http: aiohttp.ClientSession, model: ModelStandIn, headers: dict[str, str]
) -> None:
    body = request_body()
    del body["max_tokens"]
    status, answer = await post(http, model, headers, body, "/v1/messages/count_tokens")
    assert status == 200
    assert isinstance(answer["input_tokens"], int)


async def test_chat_completions(http: aiohttp.ClientSession, model: ModelStandIn) -> None:
    body = {"model": DEFAULT_MODEL, "messages": [{"role": "system", "content": "s"}, user("hello")]}
    path = "/v1/chat/completions"
    assert (await post(http, model, {}, body, path))[0] == 401
    status, answer = await post(http, model, {"Authorization": f"Bearer {model.key}"}, body, path)
    choice = cast(list[Json], answer["choices"])[0]
    assert (status, choice["message"]) == (200, {"role": "assistant", "content": "You said: hello"})


async def test_the_admin_api_sets_rules_and_shows_the_journal(
    http: aiohttp.ClientSession, model: ModelStandIn, headers: dict[str, str]
) -> None:
    admin = {"Authorization": f"Bearer {model.admin_token}"}
    rule = {"contains": "hello", "times": 1, "steps": [{"reply": {"text": "scripted"}}]}
    assert (await post(http, model, admin, rule, "/-/admin/rules"))[0] == 200
    async with http.post(f"{model.url}/-/admin/rules", json={"steps": []}, headers=admin) as answer:
        assert (answer.status, await answer.text()) == (400, "a rule has at least one step")
    _, body = await post(http, model, headers, request_body())
    assert body["content"] == [{"type": "text", "text": "scripted"}]
    async with http.get(f"{model.url}/-/admin/journal?turns=1&containing=hello", headers=admin) as answer:
        assert [call["answer"] for call in (await answer.json())["calls"]] == ["scripted"]
    async with http.get(f"{model.url}/-/admin/journal") as answer:
        assert answer.status == 401
