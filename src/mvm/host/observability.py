"""Metrics and health of the agent over HTTP on a loopback port: `/metrics` and `/healthz` (CONTRACT 16).

Imported only where a port was set. What is shown are counts and durations of the whole host: no name of a tenant, a
user or an instance is among them. The console beside them (`mvm.host.console`) asks for a token.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable

import structlog
from aiohttp import web

from mvm.host.audit import AuditAction
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.console import Console
from mvm.model.entities import Instance, TransitionKind
from mvm.model.errors import Unavailable
from mvm.model.states import State
from mvm.telemetry.metrics import CONTENT_TYPE, Metrics

log = structlog.get_logger(__name__)

ADDRESS = "127.0.0.1"
_CLOSE_SECONDS = 1.0


class Observability:
    """Keeps the metrics of one agent from what its catalog and its chronicle tell."""

    def __init__(self, catalog: Catalog, chronicle: Chronicle, *, healthy: Callable[[], bool]) -> None:
        """`healthy` is asked at each look at the health."""
        self._catalog = catalog
        self._healthy = healthy
        self.metrics = Metrics(self._count)
        catalog.watchers.append(self._instance_changed)
        chronicle.recorded = self._recorded
        chronicle.snapshot_saved = self.metrics.snapshot

    def request(self, kind: str, result: str) -> None:
        """A request was answered (`ApiServer(observe=...)`)."""
        self.metrics.request(kind, result=result)

    def _count(self) -> Counter[State]:
        return Counter(instance.state for instance in self._catalog.instances.values())

    def _instance_changed(self, before: Instance | None, after: Instance | None) -> None:
        state = after.state if after else State.DESTROYED
        if before is None or before.state is not state:
            self.metrics.transition(state)
        if before is None or after is None:
            return
        if after.last_wake not in (None, before.last_wake) and after.last_wake.kind is TransitionKind.WAKE:
            self.metrics.woken(after.last_wake)
        if after.last_sleep not in (None, before.last_sleep):
            self.metrics.slept(after.last_sleep)

    def _recorded(self, action: AuditAction) -> None:
        if action is AuditAction.TRANSITION_DEFERRED:
            self.metrics.deferred()

    @contextlib.asynccontextmanager
    async def shown(self, port: int, console: Console | None = None) -> AsyncIterator[int]:
        """Answer on that loopback port (0: any free one) while the block runs; gives the port.

        Raises `Unavailable` when somebody else has it.
        """
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._health)
        if console is not None:
            console.add_to(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_SECONDS)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, ADDRESS, port).start()
            except OSError as error:
                raise Unavailable(
                    f"metrics cannot be shown on {ADDRESS}:{port}: {error.strerror or error}",
                    hint="choose another port, or 0 for any free one (metrics_port, MVM_METRICS_PORT)",
                ) from error
            found = int(runner.addresses[0][1])
            log.info("metrics are shown", url=f"http://{ADDRESS}:{found}/metrics")
            yield found
        finally:
            await runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _health(self, request: web.Request) -> web.Response:
        if not self._healthy():
            return web.Response(status=503, text="starting or ending\n")
        return web.Response(text="ok\n")
