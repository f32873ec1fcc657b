"""Having OpenClaw run with the environment that there is now.

Where systemd supervises, the restart is a unit of its own (`mvm-openclaw-wake`, `guest.pyz openclaw-wake`), which the
agent triggers: then it goes on although the agent may end meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping

from mvm.guest import config as config_files
from mvm.guest.integrations import describe
from mvm.guest.integrations_service import IntegrationsClient
from mvm.guest.paths import GuestPaths
from mvm.guest.services import OPENCLAW
from mvm.guest.supervisor_socket import OperationRefused, SupervisorClient, SupervisorUnreachable
from mvm.guest.units import OPENCLAW_WAKE

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
START_MARGIN_SECONDS = 60.0
"""What a restart may take beyond OpenClaw's end, until it is given up waiting for (it goes on all the same)."""

Renew = Callable[[], Awaitable[None]]
"""Have OpenClaw restarted for as long as its environment is an old one. Raises `OperationRefused`, `OSError`,
`SupervisorUnreachable`."""


async def start(supervisor: SupervisorClient, on_failure: Callable[[str], None]) -> None:
    """Have OpenClaw started, whatever it takes; a guest without it is of no use. `on_failure` is told once."""
    told = False
    while True:
        try:
            return await supervisor.start(OPENCLAW.name)
        except (OperationRefused, SupervisorUnreachable) as error:
            log.error("OpenClaw cannot be started: %s", error)
            if not told:
                on_failure(str(error))
                told = True
        await asyncio.sleep(RETRY_SECONDS)


async def renew(
    paths: GuestPaths,
    supervisor: SupervisorClient,
    *,
    ended: Callable[[], Awaitable[None]],
    on_failure: Callable[[str], None],
) -> None:
    """Stop and start it; `ended` is called in between."""
    while paths.restart_pending.exists():
        await supervisor.stop(OPENCLAW.name, grace=OPENCLAW.stop_seconds)
        await ended()
        paths.restart_pending.unlink(missing_ok=True)
        await start(supervisor, on_failure)


async def renew_by_unit(
    paths: GuestPaths, supervisor: SupervisorClient, *, ended: Callable[[], Awaitable[None]]
) -> None:
    """The same by the unit that is there for it; `ended` is called once the new one has been started."""
    while paths.restart_pending.exists():
        await supervisor.run(OPENCLAW_WAKE.short, seconds=OPENCLAW.stop_seconds + START_MARGIN_SECONDS)
        await ended()


async def wake(paths: GuestPaths) -> None:
    """Bring integrations back, and OpenClaw up to date. Raises what `renew` does, and `ConfigError`."""
    drain = config_files.read(paths.config).config.runtime_policy.drain_timeout_seconds
    supervisor = SupervisorClient(paths.supervisor_socket)

    async def nothing() -> None:
        """Whoever watches OpenClaw notices by itself."""

    failed, _ = await asyncio.gather(
        IntegrationsClient(paths).restore(float(drain), patience=float(drain)),
        renew(paths, supervisor, ended=nothing, on_failure=lambda _: None),
    )
    if failed:
        log.warning("not restored: %s", describe(failed))


def main(environment: Mapping[str, str]) -> int:
    """Do it; returns the exit status. What went wrong is said on stderr."""
    try:
        asyncio.run(wake(GuestPaths.from_environment(environment)))
    except (OperationRefused, SupervisorUnreachable, OSError, ValueError) as error:
        print(f"openclaw-wake: {error}", file=sys.stderr)
        return 1
    return 0
