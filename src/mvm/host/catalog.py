"""What exists on this host, typed: the entities over the document store.

The agent is the only writer, so every document is also kept in memory and reads never touch the disk. A save writes the
document first and changes the cache only after the store has it; a save with a stale revision is a bug or a second
writer and raises `Conflict`.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from mvm.host.documents import damaged
from mvm.model.entities import Instance, Pool, Tenant, User
from mvm.model.errors import NotFound
from mvm.model.ids import Address, InstanceId, InstanceRef, PoolId, TenantId, UserId
from mvm.store.base import Document, Store, Write

log = structlog.get_logger(__name__)

E = TypeVar("E", bound=BaseModel)


def _tenant_key(tenant: TenantId) -> str:
    return f"tenants/{tenant}"


def _pool_key(tenant: TenantId, pool: PoolId) -> str:
    return f"pools/{tenant}/{pool}"


def _instance_key(ref: InstanceRef) -> str:
    return f"instances/{ref.tenant_id}/{ref.pool_id}/{ref.instance_id}"


def _user_key(tenant: TenantId, user: UserId) -> str:
    return f"users/{tenant}/{user}"


def _parse(kind: type[E], document: Document) -> E:
    """The entity in a document. Keys that this version does not know (another version wrote them) are passed over.

    Raises `ValidationError` for anything else that is wrong with it.
    """
    try:
        # Python-mode validation would refuse the strings that dates and enums are in JSON.
        return kind.model_validate(document.value, strict=False)
    except ValidationError as error:
        if any(problem["type"] != "extra_forbidden" for problem in error.errors()):
            raise
        value = copy.deepcopy(document.value)
        for problem in error.errors():
            *path, key = problem["loc"]
            holder: Any = value
            for step in path:
                holder = holder[step]
            del holder[key]
        log.warning("unknown keys in the state", document=document.key, keys=[str(p["loc"]) for p in error.errors()])
        return kind.model_validate(value, strict=False)


class Catalog:
    """Tenants, pools, instances and users of this host."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._revisions: dict[str, int] = {}
        self._tenants: dict[TenantId, Tenant] = {}
        self._pools: dict[tuple[TenantId, PoolId], Pool] = {}
        self._instances: dict[InstanceId, Instance] = {}
        self._by_tenant: dict[TenantId, set[InstanceId]] = {}
        self._awake: dict[TenantId, set[InstanceId]] = {}
        self._users: dict[tuple[TenantId, UserId], User] = {}
        self._pool_ids: dict[TenantId, set[PoolId]] = {}
        self._user_ids: dict[TenantId, set[UserId]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self.watchers: list[Callable[[Instance | None, Instance | None], None]] = []
        """Told what an instance was and what it is whenever one is saved or removed; they neither wait nor raise."""
        self.scene_watchers: list[Callable[[], None]] = []
        """Told whenever a tenant, a pool or a user is saved or removed; they neither wait nor raise."""

    @classmethod
    async def open(cls, store: Store) -> Catalog:
        """Read everything once; a document that does not parse names itself and stops the agent: nothing is dropped."""
        catalog = cls(store)
        for tenant in await catalog._read_all("tenants/", Tenant):
            catalog._tenants[tenant.tenant_id] = tenant
        for pool in await catalog._read_all("pools/", Pool):
            catalog._remember_pool(pool)
        for instance in await catalog._read_all("instances/", Instance):
            catalog._remember(instance)
        for user in await catalog._read_all("users/", User):
            catalog._remember_user(user)
        return catalog

    async def _read_all(self, prefix: str, kind: type[E]) -> list[E]:
        entities = []
        for document in await self.store.list(prefix):
            try:
                entities.append(_parse(kind, document))
            except ValidationError as error:
                raise damaged(document, kind, error) from error
            self._revisions[document.key] = document.revision
        return entities

    def _change(self, instance: Instance) -> None:
        before = self._instances.get(instance.instance_id)
        self._remember(instance)
        self._tell_watchers(before, instance)

    def _remember(self, instance: Instance) -> None:
        self._instances[instance.instance_id] = instance
        self._by_tenant.setdefault(instance.tenant_id, set()).add(instance.instance_id)
        awake = self._awake.setdefault(instance.tenant_id, set())
        if instance.state.has_process or instance.transition is not None:
            awake.add(instance.instance_id)
        else:
            awake.discard(instance.instance_id)

    def _remember_pool(self, pool: Pool) -> None:
        self._pools[pool.tenant_id, pool.pool_id] = pool
        self._pool_ids.setdefault(pool.tenant_id, set()).add(pool.pool_id)

    def _remember_user(self, user: User) -> None:
        self._users[user.tenant_id, user.user_id] = user
        self._user_ids.setdefault(user.tenant_id, set()).add(user.user_id)

    def _tell_watchers(self, before: Instance | None, after: Instance | None) -> None:
        for watcher in self.watchers:
            watcher(before, after)

    def _tell_scene_watchers(self) -> None:
        for watcher in self.scene_watchers:
            watcher()

    async def _put(self, key: str, entity: BaseModel, remember: Callable[[], object], *, durable: bool = True) -> None:
        """Write one document and then remember it; saves of one key are serialised so that revisions follow each other.

        A caller that is cancelled does not come between the two: what the store has, the cache has.
        """

        async def put() -> None:
            async with self._locks.setdefault(key, asyncio.Lock()):
                self._revisions[key] = await self.store.put(
                    key, entity.model_dump(mode="json"), expected=self._revisions.get(key, 0), durable=durable
                )
                remember()

        await asyncio.shield(asyncio.create_task(put(), name=f"save {key}"))

    async def _delete(self, key: str) -> None:
        async with self._locks.setdefault(key, asyncio.Lock()):
            await self.store.delete(key)
            self._revisions.pop(key, None)
        self._locks.pop(key, None)

    # Reading

    @property
    def tenants(self) -> Mapping[TenantId, Tenant]:
        return MappingProxyType(self._tenants)

    @property
    def pools(self) -> Mapping[tuple[TenantId, PoolId], Pool]:
        return MappingProxyType(self._pools)

    @property
    def instances(self) -> Mapping[InstanceId, Instance]:
        return MappingProxyType(self._instances)

    @property
    def users(self) -> Mapping[tuple[TenantId, UserId], User]:
        return MappingProxyType(self._users)

    def tenant(self, tenant: TenantId) -> Tenant:
        """The tenant of that id, or `NotFound`."""
        try:
            return self._tenants[tenant]
        except KeyError:
            raise NotFound(f"tenant {tenant!r} does not exist", hint="`mvm tenant list` shows the tenants") from None

    def pool(self, tenant: TenantId, pool: PoolId) -> Pool:
        """The pool of that id, or `NotFound` (also when the tenant does not exist)."""
        self.tenant(tenant)
        try:
            return self._pools[tenant, pool]
        except KeyError:
            raise NotFound(
                f"pool '{tenant}/{pool}' does not exist", hint=f"`mvm pool list {tenant}` shows the tenant's pools"
            ) from None

    def user(self, tenant: TenantId, user: UserId) -> User:
        """The user of that id, or `NotFound` (also when the tenant does not exist)."""
        self.tenant(tenant)
        try:
            return self._users[tenant, user]
        except KeyError:
            raise NotFound(
                f"user {user!r} of tenant {tenant!r} does not exist", hint=f"`mvm user list {tenant}` shows the users"
            ) from None

    def instance(self, ref: InstanceRef) -> Instance:
        """The instance of that full name, or `NotFound`; the id alone is not enough, its pool and tenant must fit."""
        found = self._instances.get(ref.instance_id)
        if found is None or found.ref != ref:
            raise NotFound(f"instance '{ref}' does not exist", hint=f"`mvm instance list {ref.tenant_id}` shows them")
        return found

    def resolve(self, address: Address) -> Instance:
        """The instance that an address names."""
        return self.instance(address.instance)

    def pools_of(self, tenant: TenantId) -> list[Pool]:
        """Pools of a tenant, by id."""
        return [self._pools[tenant, pool_id] for pool_id in sorted(self._pool_ids.get(tenant, ()))]

    def users_of(self, tenant: TenantId) -> list[User]:
        """Users of a tenant, by id."""
        return [self._users[tenant, user_id] for user_id in sorted(self._user_ids.get(tenant, ()))]

    def instances_of(self, tenant: TenantId, pool: PoolId | None = None) -> list[Instance]:
        """Instances of a tenant, or of one of its pools, oldest first."""
        found: Iterator[Instance] = (self._instances[i] for i in self._by_tenant.get(tenant, ()))
        return sorted(
            (i for i in found if pool is None or i.pool_id == pool), key=lambda i: (i.created_at, i.instance_id)
        )

    def awake_of(self, tenant: TenantId) -> list[Instance]:
        """Instances of a tenant that have a process or a transition under way: few, however many sleep."""
        return [self._instances[i] for i in self._awake.get(tenant, ())]

    # Writing

    async def save_tenant(self, tenant: Tenant) -> Tenant:
        key = _tenant_key(tenant.tenant_id)
        await self._put(key, tenant, lambda: self._tenants.__setitem__(tenant.tenant_id, tenant))
        self._tell_scene_watchers()
        return tenant

    async def save_pool(self, pool: Pool) -> Pool:
        name = (pool.tenant_id, pool.pool_id)
        await self._put(_pool_key(*name), pool, lambda: self._remember_pool(pool))
        self._tell_scene_watchers()
        return pool

    async def save_user(self, user: User) -> User:
        name = (user.tenant_id, user.user_id)
        await self._put(_user_key(*name), user, lambda: self._remember_user(user))
        self._tell_scene_watchers()
        return user

    async def save_instance(self, instance: Instance, *, durable: bool = True) -> Instance:
        """Write an instance. `durable=False` is for observations (busy times), never for transitions."""
        await self._put(_instance_key(instance.ref), instance, lambda: self._change(instance), durable=durable)
        return instance

    async def amend_instance(self, ref: InstanceRef, amend: Callable[[Instance], Instance | None]) -> None:
        """Write an observation of an instance without getting in the way of its transitions. Not durable.

        `amend` is given the instance as it is when its turn to be written has come, so that nothing that is being
        saved meanwhile is undone; it returns None to leave it. Nothing happens when the instance is gone.
        """
        key = _instance_key(ref)

        async def put() -> None:
            async with self._locks.setdefault(key, asyncio.Lock()):
                current = self._instances.get(ref.instance_id)
                amended = amend(current) if current is not None and current.ref == ref else None
                if amended is None:
                    return
                self._revisions[key] = await self.store.put(
                    key, amended.model_dump(mode="json"), expected=self._revisions.get(key, 0), durable=False
                )
                self._change(amended)

        await asyncio.shield(asyncio.create_task(put(), name=f"amend {key}"))

    async def add_instances(self, instances: list[Instance]) -> None:
        """Write many new instances in one transaction."""
        writes = [Write(_instance_key(i.ref), i.model_dump(mode="json"), expected=0) for i in instances]
        for instance, revision in zip(instances, await self.store.put_many(writes), strict=True):
            self._revisions[_instance_key(instance.ref)] = revision
            self._change(instance)

    async def remove_tenant(self, tenant: TenantId) -> None:
        await self._delete(_tenant_key(tenant))
        self._tenants.pop(tenant, None)
        self._by_tenant.pop(tenant, None)
        self._awake.pop(tenant, None)
        self._tell_scene_watchers()

    async def remove_pool(self, tenant: TenantId, pool: PoolId) -> None:
        await self._delete(_pool_key(tenant, pool))
        self._pools.pop((tenant, pool), None)
        self._pool_ids.get(tenant, set()).discard(pool)
        self._tell_scene_watchers()

    async def remove_user(self, tenant: TenantId, user: UserId) -> None:
        await self._delete(_user_key(tenant, user))
        self._users.pop((tenant, user), None)
        self._user_ids.get(tenant, set()).discard(user)
        self._tell_scene_watchers()

    async def remove_instance(self, ref: InstanceRef) -> None:
        await self._delete(_instance_key(ref))
        before = self._instances.pop(ref.instance_id, None)
        self._by_tenant.get(ref.tenant_id, set()).discard(ref.instance_id)
        self._awake.get(ref.tenant_id, set()).discard(ref.instance_id)
        if before is not None:
            self._tell_watchers(before, None)
