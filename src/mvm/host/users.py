"""The people a deployment serves: who they are on each channel, and the private worker of each.

All routing follows from these records: a change is written here, and the gateway that serves the tenant is told at once
(routes.json, users.json, workers' tokens), without a restart.
"""

from __future__ import annotations

import asyncio
import builtins
import re
from collections.abc import Callable, Iterable, Mapping

from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.contracts import InstanceOperations
from mvm.host.gateways import Gateways
from mvm.host.progress import Progress, silent
from mvm.host.refreshes import Refreshes
from mvm.host.removals import OF_TENANT, OF_USER, Removals, being_removed
from mvm.host.secrets import SecretStore
from mvm.model.entities import Budget, Instance, Pool, User, UserSpec
from mvm.model.errors import Conflict, InvalidInput, MvmError, NotFound
from mvm.model.ids import PoolId, TenantId, UserId
from mvm.model.roles import Role

_PEER = re.compile(r"(telegram|discord):([0-9]{1,20})")
Senders = Mapping[str, Iterable[str]]
"""Channel (`telegram`, `discord`) -> sender ids."""

ACTOR = "recovery"


def parse_peer(peer: str) -> tuple[str, str]:
    """Channel and sender id of `channel:sender`; raises `InvalidInput`."""
    if (match := _PEER.fullmatch(peer)) is None:
        raise InvalidInput(
            f"{peer[:80]!r} is not the address of a sender",
            hint="write 'telegram:<sender id>' or 'discord:<sender id>'",
        )
    return match[1], match[2]


