"""The guest agent: answers the host on guest port 52 (frames) and 5200 (`sleep_port`), whatever else is wrong.

A guest whose configuration cannot be used still answers, and says so; it looks again every second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress

from mvm.guest import config as config_files
from mvm.guest import observe
from mvm.guest.channel import AGENT_PORT, HOST_PORT, SLEEP_PREP_PORT, Channel, open_channel
from mvm.guest.config import ConfigError
from mvm.guest.instance import Instance
from mvm.guest.paths import GuestPaths
from mvm.guest.router_host import Events, Host
from mvm.guest.services import Programs
from mvm.guest.sleep_port import SleepPrepPort
from mvm.guest.stopping import told_to_end
from mvm.guest.supervisor_socket import OperationRefused, SupervisorClient, SupervisorUnreachable
from mvm.guest.units import is_supervised_by_systemd
from mvm.wire import messages, rpc
from mvm.wire.messages import Answer, HostToGuest, SleepPrepAck

log = logging.getLogger(__name__)

CONFIG_RETRY_SECONDS = 1.0
IDLE_CONNECTION_SECONDS = 60.0
"""How long a connection of the host's may wait between two requests."""


class Agent:
    """Serves the guest's ports, over one `Instance` as soon as there is a usable configuration."""

    def __init__(self, paths: GuestPaths, programs: Programs, channel: Channel, *, by_systemd: bool = False) -> None:
        """`by_systemd`: some of its parts are units of their own (`mvm.guest.units`)."""
        self._by_systemd = by_systemd
        self._paths = paths
        self._programs = programs
        self._channel = channel
        self._host = Host(lambda: channel.connect(HOST_PORT))
        self._events = Events(self._host)
        self._supervisor = SupervisorClient(paths.supervisor_socket)
        self._instance: Instance | None = None
        self._problem = "the configuration has not been read yet"
        self._servers: list[asyncio.AbstractServer] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises `OSError` when a guest port cannot be served."""
        self._events.start()
        running = asyncio.create_task(self._run_instance(), name="instance")
        ended = asyncio.create_task(stop.wait(), name="stop")
        try:
            self._servers.append(await self._channel.listen(AGENT_PORT, self._serve))
            if not self._by_systemd:
                port = SleepPrepPort(self._prepare_sleep)
                self._servers.append(await self._channel.listen(SLEEP_PREP_PORT, port.serve))
            await asyncio.wait([ended, running], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()  # raises what ended it
        finally:
            ended.cancel()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            for server in self._servers:
                server.close()
            if self._instance is not None:
                await self._instance.close()
            await self._events.close()

    async def _run_instance(self) -> None:
        while True:
            try:
                self._refuse_half_a_machine()
                reading = config_files.read(self._paths.config)
            except ConfigError as error:
                if str(error) != self._problem:
                    log.error("%s", error)
                    self._events.report("ConfigRejected", str(error))
                self._problem = str(error)
                await asyncio.sleep(CONFIG_RETRY_SECONDS)
                continue
            break
        for path in reading.unknown:
            log.warning("config.json: %s is not known here and skipped", path)
        self._instance = Instance(
            self._paths,
            self._programs,
            reading.config,
            host=self._host,
            events=self._events,
            supervisor=self._supervisor,
            by_systemd=self._by_systemd,
        )
        await self._instance.run()

    def _refuse_half_a_machine(self) -> None:
        with suppress(FileNotFoundError):
            raise ConfigError(self._paths.boot_problem.read_text())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await rpc.serve_connection(
            reader, writer, self._answer, parse=messages.parse_request, timeout=IDLE_CONNECTION_SECONDS
        )

    async def _answer(self, request: HostToGuest) -> Answer:
        if self._instance is not None:
            try:
                return await self._instance.answer(request)
            except (OperationRefused, SupervisorUnreachable) as error:
                raise rpc.Refusal(str(error)) from error
        match request:
            case messages.Ping():
                return messages.Pong()
            case messages.QueryWorkerStatus():
                return messages.WorkerStatus(status=messages.WorkStatus.UNKNOWN)
            case messages.Logs():
                return await asyncio.to_thread(observe.logs, self._paths, request)
            case _:
                raise rpc.Refusal(self._problem)

    async def _prepare_sleep(self) -> SleepPrepAck:
        if self._instance is None:
            raise rpc.Refusal(self._problem)
        answer = await self._instance.answer(messages.SleepPrep(drain_timeout_secs=int(self._instance.drain_seconds)))
        assert isinstance(answer, SleepPrepAck)
        return answer


async def serve(environment: Mapping[str, str]) -> None:
    """Run the agent until SIGTERM or SIGINT. Raises `OSError` or `ValueError` when it cannot."""
    stop = told_to_end()
    paths = GuestPaths.from_environment(environment)
    paths.prepare()
    programs, channel = Programs.from_environment(environment), open_channel(environment)
    await Agent(paths, programs, channel, by_systemd=is_supervised_by_systemd(environment)).run(stop)
