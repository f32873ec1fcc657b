"""What the services around the heart need of it, no more: `mvm.host.lifecycle` fulfils it, and so do tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from mvm.model.entities import Instance
from mvm.model.ids import InstanceRef, PoolId, TenantId, UserId

LastWords = Callable[[Instance], Awaitable[str | None]]
"""What an instance that does not run has to say for itself, from its logs."""


RequireLogin = Callable[[Instance], Awaitable[None]]
"""Raises `ChannelRefused` when a channel does not let a gateway that runs in."""


class InstanceOperations(Protocol):
    """Operations on instances (see `mvm.host.lifecycle.Lifecycle` for what each one promises)."""

    async def create_instance(
        self,
        tenant_id: TenantId,
        pool_id: PoolId,
        *,
        user: UserId | None = None,
        actor: str,
        runtime: str | None = None,
    ) -> Instance: ...

    async def start(self, ref: InstanceRef, *, actor: str, unless_held: bool = False) -> Instance: ...

    async def warm(self, ref: InstanceRef, *, actor: str) -> Instance: ...

    async def sleep(self, ref: InstanceRef, *, actor: str, force: bool = False) -> Instance: ...

    async def stop(self, ref: InstanceRef, *, actor: str, force: bool = False, hold: bool = True) -> Instance: ...

    async def discard(self, ref: InstanceRef, *, actor: str) -> Instance: ...

    async def destroy(self, ref: InstanceRef, *, actor: str) -> None: ...

    async def refresh(self, ref: InstanceRef, *, actor: str) -> None: ...

    def locked(self, ref: InstanceRef) -> AbstractAsyncContextManager[None]: ...
