"""One guest with a usable configuration: its parts, put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial

from mvm.guest import config as config_files
from mvm.guest import exec as execution
from mvm.guest import observe
from mvm.guest.config import GuestConfig
from mvm.guest.control import ControlSocket
from mvm.guest.deliveries import Deliveries
from mvm.guest.drives import Drives
from mvm.guest.integrations import Integrations, SavesIntegrations
from mvm.guest.integrations_service import IntegrationsClient
from mvm.guest.openclaw_restart import renew_by_unit
from mvm.guest.openclaw_watch import OpenClawWatch
from mvm.guest.paths import GuestPaths
from mvm.guest.reporter import Reporter
from mvm.guest.router_host import Events, Host
from mvm.guest.services import Programs, Role
from mvm.guest.sleep import SleepDesk
from mvm.guest.status import Markers, StatusBoard
from mvm.guest.supervisor_socket import SupervisorClient
from mvm.guest.wake import WakeDesk
from mvm.wire import messages
from mvm.wire.messages import Answer, HostToGuest

log = logging.getLogger(__name__)


class Instance:
    """Everything the agent does for one instance."""

    def __init__(
        self,
        paths: GuestPaths,
        programs: Programs,
        config: GuestConfig,
        *,
        host: Host,
        events: Events,
        supervisor: SupervisorClient,
        by_systemd: bool = False,
    ) -> None:
        """`by_systemd`: integrations and restarts of OpenClaw are units of their own."""
        self._paths = paths
        self._config = config
        self._events = events
        self._supervisor = supervisor
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        control = ControlSocket(paths.control_socket)
        self._deliveries = self._make_deliveries()
        self.board = StatusBoard(
            runs_openclaw=config.role.runs_openclaw,
            deliveries=lambda: 0 if self._deliveries is None else self._deliveries.in_flight,
            outbound=lambda: 0 if self._deliveries is None else self._deliveries.pending,
        )
        self.board.set_reachable(self._deliveries is None)
        markers = Markers(paths)
        self.board.listen(lambda: markers.show(self.board.current().status))
        self._reporter = Reporter(self.board, host)
        self._integrations: SavesIntegrations = (
            IntegrationsClient(paths) if by_systemd else Integrations(paths, programs, self._event)
        )
        self._integrations.configure(config.integrations)
        lock = asyncio.Lock()
        drives = Drives(paths)
        self._sleep = SleepDesk(
            paths,
            board=self.board,
            control=control,
            integrations=self._integrations,
            drives=drives,
            deliveries=self._deliveries,
            lock=lock,
        )
        self._watch = OpenClawWatch(control, self.board, port=self._openclaw_port, on_up=self._openclaw_is_up)
        self._wake = WakeDesk(
            paths,
            config=lambda: self._config,
            reread_config=self._reread_config,
            board=self.board,
            control=control,
            supervisor=supervisor,
            sleep=self._sleep,
            drives=drives,
            deliveries=self._deliveries,
            openclaw_ended=self._watch.reset,
            on_event=self._event,
            lock=lock,
            renew=partial(renew_by_unit, paths, supervisor, ended=self._watch.reset) if by_systemd else None,
        )

    def _make_deliveries(self) -> Deliveries | None:
        if self._config.role is not Role.CAPABILITY_OPENCLAW:
            return None
        return Deliveries(
            self._paths,
            self._config,
            on_change=lambda: self.board.changed(),
            on_reachable=lambda reachable: self.board.set_reachable(reachable),
            on_event=self._event,
        )

    async def run(self) -> None:
        """Put files in place, start services, open doors, and go on until cancelled. Raises what ends a part of it."""
        self._begin(self._reporter.run(), "reporter")
        if self._config.role.runs_openclaw:
            self._begin(self._watch.run(), "watch")
        await self._wake.start()
        await self._failed

    def _begin(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A part that ends by itself has failed; the supervisor starts the agent anew."""
        if not task.cancelled() and not self._failed.done():
            self._failed.set_exception(task.exception() or RuntimeError(f"{task.get_name()} ended"))

    async def close(self) -> None:
        """End every part; services are the supervisor's."""
        await self._wake.close()
        await self._sleep.close()
        await self._integrations.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._deliveries is not None:
            await self._deliveries.close()

    async def answer(self, request: HostToGuest) -> Answer:
        """Answer one request of the host. Raises `mvm.wire.rpc.Refusal` with the reason when it is refused."""
        match request:
            case messages.Ping():
                return messages.Pong()
            case messages.QueryWorkerStatus():
                return self.board.current()
            case messages.SleepPrep():
                return await self._sleep.prepare(request.drain_timeout_secs)
            case messages.Wake() | messages.BareWake():
                return await self._wake.wake(request)
            case messages.Refresh():
                return await self._wake.refresh(request)
            case messages.CheckpointIntegrations():
                return await self._sleep.checkpoint(request.integrations, self.drain_seconds)
            case messages.IntegrationStatus():
                return messages.IntegrationStatusReport(integrations=await self._integrations.status())
            case messages.Exec():
                with self.board.work():
                    return await execution.run(self._paths, request, allowed=self._config.allow_exec)
            case messages.Logs():
                return await asyncio.to_thread(observe.logs, self._paths, request)
            case messages.Stats():
                return await observe.stats(self._paths, await self._supervisor.status(), self._config.mem_mib)

    @property
    def drain_seconds(self) -> float:
        """How long what is under way may take to end when nobody says otherwise."""
        return float(self._config.runtime_policy.drain_timeout_seconds)

    def _reread_config(self) -> None:
        reading = config_files.read(self._paths.config)
        if reading.config.role is not self._config.role:
            raise config_files.ConfigError(f"the role cannot change from {self._config.role} to {reading.config.role}")
        for path in reading.unknown:
            log.warning("config.json: %s is not known here and skipped", path)
        self._config = reading.config
        self._integrations.configure(reading.config.integrations)

    def _openclaw_port(self) -> int:
        assert self._config.openclaw is not None
        return self._config.openclaw.port

    async def _openclaw_is_up(self) -> None:
        await self._wake.openclaw_is_up()

    def _event(self, kind: str, detail: str) -> None:
        self._events.report(kind, detail, user=self._config.user)
