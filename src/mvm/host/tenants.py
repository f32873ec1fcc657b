"""Tenants: creating, changing and destroying them, and their secrets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network

from mvm.host.audit import AuditAction
from mvm.host.budgets import PREFIX as BUDGETS
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.contracts import InstanceOperations
from mvm.host.gateways import Gateways
from mvm.host.pairing import Pairing
from mvm.host.progress import Progress, silent
from mvm.host.quotas import QuotaKeeper
from mvm.host.refreshes import Refreshes
from mvm.host.removals import OF_TENANT, Removals
from mvm.host.secrets import SecretStore
from mvm.host.users import Users
from mvm.model import addresses
from mvm.model.base import Frozen, TenantIdField
from mvm.model.entities import OpenClawSettings, Quotas, Tenant
from mvm.model.errors import Conflict, InvalidInput, MvmError
from mvm.model.ids import TenantId, TenantNetId, tenant_net_id
from mvm.model.secrets import LOGICAL_NAMES
from mvm.store.base import Store

DESTROYED_AT_ONCE = 8
HOST_AUDIT = TenantId("mvm-host")
"""Whose audit tells of what has no tenant any more; no tenant may have this id."""

Remedy = Callable[[TenantId, str], str]


def _another_bot(owner: TenantId, token: str) -> str:
    return f"make another bot, or share the gateway: [gateway] tenant = {owner!r}"


HostNetworks = Callable[[], Mapping[str, IPv4Network]]
"""Networks that this host itself is in (a phrase for each -> network)."""


class TenantChanges(Frozen):
    """What is to change of a tenant: the fields that are given, and only those."""

    quotas: Quotas | None = None
    gateway_tenant: TenantIdField | None = None
    accepts: tuple[TenantIdField, ...] | None = None
    openclaw: OpenClawSettings | None = None

    def applied_to(self, tenant: Tenant) -> Tenant:
        """The tenant with the changes."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        for name in ("quotas", "accepts"):
            if name in given and given[name] is None:
                del given[name]
        return tenant.model_copy(update=given)


