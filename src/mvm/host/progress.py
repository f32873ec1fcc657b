"""Telling whoever asked for long work how it goes."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Takes what is being done or waited for, and how far it is where that is known. Never waits, never fails."""

    def __call__(self, text: str, *, done: float | None = None, total: float | None = None) -> None: ...


def silent(text: str, *, done: float | None = None, total: float | None = None) -> None:
    """Progress that nobody reads."""
