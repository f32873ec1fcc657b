"""Pairing: a stranger gets a short code from the gateway, an operator who is told it binds the stranger to a user.

A code lives for 15 minutes, serves once, and belongs to the gateway that the stranger wrote to. Codes are kept in the
store, so that a restart of the agent does not void what a person has in hand. How often one stranger is answered, how
many codes a gateway may have out, and how many wrong codes may be tried is limited; a stranger beyond a limit gets
nothing, which the router turns into silence.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.gateways import Gateways
from mvm.host.users import Users, parse_peer
from mvm.model.base import Frozen
from mvm.model.entities import User
from mvm.model.errors import InvalidInput, NotFound, QuotaExceeded
from mvm.model.ids import TenantId, UserId
from mvm.model.routes import Peer
from mvm.security.tokens import normalised_code, pairing_code
from mvm.store.base import Store

CODE_LIFETIME = timedelta(minutes=15)
MAX_ANSWERS_PER_CODE = 3
"""How often one stranger is told their code; who writes on is not answered until it has expired."""
MAX_CODES_PER_GATEWAY = 20
"""Codes that are out at the same time; a flood of strangers costs at most this many documents."""
MAX_WRONG_CODES = 10
"""Wrong codes that may be tried for a tenant within a code's lifetime: 10 of 887 million."""
MAX_DISPLAY_NAME = 64


@dataclass(frozen=True)
class Offer:
    """A code for a stranger, and when it expires."""

    code: str
    expires_at: datetime


class _Pending(Frozen):
    """A code that is out."""

    peer: Peer
    display_name: str | None
    expires_at: datetime
    answers: int