class Tenants:
    """The tenants of this host."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        store: Store,
        operations: InstanceOperations,
        quotas: QuotaKeeper,
        gateways: Gateways,
        users: Users,
        pairing: Pairing,
        secrets: SecretStore,
        refreshes: Refreshes,
        removals: Removals,
        chronicle: Chronicle,
        clock: Clock,
        host_networks: HostNetworks,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._operations = operations
        self._quotas = quotas
        self._gateways = gateways
        self._users = users
        self._pairing = pairing
        self._secrets = secrets
        self._refreshes = refreshes
        self._removals = removals
        self._chronicle = chronicle
        self._clock = clock
        self._host_networks = host_networks
        # Held from the choice of a net id or a set of secrets to its record.
        self._changing = asyncio.Lock()

    async def create(
        self,
        tenant_id: TenantId,
        *,
        changes: TenantChanges | None = None,
        net_id: int | None = None,
        subnet: str | None = None,
        template: str | None = None,
        actor: str,
    ) -> Tenant:
        """Make a tenant with a network of its own. Raises `Conflict` when it exists or its network cannot be had."""
        if tenant_id == HOST_AUDIT:
            raise InvalidInput(f"tenant id {tenant_id!r} is mvm's own", hint="choose another name")
        async with self._changing:
            if tenant_id in self._catalog.tenants:
                raise Conflict(f"tenant {tenant_id!r} exists already", hint=f"`mvm tenant info {tenant_id}` shows it")
            if await self._removals.is_recorded(OF_TENANT, tenant_id):
                # One of that name is only just gone, or its record could not be: at the next start it would take this.
                async with self._removals.recorded(OF_TENANT, tenant_id, actor=actor):
                    pass
            used = {TenantNetId(int(d.key.rpartition("/")[2])) for d in await self._store.list("net/")}
            chosen = await asyncio.to_thread(self._choose_net_id, used, net_id, subnet)
            network = addresses.tenant_network(chosen, subnet)
            tenant = (changes or TenantChanges()).applied_to(
                Tenant(tenant_id=tenant_id, network=network, created_at=self._clock.now(), template=template)
            )
            self._check_sharing(tenant)
            # The id is used up from here on, whatever becomes of the tenant.
            taken = {"tenant_id": tenant_id, "since": self._clock.now().isoformat()}
            await self._store.put(f"net/{chosen}", taken, expected=0)
            tenant = await self._catalog.save_tenant(tenant)
        self._chronicle.record_tenant(tenant_id, AuditAction.TENANT_CREATED, actor=actor, detail=network.ipv4_subnet)
        return tenant

    async def update(self, tenant_id: TenantId, changes: TenantChanges, *, actor: str) -> Tenant:
        """Change a tenant. Who serves whom, and settings of OpenClaw, take effect on running instances at once."""
        tenant = self._catalog.tenant(tenant_id)
        changed = changes.applied_to(tenant)
        if changed == tenant:
            return tenant
        self._check_sharing(changed)
        before = self._serving()
        tenant = await self._catalog.save_tenant(changed)
        self._chronicle.record_tenant(
            tenant_id, AuditAction.TENANT_UPDATED, actor=actor, detail=", ".join(sorted(changes.model_fields_set))
        )
        after = self._serving()
        moved = {t for t in {*before, *after} if before.get(t) != after.get(t)}
        concerned = moved | {g for t in moved for g in (before.get(t), after.get(t)) if g is not None}
        if "openclaw" in changes.model_fields_set:
            concerned.add(tenant_id)
        await self._refreshes.tell(
            [instance for t in sorted(concerned) for instance in self._catalog.instances_of(t)], actor=actor
        )
        return tenant

    def _serving(self) -> dict[TenantId, TenantId | None]:
        """Tenant -> the one whose gateway serves it."""
        found = {tenant_id: self._gateways.serving_tenant(tenant_id) for tenant_id in self._catalog.tenants}
        return {tenant_id: serving.tenant_id if serving else None for tenant_id, serving in found.items()}

    def _check_sharing(self, tenant: Tenant) -> None:
        """Raise when tenants that would then share a gateway have a sender in common, or for a sharing with itself."""
        if tenant.gateway_tenant == tenant.tenant_id or tenant.tenant_id in tenant.accepts:
            raise InvalidInput(
                f"tenant {tenant.tenant_id!r} cannot share a gateway with itself",
                hint="leave out [gateway]: a tenant with a gateway pool is served by it",
            )
        hub = tenant if tenant.gateway_tenant is None else self._catalog.tenants.get(tenant.gateway_tenant)
        if hub is None:
            return
        others = [t for t in hub.accepts if (o := self._catalog.tenants.get(t)) and o.gateway_tenant == hub.tenant_id]
        joining = [tenant.tenant_id] if tenant.tenant_id in hub.accepts else []
        self._users.require_no_clash(dict.fromkeys([hub.tenant_id, *others, *joining]))

    def _choose_net_id(self, used: set[TenantNetId], net_id: int | None, subnet: str | None) -> TenantNetId:
        tenants = {
            f"tenant {tenant.tenant_id!r}": IPv4Network(tenant.network.ipv4_subnet)
            for tenant in self._catalog.tenants.values()
        }
        host = self._host_networks()
        if subnet is not None:
            addresses.require_free(addresses.parse_subnet(subnet), {**tenants, **host})
        if net_id is None:
            try:
                return addresses.next_net_id(used, [*tenants.values(), *(host.values() if subnet is None else ())])
            except Conflict:
                # The host may be in a network as wide as all of ours; a tenant's /24 is then still the nearer route.
                return addresses.next_net_id(used, tenants.values())
        wanted = tenant_net_id(net_id)
        if wanted in used:
            raise Conflict(
                f"tenant net id {wanted} was used before, and net ids are never reused",
                hint="leave it out and a new one is chosen",
            )
        if subnet is None:
            addresses.require_free(addresses.subnet_of(wanted), tenants)
        return wanted

    # Secrets

    async def set_secrets(
        self, tenant_id: TenantId, secrets: Mapping[str, str], *, prune: bool = False, actor: str
    ) -> tuple[str, ...]:
        """Set secrets (`scope/KEY` -> value); running instances get them at once. Returns the names that changed."""
        self._catalog.tenant(tenant_id)
        await self.require_own_bots(tenant_id, secrets)
        changed = await self._secrets.set(tenant_id, secrets, prune=prune)
        if changed:
            await self._deliver(tenant_id, AuditAction.SECRETS_SET, changed, actor=actor)
        return changed

    async def require_own_bots(
        self, tenant_id: TenantId, secrets: Mapping[str, str], *, remedy: Remedy = _another_bot
    ) -> None:
        """Raise `Conflict` for a bot that another tenant of this host has: a channel lets only one gateway listen.

        `remedy` makes the hint of whose it is and what its secret is called.
        """
        for token in ("telegram_token", "discord_token"):
            name = LOGICAL_NAMES[token]
            if (value := secrets.get(name.path)) is None:
                continue
            for other in list(self._catalog.tenants):
                if other != tenant_id and await self._secrets.holds(other, name.path, value):
                    raise Conflict(
                        f"the bot of {name.path} is tenant {other!r}'s already, and only one gateway can listen to it",
                        hint=remedy(other, token),
                    )

    async def rotate_secrets(self, tenant_id: TenantId, scope: str | None, *, actor: str) -> tuple[str, ...]:
        """Deliver secrets anew and make new tokens; running instances get them at once. Returns the names concerned."""
        self._catalog.tenant(tenant_id)
        names = await self._secrets.rotate(tenant_id, scope)
        await self._deliver(tenant_id, AuditAction.SECRETS_ROTATED, names, actor=actor)
        return names

    async def _deliver(self, tenant_id: TenantId, action: AuditAction, names: tuple[str, ...], *, actor: str) -> None:
        async with self._changing:
            tenant = self._catalog.tenant(tenant_id)
            epoch = await self._secrets.epoch(tenant_id)
            await self._catalog.save_tenant(tenant.model_copy(update={"secrets_epoch": epoch}))
        self._chronicle.record_tenant(tenant_id, action, actor=actor, detail=", ".join(names))
        await self._refreshes.tell_tenant(tenant_id, actor=actor)

    # Destroying

    async def destroy(self, tenant_id: TenantId, *, actor: str, progress: Progress = silent) -> None:
        """Remove a tenant and everything of it: no process, secret, file, address or rule is left behind.

        When one instance cannot be destroyed the others are, the tenant stays, and a second call (or the next start of
        the agent) goes on. What is left is a line of the host's own audit, and the net id, which is never reused.
        """
        self._catalog.tenant(tenant_id)
        async with self._removals.recorded(OF_TENANT, tenant_id, actor=actor):
            if tenant_id not in self._catalog.tenants:
                return  # somebody else destroyed it while this call waited
            await self._remove(tenant_id, actor=actor, progress=progress)

    async def resume_removals(self) -> None:
        """After a start of the agent: finish destructions that were begun, and count secrets that were just set."""
        for removal in await self._removals.pending(OF_TENANT):
            tenant_id = TenantId(removal.parts[0])
            try:
                async with self._removals.recorded(OF_TENANT, tenant_id, actor=removal.actor):
                    await self._remove(tenant_id, actor=removal.actor, progress=silent)
            except MvmError as error:
                self._chronicle.tenant_event(tenant_id, "TenantRemovalFailed", actor="recovery", detail=error.message)
        for tenant in [*self._catalog.tenants.values()]:
            try:
                epoch = await self._secrets.epoch(tenant.tenant_id)
            except MvmError as error:
                detail = error.message
                self._chronicle.tenant_event(tenant.tenant_id, "SecretsDamaged", actor="recovery", detail=detail)
                continue
            if epoch != tenant.secrets_epoch:
                await self._catalog.save_tenant(tenant.model_copy(update={"secrets_epoch": epoch}))

    async def _remove(self, tenant_id: TenantId, *, actor: str, progress: Progress) -> None:
        served_before = [t.tenant_id for t in self._gateways.tenants_served_by(tenant_id)]
        gateway = self._gateways.gateway_of(tenant_id)
        for user in self._catalog.users_of(tenant_id):
            await self._catalog.remove_user(tenant_id, user.user_id)
        if gateway is not None and gateway.tenant_id != tenant_id:
            await self._refreshes.tell([gateway], actor=actor)
        gone = False
        while not gone:
            await self._destroy_instances(tenant_id, actor=actor, progress=progress)
            # Pools and instances are made under this lock: none is made in a tenant that is just going.
            async with self._quotas.lock(tenant_id):
                if gone := not self._catalog.instances_of(tenant_id):
                    await self._remove_records(tenant_id)
        await asyncio.to_thread(self._chronicle.audit.destroy, tenant_id)
        detail = f"tenant {tenant_id!r}, its audit included"
        self._chronicle.record_on_host(
            tenant_id, AuditAction.TENANT_DESTROYED, audit=HOST_AUDIT, actor=actor, detail=detail
        )
        orphans = [i for t in served_before if t != tenant_id for i in self._catalog.instances_of(t)]
        await self._refreshes.tell(orphans, actor=actor)

    async def _remove_records(self, tenant_id: TenantId) -> None:
        """Remove all that is left of a tenant without instances, itself last."""
        for user in self._catalog.users_of(tenant_id):
            await self._catalog.remove_user(tenant_id, user.user_id)
        for pool in self._catalog.pools_of(tenant_id):
            await self._catalog.remove_pool(tenant_id, pool.pool_id)
        for document in await self._store.list(f"{BUDGETS}{tenant_id}/"):
            await self._store.delete(document.key)
        await self._pairing.forget(tenant_id)
        await self._secrets.forget_tenant(tenant_id)
        await self._catalog.remove_tenant(tenant_id)

    async def _destroy_instances(self, tenant_id: TenantId, *, actor: str, progress: Progress) -> None:
        slots = asyncio.Semaphore(DESTROYED_AT_ONCE)
        instances = self._catalog.instances_of(tenant_id)
        done = 0

        async def destroy(index: int) -> None:
            nonlocal done
            async with slots:
                await self._operations.destroy(instances[index].ref, actor=actor)
            done += 1
            progress(f"destroying the instances of {tenant_id}", done=done, total=len(instances))

        results = await asyncio.gather(*(destroy(n) for n in range(len(instances))), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            first = failures[0]
            raise MvmError(
                f"{len(failures)} of {len(instances)} instances of {tenant_id!r} could not be destroyed: {first}",
                hint=f"`mvm tenant destroy {tenant_id}` goes on where this ended",
            ) from first
