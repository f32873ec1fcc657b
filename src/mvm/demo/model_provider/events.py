"""Answers of the Messages API: the message as one document, and as the event stream in the API's order."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from mvm.demo.model_provider.script import Reply, ToolUse

Json = dict[str, object]

_PIECE = re.compile(r"\S+\s*|\s+")
_CHARACTERS_PER_TOKEN = 4


def new_id(prefix: str) -> str:
    """An id in the API's style: `msg_01...`, `toolu_01...`, `req_01...`."""
    return f"{prefix}_01{secrets.token_hex(11)}"


def count_tokens(value: object) -> int:
    """A rough count of tokens: a quarter of the characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return max(1, len(text) // _CHARACTERS_PER_TOKEN)


@dataclass(frozen=True)
class Answer:
    """What the model says to one request."""

    message_id: str
    model: str
    content: list[Json]
    stop_reason: str
    input_tokens: int
    output_tokens: int

    def usage(self) -> Json:
        return {
            "input_tokens": self.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": self.output_tokens,
        }

    def to_json(self) -> Json:
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": self.content,
            "stop_reason": self.stop_reason,
            "stop_sequence": None,
            "usage": self.usage(),
        }

    def text(self) -> str:
        return "".join(str(block["text"]) for block in self.content if block["type"] == "text")


def compose(step: Reply | ToolUse, *, model: str, request: Json) -> Answer:
    """The answer for a step; cut at `max_tokens` and at stop sequences as the API does."""
    content: list[Json] = []
    stop_reason = "end_turn"
    text = step.text
    limit = int(str(request["max_tokens"])) * _CHARACTERS_PER_TOKEN
    if len(text) > limit:
        text, stop_reason = text[:limit], "max_tokens"
    if text:
        content.append({"type": "text", "text": text})
    if isinstance(step, ToolUse):
        content.append({"type": "tool_use", "id": new_id("toolu"), "name": step.name, "input": step.input})
        stop_reason = "tool_use"
    asked = [request.get("system", ""), request.get("tools", []), request["messages"]]
    return Answer(new_id("msg"), model, content, stop_reason, count_tokens(asked), count_tokens(content))


def stream_events(answer: Answer) -> Iterator[tuple[str, Json]]:
    """The events of a streamed answer, in the API's order."""
    start = answer.to_json() | {"content": [], "stop_reason": None, "usage": answer.usage() | {"output_tokens": 1}}
    yield "message_start", {"type": "message_start", "message": start}
    for index, block in enumerate(answer.content):
        yield from _block_events(index, block, first=index == 0)
    yield (
        "message_delta",
        {
            "type": "message_delta",
            "delta": {"stop_reason": answer.stop_reason, "stop_sequence": None},
            "usage": answer.usage(),
        },
    )
    yield "message_stop", {"type": "message_stop"}


def _block_events(index: int, block: Json, *, first: bool) -> Iterator[tuple[str, Json]]:
    tool = block["type"] == "tool_use"
    empty: Json = block | {"input": {}} if tool else {"type": "text", "text": ""}
    yield "content_block_start", {"type": "content_block_start", "index": index, "content_block": empty}
    if first:
        yield "ping", {"type": "ping"}
    whole = json.dumps(block["input"]) if tool else str(block["text"])
    for piece in ["", *_cut(whole)] if tool else _PIECE.findall(whole):
        delta: Json = (
            {"type": "input_json_delta", "partial_json": piece} if tool else {"type": "text_delta", "text": piece}
        )
        yield "content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta}
    yield "content_block_stop", {"type": "content_block_stop", "index": index}


def _cut(text: str, size: int = 24) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]
