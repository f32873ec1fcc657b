"""Which calls the model got: what tests count turns by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class ModelCall:
    """One request to the model, from its arrival to its end.

    `words` is what the person said last, without what the client put around it; `fresh` whether the request begins a
    turn (its last message is a person's and no tool result). `status` is None while it is under way, 0 when the
    caller went away.
    """

    number: int
    at: float
    model: str
    key_end: str
    words: str
    fresh: bool
    stream: bool
    message_count: int
    system: str = field(repr=False)
    answer: str | None = None
    stop_reason: str | None = None
    status: int | None = None
    ended_at: float | None = None

    def to_json(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "system"}


class Journal:
    """All calls in order; can be waited on."""

    def __init__(self) -> None:
        self.calls: list[ModelCall] = []
        self._changed = asyncio.Condition()

    async def begin(self, call: ModelCall) -> None:
        self.calls.append(call)
        await self.tell()

    async def tell(self) -> None:
        """Wake whoever waits, after a call has changed."""
        async with self._changed:
            self._changed.notify_all()

    def select(self, *, containing: str = "", model: str | None = None, system: str = "") -> list[ModelCall]:
        """Calls with `containing` in the person's words and `system` in the system prompt, for `model`."""
        return [
            call
            for call in self.calls
            if containing in call.words and system in call.system and (model is None or call.model == model)
        ]

    def turns(self, *, containing: str = "", model: str | None = None, system: str = "") -> list[ModelCall]:
        """As `select`, the calls that begin a turn only."""
        return [call for call in self.select(containing=containing, model=model, system=system) if call.fresh]

    async def wait(self, predicate: Callable[[], bool], *, timeout: float) -> None:
        """Return when `predicate` holds, checked when a call begins or ends; `TimeoutError` after `timeout` seconds."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(predicate)
