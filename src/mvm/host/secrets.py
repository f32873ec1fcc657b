"""Secrets of tenants, encrypted at rest (CONTRACT 7), and the token of each instance's OpenClaw.

A tenant's secrets are one document, so that setting several is one step; each value is sealed on its own with the
agent's key, bound to its tenant and name. The document's epoch grows with every change. Values leave this module only
for the secrets drive of an instance that may see them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Protocol

import structlog
from pydantic import Field

from mvm.host.clock import Clock
from mvm.host.documents import parsed
from mvm.model.base import Frozen
from mvm.model.entities import Instance, Pool
from mvm.model.errors import MvmError, NotFound
from mvm.model.ids import TenantId
from mvm.model.secrets import LOGICAL_NAMES, OPENCLAW_TOKEN, SecretName, check_values, visible_secrets
from mvm.security.tokens import random_token
from mvm.store.base import Store
from mvm.telemetry.redaction import SECRETS

log = structlog.get_logger(__name__)

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Cipher(Protocol):
    """Encryption at rest (`mvm.security.vault`)."""

    def seal(self, plaintext: str, *, context: str) -> str:
        """Encrypt text so that it can be opened only with the same context."""

    def open(self, sealed: str, *, context: str) -> str:
        """Decrypt; raises `MvmError`, never with any of the text."""


class _Sealed(Frozen):
    """A tenant's secrets as they are stored."""

    epoch: int = 0
    values: dict[str, str] = Field(default_factory=dict)


