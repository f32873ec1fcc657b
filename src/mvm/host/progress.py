"""Telling whoever asked for long work how it goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Progress(Protocol):
    """Takes what is being done or waited for, and how far it is where that is known. Never waits, never fails.

    Of steps `done` counts the present one too: the last one is `total` of `total`.
    """

    def __call__(self, text: str, *, done: float | None = None, total: float | None = None) -> None: ...


def silent(text: str, *, done: float | None = None, total: float | None = None) -> None:
    """Progress that nobody reads."""


_asked_for: ContextVar[Progress] = ContextVar("progress", default=silent)


@contextmanager
def reporting_to(progress: Progress) -> Iterator[None]:
    """Whatever this task (and what it starts) does inside the block reports to `progress` through `current`."""
    token = _asked_for.set(progress)
    try:
        yield
    finally:
        _asked_for.reset(token)


def current() -> Progress:
    """Where the request that is being worked on wants its progress; `silent` when nobody asked for it.

    For work deep below a request that takes minutes, such as the first build of an image, so that the operations in
    between need not carry it along.
    """
    return _asked_for.get()
