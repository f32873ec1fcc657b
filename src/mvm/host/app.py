"""The agent of one host, put together: the composition root, and the daemon around it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from mvm.host.accounting import Accounting
from mvm.host.api import ApiServer, only_agent
from mvm.host.api_requests import REQUESTS
from mvm.host.attachments import Attachments
from mvm.host.audit import AuditLog
from mvm.host.autostart import log_path, prepare_directories
from mvm.host.backups import Backups
from mvm.host.bases import Bases
from mvm.host.bring_up import BringUp
from mvm.host.budgets import Budgets
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.deployments import Deployments
from mvm.host.desired_store import DesiredStore
from mvm.host.drive_preparation import DrivePreparer
from mvm.host.events import EventLog
from mvm.host.explanation import Explainer
from mvm.host.gateways import Gateways
from mvm.host.guests import Guests
from mvm.host.host_networks import host_networks
from mvm.host.host_view import HostView, read_memory
from mvm.host.images import Images
from mvm.host.inspection import Inspection
from mvm.host.lifecycle import Lifecycle
from mvm.host.locations import Locations
from mvm.host.machines import InstanceDirectories
from mvm.host.networks import Networks, what_is_missing
from mvm.host.observation import Observer
from mvm.host.pairing import Pairing
from mvm.host.policy_loop import PolicyLoop
from mvm.host.pools import Pools
from mvm.host.programs import host_programs, image_cache, image_contents
from mvm.host.quotas import QuotaKeeper
from mvm.host.reconcile import Reconciler
from mvm.host.reconcile_apply import Executor
from mvm.host.records import Records
from mvm.host.recovery import Recovery
from mvm.host.refreshes import Refreshes
from mvm.host.relay import Relay
from mvm.host.removals import Removals
from mvm.host.reports import Reports
from mvm.host.rest import Rest
from mvm.host.retries import Retries
from mvm.host.runtimes import Runtimes
from mvm.host.secrets import SecretStore
from mvm.host.slots import Slots
from mvm.host.tenants import Tenants
from mvm.host.transfers import Transfers
from mvm.host.users import Users
from mvm.host.wakedesk import WakeDesk
from mvm.host.wakes import Wakes
from mvm.image.debian import DebianBuilder
from mvm.image.revisions import Revisions
from mvm.network.taps import open_tap
from mvm.runtime.base import Machine, Runtime
from mvm.runtime.process import ProcessRuntime
from mvm.runtime.qemu import QemuRuntime
from mvm.security.tokens import random_token
from mvm.security.vault import Vault
from mvm.store.sqlite import SqliteStore
from mvm.telemetry.logs import LogStyle, configure

log = structlog.get_logger(__name__)

DATABASE = "state.db"
KEY_FILE = "secrets.key"


@dataclass(kw_only=True)
class Host:
    """Everything that runs in one agent. Made by `open_host`; the API's requests are answered from here."""

    locations: Locations
    clock: Clock
    catalog: Catalog
    runtimes: Runtimes
    directories: InstanceDirectories
    reports: Reports
    guests: Guests
    observer: Observer
    quotas: QuotaKeeper
    chronicle: Chronicle
    gateways: Gateways
    secrets: SecretStore
    preparer: DrivePreparer
    lifecycle: Lifecycle
    wakes: Wakes
    recovery: Recovery
    policy: PolicyLoop
    refreshes: Refreshes
    removals: Removals
    users: Users
    pairing: Pairing
    tenants: Tenants
    pools: Pools
    reconciler: Reconciler
    deployments: Deployments
    inspection: Inspection
    explainer: Explainer
    accounting: Accounting
    backups: Backups
    transfers: Transfers
    attachments: Attachments
    bases: Bases
    images: Images
    networks: Networks
    shutdown: asyncio.Event
    serving: asyncio.Event
    """Set while requests are taken."""
    metrics_port: int | None = None
    """Loopback port where the metrics and the console are shown."""
    console_link: str | None = None
    """What opens the console in a browser; it has the token."""