class SecretStore:
    """Keeps secrets, and hands them to whom they are for."""

    def __init__(self, store: Store, cipher: Cipher, clock: Clock) -> None:
        self._store = store
        self._cipher = cipher
        self._clock = clock
        self._cache: dict[TenantId, tuple[_Sealed, int]] = {}
        self._tokens: dict[str, str] = {}
        """Key of the document -> sealed token."""
        self._locks: dict[TenantId, asyncio.Lock] = {}

    async def names(self, tenant_id: TenantId) -> list[SecretName]:
        """Names of a tenant's secrets, in order."""
        return [SecretName.parse(path) for path in sorted((await self._read(tenant_id)).values)]

    async def epoch(self, tenant_id: TenantId) -> int:
        """Grows with each change of the tenant's secrets; 0 when there were never any."""
        return (await self._read(tenant_id)).epoch

    async def differing(self, tenant_id: TenantId, secrets: Mapping[str, str]) -> tuple[str, ...]:
        """Names among `secrets` whose stored value is another one, or none. Raises as `set` does."""
        before, _ = await self._readable(tenant_id)
        check_values({**before, **secrets})
        return tuple(sorted(path for path, value in secrets.items() if before.get(path) != value))

    async def holds(self, tenant_id: TenantId, path: str, value: str) -> bool:
        """True when that is what the tenant has under `scope/KEY`; the value goes nowhere.

        What cannot be read is none: the secrets of one tenant keep nobody from setting another one's.
        """
        try:
            return (await self._readable(tenant_id))[0].get(path) == value
        except MvmError as error:
            log.warning("whether two tenants have the same secret is not known", tenant=tenant_id, reason=error.message)
            return False

    async def set(self, tenant_id: TenantId, secrets: Mapping[str, str], *, prune: bool = False) -> tuple[str, ...]:
        """Set secrets (`scope/KEY` -> value); with `prune`, all others go. Returns the names that changed.

        Nothing that is the same already counts as a change. What cannot be opened (its key was lost) is replaced like
        any other, and stays as it is when it is not given: its key may come back. Raises `InvalidInput`, without a
        value, before anything is changed.
        """
        async with self._lock(tenant_id):
            before, closed = await self._readable(tenant_id)
            after = dict(secrets) if prune else {**before, **secrets}
            check_values(after)
            kept = {} if prune else {path: sealed for path, sealed in closed.items() if path not in after}
            known = {*before, *closed}
            changed = tuple(
                sorted(path for path in known | {*after} if path not in kept and before.get(path) != after.get(path))
            )
            if changed:
                await self._write(tenant_id, after, kept)
            return changed

    async def rotate(self, tenant_id: TenantId, scope: str | None = None) -> tuple[str, ...]:
        """Deliver the secrets of a scope (or all of them) anew, and make new what mvm itself generated.

        Returns the names concerned. Raises `NotFound` when the tenant has nothing in that scope.
        """
        async with self._lock(tenant_id):
            values = await self._open(tenant_id)
            names = tuple(sorted(path for path in values if scope is None or SecretName.parse(path).scope == scope))
            generated = OPENCLAW_TOKEN.path not in values and scope in (None, OPENCLAW_TOKEN.scope)
            if not names and not generated:
                raise NotFound(
                    f"tenant {tenant_id!r} has no secrets" + (f" in the scope {scope!r}" if scope else ""),
                    hint=f"`mvm tenant secrets set {tenant_id}` sets some",
                )
            if generated:
                await self._forget_tokens(tenant_id)
            await self._write(tenant_id, values)
            return (*names, OPENCLAW_TOKEN.path) if generated else names

    async def forget_tenant(self, tenant_id: TenantId) -> None:
        """Remove every secret of a tenant and the tokens of its instances. Idempotent."""
        async with self._lock(tenant_id):
            await self._forget_tokens(tenant_id)
            with contextlib.suppress(MvmError):  # a damaged document is no reason to stay
                for path in (await self._read(tenant_id)).values:
                    SECRETS.forget(_context(tenant_id, path))
            await self._store.delete(_key(tenant_id))
            self._cache.pop(tenant_id, None)
        self._locks.pop(tenant_id, None)

    async def forget_instance(self, instance: Instance) -> None:
        """Remove the token of an instance that is gone. Idempotent."""
        key = _token_key(instance)
        await self._store.delete(key)
        self._tokens.pop(key, None)
        SECRETS.forget(key)

    async def reveal(self, tenant_id: TenantId) -> dict[str, str]:
        """Every secret of a tenant (`scope/KEY` -> value), for a backup that only a passphrase opens."""
        return await self._open(tenant_id)

    async def visible(self, instance: Instance, pool: Pool) -> dict[str, str]:
        """`scope/KEY` -> value of everything that an instance may see, its own OpenClaw token included."""
        found = visible_secrets(pool.role, pool.secret_scopes, await self._open(instance.tenant_id))
        if pool.role.runs_openclaw:
            found[OPENCLAW_TOKEN.path] = await self.openclaw_token(instance)
        return found

    async def openclaw_token(self, instance: Instance) -> str:
        """The token of an instance's OpenClaw: the one that its tenant set, else its own, made on first use."""
        async with self._lock(instance.tenant_id):
            given = (await self._read(instance.tenant_id)).values.get(OPENCLAW_TOKEN.path)
            if given is not None:
                return self._cipher.open(given, context=_context(instance.tenant_id, OPENCLAW_TOKEN.path))
            key = _token_key(instance)
            if key not in self._tokens:
                document = await self._store.get(key)
                self._tokens[key] = str(document.value) if document else await self._make_token(key)
            try:
                return self._cipher.open(self._tokens[key], context=key)
            except MvmError as error:
                # Nobody but mvm chose it. Without a new one, the gateway of everybody could not be given its tokens.
                log.error("a token is made anew", instance=str(instance.ref), reason=error.message)
                self._tokens[key] = await self._make_token(key)
                return self._cipher.open(self._tokens[key], context=key)

    async def _make_token(self, key: str) -> str:
        token = random_token(self._clock.entropy)
        sealed = self._cipher.seal(token, context=key)
        await self._store.put(key, sealed)
        return sealed

    async def openclaw_tokens(self, instances: Iterable[Instance]) -> dict[str, str]:
        """Instance id -> token, for the gateway that delivers to them."""
        return {instance.instance_id: await self.openclaw_token(instance) for instance in instances}

    def _lock(self, tenant_id: TenantId) -> asyncio.Lock:
        return self._locks.setdefault(tenant_id, asyncio.Lock())

    async def _read(self, tenant_id: TenantId) -> _Sealed:
        if tenant_id not in self._cache:
            document = await self._store.get(_key(tenant_id))
            if document is None:
                return _Sealed()
            self._cache[tenant_id] = (parsed(_Sealed, document), document.revision)
        return self._cache[tenant_id][0]

    async def _open(self, tenant_id: TenantId) -> dict[str, str]:
        sealed = await self._read(tenant_id)
        return {
            path: self._cipher.open(value, context=_context(tenant_id, path)) for path, value in sealed.values.items()
        }

    async def _readable(self, tenant_id: TenantId) -> tuple[dict[str, str], dict[str, str]]:
        """What can be opened, and what cannot, sealed as it is."""
        values, closed = {}, {}
        for path, sealed in (await self._read(tenant_id)).values.items():
            try:
                values[path] = self._cipher.open(sealed, context=_context(tenant_id, path))
            except MvmError:
                closed[path] = sealed
        return values, closed

    async def _write(self, tenant_id: TenantId, values: Mapping[str, str], kept: Mapping[str, str] = _NOTHING) -> None:
        """Seal these, beside what is kept as it is."""
        before = await self._read(tenant_id)
        sealed = {path: self._cipher.seal(value, context=_context(tenant_id, path)) for path, value in values.items()}
        after = _Sealed(epoch=before.epoch + 1, values={**kept, **sealed})
        expected = self._cache[tenant_id][1] if tenant_id in self._cache else 0
        revision = await self._store.put(_key(tenant_id), after.model_dump(mode="json"), expected=expected)
        self._cache[tenant_id] = (after, revision)

    async def _forget_tokens(self, tenant_id: TenantId) -> None:
        for document in await self._store.list(f"tokens/{tenant_id}/"):
            await self._store.delete(document.key)
            self._tokens.pop(document.key, None)
            SECRETS.forget(document.key)


def logical_name(name: SecretName) -> str:
    """What people call a secret: its logical name where it has one, else `scope/KEY`."""
    return next((logical for logical, known in LOGICAL_NAMES.items() if known == name), name.path)


def _key(tenant_id: TenantId) -> str:
    return f"secrets/{tenant_id}"


def _token_key(instance: Instance) -> str:
    return f"tokens/{instance.tenant_id}/{instance.instance_id}"


def _context(tenant_id: TenantId, path: str) -> str:
    return f"secrets/{tenant_id}/{path}"
