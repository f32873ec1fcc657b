"""The services around the heart over a real store, with a lifecycle that only keeps records."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network
from pathlib import Path

from mvm.host.audit import AuditLog
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.deployments import Deployments
from mvm.host.desired_store import DesiredStore
from mvm.host.drive_preparation import DrivePreparer
from mvm.host.events import EventLog
from mvm.host.gateways import Gateways
from mvm.host.pairing import Pairing
from mvm.host.pools import Pools
from mvm.host.quotas import QuotaKeeper
from mvm.host.reconcile import Reconciler
from mvm.host.reconcile_apply import Executor
from mvm.host.records import refuse_held
from mvm.host.refreshes import Refreshes
from mvm.host.removals import Removals
from mvm.host.reports import Activity, Reports
from mvm.host.retries import Retries
from mvm.host.secrets import SecretStore
from mvm.host.tenants import Tenants
from mvm.host.users import Users
from mvm.model import addresses
from mvm.model.entities import Instance, PoolSpec
from mvm.model.errors import MvmError
from mvm.model.ids import InstanceId, InstanceRef, PoolId, TenantId, UserId
from mvm.model.roles import Role
from mvm.model.states import State
from mvm.security.vault import Vault
from mvm.store.sqlite import SqliteStore

ALICE = TenantId("alice")
GATEWAYS = PoolId("gateways")
WORKERS = PoolId("workers")


@dataclass
class Time:
    """Time that passes when a test says so."""

    wall: datetime = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
    seconds: float = 0.0

    def passes(self, amount: timedelta) -> None:
        self.wall += amount
        self.seconds += amount.total_seconds()

    def clock(self) -> Clock:
        chance = random.Random(7)
        ids = iter(range(1, 2**31))
        return Clock(
            now=lambda: self.wall,
            monotonic=lambda: self.seconds,
            new_instance_id=lambda: InstanceId(f"i-{next(ids):08x}"),
            jitter=chance,
            entropy=chance.randbytes,
        )


@dataclass
class Operations:
    """Instances that change state at once. `fails` says which operations on which instance fail, and how."""

    catalog: Catalog
    reports: Reports
    clock: Clock
    refreshed: list[InstanceRef] = field(default_factory=list)
    fails: Callable[[str, Instance | PoolId], MvmError | None] = lambda operation, about: None

    def _maybe_fail(self, operation: str, about: Instance | PoolId) -> None:
        if (error := self.fails(operation, about)) is not None:
            raise error

    async def create_instance(
        self,
        tenant_id: TenantId,
        pool_id: PoolId,
        *,
        user: UserId | None = None,
        actor: str,
        runtime: str | None = None,
    ) -> Instance:
        self._maybe_fail("create", pool_id)
        tenant, pool = self.catalog.tenant(tenant_id), self.catalog.pool(tenant_id, pool_id)
        octets = {i.network.host_octet for i in self.catalog.instances_of(tenant_id)}
        return await self.catalog.save_instance(
            Instance(
                tenant_id=tenant_id,
                pool_id=pool_id,
                instance_id=self.clock.new_instance_id(),
                role=pool.role,
                state=State.READY,
                network=addresses.allocate_instance(tenant.network, used_octets=octets),
                user=user,
                created_at=self.clock.now(),
            )
        )

    async def _become(self, ref: InstanceRef, state: State, operation: str) -> Instance:
        instance = self.catalog.instance(ref)
        self._maybe_fail(operation, instance)
        if state is State.RUNNING:
            pool = self.catalog.pool(ref.tenant_id, ref.pool_id)
            instance = instance.model_copy(update={"vcpus": pool.vcpus, "mem_mib": pool.mem_mib})
            self.reports.record(ref.instance_id, Activity.IDLE)
        return await self.catalog.save_instance(instance.model_copy(update={"state": state}))

    async def start(self, ref: InstanceRef, *, actor: str, unless_held: bool = False) -> Instance:
        if unless_held:
            refuse_held(self.catalog.instance(ref))
        return await self._become(ref, State.RUNNING, "start")

    async def warm(self, ref: InstanceRef, *, actor: str) -> Instance:
        return await self._become(ref, State.WARM, "warm")

    async def sleep(self, ref: InstanceRef, *, actor: str, force: bool = False) -> Instance:
        return await self._become(ref, State.SLEEPING, "sleep")

    async def stop(self, ref: InstanceRef, *, actor: str, force: bool = False, hold: bool = True) -> Instance:
        return await self._become(ref, State.STOPPED, "stop")

    async def discard(self, ref: InstanceRef, *, actor: str) -> Instance:
        return await self.catalog.save_instance(
            self.catalog.instance(ref).model_copy(update={"state": State.SLEEPING, "vcpus": 0, "mem_mib": 0})
        )

    async def destroy(self, ref: InstanceRef, *, actor: str) -> None:
        instance = self.catalog.instances.get(ref.instance_id)
        if instance is not None:
            self._maybe_fail("destroy", instance)
            await self.catalog.remove_instance(ref)

    async def refresh(self, ref: InstanceRef, *, actor: str) -> None:
        instance = self.catalog.instance(ref)
        if instance.state is State.RUNNING:
            self._maybe_fail("refresh", instance)
            self.refreshed.append(ref)

    @contextlib.asynccontextmanager
    async def locked(self, ref: InstanceRef) -> AsyncIterator[None]:
        yield


@dataclass(kw_only=True)
class Services:
    """What a test works with."""

    time: Time
    store: SqliteStore
    catalog: Catalog
    operations: Operations
    reports: Reports
    gateways: Gateways
    chronicle: Chronicle
    secrets: SecretStore
    preparer: DrivePreparer
    refreshes: Refreshes
    removals: Removals
    users: Users
    pairing: Pairing
    tenants: Tenants
    pools: Pools
    reconciler: Reconciler
    deployments: Deployments
    audit_dir: Path

    async def tenant(self, name: str = "alice", *, gateway: bool = True, workers: int = 0) -> TenantId:
        """A tenant with a pool of workers and, unless told otherwise, a gateway that runs."""
        tenant_id = TenantId(name)
        await self.tenants.create(tenant_id, actor="test")
        await self.pools.create(tenant_id, PoolSpec(pool_id=WORKERS, role=Role.CAPABILITY_OPENCLAW), actor="test")
        if gateway:
            await self.pools.create(tenant_id, PoolSpec(pool_id=GATEWAYS, role=Role.GATEWAY), actor="test")
            await self.scale(GATEWAYS, tenant_id, running=1)
        if workers:
            await self.scale(WORKERS, tenant_id, running=workers)
        return tenant_id

    async def scale(self, pool_id: PoolId, tenant_id: TenantId = ALICE, **counts: int) -> None:
        """Change a pool's counts and bring them about."""
        await self.pools.set_counts(tenant_id, pool_id, actor="test", **counts)
        await self.reconciler.bring_about(tenant_id, pool_id, actor="test")

    def gateway(self, tenant_id: TenantId = ALICE) -> Instance:
        found = self.gateways.gateway_of(tenant_id)
        assert found is not None
        return found

    def kinds(self, tenant_id: TenantId | None = None) -> list[str]:
        """Kinds of the events so far."""
        return [event.kind for event in self.chronicle.events.recent(tenant_id=tenant_id)]

    async def everything(self) -> str:
        """All that is stored, as one text."""
        return "\n".join(f"{document.key} {document.value}" for document in await self.store.list(""))