@contextlib.asynccontextmanager
async def open_host(
    locations: Locations, runtimes: dict[str, Runtime], *, clock: Clock | None = None, environment: dict[str, str]
) -> AsyncIterator[Host]:
    """Open the state of this host and put its services together. On exit everything is closed; instances run on."""
    clock = clock or Clock()
    store = await SqliteStore.open(locations.state_dir / DATABASE)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        catalog = await Catalog.open(store)
        chronicle = Chronicle(
            AuditLog(locations.state_dir / "audit", clock.now), EventLog(locations.state_dir / "events", clock.now)
        )
        stack.push_async_callback(chronicle.close)
        vault = await asyncio.to_thread(Vault.load, locations.state_dir / KEY_FILE)
        reports = Reports(clock)
        host_view = HostView(clock)
        observer = Observer(reports, clock, host_view.active)
        guests = Guests(reports, clock)
        quotas = QuotaKeeper(catalog)
        gateways = Gateways(catalog)
        secrets = SecretStore(store, vault, clock)
        known_runtimes = Runtimes(runtimes, wanted=locations.runtime, production=locations.production)
        directories = InstanceDirectories(
            state_dir=locations.state_dir,
            run_dir=locations.run_dir,
            secrets_dir=locations.secrets_dir,
            own_uids=os.geteuid() == 0,
        )
        networks = Networks(catalog=catalog, runtimes=known_runtimes, gateways=gateways, owner=str(locations.state_dir))
        preparer = DrivePreparer(
            catalog=catalog,
            store=store,
            secrets=secrets,
            cipher=vault,
            gateways=gateways,
            dns=networks.dns,
        )
        attachments = Attachments(lambda ref: desk.handler_for(ref), relay_for=lambda ref: relay.handler_for(ref))
        stack.push_async_callback(attachments.close)
        slots = Slots()
        bases = Bases(
            directories=directories,
            guests=guests,
            reports=reports,
            chronicle=chronicle,
            slots=slots,
            clock=clock,
            environment=environment,
        )
        images = Images(
            catalog=catalog,
            chronicle=chronicle,
            clock=clock,
            revisions=Revisions(directories.images),
            builders=[DebianBuilder(image_cache(locations))],
            contents=lambda on_progress: image_contents(locations, on_progress),
            derived=bases,
        )
        stack.push_async_callback(images.close)
        bring_up = BringUp(
            catalog=catalog,
            runtimes=known_runtimes,
            directories=directories,
            preparer=preparer,
            guests=guests,
            reports=reports,
            chronicle=chronicle,
            attachments=attachments,
            images=images,
            networks=networks,
            bases=bases,
            slots=slots,
            clock=clock,
            environment=environment,
        )
        relay = Relay(catalog, gateways, known_runtimes, bring_up.machine)
        records = Records(catalog, clock)
        rest = Rest(
            catalog=catalog,
            runtimes=known_runtimes,
            guests=guests,
            bring_up=bring_up,
            records=records,
            chronicle=chronicle,
        )
        lifecycle = Lifecycle(
            catalog=catalog,
            runtimes=known_runtimes,
            directories=directories,
            preparer=preparer,
            reports=reports,
            quotas=quotas,
            chronicle=chronicle,
            attachments=attachments,
            bring_up=bring_up,
            rest=rest,
            records=records,
            clock=clock,
        )
        accounting = Accounting(catalog, chronicle.events, store, clock)
        budgets = Budgets(
            catalog=catalog,
            store=store,
            running_today=accounting.running_today,
            chronicle=chronicle,
            clock=clock,
        )
        wakes = Wakes(
            catalog=catalog,
            budgets=budgets,
            lifecycle=lifecycle,
            quotas=quotas,
            observer=observer,
            chronicle=chronicle,
            clock=clock,
        )
        refreshes = Refreshes(catalog, lifecycle, gateways, chronicle)
        removals = Removals(store, clock)
        users = Users(
            catalog=catalog,
            gateways=gateways,
            operations=lifecycle,
            refreshes=refreshes,
            removals=removals,
            secrets=secrets,
            chronicle=chronicle,
            clock=clock,
        )
        pairing = Pairing(store, gateways, users, chronicle, clock)
        desk = WakeDesk(
            catalog=catalog,
            wakes=wakes,
            gateways=gateways,
            pairing=pairing,
            reports=reports,
            chronicle=chronicle,
            clock=clock,
        )
        tenants = Tenants(
            catalog=catalog,
            store=store,
            operations=lifecycle,
            gateways=gateways,
            users=users,
            pairing=pairing,
            secrets=secrets,
            refreshes=refreshes,
            removals=removals,
            chronicle=chronicle,
            clock=clock,
            host_networks=host_networks,
        )
        inspection = Inspection(catalog, lifecycle, known_runtimes, guests, chronicle)
        pools = Pools(
            catalog=catalog,
            operations=lifecycle,
            quotas=quotas,
            refreshes=refreshes,
            removals=removals,
            chronicle=chronicle,
            clock=clock,
        )
        retries = Retries(clock)
        reconciler = Reconciler(
            catalog=catalog,
            executor=Executor(
                catalog=catalog,
                tenants=tenants,
                pools=pools,
                users=users,
                operations=lifecycle,
                images=images,
                last_words=inspection.last_words,
            ),
            is_busy=lifecycle.busy,
            is_idle=lambda instance: observer.observe(instance).idle,
            secrets=secrets,
            removals=removals,
            desired=DesiredStore(catalog, store),
            retries=retries,
            chronicle=chronicle,
            clock=clock,
        )
        deployments = Deployments(
            catalog=catalog,
            reconciler=reconciler,
            tenants=tenants,
            pools=pools,
            users=users,
            secrets=secrets,
            gateways=gateways,
            operations=lifecycle,
            reports=reports,
            chronicle=chronicle,
            clock=clock,
        )
        recovery = Recovery(
            catalog=catalog,
            runtimes=known_runtimes,
            lifecycle=lifecycle,
            bring_up=bring_up,
            rest=rest,
            records=records,
            guests=guests,
            attachments=attachments,
            chronicle=chronicle,
            clock=clock,
        )
        policy = PolicyLoop(
            catalog=catalog,
            lifecycle=lifecycle,
            wakes=wakes,
            observer=observer,
            quotas=quotas,
            reports=reports,
            guests=guests,
            runtimes=known_runtimes,
            chronicle=chronicle,
            attachments=attachments,
            retries=retries,
            host_view=host_view,
            memory=read_memory,
            clock=clock,
        )
        policy.on_death = reconciler.kick
        preparer.on_gateway_moved = refreshes.gateway_moved
        stack.push_async_callback(networks.close)
        await networks.start()
        explainer = Explainer(
            catalog=catalog,
            observer=observer,
            quotas=quotas,
            gateways=gateways,
            policy=policy,
            chronicle=chronicle,
            clock=clock,
        )
        yield Host(
            locations=locations,
            clock=clock,
            catalog=catalog,
            runtimes=known_runtimes,
            directories=directories,
            reports=reports,
            guests=guests,
            observer=observer,
            quotas=quotas,
            chronicle=chronicle,
            gateways=gateways,
            secrets=secrets,
            preparer=preparer,
            lifecycle=lifecycle,
            wakes=wakes,
            recovery=recovery,
            policy=policy,
            refreshes=refreshes,
            removals=removals,
            users=users,
            pairing=pairing,
            tenants=tenants,
            pools=pools,
            reconciler=reconciler,
            deployments=deployments,
            inspection=inspection,
            explainer=explainer,
            accounting=accounting,
            backups=Backups(
                catalog=catalog,
                lifecycle=lifecycle,
                runtimes=known_runtimes,
                tenants=tenants,
                pools=pools,
                users=users,
                secrets=secrets,
                chronicle=chronicle,
                clock=clock,
            ),
            transfers=Transfers(locations.state_dir / "transfers", clock),
            attachments=attachments,
            bases=bases,
            images=images,
            networks=networks,
            shutdown=asyncio.Event(),
            serving=asyncio.Event(),
        )


