"""The router: between the gateway's OpenClaw and everybody's worker (the way of a message is in DESIGN).

One process of the gateway instance. It holds the delivery journal, asks the host for wakes, passes the turn's WebSocket
through to the worker, and takes what workers have to say without having been asked. It keeps nothing in memory that a
restart may not lose.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from mvm.guest import courier, journal, pipe
from mvm.guest.courier import LONGEST_DELAY
from mvm.guest.database import Database, StorageError
from mvm.guest.http_server import HttpServer
from mvm.guest.journal import DeliveryJournal
from mvm.guest.router_api import RouterApi
from mvm.guest.router_host import Events, Host
from mvm.guest.router_lobby import Lobby
from mvm.guest.router_outbound import OutboundDesk
from mvm.guest.router_table import RouterTable
from mvm.guest.router_wake import WAKE_SECONDS, Wakes
from mvm.guest.router_ws import SILENCE_SECONDS, WorkerPipe
from mvm.guest.tokens import TokenFile

log = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS = 3600.0
STOP_GRACE_SECONDS = 8.0
"""How long requests under way may take to end at SIGTERM; the supervisor kills after 15 s."""


@dataclass(frozen=True, kw_only=True)
class RouterSettings:
    """Everything the router is told."""

    tenant_id: str
    guest_ip: str
    """This gateway's own address; workers and the outbound port see it."""
    router_port: int
    """Loopback port for the plugin."""
    outbound_port: int
    """Port on `guest_ip` for the workers' outboxes."""
    openclaw_port: int
    """Loopback port of OpenClaw."""
    routes: Path
    users: Path
    journal: Path
    token: Path
    """The router's own token, made when absent."""
    worker_tokens: Path
    """Directory with one token file per granted worker."""
    wake_seconds: float = WAKE_SECONDS
    silence_seconds: float = SILENCE_SECONDS
    longest_delay: float = LONGEST_DELAY
    """Longest pause between two attempts to hand an outbound message to OpenClaw."""


class Router:
    """The router's parts, put together."""

    def __init__(self, settings: RouterSettings, connect_host: Callable[[], Awaitable[pipe.Connection]]) -> None:
        """`connect_host` opens a connection to host port 53."""
        self._settings = settings
        self._token = TokenFile(settings.token)
        host = Host(connect_host)
        self._events = Events(host)
        self._deliveries = self._database(settings.journal, journal.SCHEMA, journal.VERSION)
        self._outbound_queue = self._database(
            settings.journal.with_name("outbound.db"), courier.SCHEMA, courier.VERSION
        )
        self._journal = DeliveryJournal(self._deliveries)
        self._wakes = Wakes(host, source=settings.guest_ip, wake_seconds=settings.wake_seconds)
        self.table = RouterTable(
            routes=settings.routes,
            users=settings.users,
            tenant_id=settings.tenant_id,
            on_problem=lambda problem: self._events.report("RoutesRejected", problem),
            on_change=lambda: self._outbound.nudge(),
        )
        self._outbound = OutboundDesk(
            database=self._outbound_queue,
            table=self.table,
            wakes=self._wakes,
            events=self._events,
            worker_tokens=settings.worker_tokens,
            router_token=self._token,
            openclaw_port=settings.openclaw_port,
            longest_delay=settings.longest_delay,
        )
        self._api = RouterApi(
            token=self._token,
            table=self.table,
            journal=self._journal,
            wakes=self._wakes,
            workers=WorkerPipe(self._wakes, source=settings.guest_ip, silence_seconds=settings.silence_seconds),
            lobby=Lobby(host, self._events),
            events=self._events,
        )
        # A wake may take two minutes: the plugin's long poll is the slowest request.
        self._loopback = HttpServer(self._api.handle)
        self._network = HttpServer(self._outbound.handle, max_per_caller=8)
        self._housekeeping: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """Loopback port that the plugin talks to."""
        return self._loopback.port

    @property
    def outbound_port(self) -> int:
        """Port on the gateway's own address that the workers' outboxes talk to."""
        return self._network.port

    async def start(self) -> None:
        """Serve. Raises `OSError` when an address is taken, `StorageError` when the journal cannot be opened."""
        self._token.ensure()
        await self._deliveries.open()
        await self._outbound_queue.open()
        self.table.reload()
        self._events.start()
        await self._outbound.start()
        await self._network.start(self._settings.guest_ip, self._settings.outbound_port)
        await self._loopback.start("127.0.0.1", self._settings.router_port)
        self._housekeeping = asyncio.create_task(self._keep_house(), name="housekeeping")

    async def close(self, grace: float = STOP_GRACE_SECONDS) -> None:
        """Take nothing new, let what is under way end within `grace` seconds, and close the files."""
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        await asyncio.gather(self._loopback.close(grace), self._network.close(grace), self._outbound.close(grace))
        await self._wakes.close()
        await self._events.close()
        await self._deliveries.close()
        await self._outbound_queue.close()

    def _database(self, path: Path, schema: str, version: int) -> Database:
        return Database(path, schema=schema, version=version, on_set_aside=self._set_aside)

    def _set_aside(self, text: str) -> None:
        self._events.report("JournalSetAside", text)

    async def _keep_house(self) -> None:
        while True:
            try:
                await self._journal.forget_old()
                await self._outbound.forget_old()
            except StorageError as error:
                log.error("old entries cannot be forgotten: %s", error)
            await asyncio.sleep(HOUSEKEEPING_SECONDS)


async def serve(settings: RouterSettings, connect_host: Callable[[], Awaitable[pipe.Connection]]) -> None:
    """Run until SIGTERM or SIGINT; SIGHUP reads the table again."""
    router = Router(settings, connect_host)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, router.table.reload)
    try:
        await router.start()
        log.info("router listens on 127.0.0.1:%d and %s:%d", router.port, settings.guest_ip, router.outbound_port)
        await stop.wait()
    finally:
        await router.close()
