"""The rules of a Messages API request, checked as strictly as the real API checks them.

What is checked: the fields and their types, roles and their content, the pairing of tool_use and tool_result, unique
tool ids and names, image sources against their media type, cache_control and thinking limits.
"""

from __future__ import annotations

import base64
import binascii
import re

from mvm.demo.model_provider.errors import ProviderError, invalid

Json = dict[str, object]

_FIELDS = frozenset(
    [
        "model",
        "messages",
        "max_tokens",
        "system",
        "stream",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "tools",
        "tool_choice",
        "thinking",
        "metadata",
        "service_tier",
        "container",
        "mcp_servers",
        "context_management",
        "output_config",
        "output_format",
        "cache_control",
        "inference_geo",
        "speed",
    ]
)
_USER_BLOCKS = frozenset(["text", "image", "document", "tool_result", "search_result", "container_upload"])
_ASSISTANT_BLOCKS = frozenset(
    ["text", "tool_use", "thinking", "redacted_thinking", "server_tool_use", "web_search_tool_result"]
)
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_TOOL_ID = re.compile(r"[a-zA-Z0-9_-]+")
_IMAGES = {
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
}
_MAX_IMAGE_BYTES = 5 * 1024 * 1024
_MAX_CACHE_BLOCKS = 4
_MIN_THINKING = 1024


def check_request(body: Json, *, counting: bool = False) -> None:
    """Refuse a request that the API would refuse. `counting` is for count_tokens, which has no max_tokens."""
    for name in body:
        if name not in _FIELDS:
            raise invalid(name, "Extra inputs are not permitted")
    for name in ("model", "messages") if counting else ("model", "max_tokens", "messages"):
        if name not in body:
            raise invalid(name, "Field required")
    if not isinstance(body["model"], str) or not body["model"]:
        raise invalid("model", "Input should be a valid string")
    if not counting:
        _check_numbers(body)
    _check_system(body.get("system"))
    tools = _check_tools(body.get("tools"))
    _check_choice(body.get("tool_choice"), tools)
    _check_messages(body["messages"])
    marks = _count_cache_marks(body.get("system")) + _count_cache_marks(body.get("tools"))
    marks += _count_cache_marks(body["messages"])
    if marks > _MAX_CACHE_BLOCKS:
        raise invalid("", f"A maximum of {_MAX_CACHE_BLOCKS} blocks with cache_control may be provided. Found {marks}.")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_numbers(body: Json) -> None:
    max_tokens = body["max_tokens"]
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool):
        raise invalid("max_tokens", "Input should be a valid integer")
    if max_tokens < 1:
        raise invalid("max_tokens", "must be greater than or equal to 1")
    if not isinstance(body.get("stream", False), bool):
        raise invalid("stream", "Input should be a valid boolean")
    temperature = body.get("temperature")
    if temperature is not None and (not isinstance(temperature, int | float) or not 0 <= temperature <= 1):
        raise invalid("temperature", "range: 0..1")
    stops = body.get("stop_sequences", [])
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop.strip() for stop in stops):
        raise invalid("stop_sequences", "each stop sequence must contain non-whitespace")
    thinking = body.get("thinking")
    if thinking is None:
        return
    if not isinstance(thinking, dict) or thinking.get("type") not in ("enabled", "disabled", "adaptive"):
        raise invalid(
            "thinking", "Input tag does not match any of the expected tags: 'disabled', 'enabled', 'adaptive'"
        )
    if thinking["type"] == "enabled":
        budget = thinking.get("budget_tokens")
        if not isinstance(budget, int) or budget < _MIN_THINKING:
            raise invalid("thinking.enabled.budget_tokens", f"Input should be greater than or equal to {_MIN_THINKING}")
        if budget >= max_tokens:
            raise invalid("", "`max_tokens` must be greater than `thinking.budget_tokens`.")
        if temperature not in (None, 1):
            raise invalid("", "`temperature` may only be set to 1 when thinking is enabled.")


def _check_system(system: object) -> None:
    if system is None or isinstance(system, str):
        return
    if not isinstance(system, list):
        raise invalid("system", "Input should be a valid string or list")
    for index, block in enumerate(system):
        if not isinstance(block, dict) or block.get("type") != "text":
            raise invalid(f"system.{index}.type", "Input should be 'text'")
        _check_text(block, f"system.{index}")


