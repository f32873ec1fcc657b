"""`parse_mode` MarkdownV2 and the older Markdown, with the API's errors."""

from __future__ import annotations

from dataclasses import dataclass

from mvm.demo.telegram.text import Entity, EntityProblem, byte_offset, utf16_length

_RESERVED = frozenset("_*[]()~`>#+-=|{}.!")
_NAMES = {
    "bold": "Bold",
    "italic": "Italic",
    "underline": "Underline",
    "strikethrough": "Strikethrough",
    "spoiler": "Spoiler",
    "code": "Code",
    "pre": "Pre",
    "text_link": "TextUrl",
    "custom_emoji": "CustomEmoji",
}
_MARKS = (
    ("```", "pre"),
    ("__", "underline"),
    ("||", "spoiler"),
    ("![", "custom_emoji"),
    ("_", "italic"),
    ("*", "bold"),
    ("~", "strikethrough"),
    ("`", "code"),
    ("[", "text_link"),
)
_ENDS = {kind: mark for mark, kind in _MARKS} | {"text_link": "]", "custom_emoji": "]"}


@dataclass
class _Open:
    kind: str
    at: int
    start: int
    language: str = ""


class _MarkdownV2:
    def __init__(self, source: str) -> None:
        self.source = source
        self.index = 0
        self.shown: list[str] = []
        self.length = 0
        self.entities: list[Entity] = []
        self.stack: list[_Open] = []
        self.quote: int | None = None

    def parse(self) -> tuple[str, list[Entity]]:
        while self.index < len(self.source):
            self._step()
        if self.stack:
            left = self.stack[-1]
            raise EntityProblem(
                f"Can't find end of {_NAMES[left.kind]} entity at byte offset {byte_offset(self.source, left.at)}"
            )
        self._end_quote()
        return "".join(self.shown), self.entities

    def _step(self) -> None:
        source, index = self.source, self.index
        character = source[index]
        inside = self.stack[-1].kind if self.stack else ""
        if character == "\\" and index + 1 < len(source) and 0 < ord(source[index + 1]) < 127:
            self._show(source[index + 1])
            self.index += 2
            return
        if inside and source.startswith(_ENDS[inside], index) and not self._is_underline(inside):
            self._close(self.stack.pop())
            return
        if inside in ("code", "pre") or character not in _RESERVED:
            if character == "\n" and self.quote is not None and not source.startswith(">", index + 1):
                self._end_quote()
            self._show(character)
            self.index += 1
            return
        if character == ">" and (index == 0 or source[index - 1] == "\n"):
            if self.quote is None:
                self.quote = self.length
            self.index += 1
            return
        self._begin(character)

    def _is_underline(self, inside: str) -> bool:
        return inside == "italic" and self.source.startswith("__", self.index)

    def _begin(self, character: str) -> None:
        source, index = self.source, self.index
        for mark, kind in _MARKS:
            if not source.startswith(mark, index):
                continue
            opened = _Open(kind, index, self.length)
            self.index += len(mark)
            if kind == "pre":
                line = source.find("\n", self.index)
                word = source[self.index : line] if line >= 0 else ""
                if line >= 0 and "`" not in word and " " not in word:
                    opened.language, self.index = word, line + 1
            self.stack.append(opened)
            return
        raise EntityProblem(f"Character '{character}' is reserved and must be escaped with the preceding '\\'")

    def _close(self, opened: _Open) -> None:
        source = self.source
        self.index += len(_ENDS[opened.kind])
        entity: Entity = {"type": opened.kind, "offset": opened.start, "length": self.length - opened.start}
        if opened.kind in ("text_link", "custom_emoji"):
            target = ""
            if source.startswith("(", self.index):
                end = self._end_of_link(self.index + 1)
                target = source[self.index + 1 : end].replace("\\", "")
                self.index = end + 1
            if opened.kind == "custom_emoji":
                entity["custom_emoji_id"] = target.rpartition("=")[2]
            elif target:
                entity["url"] = target
            else:
                entity["type"] = "url"
        elif opened.kind == "pre" and opened.language:
            entity["language"] = opened.language
        self.entities.append(entity)

    def _end_of_link(self, start: int) -> int:
        index = start
        while index < len(self.source):
            if self.source[index] == "\\":
                index += 1
            elif self.source[index] == ")":
                return index
            index += 1
        raise EntityProblem(f"Can't find end of a URL at byte offset {byte_offset(self.source, start)}")

    def _end_quote(self) -> None:
        if self.quote is not None:
            self.entities.append({"type": "blockquote", "offset": self.quote, "length": self.length - self.quote})
            self.quote = None

    def _show(self, piece: str) -> None:
        self.shown.append(piece)
        self.length += utf16_length(piece)


def parse_markdown_v2(source: str) -> tuple[str, list[Entity]]:
    """Plain text and entities of MarkdownV2; `EntityProblem` for an unescaped reserved character or an open entity."""
    return _MarkdownV2(source).parse()


_LEGACY = {"_": "italic", "*": "bold", "`": "code", "[": "text_link"}


def parse_markdown(source: str) -> tuple[str, list[Entity]]:
    """Plain text and entities of the older Markdown: no nesting, four marks, escapes before those only."""
    shown: list[str] = []
    length = 0
    entities: list[Entity] = []
    index = 0
    while index < len(source):
        character = source[index]
        if character == "\\" and source[index + 1 : index + 2] in ("_", "*", "`", "["):
            character, index = source[index + 1], index + 2
        elif character not in _LEGACY:
            index += 1
        else:
            mark = "```" if source.startswith("```", index) else character
            kind = "pre" if mark == "```" else _LEGACY[character]
            end = source.find("]" if kind == "text_link" else mark, index + len(mark))
            if end < 0:
                raise EntityProblem(
                    f"Can't find end of the entity starting at byte offset {byte_offset(source, index)}"
                )
            inner = source[index + len(mark) : end]
            index = end + (1 if kind == "text_link" else len(mark))
            entity: Entity = {"type": kind, "offset": length, "length": utf16_length(inner)}
            if kind == "text_link" and source.startswith("(", index) and source.find(")", index) > 0:
                close = source.find(")", index)
                entity["url"] = source[index + 1 : close]
                index = close + 1
            if kind != "text_link" or "url" in entity:
                entities.append(entity)
            shown.append(inner)
            length += utf16_length(inner)
            continue
        shown.append(character)
        length += utf16_length(character)
    return "".join(shown), entities
