"""The agent of one host, put together: the composition root. The daemon around it is `mvm.host.daemon`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from mvm.host.accounting import Accounting
from mvm.host.attachments import Attachments
from mvm.host.audit import AuditLog
from mvm.host.backups import Backups
from mvm.host.bases import Bases
from mvm.host.bring_up import BringUp
from mvm.host.budgets import Budgets
from mvm.host.build_machines import BuildMachines
from mvm.host.catalog import Catalog
from mvm.host.channel_watch import ChannelWatch
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
from mvm.host.networks import Networks
from mvm.host.observation import Observer
from mvm.host.orphans import Orphans
from mvm.host.pairing import Pairing
from mvm.host.policy_loop import PolicyLoop
from mvm.host.pools import Pools
from mvm.host.programs import builder_image, image_builders, image_contents
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
from mvm.image.revisions import Revisions
from mvm.runtime.base import Runtime
from mvm.security.vault import Vault
from mvm.store.sqlite import SqliteStore

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
    channels: ChannelWatch
    backups: Backups
    transfers: Transfers
    attachments: Attachments
    bases: Bases
    build_machines: BuildMachines
    images: Images
    networks: Networks
    orphans: Orphans
    shutdown: asyncio.Event
    serving: asyncio.Event
    """Set while requests are taken."""
    metrics_port: int | None = None
    """Loopback port where the metrics and the console are shown."""
    listens: str | None = None
    """Where requests from the network are taken."""
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
        build_machines = BuildMachines(
            catalog=catalog,
            runtimes=known_runtimes,
            directories=directories,
            guests=guests,
            reports=reports,
            slots=slots,
            networks=networks,
            clock=clock,
            image=builder_image(locations),
            settings=os.environ.get("NIX_CONFIG", ""),
        )
        images = Images(
            catalog=catalog,
            chronicle=chronicle,
            clock=clock,
            revisions=Revisions(directories.images),
            builders=image_builders(locations, build_machines),
            contents=lambda on_progress: image_contents(locations, on_progress),
            derived=bases,
        )
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
        retries = Retries(clock)
        wakes = Wakes(
            catalog=catalog,
            budgets=budgets,
            lifecycle=lifecycle,
            quotas=quotas,
            observer=observer,
            chronicle=chronicle,
            retries=retries,
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
            quotas=quotas,
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
        inspection = Inspection(catalog, lifecycle, known_runtimes, guests, chronicle, clock)
        pools = Pools(
            catalog=catalog,
            operations=lifecycle,
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
            require_login=inspection.require_login,
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
        stack.push_async_callback(images.close)  # a build in a machine has a place in them
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
            channels=ChannelWatch(
                catalog=catalog, lifecycle=lifecycle, runtimes=known_runtimes, guests=guests, chronicle=chronicle
            ),
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
            build_machines=build_machines,
            images=images,
            networks=networks,
            orphans=Orphans(catalog=catalog, lifecycle=lifecycle, directories=directories, devices=networks),
            shutdown=asyncio.Event(),
            serving=asyncio.Event(),
        )
