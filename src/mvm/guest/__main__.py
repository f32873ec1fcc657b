"""Entry of the guest's zipapp: `python guest.pyz init|supervise|channel|agent|router|...`.

Each sub-command imports what it needs and nothing else: a wake waits for this process to come up.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence

USAGE = """usage: guest.pyz init
       guest.pyz supervise|clear
       guest.pyz channel
       guest.pyz agent
       guest.pyz router
       guest.pyz openclaw-ctl checkpoint|restore <integration>
       guest.pyz warm-up
       guest.pyz offer <directory> <name>...
where systemd supervises (mvm.guest.units):
       guest.pyz prepare|environment|openclaw-wake
       guest.pyz systemd|integrations|sleep-prep-port"""


def main(arguments: Sequence[str]) -> int:
    """Run a sub-command; returns the exit status (2 for wrong usage)."""
    match list(arguments):
        case ["init"]:
            from mvm.guest import init

            return init.main(os.environ)
        case ["supervise"]:
            from mvm.guest import supervisor

            return supervisor.main(os.environ)
        case ["clear"]:
            from mvm.guest import supervisor

            return supervisor.clear(os.environ)
        case ["channel"]:
            from mvm.guest import channel_service

            return _serve("the channel", channel_service.serve)
        case ["agent"]:
            from mvm.guest import agent

            return _serve("the agent", agent.serve)
        case ["router"]:
            return _router()
        case ["openclaw-ctl", ("checkpoint" | "restore") as verb, integration]:
            from mvm.guest import openclaw_ctl

            return openclaw_ctl.main(verb, integration, os.environ)
        case ["warm-up"]:
            from mvm.guest import warm_up

            return warm_up.main(os.environ)
        case ["offer", directory, *names] if names:
            from mvm.guest import offer

            return offer.main(directory, names, os.environ)
        case ["prepare"]:
            from mvm.guest import init

            return init.prepare(os.environ)
        case ["environment"]:
            from mvm.guest import environment

            return environment.main(os.environ)
        case ["openclaw-wake"]:
            from mvm.guest import openclaw_restart

            return openclaw_restart.main(os.environ)
        case ["systemd"]:
            from mvm.guest import systemd

            return _serve("the supervisor's socket", systemd.serve)
        case ["integrations"]:
            from mvm.guest import integrations_service

            return _serve("the service of integrations", integrations_service.serve)
        case ["sleep-prep-port"]:
            from mvm.guest import sleep_port

            return _serve("the port for sleeps", sleep_port.serve)
    print(USAGE, file=sys.stderr)
    return 2


def _serve(what: str, serve: Callable[[Mapping[str, str]], Coroutine[None, None, None]]) -> int:
    import asyncio

    _log_to_stderr()
    try:
        asyncio.run(serve(os.environ))
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).error("%s ends: %s", what, error)
        return 1
    return 0


def _router() -> int:
    import asyncio

    from mvm.guest import config, router
    from mvm.guest.channel import HOST_PORT, open_channel
    from mvm.guest.database import StorageError
    from mvm.guest.paths import GuestPaths

    _log_to_stderr()
    try:
        paths = GuestPaths.from_environment(os.environ)
        paths.prepare()
        channel = open_channel(os.environ)
        given = config.read(paths.config).config
        openclaw = given.openclaw or config.OpenClawConfig()
        settings = router.RouterSettings(
            tenant_id=given.tenant_id,
            guest_ip=given.guest_ip,
            router_port=openclaw.router_port,
            outbound_port=openclaw.outbound_port,
            openclaw_port=openclaw.port,
            routes=paths.routes,
            users=paths.users,
            journal=paths.journal,
            token=paths.router_token,
            worker_tokens=paths.worker_tokens,
        )
        asyncio.run(router.serve(settings, lambda: channel.connect(HOST_PORT)))
    except (OSError, ValueError, StorageError) as error:
        logging.getLogger(__name__).error("the router ends: %s", error)
        return 1
    return 0


def _log_to_stderr() -> None:
    """The supervisor keeps what a service says in its log file."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if os.environ.get("MVM_LOG") == "debug" else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%SZ",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
