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
    r"(?<![0-9])[0-9]{6,12}:[A-Za-z0-9_-]{30,}"  # Telegram bot tokens, also inside the paths of its API
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
        # Lengths of the values that begin with these MIN_LENGTH characters, longest first, and how many values have
        # each: a thousand keys of one provider begin alike and cost one look-up. Readers take no lock: entries are
        # tuples, replaced as a whole.
        self._lengths: dict[str, tuple[int, ...]] = {}
        self._of_length: Counter[tuple[str, int]] = Counter()

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
            start, length = value[:MIN_LENGTH], len(value)
            self._of_length[start, length] += 1
            self._lengths[start] = tuple(sorted({*self._lengths.get(start, ()), length}, reverse=True))

    def _remove(self, value: str) -> None:
        self._owners[value] -= 1
        if self._owners[value]:
            return
        del self._owners[value]
        start, length = value[:MIN_LENGTH], len(value)
        self._of_length[start, length] -= 1
        if not self._of_length[start, length]:
            del self._of_length[start, length]
            self._lengths[start] = tuple(other for other in self._lengths[start] if other != length)
            if not self._lengths[start]:
                del self._lengths[start]

    def redact(self, text: str) -> str:
        """The text without secrets; its time depends on its length, not on how many secrets there are."""
        if self._lengths:
            text = self._redact_registered(text)
        return _KNOWN_KINDS.sub(REDACTED, text)

    def _redact_registered(self, text: str) -> str:
        parts: list[str] = []
        kept = at = 0
        while at <= len(text) - MIN_LENGTH:
            lengths = self._lengths.get(text[at : at + MIN_LENGTH], ())
            length = next((length for length in lengths if text[at : at + length] in self._owners), 0)
            if not length:
                at += 1
                continue
            parts += (text[kept:at], REDACTED)
            kept = at = at + length
        return "".join(parts) + text[kept:] if parts else text


def _forms(value: str) -> set[str]:
    """A value as it may appear: plain, inside JSON, inside an address."""
    return {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], quote(value, safe="")}


SECRETS = Redactor()
"""The secrets of this process."""


def redact(text: str) -> str:
    """The text without the secrets of this process."""
    return SECRETS.redact(text)