def _check_text(block: Json, where: str) -> None:
    text = block.get("text")
    if not isinstance(text, str):
        raise invalid(f"{where}.text", "Field required")
    if text == "":
        raise invalid("messages" if where.startswith("messages") else where, "text content blocks must be non-empty")
    if not text.strip() and where.startswith("messages"):
        raise invalid("messages", "text content blocks must contain non-whitespace text")


def _check_tools(tools: object) -> set[str]:
    if tools is None:
        return set()
    if not isinstance(tools, list):
        raise invalid("tools", "Input should be a valid list")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"tools.{index}"
        if not isinstance(tool, dict):
            raise invalid(where, "Input should be a valid dictionary")
        name = tool.get("name")
        if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
            raise invalid(f"{where}.custom.name", "String should match pattern '^[a-zA-Z0-9_-]{1,128}$'")
        if name in names:
            raise invalid("tools", "Tool names must be unique.")
        names.add(name)
        if tool.get("type", "custom") != "custom":
            continue  # a tool that the provider runs; it has no schema of the caller's
        schema = tool.get("input_schema")
        if not isinstance(schema, dict):
            raise invalid(f"{where}.custom.input_schema", "Field required")
        if schema.get("type") != "object":
            raise invalid(f"{where}.custom.input_schema.type", "Input should be 'object'")
        if any(key in schema for key in ("anyOf", "oneOf", "allOf")):
            raise invalid(
                f"{where}.custom.input_schema", "input_schema does not support oneOf, allOf, or anyOf at the top level"
            )
    return names


def _check_choice(choice: object, tools: set[str]) -> None:
    if choice is None:
        return
    if not isinstance(choice, dict) or choice.get("type") not in ("auto", "any", "tool", "none"):
        raise invalid("tool_choice", "Input tag does not match any of the expected tags: 'auto', 'any', 'tool', 'none'")
    if not tools:
        raise invalid("tool_choice", "tool_choice may only be specified while providing tools.")
    if choice["type"] == "tool" and choice.get("name") not in tools:
        raise invalid("tool_choice", f"Tool '{choice.get('name')}' not found in provided tools")


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list):
        raise invalid("messages", "Input should be a valid list")
    if not messages:
        raise invalid("messages", "at least one message is required")
    seen: set[str] = set()
    open_uses: list[str] = []
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        if not isinstance(message, dict):
            raise invalid(where, "Input should be a valid dictionary")
        if extra := sorted(set(message) - {"role", "content"}):
            raise invalid(f"{where}.{extra[0]}", "Extra inputs are not permitted")
        role = message.get("role")
        if role == "system":
            raise invalid(
                "messages",
                'Unexpected role "system". The Messages API accepts a top-level `system` parameter, not "system" as an '
                "input message role.",
            )
        if role not in ("user", "assistant"):
            raise invalid(f"{where}.role", "Input should be 'user' or 'assistant'")
        last = index == len(messages) - 1
        blocks = _blocks(message.get("content"), where, role, last=last)
        results = [str(block["tool_use_id"]) for block in blocks if block["type"] == "tool_result"]
        _check_pairing(where, role, blocks, open_uses, results)
        open_uses = [str(block["id"]) for block in blocks if block["type"] == "tool_use"] if role == "assistant" else []
        for use in open_uses:
            if use in seen:
                raise invalid("messages", "`tool_use` ids must be unique")
            seen.add(use)
        if last and open_uses:
            raise invalid(where, _missing_results(open_uses))
    if isinstance(messages[0], dict) and messages[0]["role"] != "user":
        raise invalid("messages", 'first message must use the "user" role')


def _missing_results(uses: list[str]) -> str:
    return (
        f"`tool_use` ids were found without `tool_result` blocks immediately after: {', '.join(uses)}. Each `tool_use` "
        "block must have a corresponding `tool_result` block in the next message."
    )


def _check_pairing(where: str, role: str, blocks: list[Json], open_uses: list[str], results: list[str]) -> None:
    for position, block in enumerate(blocks):
        if block["type"] == "tool_result" and block["tool_use_id"] not in open_uses:
            raise invalid(
                f"{where}.content.{position}",
                f"unexpected `tool_use_id` found in `tool_result` blocks: {block['tool_use_id']}. Each `tool_result` "
                "block must have a corresponding `tool_use` block in the previous message.",
            )
    missing = [use for use in open_uses if use not in results]
    first_is_result = not open_uses or role != "user" or not blocks or blocks[0]["type"] == "tool_result"
    if missing or not first_is_result:
        raise invalid(where, _missing_results(missing or open_uses))
    if len(set(results)) != len(results):
        raise invalid(f"{where}.content", "each tool_use must have a single result")


