"""What was said and done in every chat, in order, with times: what tests and the demo read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["message", "edit", "delete", "action", "callback", "callback_answer", "reaction"]


@dataclass(frozen=True)
class Entry:
    """One event in a chat. `at` is wall-clock time in seconds; `text` the text or caption as a reader sees it."""

    number: int
    at: float
    bot_id: int
    chat_id: int
    direction: Literal["in", "out"]
    kind: Kind
    message_id: int | None
    text: str | None
    detail: dict[str, object]

    def to_json(self) -> dict[str, object]:
        return {
            "number": self.number,
            "at": self.at,
            "bot_id": self.bot_id,
            "chat_id": self.chat_id,
            "direction": self.direction,
            "kind": self.kind,
            "message_id": self.message_id,
            "text": self.text,
            "detail": self.detail,
        }


class Transcript:
    """An append-only record that can be waited on."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._entries: list[Entry] = []
        self._changed = asyncio.Condition()

    async def add(
        self,
        *,
        bot_id: int,
        chat_id: int,
        direction: Literal["in", "out"],
        kind: Kind,
        message_id: int | None = None,
        text: str | None = None,
        detail: dict[str, object] | None = None,
    ) -> Entry:
        entry = Entry(
            len(self._entries) + 1, self._now(), bot_id, chat_id, direction, kind, message_id, text, detail or {}
        )
        self._entries.append(entry)
        async with self._changed:
            self._changed.notify_all()
        return entry

    def entries(self, *, chat_id: int | None = None, bot_id: int | None = None, after: int = 0) -> list[Entry]:
        """Entries with a number above `after`, oldest first."""
        return [
            entry
            for entry in self._entries[after:]
            if (chat_id is None or entry.chat_id == chat_id) and (bot_id is None or entry.bot_id == bot_id)
        ]

    def answers(self, chat_id: int, *, bot_id: int | None = None, after: int = 0) -> list[Entry]:
        """Messages from the bot in a chat, each with the text that its last edit gave it; deleted ones are left out."""
        shown: dict[tuple[int, int | None], Entry] = {}
        for entry in self.entries(chat_id=chat_id, bot_id=bot_id, after=after):
            key = (entry.bot_id, entry.message_id)
            if entry.direction == "out" and entry.kind == "message":
                shown[key] = entry
            elif entry.direction == "out" and entry.kind == "edit" and key in shown:
                shown[key] = Entry(**{**vars(shown[key]), "text": entry.text, "detail": entry.detail})
            elif entry.kind == "delete":
                shown.pop(key, None)
        return list(shown.values())

    async def wait(self, predicate: Callable[[], bool], *, timeout: float) -> None:
        """Return when `predicate` holds, checked at each new entry; `TimeoutError` after `timeout` seconds."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(predicate)