class Users:
    """Adding, changing and removing users. Everything takes effect on the live gateway."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        gateways: Gateways,
        operations: InstanceOperations,
        refreshes: Refreshes,
        removals: Removals,
        secrets: SecretStore,
        chronicle: Chronicle,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._gateways = gateways
        self._operations = operations
        self._refreshes = refreshes
        self._removals = removals
        self._secrets = secrets
        self._chronicle = chronicle
        self._clock = clock
        # Held while it is checked that a sender belongs to nobody else and the record is written.
        self._changing = asyncio.Lock()
        # Held while a user is given their one instance.
        self._binding: dict[tuple[TenantId, UserId], asyncio.Lock] = {}

    def get(self, tenant_id: TenantId, user_id: UserId) -> User:
        """The user of that id, or `NotFound`."""
        return self._catalog.user(tenant_id, user_id)

    def list(self, tenant_id: TenantId) -> builtins.list[User]:
        """The users of a tenant, by id."""
        self._catalog.tenant(tenant_id)
        return self._catalog.users_of(tenant_id)

    async def add(
        self,
        tenant_id: TenantId,
        user_id: UserId,
        *,
        telegram: Iterable[str] = (),
        discord: Iterable[str] = (),
        pool_id: PoolId | None = None,
        budget: Budget | None = None,
        actor: str,
        progress: Progress = silent,
    ) -> User:
        """Record a user, make their worker, and let the gateway know. The worker comes up with their first message.

        A user who exists and is all of these senders already is left as they are. Raises `Conflict` when the user is
        not, or a sender is somebody else's, `QuotaExceeded` when there is no room for a worker; then nothing is left of
        the user.
        """
        pool = self._pool_for(tenant_id, pool_id)
        user = User(
            tenant_id=tenant_id,
            user_id=user_id,
            pool_id=pool.pool_id,
            telegram=_senders("telegram", telegram),
            discord=_senders("discord", discord),
            budget=budget or Budget(),
            created_at=self._clock.now(),
        )
        async with self._changing:
            if (known := self._catalog.users.get((tenant_id, user_id))) is not None:
                if user.peers and set(user.peers) <= set(known.peers) and pool_id in (None, known.pool_id):
                    return known
                # Not done by itself: the id may be a slip, and the sender would get at what is somebody else's.
                raise Conflict(
                    f"user {user_id!r} of tenant {tenant_id!r} exists already",
                    hint=f"`mvm user link {tenant_id} {user_id} {_as_typed(user)}` lets that sender be them too",
                )
            if await self._removals.is_recorded(OF_USER, tenant_id, user_id):
                raise Conflict(
                    f"user {user_id!r} of tenant {tenant_id!r} is still being removed",
                    hint=f"`mvm user remove {tenant_id} {user_id}` waits for it or finishes it",
                )
            if await self._removals.is_recorded(OF_TENANT, tenant_id):
                raise being_removed(tenant_id)
            self._require_free(tenant_id, user)
            await self._catalog.save_user(user)
        progress(f"making the worker of {user_id}")
        try:
            user = await self.bind(user, actor=actor)
        except BaseException:
            await self._destroy_workers(tenant_id, user_id, actor=actor)
            await self._catalog.remove_user(tenant_id, user_id)
            raise
        self._chronicle.tenant_event(
            tenant_id, "UserAdded", actor=actor, detail=", ".join(user.peers) or "not paired yet", user=user_id
        )
        await self.refresh_gateway(tenant_id, actor=actor)
        return user

    async def bind(self, user: User, *, actor: str) -> User:
        """Give a user their instance: the one that is theirs already, else one that is nobody's, else a new one.

        Raises `NotFound` when the user is removed meanwhile; whoever removes them destroys their instance too.
        """
        async with self._binding.setdefault((user.tenant_id, user.user_id), asyncio.Lock()):
            instances = self._catalog.instances_of(user.tenant_id, user.pool_id)
            mine = next((i for i in instances if i.user == user.user_id), None)
            mine = mine or await self._take_over(instances, user)
            if mine is None:
                mine = await self._operations.create_instance(
                    user.tenant_id, user.pool_id, user=user.user_id, actor=actor
                )
            try:
                latest = self.get(user.tenant_id, user.user_id)
            except NotFound:
                await self._destroy_workers(user.tenant_id, user.user_id, actor=actor)
                raise
            user = await self._catalog.save_user(latest.model_copy(update={"instance_id": mine.instance_id}))
        await self._refreshes.tell([mine], actor=actor)
        return user

    async def _take_over(self, instances: builtins.list[Instance], user: User) -> Instance | None:
        """Bind an instance that is nobody's yet; under its lock, so that no transition writes over it."""
        for candidate in (i for i in instances if i.user is None):
            async with self._operations.locked(candidate.ref):
                instance = self._catalog.instances.get(candidate.instance_id)
                if instance is not None and instance.user is None:
                    return await self._catalog.save_instance(instance.model_copy(update={"user": user.user_id}))
        return None

    async def unbind(self, tenant_id: TenantId, user_id: UserId, *, actor: str) -> None:
        """A user's instance was destroyed: they stay known, but have no worker until one is made for them."""
        user = self._catalog.users.get((tenant_id, user_id))
        if user is not None and user.instance_id not in self._catalog.instances:
            await self._catalog.save_user(user.model_copy(update={"instance_id": None}))
            await self.refresh_gateway(tenant_id, actor=actor)

    async def link(self, tenant_id: TenantId, user_id: UserId, senders: Senders, *, actor: str) -> User:
        """Let senders be a user, beside those who are already. Raises `Conflict` for one who is somebody else."""
        more = {channel: _senders(channel, ids) for channel, ids in senders.items()}

        def with_them(user: User) -> dict[str, object]:
            return {channel: tuple(dict.fromkeys((*getattr(user, channel), *ids))) for channel, ids in more.items()}

        return await self._change(tenant_id, user_id, with_them, actor=actor)

    async def unlink(self, tenant_id: TenantId, user_id: UserId, senders: Senders, *, actor: str) -> User:
        """Let senders be a user no longer: they are strangers again. Raises `NotFound` for one who is not that user."""
        less = {channel: _senders(channel, ids) for channel, ids in senders.items()}

        def without_them(user: User) -> dict[str, object]:
            if strangers := [f"{c}:{i}" for c, ids in less.items() for i in ids if i not in getattr(user, c)]:
                raise NotFound(
                    f"{strangers[0]} is no address of user {user_id!r}",
                    hint=f"`mvm user list {tenant_id}` shows who writes from where",
                )
            return {channel: tuple(i for i in getattr(user, channel) if i not in ids) for channel, ids in less.items()}

        return await self._change(tenant_id, user_id, without_them, actor=actor)

    async def change(self, tenant_id: TenantId, spec: UserSpec, *, actor: str) -> User:
        """Make a user what is said of them, but for the pool of their worker, which never changes."""
        changes = {
            "telegram": _senders("telegram", spec.telegram),
            "discord": _senders("discord", spec.discord),
            "budget": spec.budget,
        }
        return await self._change(tenant_id, spec.user_id, lambda _: changes, actor=actor)

    async def _change(
        self, tenant_id: TenantId, user_id: UserId, changes: Callable[[User], dict[str, object]], *, actor: str
    ) -> User:
        async with self._changing:
            before = self.get(tenant_id, user_id)
            changed = before.model_copy(update=changes(before))
            if changed == before:
                return before
            self._require_free(tenant_id, changed)
            user = await self._catalog.save_user(changed)
        self._chronicle.tenant_event(
            tenant_id, "UserUpdated", actor=actor, detail=", ".join(user.peers) or "not paired", user=user_id
        )
        if changed.peers != before.peers:
            await self.refresh_gateway(tenant_id, actor=actor)
        return user

    async def add_peer(self, tenant_id: TenantId, user_id: UserId, peer: str, *, actor: str) -> User:
        """Bind one more sender to a user. The caller refreshes the gateway."""
        channel, sender = parse_peer(peer)
        async with self._changing:
            user = self.get(tenant_id, user_id)
            senders = user.telegram if channel == "telegram" else user.discord
            if sender in senders:
                return user
            changed = user.model_copy(update={channel: (*senders, sender)})
            self._require_free(tenant_id, changed)
            return await self._catalog.save_user(changed)

    async def remove(self, tenant_id: TenantId, user_id: UserId, *, actor: str, progress: Progress = silent) -> None:
        """Forget a user and destroy their worker with everything in it. The gateway stops serving them first.

        When the worker cannot be destroyed, a second call (or the next start of the agent) goes on.
        """
        if not await self._removals.is_recorded(OF_USER, tenant_id, user_id):
            self.get(tenant_id, user_id)
        async with self._removals.recorded(OF_USER, tenant_id, user_id, actor=actor):
            await self._catalog.remove_user(tenant_id, user_id)
            await self.refresh_gateway(tenant_id, actor=actor)
            progress(f"destroying the worker of {user_id}")
            await self._destroy_workers(tenant_id, user_id, actor=actor)
        self._chronicle.tenant_event(tenant_id, "UserRemoved", actor=actor, user=user_id)

    async def _destroy_workers(self, tenant_id: TenantId, user_id: UserId, *, actor: str) -> None:
        for instance in self._catalog.instances_of(tenant_id):
            if instance.user == user_id:
                await self._operations.destroy(instance.ref, actor=actor)
                await self._secrets.forget_instance(instance)

    async def resume_removals(self) -> None:
        """After a start of the agent: finish removals, and give every user who has none their instance.

        One that fails is told as an event and does not keep the others.
        """
        for removal in await self._removals.pending(OF_USER):
            tenant_id, user_id = TenantId(removal.parts[0]), UserId(removal.parts[1])
            try:
                async with self._removals.recorded(OF_USER, tenant_id, user_id, actor=removal.actor):
                    await self._catalog.remove_user(tenant_id, user_id)
                    await self._destroy_workers(tenant_id, user_id, actor=removal.actor)
            except MvmError as error:
                self._failed(tenant_id, user_id, "UserRemovalFailed", error)
        for user in [*self._catalog.users.values()]:
            if user.instance_id is None or user.instance_id not in self._catalog.instances:
                try:
                    await self.bind(user, actor=ACTOR)
                except MvmError as error:
                    self._failed(user.tenant_id, user.user_id, "UserBindingFailed", error)

    def _failed(self, tenant_id: TenantId, user_id: UserId, kind: str, error: MvmError) -> None:
        self._chronicle.tenant_event(tenant_id, kind, actor=ACTOR, detail=error.message, user=user_id)

    async def refresh_gateway(self, tenant_id: TenantId, *, actor: str) -> None:
        """Let the gateway that serves a tenant know what changed."""
        await self._refreshes.tell([self._gateways.gateway_of(tenant_id)], actor=actor)

    def require_no_clash(self, tenant_ids: Iterable[TenantId]) -> None:
        """Raise `Conflict` when two users of these tenants, which are to share a gateway, have a sender in common."""
        owners: dict[str, User] = {}
        for user in (user for tenant_id in tenant_ids for user in self._catalog.users_of(tenant_id)):
            for peer in user.peers:
                if (other := owners.setdefault(peer, user)) is not user:
                    raise _taken(peer, other)

    def _require_free(self, tenant_id: TenantId, user: User) -> None:
        """Raise `Conflict` when a sender of `user` is somebody else's at the same gateway."""
        serving = self._gateways.serving_tenant(tenant_id)
        others = (
            self._catalog.users_of(tenant_id) if serving is None else self._gateways.users_served_by(serving.tenant_id)
        )
        for other in others:
            if (other.tenant_id, other.user_id) == (tenant_id, user.user_id):
                continue
            for peer in user.peers:
                if peer in other.peers:
                    # Whoever asks for one tenant learns nothing about another one's users.
                    raise _taken(peer, other if other.tenant_id == tenant_id else None)

    def _pool_for(self, tenant_id: TenantId, pool_id: PoolId | None) -> Pool:
        """The pool that holds a new user's worker: the named one, else the tenant's only pool of workers."""
        if pool_id is not None:
            pool = self._catalog.pool(tenant_id, pool_id)
            if pool.role is Role.GATEWAY or not pool.role.has_config_drive:
                raise InvalidInput(
                    f"pool '{tenant_id}/{pool_id}' has the role {pool.role} and cannot hold anybody's worker",
                    hint=f"name a pool of role {Role.CAPABILITY_OPENCLAW}",
                )
            return pool
        self._catalog.tenant(tenant_id)
        pools = [pool for pool in self._catalog.pools_of(tenant_id) if pool.role is Role.CAPABILITY_OPENCLAW]
        if len(pools) == 1:
            return pools[0]
        if not pools:
            raise NotFound(
                f"tenant {tenant_id!r} has no pool of role {Role.CAPABILITY_OPENCLAW}",
                hint=f"`mvm pool create {tenant_id}/workers --role {Role.CAPABILITY_OPENCLAW}` makes one",
            )
        raise InvalidInput(
            f"tenant {tenant_id!r} has several pools of workers",
            hint=f"name one with --pool: {', '.join(pool.pool_id for pool in pools)}",
        )


def _senders(channel: str, ids: Iterable[str]) -> tuple[str, ...]:
    """Checked sender ids, each once."""
    return tuple(dict.fromkeys(parse_peer(f"{channel}:{sender}")[1] for sender in ids))


def _as_typed(user: User) -> str:
    """The senders of a user as options of a command."""
    return " ".join(f"--{channel} {sender}" for channel, sender in map(parse_peer, user.peers)) or "--telegram ID"


def _taken(peer: str, owner: User | None) -> Conflict:
    whose = f"user {owner.user_id!r}" if owner else "somebody else"
    hint = "one sender can have one private worker only"
    if owner is not None:
        channel, sender = parse_peer(peer)
        hint += f"; `mvm user unlink {owner.tenant_id} {owner.user_id} --{channel} {sender}` takes it from them"
    return Conflict(f"{peer} already belongs to {whose} at this gateway", hint=hint)
