"""The router as a service of the gateway: settings from the config drive, then `mvm.guest.router.serve`."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping

from mvm.guest import channel, router
from mvm.guest.config import GuestConfig, read
from mvm.guest.database import StorageError
from mvm.guest.paths import GuestPaths
from mvm.guest.router import RouterSettings


def settings_of(config: GuestConfig, paths: GuestPaths) -> RouterSettings:
    """The router's settings. Raises `ValueError` for an instance that has no OpenClaw to route for."""
    if config.openclaw is None:
        raise ValueError(f"the role {config.role} has no router: the configuration names no OpenClaw")
    return RouterSettings(
        tenant_id=config.tenant_id,
        guest_ip=config.guest_ip,
        router_port=config.openclaw.router_port,
        outbound_port=config.openclaw.outbound_port,
        openclaw_port=config.openclaw.port,
        routes=paths.routes,
        users=paths.users,
        journal=paths.journal,
        token=paths.router_token,
        worker_tokens=paths.worker_tokens,
    )


def main(environment: Mapping[str, str]) -> int:
    """Run the router until SIGTERM; returns the exit status."""
    logging.basicConfig(
        level=logging.DEBUG if environment.get("MVM_LOG") == "debug" else logging.INFO,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        paths = GuestPaths.from_environment(environment)
        settings = settings_of(read(paths.config).config, paths)
        carrier = channel.open_channel(environment)
        asyncio.run(router.serve(settings, lambda: carrier.connect(channel.HOST_PORT)))
    except (OSError, ValueError, StorageError) as error:
        print(f"router: {error}", file=sys.stderr)
        return 1
    return 0
