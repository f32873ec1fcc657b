"""A worker's doors: the forwarder through which turns arrive, the outbox through which reminders leave."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

from mvm.guest.config import GuestConfig, OpenClawConfig
from mvm.guest.database import StorageError
from mvm.guest.forwarder import DeliveryForwarder
from mvm.guest.outbox import Outbox, OutboxSettings
from mvm.guest.paths import GuestPaths
from mvm.guest.secrets import AUTH_TOKEN

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class Deliveries:
    """Forwarder and outbox of one worker, opened and kept trying until they are open."""

    def __init__(
        self,
        paths: GuestPaths,
        config: GuestConfig,
        *,
        on_change: Callable[[], None],
        on_reachable: Callable[[bool], None],
        on_event: Callable[[str, str], None],
    ) -> None:
        """`on_change` follows the counts, `on_reachable` whether deliveries can arrive, `on_event` what goes wrong."""
        self._paths = paths
        self._on_reachable = on_reachable
        self._on_event = on_event
        openclaw = _openclaw(config)
        self._forwarder = DeliveryForwarder(
            host=config.guest_ip,
            port=openclaw.forwarder_port,
            sources=openclaw.delivery_sources,
            target_port=openclaw.port,
            on_change=on_change,
        )
        self._outbox = Outbox(outbox_settings(paths, config), on_event=on_event, on_change=on_change)
        self._outbox_runs = False
        self._retry: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        """Deliveries that are open now."""
        return self._forwarder.in_flight

    @property
    def pending(self) -> int:
        """Messages that wait in the outbox."""
        return self._outbox.pending

    def configure(self, config: GuestConfig) -> None:
        """Take over a changed configuration; ports stay. With another address the doors are shut until `open`."""
        openclaw = _openclaw(config)
        self._forwarder.configure(host=config.guest_ip, sources=openclaw.delivery_sources, target_port=openclaw.port)
        self._outbox.configure(outbox_settings(self._paths, config))

    async def open(self) -> None:
        """Let deliveries in, and keep trying in the background when that is not possible yet. Idempotent."""
        await self._stop_retrying()
        if not await self._try():
            self._retry = asyncio.create_task(self._keep_trying(), name="open deliveries")

    async def close_for_sleep(self, seconds: float) -> bool:
        """Let nobody in any more; False when deliveries are still open after `seconds`. The outbox goes on."""
        await self._stop_retrying()
        return await self._forwarder.close_for_sleep(seconds)

    def nudge(self) -> None:
        """Send what waits in the outbox now: the network is back."""
        self._outbox.nudge()

    async def close(self) -> None:
        """End everything."""
        await self._stop_retrying()
        await self._forwarder.close()
        if self._outbox_runs:
            await self._outbox.close()

    async def _try(self) -> bool:
        reachable = await self._attempt("the forwarder", self._forwarder.start())
        self._on_reachable(reachable)
        if not self._outbox_runs:
            self._outbox_runs = await self._attempt("the outbox", self._outbox.start())
        return reachable and self._outbox_runs

    async def _attempt(self, what: str, start: Coroutine[Any, Any, None]) -> bool:
        try:
            await start
        except (OSError, StorageError) as error:
            if self._retry is None:
                log.error("%s cannot be opened: %s", what, error)
                self._on_event("DeliveriesClosed", f"{what} cannot be opened: {error}")
            return False
        return True

    async def _keep_trying(self) -> None:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            if await self._try():
                return

    async def _stop_retrying(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            await asyncio.gather(self._retry, return_exceptions=True)
            self._retry = None


def outbox_settings(paths: GuestPaths, config: GuestConfig) -> OutboxSettings:
    """What the outbox is told."""
    openclaw = _openclaw(config)
    return OutboxSettings(
        port=openclaw.outbox_port,
        database=paths.outbox,
        token=paths.outbox_token,
        gateway_url=openclaw.gateway_url or "",
        worker_key=openclaw.worker_key or "",
        auth_token=paths.secrets / "openclaw" / AUTH_TOKEN,
        guest_ip=config.guest_ip if _is_address(openclaw.gateway_url) else None,
    )


def _is_address(url: str | None) -> bool:
    """Whether a URL names an address of the tenant's network, which knows us by our own; a name may be anywhere."""
    try:
        ipaddress.IPv4Address(urlsplit(url or "").hostname or "")
    except ValueError:
        return False
    return True


def _openclaw(config: GuestConfig) -> OpenClawConfig:
    assert config.openclaw is not None, "checked when the configuration is read"
    return config.openclaw
