"""Removals under way, recorded before they begin: an agent that is killed in the middle of one finishes it later."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from mvm.host.clock import Clock
from mvm.store.base import Store

PREFIX = "host/removals/"


@dataclass(frozen=True)
class Removal:
    """Something that is being removed, and by whom."""

    kind: str
    parts: tuple[str, ...]
    """Its ids, from the tenant on."""
    actor: str


class Removals:
    """The record of what is being removed."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @contextlib.asynccontextmanager
    async def recorded(self, kind: str, *parts: str, actor: str) -> AsyncIterator[None]:
        """Keep a removal on record while the body runs, and afterwards too unless it ended well."""
        key = f"{PREFIX}{kind}/{'/'.join(parts)}"
        await self._store.put(key, {"actor": actor, "began_at": self._clock.now().isoformat()})
        yield
        await self._store.delete(key)

    async def pending(self, kind: str) -> list[Removal]:
        """Removals of that kind that were begun and not finished."""
        return [
            Removal(kind, tuple(document.key.removeprefix(f"{PREFIX}{kind}/").split("/")), _actor(document.value))
            for document in await self._store.list(f"{PREFIX}{kind}/")
        ]


def _actor(value: object) -> str:
    return str(value["actor"]) if isinstance(value, dict) and "actor" in value else "recovery"
