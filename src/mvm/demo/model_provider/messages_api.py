"""The HTTP face of the Messages API: messages, count_tokens and models."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, cast

from aiohttp import web

from mvm.demo.loopback import hang_up
from mvm.demo.model_provider.errors import ProviderError, invalid
from mvm.demo.model_provider.events import Answer, compose, count_tokens, new_id, stream_events
from mvm.demo.model_provider.journal import ModelCall
from mvm.demo.model_provider.script import Reply, Step, ToolUse, Trouble, read_asked
from mvm.demo.model_provider.validation import check_request

if TYPE_CHECKING:
    from mvm.demo.model_provider.standin import ModelStandIn

Json = dict[str, object]

HANG, BREAK_OFF = 0, -1
_KNOWN_VERSIONS = frozenset(["2023-01-01", "2023-06-01"])
_CREATED = "2025-09-29T00:00:00Z"


def add_routes(app: web.Application, standin: ModelStandIn) -> None:
    """Serve the API in `app`."""
    face = _Face(standin)
    app.router.add_post("/v1/messages", face.messages)
    app.router.add_post("/v1/messages/count_tokens", face.count)
    app.router.add_get("/v1/models", face.models)
    app.router.add_get("/v1/models/{model}", face.model)


def require_key(standin: ModelStandIn, request: web.Request) -> str:
    """The API key of the request; 401 when it is missing or not known."""
    key = request.headers.get("x-api-key", "")
    bearer = request.headers.get("Authorization", "")
    if not key and bearer.startswith("Bearer "):
        key = bearer.removeprefix("Bearer ")
    if not key:
        raise ProviderError(401, "x-api-key header is required")
    if not standin.knows(key):
        raise ProviderError(401, "invalid x-api-key")
    return key


class _Face:
    def __init__(self, standin: ModelStandIn) -> None:
        self._standin = standin

    def _enter(self, request: web.Request) -> str:
        key = require_key(self._standin, request)
        version = request.headers.get("anthropic-version")
        if version is None:
            raise invalid("anthropic-version", "header is required")
        if version not in _KNOWN_VERSIONS:
            raise invalid("anthropic-version", f'"{version}" is not a valid version')
        return key

    async def _body(self, request: web.Request) -> Json:
        if request.content_type != "application/json":
            raise invalid("", "content-type must be application/json")
        try:
            body = json.loads(await request.read())
        except web.HTTPRequestEntityTooLarge as problem:
            raise ProviderError(413, "Request exceeds the maximum size") from problem
        except ValueError as problem:
            raise invalid("", f"The request body is not valid JSON: {problem}") from problem
        if not isinstance(body, dict):
            raise invalid("", "Input should be an object")
        return body

    def _require_model(self, model: object) -> str:
        if model not in self._standin.models:
            raise ProviderError(404, f"model: {model}")
        return str(model)

    async def messages(self, request: web.Request) -> web.StreamResponse:
        request_id = new_id("req")
        call: ModelCall | None = None
        try:
            key = self._enter(request)
            body = await self._body(request)
            check_request(body)
            self._require_model(body["model"])
            limit = self._standin.max_output_tokens
            if int(str(body["max_tokens"])) > limit:
                raise invalid(
                    "max_tokens",
                    f"{body['max_tokens']} > {limit}, which is the maximum allowed number of output tokens for "
                    f"{body['model']}",
                )
            call = self._record(key, body)
            await self._standin.journal.begin(call)
            return await self._perform(request, body, call, request_id)
        except ProviderError as problem:
            if call is not None:
                await self._end(call, problem.status)
            return error_response(problem, request_id)
        except (asyncio.CancelledError, ConnectionError):
            if call is not None:
                await self._end(call, 0)
            raise

    def _record(self, key: str, body: Json) -> ModelCall:
        messages = cast(list[Json], body["messages"])
        asked = read_asked(messages)
        system = body.get("system", "")
        return ModelCall(
            number=len(self._standin.journal.calls) + 1,
            at=self._standin.now(),
            model=str(body["model"]),
            key_end=key[-4:],
            words=asked.words,
            fresh=asked.fresh,
            stream=body.get("stream") is True,
            message_count=len(messages),
            system=system if isinstance(system, str) else "\n".join(str(b["text"]) for b in cast(list[Json], system)),
        )

    async def _end(self, call: ModelCall, status: int, answer: Answer | None = None) -> None:
        call.status, call.ended_at = status, self._standin.now()
        if answer is not None:
            call.answer, call.stop_reason = answer.text(), answer.stop_reason
        await self._standin.journal.tell()

    async def _perform(self, request: web.Request, body: Json, call: ModelCall, request_id: str) -> web.StreamResponse:
        messages, tools = cast(list[Json], body["messages"]), cast(list[Json], body.get("tools") or [])
        step = self._standin.decide(call.words, call.model, messages, tools)
        if step.delay:
            await asyncio.sleep(step.delay)
        if isinstance(step, Trouble) and step.status == HANG:
            await self._standin.hang()
        if isinstance(step, Trouble) and step.status != BREAK_OFF:
            raise ProviderError(step.status, step.message, retry_after=step.retry_after)
        answer = compose(_spoken(step), model=call.model, request=body)
        if not call.stream and not isinstance(step, Trouble):
            await self._end(call, 200, answer)
            return web.json_response(answer.to_json(), headers={"request-id": request_id})
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "request-id": request_id,
            }
        )
        await response.prepare(request)
        pause = step.pause if isinstance(step, Reply) else 0.0
        for name, data in stream_events(answer):
            if isinstance(step, Trouble) and name == "content_block_stop":
                await self._end(call, BREAK_OFF)
                hang_up(request)
                return response
            await response.write(f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode())
            if pause and name == "content_block_delta":
                await asyncio.sleep(pause)
        await self._end(call, 200, answer)
        await response.write_eof()
        return response

    async def count(self, request: web.Request) -> web.StreamResponse:
        request_id = new_id("req")
        try:
            self._enter(request)
            body = await self._body(request)
            check_request({name: value for name, value in body.items() if name != "max_tokens"}, counting=True)
            self._require_model(body["model"])
        except ProviderError as problem:
            return error_response(problem, request_id)
        asked = [body.get("system", ""), body.get("tools", []), body["messages"]]
        return web.json_response({"input_tokens": count_tokens(asked)}, headers={"request-id": request_id})

    async def models(self, request: web.Request) -> web.StreamResponse:
        request_id = new_id("req")
        try:
            self._enter(request)
        except ProviderError as problem:
            return error_response(problem, request_id)
        listed = [_model_json(model) for model in self._standin.models]
        page = {"data": listed, "has_more": False, "first_id": listed[0]["id"], "last_id": listed[-1]["id"]}
        return web.json_response(page, headers={"request-id": request_id})

    async def model(self, request: web.Request) -> web.StreamResponse:
        request_id = new_id("req")
        try:
            self._enter(request)
            model = self._require_model(request.match_info["model"])
        except ProviderError as problem:
            return error_response(problem, request_id)
        return web.json_response(_model_json(model), headers={"request-id": request_id})


def _spoken(step: Step) -> Reply | ToolUse:
    return Reply("This answer breaks off here") if isinstance(step, Trouble) else step


def _model_json(model: str) -> Json:
    return {"type": "model", "id": model, "display_name": model.replace("-", " ").title(), "created_at": _CREATED}


def error_response(problem: ProviderError, request_id: str) -> web.Response:
    headers = {"request-id": request_id}
    if problem.retry_after is not None:
        headers["retry-after"] = str(problem.retry_after)
    return web.json_response(problem.body(request_id), status=problem.status, headers=headers)