async def _lets_in(instance: Instance) -> None:
    """Every channel knows its bot."""


async def _last_words(instance: Instance) -> str | None:
    return f"Error: {instance.pool_id} found no model"


@contextlib.asynccontextmanager
async def opened(directory: Path, *, host: dict[str, IPv4Network] | None = None) -> AsyncIterator[Services]:
    """Services over the state in a directory; opening it again is what a restart of the agent does."""
    time = Time()
    clock = time.clock()
    directory.mkdir(mode=0o700, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        store = await SqliteStore.open(directory / "state.db")
        stack.push_async_callback(store.close)
        catalog = await Catalog.open(store)
        chronicle = Chronicle(AuditLog(directory / "audit", clock.now), EventLog(directory / "events", clock.now))
        stack.push_async_callback(chronicle.close)
        vault = await asyncio.to_thread(Vault.load, directory / "secrets.key")
        reports = Reports(clock)
        operations = Operations(catalog, reports, clock)
        gateways = Gateways(catalog)
        secrets = SecretStore(store, vault, clock)
        refreshes = Refreshes(catalog, operations, gateways, chronicle)
        stack.push_async_callback(refreshes.close)
        removals = Removals(store, clock)
        quotas = QuotaKeeper(catalog)
        users = Users(
            catalog=catalog,
            gateways=gateways,
            operations=operations,
            refreshes=refreshes,
            removals=removals,
            secrets=secrets,
            chronicle=chronicle,
            clock=clock,
        )
        pairing = Pairing(store, gateways, users, chronicle, clock)
        tenants = Tenants(
            catalog=catalog,
            store=store,
            operations=operations,
            quotas=quotas,
            gateways=gateways,
            users=users,
            pairing=pairing,
            secrets=secrets,
            refreshes=refreshes,
            removals=removals,
            chronicle=chronicle,
            clock=clock,
            host_networks=lambda: host or {},
        )
        pools = Pools(
            catalog=catalog,
            operations=operations,
            quotas=quotas,
            refreshes=refreshes,
            removals=removals,
            chronicle=chronicle,
            clock=clock,
        )
        reconciler = Reconciler(
            catalog=catalog,
            executor=Executor(
                catalog=catalog,
                tenants=tenants,
                pools=pools,
                users=users,
                operations=operations,
                images=None,
                last_words=_last_words,
            ),
            is_busy=lambda _: False,
            is_idle=lambda instance: reports.latest(instance.instance_id).activity in (Activity.IDLE, Activity.READY),
            secrets=secrets,
            removals=removals,
            desired=DesiredStore(catalog, store),
            retries=Retries(clock),
            chronicle=chronicle,
            clock=clock,
        )
        yield Services(
            time=time,
            store=store,
            catalog=catalog,
            operations=operations,
            reports=reports,
            gateways=gateways,
            chronicle=chronicle,
            secrets=secrets,
            preparer=DrivePreparer(catalog=catalog, store=store, secrets=secrets, cipher=vault, gateways=gateways),
            refreshes=refreshes,
            removals=removals,
            users=users,
            pairing=pairing,
            tenants=tenants,
            pools=pools,
            reconciler=reconciler,
            deployments=Deployments(
                catalog=catalog,
                reconciler=reconciler,
                tenants=tenants,
                pools=pools,
                users=users,
                secrets=secrets,
                gateways=gateways,
                operations=operations,
                reports=reports,
                require_login=_lets_in,
                chronicle=chronicle,
                clock=clock,
            ),
            audit_dir=directory / "audit",
        )
