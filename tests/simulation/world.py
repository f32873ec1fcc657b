"""A whole host in memory: the real heart of the agent, a real database, machines that take no time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.standins.instant_runtime import Guest, InstantRuntime

from mvm.host.attachments import Attachments
from mvm.host.audit import AuditLog
from mvm.host.bases import Bases
from mvm.host.bring_up import BringUp, ImageSource
from mvm.host.budgets import Budgets
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.events import EventLog
from mvm.host.guests import Guests
from mvm.host.lifecycle import Lifecycle
from mvm.host.machines import InstanceDirectories
from mvm.host.observation import Observer
from mvm.host.policy_loop import PolicyLoop
from mvm.host.progress import Progress
from mvm.host.quotas import QuotaKeeper
from mvm.host.records import Records
from mvm.host.recovery import Recovery
from mvm.host.reports import Activity, Reports
from mvm.host.rest import Rest
from mvm.host.retries import Retries
from mvm.host.runtimes import Runtimes
from mvm.host.slots import Slots
from mvm.host.wakes import Wakes
from mvm.model.entities import Instance, InstanceNetwork, Pool, Quotas, RuntimePolicy, Tenant, TenantNetwork
from mvm.model.ids import InstanceId, InstanceRef, PoolId, TenantId, TenantNetId, UserId
from mvm.model.policy import MemoryState
from mvm.model.roles import Role
from mvm.model.states import State
from mvm.runtime.base import GuestLayout, Machine
from mvm.store.sqlite import SqliteStore

ALICE = TenantId("alice")
WORKERS = PoolId("workers")
GATEWAYS = PoolId("gateways")
QUICK = RuntimePolicy(
    min_running_seconds=0,
    min_warm_seconds=0,
    drain_timeout_seconds=1,
    graceful_shutdown_seconds=1,
    warm_after_idle_seconds=60,
    sleep_after_idle_seconds=120,
)


@dataclass
class ManualTime:
    """Time that passes only when a test says so; both clocks can be moved apart."""

    wall: datetime = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
    ticks: float = 1000.0
    _ids: random.Random = field(default_factory=lambda: random.Random(7))

    def pass_seconds(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.ticks += seconds

    def clock(self) -> Clock:
        return Clock(
            now=lambda: self.wall,
            monotonic=lambda: self.ticks,
            new_instance_id=lambda: InstanceId(f"i-{self._ids.getrandbits(32):08x}"),
            jitter=random.Random(1),
        )


class PlainDrives:
    """Stands for the drives: counts, and hands out one version after another."""

    def __init__(self) -> None:
        self.version = 1
        self.prepared = 0

    async def prepare(self, instance: Instance, machine: Machine, layout: GuestLayout | None) -> Instance:
        self.prepared += 1
        return instance.model_copy(update={"config_version": self.version, "secrets_epoch": self.version})

    async def forget(self, instance: Instance) -> None:
        pass


class OneImage:
    """Stands for the images: every pool has one already."""

    async def ensure(self, pool: Pool, progress: Progress) -> Pool:
        return pool


class QuietNetworks:
    """Stands for the networks: there is nothing to be done."""

    async def ready(self, instance: Instance) -> None:
        pass


class World:
    """One host. `restart_agent` makes a new agent over the same database and the same machines."""

    def __init__(self, directory: Path, *, memory_snapshot: bool = True, clone: bool = False) -> None:
        self.directory = directory
        self.time = ManualTime()
        self.runtime = InstantRuntime(memory_snapshot=memory_snapshot, clone=clone)
        self.drives = PlainDrives()
        self.images: ImageSource = OneImage()
        self.memory = MemoryState(total_bytes=100 * 2**30, available_bytes=50 * 2**30)
        self.ran_today: dict[UserId, float] = {}
        """Seconds, by user."""
        self.production = False
        """Whether the next agent is in production mode."""

    async def open(self) -> World:
        clock = self.time.clock()
        self.store = await SqliteStore.open(self.directory / "state.db")
        self.catalog = await Catalog.open(self.store)
        self.reports = Reports(clock)
        self.guests = Guests(self.reports, clock)
        self.quotas = QuotaKeeper(self.catalog)
        self.observer = Observer(self.reports, clock)
        self.events = EventLog(self.directory / "events", clock.now)
        self.audit = AuditLog(self.directory / "audit", clock.now)
        self.chronicle = Chronicle(self.audit, self.events)
        self.attachments = Attachments(lambda ref: self._deaf)
        runtimes = Runtimes({"instant": self.runtime}, wanted="instant", production=self.production)
        directories = InstanceDirectories(
            state_dir=self.directory / "state", run_dir=self.directory / "run", secrets_dir=self.directory / "secrets"
        )
        parts = {
            "catalog": self.catalog,
            "runtimes": runtimes,
            "directories": directories,
            "preparer": self.drives,
            "guests": self.guests,
            "reports": self.reports,
            "chronicle": self.chronicle,
            "attachments": self.attachments,
            "clock": clock,
        }
        slots = Slots(cores=2)
        self.bases = Bases(
            directories=directories,
            guests=self.guests,
            reports=self.reports,
            chronicle=self.chronicle,
            slots=slots,
            clock=clock,
            environment={},
        )
        self.bring_up = BringUp(
            **parts,  # type: ignore[arg-type]
            images=self.images,
            networks=QuietNetworks(),
            bases=self.bases,
            slots=slots,
            environment={},
        )
        records = Records(self.catalog, clock)
        rest = Rest(
            catalog=self.catalog,
            runtimes=runtimes,
            guests=self.guests,
            bring_up=self.bring_up,
            records=records,
            chronicle=self.chronicle,
        )
        del parts["guests"]
        self.lifecycle = Lifecycle(
            **parts,  # type: ignore[arg-type]
            quotas=self.quotas,
            bring_up=self.bring_up,
            rest=rest,
            records=records,
        )
        self.budgets = Budgets(
            catalog=self.catalog,
            store=self.store,
            running_today=self._running_today,
            chronicle=self.chronicle,
            clock=clock,
        )
        retries = Retries(clock)
        self.wakes = Wakes(
            catalog=self.catalog,
            budgets=self.budgets,
            lifecycle=self.lifecycle,
            quotas=self.quotas,
            observer=self.observer,
            chronicle=self.chronicle,
            retries=retries,
            clock=clock,
        )
        self.recovery = Recovery(
            catalog=self.catalog,
            runtimes=runtimes,
            lifecycle=self.lifecycle,
            bring_up=self.bring_up,
            rest=rest,
            records=records,
            guests=self.guests,
            attachments=self.attachments,
            chronicle=self.chronicle,
            clock=clock,
        )
        self.policy = PolicyLoop(
            catalog=self.catalog,
            lifecycle=self.lifecycle,
            wakes=self.wakes,
            observer=self.observer,
            quotas=self.quotas,
            reports=self.reports,
            guests=self.guests,
            runtimes=runtimes,
            chronicle=self.chronicle,
            attachments=self.attachments,
            retries=retries,
            memory=lambda: self.memory,
            clock=clock,
        )
        return self

    async def _running_today(self, tenant: TenantId, user: UserId) -> float:
        return self.ran_today.get(user, 0.0)

    @staticmethod
    async def _deaf(reader: object, writer: object) -> None:
        raise AssertionError("no guest of this world calls the host")

    async def close(self) -> None:
        await self.attachments.close()
        await self.chronicle.close()
        await self.store.close()

    async def restart_agent(self) -> None:
        """The agent was killed: only the database and the machines are left. Recovery has run."""
        await self.close()
        await self.open()
        await self.bases.clear_unfinished(self.runtime)
        await self.recovery.run()

    async def tenant(self, *, quotas: Quotas | None = None, policy: RuntimePolicy = QUICK) -> None:
        """alice with a pool of workers and a pool of gateways."""
        await self.catalog.save_tenant(
            Tenant(
                tenant_id=ALICE,
                network=TenantNetwork(tenant_net_id=TenantNetId(1), ipv4_subnet="10.240.1.0/24"),
                quotas=quotas or Quotas(),
                created_at=self.time.wall,
            )
        )
        for pool_id, role in ((WORKERS, Role.CAPABILITY_OPENCLAW), (GATEWAYS, Role.GATEWAY)):
            await self.catalog.save_pool(
                Pool(
                    tenant_id=ALICE,
                    pool_id=pool_id,
                    role=role,
                    runtime_policy=policy,
                    created_at=self.time.wall,
                )
            )

    async def worker(self, *, state: State = State.RUNNING, pool: PoolId = WORKERS) -> InstanceRef:
        """A worker of alice's in the given state."""
        ref = (await self.lifecycle.create_instance(ALICE, pool, actor="test")).ref
        if state in (State.RUNNING, State.WARM, State.SLEEPING, State.STOPPED):
            await self.lifecycle.start(ref, actor="test")
        if state is State.WARM:
            await self.lifecycle.warm(ref, actor="test")
        if state is State.SLEEPING:
            await self.lifecycle.sleep(ref, actor="test")
        if state is State.STOPPED:
            await self.lifecycle.stop(ref, actor="test", hold=False)
        return ref

    @staticmethod
    def network(number: int) -> InstanceNetwork:
        """Some address of its own for the `number`-th instance of a large population."""
        address = f"10.{240 + (number >> 16)}.{(number >> 8) & 255}.{number & 255}"
        return InstanceNetwork(guest_ip=address, gateway_ip="10.240.0.1")

    def state(self, ref: InstanceRef) -> State:
        return self.catalog.instance(ref).state

    def guest(self, ref: InstanceRef) -> Guest:
        return self.runtime.guest(ref.instance_id)

    def has_process(self, ref: InstanceRef) -> bool:
        return ref.instance_id in self.runtime.processes

    def says(self, ref: InstanceRef, activity: Activity, *, in_flight: int = 0) -> None:
        """The guest reports by itself."""
        self.reports.record(ref.instance_id, activity, in_flight=in_flight)