async def serve(locations: Locations) -> None:
    """Run the agent until SIGTERM, SIGINT or a `Shutdown` request. Instances live on when it ends.

    Requests are taken as soon as every instance that an earlier agent left in the middle of something is locked; one
    about such an instance waits until it is recovered.
    """
    await asyncio.to_thread(prepare_directories, locations)
    style = LogStyle.CONSOLE if sys.stderr.isatty() else LogStyle.JSON
    level = logging.getLevelNamesMapping()[locations.log_level.upper()]
    configure(style, level=level, file=_own_log(locations))
    programs = await asyncio.to_thread(host_programs, locations)
    missing = await what_is_missing()
    qemu = QemuRuntime(run_dir=locations.run_dir, open_tap=_open_tap, user_network=missing is not None)
    if missing is not None:
        log.info("machines would get no network of their tenant", reason=missing, see="docs/network.md")
    runtimes: dict[str, Runtime] = {"qemu": qemu, "process": ProcessRuntime(programs)}
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(only_agent(locations.socket))
        stack.push_async_callback(qemu.close)  # machines run on without it
        host = await stack.enter_async_context(open_host(locations, runtimes, environment={}))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, host.shutdown.set)
        observe = await stack.enter_async_context(observed(host))
        await _run(host, ApiServer(REQUESTS, host, observe=observe))