class Pairing:
    """Hands out codes to strangers and takes them back from operators."""

    def __init__(self, store: Store, gateways: Gateways, users: Users, chronicle: Chronicle, clock: Clock) -> None:
        self._store = store
        self._gateways = gateways
        self._users = users
        self._chronicle = chronicle
        self._clock = clock
        self._lock = asyncio.Lock()
        self._wrong: dict[TenantId, deque[float]] = {}

    async def request(self, tenant_id: TenantId, peer: str, *, display_name: str | None = None) -> Offer | None:
        """A code for a stranger who wrote to this tenant's gateway; None when they get no answer now."""
        parse_peer(peer)
        if any(peer in user.peers for user in self._gateways.users_served_by(tenant_id)):
            return None  # no stranger any more: the gateway is about to be told
        async with self._lock:
            pending = await self._pending(tenant_id)
            for code, known in pending.items():
                if known.peer == peer:
                    return await self._repeat(tenant_id, code, known)
            if len(pending) >= MAX_CODES_PER_GATEWAY:
                return None
            code = self._new_code(pending.__contains__)
            offer = _Pending(
                peer=peer,
                display_name=_printable(display_name),
                expires_at=self._clock.now() + CODE_LIFETIME,
                answers=1,
            )
            await self._store.put(_key(tenant_id, code), offer.model_dump(mode="json"), expected=0)
        self._chronicle.tenant_event(tenant_id, "PairingRequested", actor="gateway", detail=peer)
        return Offer(code, offer.expires_at)

    async def _repeat(self, tenant_id: TenantId, code: str, known: _Pending) -> Offer | None:
        if known.answers >= MAX_ANSWERS_PER_CODE:
            return None
        again = known.model_copy(update={"answers": known.answers + 1})
        await self._store.put(_key(tenant_id, code), again.model_dump(mode="json"), durable=False)
        return Offer(code, known.expires_at)

    async def pair(self, tenant_id: TenantId, code: str, *, user_id: UserId | None = None, actor: str) -> User:
        """Bind the stranger of that code to a user of the tenant; takes effect on the live gateway at once.

        Without `user_id` the user is the one who is not paired yet, or the only one when they have no address on that
        channel. Raises `NotFound` for a code that is wrong, used or expired, `QuotaExceeded` after too many of those.
        A code whose pairing fails (no such user, sender taken) stays valid.
        """
        code = normalised_code(code)
        serving = self._gateways.serving_tenant(tenant_id)
        if serving is None:
            raise NotFound(
                f"tenant {tenant_id!r} has no gateway that serves it",
                hint="the gateway's tenant must exist and accept it ([gateway] accepts)",
            )
        self._check_tries(tenant_id)
        async with self._lock:
            pending = (await self._pending(serving.tenant_id)).get(code)
            if pending is None:
                self._wrong.setdefault(tenant_id, deque()).append(self._clock.monotonic())
                self._chronicle.tenant_event(tenant_id, "PairingFailed", actor=actor, detail="wrong or expired code")
                raise NotFound(
                    "that pairing code is not valid: it is wrong, was used, or has expired",
                    hint="a code lives for 15 minutes; then whoever writes to the bot again gets a new one",
                )
            user = self._choose(tenant_id, pending.peer, user_id)
            paired = await self._users.add_peer(tenant_id, user.user_id, pending.peer, actor=actor)
            await self._store.delete(_key(serving.tenant_id, code))
        self._chronicle.tenant_event(
            tenant_id, "UserPaired", actor=actor, detail=f"{pending.peer} is {paired.user_id}", user=paired.user_id
        )
        await self._users.refresh_gateway(tenant_id, actor=actor)
        return paired

    async def forget(self, tenant_id: TenantId) -> None:
        """Void every code of a gateway whose tenant is being destroyed."""
        for document in await self._store.list(_key(tenant_id, "")):
            await self._store.delete(document.key)
        self._wrong.pop(tenant_id, None)

    def _check_tries(self, tenant_id: TenantId) -> None:
        wrong = self._wrong.get(tenant_id, deque())
        while wrong and wrong[0] <= self._clock.monotonic() - CODE_LIFETIME.total_seconds():
            wrong.popleft()
        if len(wrong) >= MAX_WRONG_CODES:
            raise QuotaExceeded(
                f"{MAX_WRONG_CODES} wrong pairing codes were tried for tenant {tenant_id!r}",
                hint=f"wait a few minutes, or name the sender: `mvm user link {tenant_id} USER --telegram ID`",
            )

    async def _pending(self, tenant_id: TenantId) -> dict[str, _Pending]:
        """Codes that are out, after clearing away those that have expired."""
        found = {}
        for document in await self._store.list(_key(tenant_id, "")):
            try:
                pending = _Pending.model_validate(document.value)
            except ValidationError:
                pending = None
            if pending is None or pending.expires_at <= self._clock.now():
                await self._store.delete(document.key)
            else:
                found[document.key.rpartition("/")[2]] = pending
        return found

    def _choose(self, tenant_id: TenantId, peer: str, user_id: UserId | None) -> User:
        if user_id is not None:
            return self._users.get(tenant_id, user_id)
        users = self._users.list(tenant_id)
        channel, _ = parse_peer(peer)
        unpaired = [user for user in users if not user.peers]
        if len(unpaired) == 1:
            return unpaired[0]
        if len(users) == 1 and not any(known.startswith(f"{channel}:") for known in users[0].peers):
            return users[0]
        if not users:
            raise NotFound(f"tenant {tenant_id!r} has no users", hint=f"`mvm user add {tenant_id} USER` adds one")
        raise InvalidInput(
            f"it is not clear which user of {tenant_id!r} that sender is",
            hint=f"name the user with --user; the users are: {', '.join(user.user_id for user in users)}",
        )

    def _new_code(self, taken: Callable[[str], bool]) -> str:
        while True:
            code = pairing_code(self._clock.entropy)
            if not taken(code):
                return code


def _key(tenant_id: TenantId, code: str) -> str:
    return f"pairing/{tenant_id}/{code}"


def _printable(name: str | None) -> str | None:
    """A display name as strangers choose it, made harmless for a terminal."""
    if name is None:
        return None
    return "".join(c if c.isprintable() else " " for c in name[:MAX_DISPLAY_NAME]).strip() or None
