"""Keeps secrets out of whatever is written for people: logs, audit, events, errors.

Whoever holds secrets registers their values (`SECRETS.register`); whoever writes text passes it through `redact`. What
looks like a secret of a known kind is taken out even when nobody registered it.
"""

from __future__ import annotations

import json
import re
import threading
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
        self._by_owner: dict[str, tuple[str, ...]] = {}
        # Values by their first MIN_LENGTH characters, longest first; replaced as a whole, so that readers need no lock.
        self._by_start: dict[str, tuple[str, ...]] = {}

    def register(self, owner: str, values: Iterable[str]) -> None:
        """From now on these values are taken out of text; replaces what the same owner had registered."""
        written = {form for value in values for form in _forms(value) if len(form) >= MIN_LENGTH}
        with self._lock:
            self._by_owner[owner] = tuple(written)
            self._rebuild()

    def forget(self, owner: str) -> None:
        """An owner's values are no longer secrets (or no longer exist)."""
        with self._lock:
            if self._by_owner.pop(owner, None) is not None:
                self._rebuild()

    def _rebuild(self) -> None:
        by_start: dict[str, list[str]] = {}
        for value in {value for values in self._by_owner.values() for value in values}:
            by_start.setdefault(value[:MIN_LENGTH], []).append(value)
        self._by_start = {start: tuple(sorted(found, key=len, reverse=True)) for start, found in by_start.items()}

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
