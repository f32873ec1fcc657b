"""Formatted text: `parse_mode` HTML, MarkdownV2 and Markdown, and what Telegram finds in plain text by itself.

Offsets and lengths of entities count UTF-16 code units; offsets in errors count bytes of UTF-8, as the API has it.
"""

from __future__ import annotations

import re

from mvm.demo.telegram.errors import bad_request
from mvm.demo.telegram.html import parse_html
from mvm.demo.telegram.markdown import parse_markdown, parse_markdown_v2
from mvm.demo.telegram.text import Entity, EntityProblem, utf16_length

_FOUND = re.compile(
    r"(?P<url>https?://[^\s<>\"]+)"
    r"|(?P<email>\b[\w.+-]+@[\w-]+\.[\w.-]+\b)"
    r"|(?P<bot_command>(?<![\w/])/[A-Za-z0-9_]{1,32}(?:@[A-Za-z0-9_]{3,32})?\b)"
    r"|(?P<mention>(?<!\w)@[A-Za-z0-9_]{4,32}\b)"
    r"|(?P<hashtag>(?<!\w)#\w*[^\W\d]\w*)"
)
_KINDS = frozenset(
    [
        "mention",
        "hashtag",
        "cashtag",
        "bot_command",
        "url",
        "email",
        "phone_number",
        "bold",
        "italic",
        "underline",
        "strikethrough",
        "spoiler",
        "blockquote",
        "expandable_blockquote",
        "code",
        "pre",
        "text_link",
        "text_mention",
        "custom_emoji",
        "date_time",
    ]
)


def parse_text(text: str, parse_mode: str | None, explicit: list[object] | None = None) -> tuple[str, list[Entity]]:
    """The text as shown and its entities; a 400 `can't parse entities` when the markup is wrong."""
    mode = (parse_mode or "").strip().lower()
    try:
        if mode in ("", "none"):
            plain, entities = text, [_checked(entity, text) for entity in explicit or []]
        elif mode == "html":
            plain, entities = parse_html(text)
        elif mode == "markdownv2":
            plain, entities = parse_markdown_v2(text)
        elif mode == "markdown":
            plain, entities = parse_markdown(text)
        else:
            raise bad_request("unsupported parse_mode")
    except EntityProblem as problem:
        raise bad_request(f"can't parse entities: {problem}") from None
    entities = [entity for entity in entities if entity["length"]]
    taken = [range(entity["offset"], entity["offset"] + entity["length"]) for entity in entities]
    found = [
        entity
        for entity in find_entities(plain)
        if not any(span.start < entity["offset"] + entity["length"] and entity["offset"] < span.stop for span in taken)
    ]
    return plain, sorted(entities + found, key=lambda entity: (entity["offset"], -entity["length"]))


def find_entities(text: str) -> list[Entity]:
    """Commands, links, mentions and hashtags that Telegram marks without being asked."""
    return [
        {
            "type": str(match.lastgroup),
            "offset": utf16_length(text[: match.start()]),
            "length": utf16_length(match.group()),
        }
        for match in _FOUND.finditer(text)
    ]


def _checked(entity: object, text: str) -> Entity:
    if not isinstance(entity, dict):
        raise EntityProblem("expected an Object")
    kind, offset, length = entity.get("type"), entity.get("offset"), entity.get("length")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise EntityProblem("unsupported entity type")
    if not isinstance(offset, int) or not isinstance(length, int):
        raise EntityProblem('Field "offset" and "length" must be of type Number')
    if offset < 0 or length < 0 or offset + length > utf16_length(text):
        raise EntityProblem("entity begins or ends outside the text")
    checked: Entity = {"type": kind, "offset": offset, "length": length}
    if isinstance(entity.get("url"), str):
        checked["url"] = entity["url"]
    if isinstance(entity.get("language"), str):
        checked["language"] = entity["language"]
    if isinstance(entity.get("custom_emoji_id"), str):
        checked["custom_emoji_id"] = entity["custom_emoji_id"]
    return checked