def _open_tap(machine: Machine) -> int | None:
    """The network device of a machine; one that belongs to no tenant has nobody at its other end."""
    return open_tap(machine.tap, machine.bridge) if machine.bridge else None


@contextlib.asynccontextmanager
async def observed(host: Host) -> AsyncIterator[Callable[[str, str], None]]:
    """Show metrics and health while the block runs, where a port was set; gives what the API tells its requests to."""
    port = host.locations.metrics_port
    if port is None:
        yield lambda kind, result: None
        return
    from mvm.host.console import Console  # aiohttp and prometheus_client only where they are used
    from mvm.host.observability import Observability

    observability = Observability(host.catalog, host.chronicle, healthy=host.serving.is_set)
    console = Console(host.explainer, host.chronicle.events, token=random_token(host.clock.entropy))
    async with observability.shown(port, console) as host.metrics_port:
        host.console_link = console.link(host.metrics_port)
        host.reconciler.observe = lambda seconds, errors: observability.metrics.reconciled(seconds, errors=errors)
        yield observability.request


def _own_log(locations: Locations) -> Path | None:
    """The log file when this is a background agent, whose stderr it is: only the agent itself can bound its size."""
    path = log_path(locations)
    try:
        return path if os.path.samestat(os.fstat(sys.stderr.fileno()), path.stat()) else None
    except (OSError, ValueError):
        return None


async def _run(host: Host, api: ApiServer[Host]) -> None:
    holding = asyncio.Event()
    work = [
        asyncio.create_task(_recover(host, holding), name="recovery"),
        asyncio.create_task(host.policy.run(), name="policy"),
    ]
    work.append(asyncio.create_task(_account(host, work[0]), name="accounting"))
    work.append(asyncio.create_task(_reconcile(host, work[0]), name="reconcile"))
    stopping = asyncio.create_task(host.shutdown.wait(), name="shutdown")
    try:
        await holding.wait()
        await api.start(host.locations.socket)
        host.serving.set()
        log.info("agent serves", socket=str(host.locations.socket), instances=len(host.catalog.instances))
        await asyncio.wait([stopping, work[1]], return_when=asyncio.FIRST_COMPLETED)
        if work[1].done():
            work[1].result()
    finally:
        host.serving.clear()
        await api.close()
        for task in (stopping, *work):
            task.cancel()
        await asyncio.gather(stopping, *work, return_exceptions=True)
        log.info("agent ends; instances run on")


async def _account(host: Host, recovery: asyncio.Task[None]) -> None:
    """What runs is known when everything is recovered, and can be counted from then on."""
    await recovery
    try:
        await host.accounting.run()
    except Exception:
        log.exception("usage is not counted any more")


async def _reconcile(host: Host, recovery: asyncio.Task[None]) -> None:
    """What runs is known when everything is recovered; only then is it compared with what should."""
    await recovery
    await host.reconciler.run()


async def _recover(host: Host, holding: asyncio.Event) -> None:
    """Instances first, then what was being removed, then whoever runs hears of changes that were cut short."""
    try:
        await host.recovery.run(holding=holding)
        for name in host.runtimes.names:
            await host.bases.clear_unfinished(host.runtimes.named(name))
        await host.users.resume_removals()
        await host.pools.resume_removals()
        await host.tenants.resume_removals()
        await host.refreshes.tell_all(actor="recovery")
    except Exception:
        log.exception("recovery failed")
    finally:
        holding.set()
