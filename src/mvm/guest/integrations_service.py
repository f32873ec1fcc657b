"""Integrations as a service of their own (unit `mvm-integration-manager`), and the agent's side of it.

Where systemd supervises, the commands of integrations run in this service's control group, and nothing of them is left
when it ends. What is done is `mvm.guest.integrations` either way; requests are those of `supervisor_socket`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mvm.guest import config as config_files
from mvm.guest.channel import HOST_PORT, open_channel
from mvm.guest.config import Integration
from mvm.guest.integrations import Integrations
from mvm.guest.paths import GuestPaths
from mvm.guest.router_host import Events, Host
from mvm.guest.services import Programs
from mvm.guest.stopping import told_to_end
from mvm.guest.supervisor_socket import (
    OperationRefused,
    SupervisorClient,
    SupervisorSocket,
    SupervisorUnreachable,
    seconds_of,
)
from mvm.wire.messages import CheckpointResult, IntegrationState, IntegrationStatus, IntegrationStatusReport
from mvm.wire.tagged import answers_to, render

log = logging.getLogger(__name__)

START_SECONDS = 4.0
"""How long the agent waits for the service to come up beside it."""
RETRY_SECONDS = 0.05
STATUS_SECONDS = 10.0


class IntegrationsDesk:
    """Answers the service's requests; knows the integrations of `config.json` as it is at that moment."""

    def __init__(self, paths: GuestPaths, integrations: Integrations) -> None:
        self._paths = paths
        self._integrations = integrations
        self.user: str | None = None
        """Whose instance this is."""

    async def operate(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do one thing. Raises `OperationRefused`."""
        try:
            config = config_files.read(self._paths.config).config
        except config_files.ConfigError as error:
            raise OperationRefused(str(error)) from error
        self.user = config.user
        self._integrations.configure(config.integrations)
        match operation:
            case "checkpoint":
                names = request.get("names")
                if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                    raise OperationRefused("names has to be a list of names")
                result = await self._integrations.checkpoint(names, seconds_of(request, "seconds", 0.0))
                return {"success": result.success, "failed": list(result.failed), "detail": result.detail}
            case "restore":
                seconds, patience = seconds_of(request, "seconds", 0.0), seconds_of(request, "patience", 0.0)
                return {"failed": await self._integrations.restore(seconds, patience=patience)}
            case "status":
                report = IntegrationStatusReport(integrations=await self._integrations.status())
                return {"report": render(report)}
        raise OperationRefused(f"unknown operation {operation[:40]!r}")


class IntegrationsClient:
    """What `mvm.guest.integrations.Integrations` does, done by the service. It need not be up yet."""

    def __init__(self, paths: GuestPaths, *, start_seconds: float = START_SECONDS) -> None:
        self._socket = SupervisorClient(paths.integrations_socket)
        self._start_seconds = start_seconds

    def configure(self, integrations: Sequence[Integration]) -> None:
        """Nothing: the service reads the configuration itself."""

    async def checkpoint(self, names: Sequence[str], seconds: float) -> CheckpointResult:
        """Every one has failed when the service does not answer: nobody knows which one is critical."""
        if not names:
            return CheckpointResult(success=True)
        try:
            answer = await self._ask({"op": "checkpoint", "names": list(names), "seconds": seconds}, seconds)
        except (OperationRefused, SupervisorUnreachable) as error:
            return CheckpointResult(success=False, failed=tuple(sorted(set(names))), detail=str(error))
        return CheckpointResult(success=answer["success"], failed=tuple(answer["failed"]), detail=answer["detail"])

    async def restore(self, seconds: float, *, patience: float) -> dict[str, str]:
        """As `Integrations.restore`; a service that does not answer is a failure of its own."""
        try:
            answer = await self._ask({"op": "restore", "seconds": seconds, "patience": patience}, patience)
        except (OperationRefused, SupervisorUnreachable) as error:
            return {"integrations": str(error)}
        return dict(answer["failed"])

    async def status(self) -> tuple[IntegrationState, ...]:
        """As `Integrations.status`. Raises `OperationRefused` or `SupervisorUnreachable`."""
        answer = await self._ask({"op": "status"}, STATUS_SECONDS)
        report = answers_to(IntegrationStatus).parse(answer["report"])
        assert isinstance(report, IntegrationStatusReport)
        return report.integrations

    async def close(self) -> None:
        """Nothing: what is being restored goes on."""

    async def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._start_seconds
        while True:
            try:
                return await self._socket.ask(request, seconds)
            except SupervisorUnreachable:
                if loop.time() > deadline:
                    raise
            await asyncio.sleep(RETRY_SECONDS)


async def serve(environment: Mapping[str, str]) -> None:
    """Run until SIGTERM or SIGINT. Raises `OSError` or `ValueError` when it cannot."""
    stop = told_to_end()
    paths = GuestPaths.from_environment(environment)
    paths.prepare()
    channel = open_channel(environment)
    events = Events(Host(lambda: channel.connect(HOST_PORT)))
    integrations = Integrations(
        paths,
        Programs.from_environment(environment),
        lambda kind, detail: events.report(kind, detail, user=desk.user),
    )
    desk = IntegrationsDesk(paths, integrations)
    server = SupervisorSocket(paths.integrations_socket, desk.operate)
    events.start()
    try:
        await server.listen()
        await stop.wait()
    finally:
        server.close()
        await integrations.close()
        await events.close()
