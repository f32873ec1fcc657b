"""Keeps secrets out of whatever is written for people: logs, audit, events, errors.

Whoever holds secrets registers their values (`SECRETS.register`); whoever writes text passes it through `redact`. What
looks like a secret of a known kind is taken out even when nobody registered it.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterable
from urllib.parse import quote

REDACTED = "[secret]"
MIN_LENGTH = 6
"""Shorter values are not registered: taking them out would make text unreadable and hide nothing."""

_KNOWN_KINDS = re.compile(
    r"\b[0-9]{6,12}:[A-Za-z0-9_-]{30,}"  # Telegram bot tokens, also inside the paths of its API
    r"|\bsk-[A-Za-z0-9_-]{16,}"  # Anthropic and OpenAI keys
    r"|\b[A-Za-z0-9_-]{23,28}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,}"  # Discord bot tokens
    r"|(?<=\bBearer )[A-Za-z0-9._~+/=-]{8,}"
)


class Redactor:
    """A set of secret values, by owner, and the one way to take them out of text. Usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_owner: dict[str, frozenset[str]] = {}
        self._owners: Counter[str] = Counter()
        # Values by their first MIN_LENGTH characters, longest first. Readers take no lock: entries are tuples, replaced
        # as a whole.
        self._by_start: dict[str, tuple[str, ...]] = {}

    def register(self, owner: str, values: Iterable[str]) -> None:
        """From now on these values are taken out of text; replaces what the same owner had registered."""
        forms = frozenset(form for value in values for form in _forms(value) if len(form) >= MIN_LENGTH)
        with self._lock:
            before = self._by_owner.get(owner, frozenset())
            if forms:
                self._by_owner[owner] = forms
            else:
                self._by_owner.pop(owner, None)
            for value in forms - before:
                self._add(value)
            for value in before - forms:
                self._remove(value)

    def forget(self, owner: str) -> None:
        """An owner's values are no longer secrets (or no longer exist)."""
        self.register(owner, ())

    def _add(self, value: str) -> None:
        self._owners[value] += 1
        if self._owners[value] == 1:
            others = self._by_start.get(value[:MIN_LENGTH], ())
            self._by_start[value[:MIN_LENGTH]] = tuple(sorted((*others, value), key=len, reverse=True))

    def _remove(self, value: str) -> None:
        self._owners[value] -= 1
        if not self._owners[value]:
            del self._owners[value]
            others = tuple(other for other in self._by_start[value[:MIN_LENGTH]] if other != value)
            if others:
                self._by_start[value[:MIN_LENGTH]] = others
            else:
                del self._by_start[value[:MIN_LENGTH]]

    def redact(self, text: str) -> str:
        """The text without secrets; its time depends on its length, not on how many secrets there are."""
        if self._by_start:
            text = self._redact_registered(text)
        return _KNOWN_KINDS.sub(REDACTED, text)

    def _redact_registered(self, text: str) -> str:
        by_start = self._by_start
        parts: list[str] = []
        kept = at = 0
        while at <= len(text) - MIN_LENGTH:
            values = by_start.get(text[at : at + MIN_LENGTH], ())
            value = next((value for value in values if text.startswith(value, at)), None)
            if value is None:
                at += 1
                continue
            parts += (text[kept:at], REDACTED)
            kept = at = at + len(value)
        return "".join(parts) + text[kept:] if parts else text


def _forms(value: str) -> set[str]:
    """A value as it may appear: plain, inside JSON, inside an address."""
    return {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], quote(value, safe="")}


SECRETS = Redactor()
"""The secrets of this process."""


def redact(text: str) -> str:
    """The text without the secrets of this process."""
    return SECRETS.redact(text)
