"""`parse_mode` HTML: the tags, attributes and errors that the Bot API knows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mvm.demo.telegram.text import Entity, EntityProblem, byte_offset, utf16_length

_SIMPLE = {
    "b": "bold",
    "strong": "bold",
    "i": "italic",
    "em": "italic",
    "u": "underline",
    "ins": "underline",
    "s": "strikethrough",
    "strike": "strikethrough",
    "del": "strikethrough",
    "tg-spoiler": "spoiler",
    "code": "code",
    "pre": "pre",
}
_TAGS = frozenset(_SIMPLE) | {"a", "span", "tg-emoji", "tg-time", "blockquote"}
_NAMED = {"lt": "<", "gt": ">", "amp": "&", "quot": '"'}
_REFERENCE = re.compile(r"&(?:#(\d{1,7})|#x([0-9a-fA-F]{1,6})|([a-z]{2,4}));?")
_ATTRIBUTE = re.compile(r"""\s*([a-zA-Z][a-zA-Z0-9-]*)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>"']+)))?""")


@dataclass
class _Open:
    tag: str
    at: int
    start: int
    attributes: dict[str, str] = field(default_factory=dict)


def parse_html(source: str) -> tuple[str, list[Entity]]:
    """Plain text and entities of `source`; `EntityProblem` in the API's words when a tag is wrong."""
    shown: list[str] = []
    length = 0
    entities: list[Entity] = []
    stack: list[_Open] = []
    index = 0
    while index < len(source):
        character = source[index]
        if character == "&":
            piece, index = _reference(source, index)
        elif character != "<":
            piece, index = character, index + 1
        elif source.startswith("</", index):
            index = _close(source, index, stack, entities, length)
            continue
        else:
            opened, index = _open(source, index, length)
            stack.append(opened)
            continue
        shown.append(piece)
        length += utf16_length(piece)
    if stack:
        raise EntityProblem(f'Can\'t find end tag corresponding to start tag "{stack[-1].tag}"')
    return "".join(shown), entities


def _reference(source: str, index: int) -> tuple[str, int]:
    match = _REFERENCE.match(source, index)
    if match is None:
        return "&", index + 1
    decimal, hexadecimal, name = match.groups()
    if name is not None:
        return (_NAMED[name], match.end()) if name in _NAMED else ("&", index + 1)
    code = int(decimal) if decimal else int(hexadecimal, 16)
    return (chr(code), match.end()) if 0 < code <= 0x10FFFF else ("&", index + 1)


def _open(source: str, index: int, length: int) -> tuple[_Open, int]:
    where = byte_offset(source, index)
    name = re.compile(r"[^\s>]*").match(source, index + 1)
    tag = name.group().lower() if name else ""
    if tag not in _TAGS:
        raise EntityProblem(f'Unsupported start tag "{tag}" at byte offset {where}')
    cursor = index + 1 + len(tag)
    attributes: dict[str, str] = {}
    while True:
        while cursor < len(source) and source[cursor].isspace():
            cursor += 1
        if cursor >= len(source):
            raise EntityProblem(f"Unclosed start tag at byte offset {where}")
        if source[cursor] == ">":
            return _Open(tag, index, length, attributes), cursor + 1
        match = _ATTRIBUTE.match(source, cursor)
        if match is None:
            raise EntityProblem(f'Empty attribute name in the tag "{tag}" at byte offset {where}')
        attributes[match.group(1).lower()] = match.group(2) or match.group(3) or match.group(4) or ""
        if tag == "span" and attributes.get("class", "tg-spoiler") != "tg-spoiler":
            raise EntityProblem(f'Tag "span" must have class "tg-spoiler" at byte offset {where}')
        cursor = match.end()


def _close(source: str, index: int, stack: list[_Open], entities: list[Entity], length: int) -> int:
    where = byte_offset(source, index)
    end = source.find(">", index)
    if end < 0:
        raise EntityProblem(f"Unclosed end tag at byte offset {where}")
    tag = source[index + 2 : end].strip().lower()
    if not stack:
        raise EntityProblem(f"Unexpected end tag at byte offset {where}")
    opened = stack.pop()
    if tag not in ("", opened.tag):
        raise EntityProblem(f'Unmatched end tag at byte offset {where}, expected "</{opened.tag}>", found "</{tag}>"')
    entity: Entity = {"type": _kind(opened), "offset": opened.start, "length": length - opened.start}
    if opened.tag == "a" and opened.attributes.get("href"):
        entity["url"] = opened.attributes["href"]
    elif opened.tag == "a":
        entity["type"] = "url"
    elif opened.tag == "tg-emoji":
        entity["custom_emoji_id"] = opened.attributes.get("emoji-id", "")
    language = opened.attributes.get("class", "")
    inside_pre = opened.tag == "code" and stack and stack[-1].tag == "pre" and stack[-1].start == opened.start
    if inside_pre and language.startswith("language-"):
        stack[-1].attributes["language"] = language.removeprefix("language-")
        return end + 1
    if opened.tag == "pre" and "language" in opened.attributes:
        entity["language"] = opened.attributes["language"]
    entities.append(entity)
    return end + 1


def _kind(opened: _Open) -> str:
    if opened.tag == "a":
        return "text_link"
    if opened.tag == "span":
        return "spoiler"
    if opened.tag == "tg-emoji":
        return "custom_emoji"
    if opened.tag == "tg-time":
        return "date_time"
    if opened.tag == "blockquote":
        return "expandable_blockquote" if "expandable" in opened.attributes else "blockquote"
    return _SIMPLE[opened.tag]