def _blocks(content: object, where: str, role: str, *, last: bool) -> list[Json]:
    """The content as blocks, each checked."""
    if isinstance(content, str):
        if not content and not (last and role == "assistant"):
            raise invalid(where, f"{role} messages must have non-empty content")
        if last and role == "assistant" and content != content.rstrip():
            raise invalid("messages", "final assistant content cannot end with trailing whitespace")
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise invalid(f"{where}.content", "Input should be a valid string or list")
    if not content and not (last and role == "assistant"):
        raise invalid(where, "all messages must have non-empty content except for the optional final assistant message")
    allowed = _USER_BLOCKS if role == "user" else _ASSISTANT_BLOCKS
    for position, block in enumerate(content):
        at = f"{where}.content.{position}"
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise invalid(f"{at}.type", "Field required")
        if block["type"] not in allowed:
            raise invalid(at, f"Input tag '{block['type']}' is not allowed in a {role} message")
        _check_block(block, at)
    return content


def _check_block(block: Json, where: str) -> None:
    kind = block["type"]
    if kind == "text":
        _check_text(block, where)
    elif kind == "image":
        _check_image(block.get("source"), f"{where}.image.source")
    elif kind == "tool_use":
        if not isinstance(block.get("id"), str) or not _TOOL_ID.fullmatch(str(block["id"])):
            raise invalid(f"{where}.tool_use.id", "String should match pattern '^[a-zA-Z0-9_-]+$'")
        if not isinstance(block.get("name"), str) or not _TOOL_NAME.fullmatch(str(block["name"])):
            raise invalid(f"{where}.tool_use.name", "String should match pattern '^[a-zA-Z0-9_-]{1,128}$'")
        if not isinstance(block.get("input"), dict):
            raise invalid(f"{where}.tool_use.input", "Input should be a valid dictionary")
    elif kind == "tool_result":
        if not isinstance(block.get("tool_use_id"), str):
            raise invalid(f"{where}.tool_result.tool_use_id", "Field required")
        _check_result(block.get("content"), f"{where}.tool_result.content")
    elif kind == "thinking" and not isinstance(block.get("signature"), str):
        raise invalid(f"{where}.thinking.signature", "Field required")


def _check_result(content: object, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise invalid(where, "Input should be a valid string or list")
    for index, block in enumerate(content):
        if not isinstance(block, dict) or block.get("type") not in ("text", "image", "document", "search_result"):
            raise invalid(f"{where}.{index}.type", "Input should be 'text', 'image', 'document' or 'search_result'")
        _check_block(block, f"{where}.{index}")


def _check_image(source: object, where: str) -> None:
    if not isinstance(source, dict) or source.get("type") not in ("base64", "url", "file"):
        raise invalid(f"{where}.type", "Input tag does not match any of the expected tags: 'base64', 'url', 'file'")
    if source["type"] != "base64":
        return
    media, data = source.get("media_type"), source.get("data")
    if media not in _IMAGES:
        raise invalid(f"{where}.base64.media_type", f"Input should be {', '.join(repr(name) for name in _IMAGES)}")
    if not isinstance(data, str):
        raise invalid(f"{where}.base64.data", "Field required")
    try:
        image = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"{where}.base64", "invalid base64 data") from None
    if len(image) > _MAX_IMAGE_BYTES:
        raise invalid(f"{where}.base64", f"image exceeds 5 MB maximum: {len(image)} bytes > {_MAX_IMAGE_BYTES} bytes")
    if not image.startswith(_IMAGES[str(media)]):
        raise ProviderError(400, f"{where}.base64.data: Image does not match the provided media type {media}")


def _count_cache_marks(value: object) -> int:
    if isinstance(value, list):
        return sum(_count_cache_marks(item) for item in value)
    if isinstance(value, dict):
        own = 1 if value.get("cache_control") is not None else 0
        return own + _count_cache_marks(value.get("content"))
    return 0
