"""OpenAI chat completions in brief: key, roles, one choice, streamed or not. The model is the same stand-in."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, cast

from aiohttp import web

from mvm.demo.model_provider.errors import ProviderError
from mvm.demo.model_provider.events import count_tokens, new_id
from mvm.demo.model_provider.script import Reply, ToolUse, Trouble, read_asked

if TYPE_CHECKING:
    from mvm.demo.model_provider.standin import ModelStandIn

Json = dict[str, object]
_ROLES = frozenset(["system", "developer", "user", "assistant", "tool"])


def add_routes(app: web.Application, standin: ModelStandIn) -> None:
    """Serve `/v1/chat/completions` in `app`."""

    async def complete(request: web.Request) -> web.StreamResponse:
        try:
            return await _complete(standin, request)
        except ProviderError as problem:
            kind = "invalid_request_error" if problem.status < 429 else "server_error"
            code = "invalid_api_key" if problem.status == 401 else None
            error = {"message": problem.message, "type": kind, "param": None, "code": code}
            return web.json_response({"error": error}, status=problem.status)

    app.router.add_post("/v1/chat/completions", complete)


def _check(standin: ModelStandIn, request: web.Request, body: object) -> Json:
    bearer = request.headers.get("Authorization", "")
    if not bearer.startswith("Bearer "):
        raise ProviderError(401, "You didn't provide an API key.")
    if not standin.knows(bearer.removeprefix("Bearer ")):
        raise ProviderError(401, "Incorrect API key provided.")
    if not isinstance(body, dict):
        raise ProviderError(400, "We could not parse the JSON body of your request.")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ProviderError(400, "Invalid 'messages': empty array. Expected an array with minimum length 1.")
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise ProviderError(400, f"Invalid value: '{role}'. Supported values are roles: 'messages[{index}].role'.")
        if role == "tool" and not message.get("tool_call_id"):
            raise ProviderError(400, f"Missing required parameter: 'messages[{index}].tool_call_id'.")
    if body.get("model") not in standin.models:
        raise ProviderError(404, f"The model `{body.get('model')}` does not exist or you do not have access to it.")
    return body


async def _complete(standin: ModelStandIn, request: web.Request) -> web.StreamResponse:
    try:
        given = json.loads(await request.read())
    except ValueError:
        given = None
    body = _check(standin, request, given)
    messages = [_as_anthropic(message) for message in cast(list[Json], body["messages"])]
    step = standin.decide(read_asked(messages).words, str(body["model"]), messages, [])
    await asyncio.sleep(step.delay)
    if isinstance(step, Trouble):
        if step.status <= 0:
            await standin.hang()
        raise ProviderError(step.status, step.message, retry_after=step.retry_after)
    message = _message(step)
    reason = "tool_calls" if isinstance(step, ToolUse) else "stop"
    base: Json = {"id": new_id("chatcmpl"), "created": int(standin.now()), "model": body["model"]}
    if body.get("stream") is not True:
        used, said = count_tokens(messages), count_tokens(message)
        usage = {"prompt_tokens": used, "completion_tokens": said, "total_tokens": used + said}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return web.json_response(base | {"object": "chat.completion", "choices": [choice], "usage": usage})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for delta, finish in ((message, None), ({}, reason)):
        chunk = base | {
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _message(step: Reply | ToolUse) -> Json:
    if isinstance(step, Reply):
        return {"role": "assistant", "content": step.text}
    call = {
        "index": 0,
        "id": new_id("call"),
        "type": "function",
        "function": {"name": step.name, "arguments": json.dumps(step.input)},
    }
    return {"role": "assistant", "content": step.text or None, "tool_calls": [call]}


def _as_anthropic(message: Json) -> Json:
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return {"role": message["role"], "content": str(content or "")}
