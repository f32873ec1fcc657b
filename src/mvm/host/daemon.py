"""The daemon: one agent that serves its socket until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import structlog

from mvm.host.api import ApiServer, only_agent
from mvm.host.api_requests import REQUESTS
from mvm.host.app import Host, open_host
from mvm.host.autostart import log_path, prepare_directories
from mvm.host.locations import Locations
from mvm.host.networks import what_is_missing
from mvm.host.programs import host_programs
from mvm.host.remote import Identity, RemoteListener
from mvm.network.taps import make_lasting_tap, open_tap, remove_lasting_tap
from mvm.runtime.base import ChannelKind, Machine, Runtime
from mvm.runtime.firecracker import FirecrackerRuntime
from mvm.runtime.process import ProcessRuntime
from mvm.runtime.qemu import QemuRuntime
from mvm.security.tokens import random_token
from mvm.telemetry.logs import LogStyle, configure

log = structlog.get_logger(__name__)

UMASK = 0o022
"""Whatever the shell has that started it: what is in images does not depend on who builds them, and what is private is
closed by modes of its own, in directories that are closed too."""


async def serve(locations: Locations) -> None:
    """Run the agent until SIGTERM, SIGINT or a `Shutdown` request. Instances live on when it ends.

    Requests are taken as soon as every instance that an earlier agent left in the middle of something is locked; one
    about such an instance waits until it is recovered.
    """
    os.umask(UMASK)
    identity = await asyncio.to_thread(_identity, locations)
    await asyncio.to_thread(prepare_directories, locations)
    style = LogStyle.CONSOLE if sys.stderr.isatty() else LogStyle.JSON
    level = logging.getLevelNamesMapping()[locations.log_level.upper()]
    configure(style, level=level, file=_own_log(locations))
    programs = await asyncio.to_thread(host_programs, locations)
    missing = await what_is_missing()
    qemu = QemuRuntime(
        run_dir=locations.run_dir,
        open_tap=_open_tap,
        user_network=missing is not None,
        channel=ChannelKind(locations.qemu_channel),
    )
    firecracker = FirecrackerRuntime(
        programs_dir=locations.programs_dir,
        taps=HostTaps(),
        no_networks=missing,
        production=locations.production,
        diffs=locations.firecracker_snapshots == "diff",
    )
    if missing is not None:
        tell_of_no_networks(missing)
    runtimes: dict[str, Runtime] = {
        "firecracker": firecracker,
        "qemu": qemu,
        "process": ProcessRuntime(programs),
    }
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(only_agent(locations.socket))
        for machines in (firecracker, qemu):
            stack.push_async_callback(machines.close)  # they run on without it
        host = await stack.enter_async_context(open_host(locations, runtimes, environment={}))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, host.shutdown.set)
        observe = await stack.enter_async_context(observed(host))
        await run(host, ApiServer(REQUESTS, host, observe=observe), identity)


def _identity(locations: Locations) -> Identity | None:
    """By what the agent is known in the network; raises before anything is begun when it shall listen and has none."""
    return None if locations.listen is None else Identity(locations.state_dir)


def tell_of_no_networks(reason: str) -> None:
    """Say why machines get no network of their tenant; where the agent is root, networks were to be expected."""
    say = log.warning if os.geteuid() == 0 else log.info
    say(
        "machines get no network of their tenant until the agent is started again", reason=reason, see="docs/network.md"
    )


def _open_tap(machine: Machine) -> int | None:
    """The network device of a machine; one that belongs to no tenant has nobody at its other end."""
    return open_tap(machine.tap, machine.bridge) if machine.bridge else None


class HostTaps:
    """The network devices of machines that open them themselves."""

    def make(self, machine: Machine, name: str) -> None:
        make_lasting_tap(name, machine.bridge, owner=machine.uid)

    def remove(self, name: str) -> None:
        remove_lasting_tap(name)


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


async def run(host: Host, api: ApiServer[Host], identity: Identity | None) -> None:
    """Recover, take requests and do the agent's own work until it is told to end; `identity`: from the network too."""
    remote = None if identity is None else RemoteListener(api, identity)
    holding = asyncio.Event()
    work = [
        asyncio.create_task(_recover(host, holding), name="recovery"),
        asyncio.create_task(host.policy.run(), name="policy"),
    ]
    work.append(asyncio.create_task(_account(host, work[0]), name="accounting"))
    work.append(asyncio.create_task(_reconcile(host, work[0]), name="reconcile"))
    work.append(asyncio.create_task(_watch_channels(host, work[0]), name="channels"))
    stopping = asyncio.create_task(host.shutdown.wait(), name="shutdown")
    try:
        await holding.wait()
        await api.start(host.locations.socket)
        if remote is not None and host.locations.listen is not None:
            host.listens = str(await remote.start(host.locations.listen))
        host.serving.set()
        log.info("agent serves", socket=str(host.locations.socket), instances=len(host.catalog.instances))
        await asyncio.wait([stopping, work[1]], return_when=asyncio.FIRST_COMPLETED)
        if work[1].done():
            work[1].result()
    finally:
        host.serving.clear()
        if remote is not None:
            remote.refuse_more()
        await api.close()
        if remote is not None:
            await remote.close()
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


async def _watch_channels(host: Host, recovery: asyncio.Task[None]) -> None:
    """Gateways can be asked when they are recovered."""
    await recovery
    await host.channels.run()


async def _recover(host: Host, holding: asyncio.Event) -> None:
    """What is left of bases and builds, before anybody can ask for one; then instances, then what was being removed,
    then whoever runs hears of changes that were cut short."""
    for name in host.runtimes.names:
        for what, clear in (
            ("base", host.bases.clear_unfinished),
            ("build", host.build_machines.clear_unfinished),
        ):
            try:
                await clear(host.runtimes.named(name))
            except Exception:
                log.exception("what is left unfinished could not be removed", what=what, runtime=name)
    steps: list[tuple[str, Callable[[], Awaitable[None]]]] = [
        ("instances", lambda: host.recovery.run(holding=holding)),
        ("removals of users", host.users.resume_removals),
        ("removals of pools", host.pools.resume_removals),
        ("removals of tenants", host.tenants.resume_removals),
        ("changes that were cut short", lambda: host.refreshes.tell_all(actor="recovery")),
    ]
    for what, step in steps:
        try:
            await step()
        except Exception:  # what goes wrong with one of them keeps none of the others from being put right
            log.exception("recovery failed", step=what)
        finally:
            holding.set()
