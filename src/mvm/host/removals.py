"""Removals under way, recorded before they begin: an agent that is killed in the middle of one finishes it later."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from mvm.host.clock import Clock
from mvm.model.errors import Conflict
from mvm.model.ids import TenantId
from mvm.store.base import Store

PREFIX = "host/removals/"
OF_TENANT, OF_POOL, OF_USER = "tenant", "pool", "user"
"""Kinds of what is removed."""


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
        self._under_way: dict[str, asyncio.Lock] = {}

    @contextlib.asynccontextmanager
    async def recorded(self, kind: str, *parts: str, actor: str) -> AsyncIterator[None]:
        """Keep a removal on record while the body runs, and afterwards too unless it ended well.

        One removal of a thing at a time: the body of a second one runs when the first has ended, and finds nothing.
        """
        key = _key(kind, *parts)
        async with self._under_way.setdefault(key, asyncio.Lock()):
            await self._store.put(key, {"actor": actor, "began_at": self._clock.now().isoformat()})
            yield
            await self._store.delete(key)

    async def is_recorded(self, kind: str, *parts: str) -> bool:
        """True when that is being removed, or its removal did not end well."""
        return await self._store.get(_key(kind, *parts)) is not None

    async def recorded_of(self, kind: str) -> set[tuple[str, ...]]:
        """Ids of everything of that kind that is being removed, or whose removal did not end well."""
        prefix = f"{PREFIX}{kind}/"
        return {tuple(document.key.removeprefix(prefix).split("/")) for document in await self._store.list(prefix)}

    async def pending(self, kind: str) -> list[Removal]:
        """Removals of that kind that were begun and that nobody is at now."""
        return [
            Removal(kind, tuple(document.key.removeprefix(f"{PREFIX}{kind}/").split("/")), _actor(document.value))
            for document in await self._store.list(f"{PREFIX}{kind}/")
            if (lock := self._under_way.get(document.key)) is None or not lock.locked()
        ]


def being_removed(tenant_id: TenantId) -> Conflict:
    """The error of whoever wants something of a tenant that goes: what they make would go with it, at once or later."""
    return Conflict(
        f"tenant {tenant_id!r} is being removed, or its removal did not end well",
        hint=f"`mvm tenant destroy {tenant_id}` waits for it or finishes it; then it can be made anew",
    )


def _key(kind: str, *parts: str) -> str:
    return f"{PREFIX}{kind}/{'/'.join(parts)}"


def _actor(value: object) -> str:
    return str(value["actor"]) if isinstance(value, dict) and "actor" in value else "recovery"
