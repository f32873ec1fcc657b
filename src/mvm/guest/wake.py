"""Waking up, and taking in new drives while awake: one procedure, whoever asks and however often.

Configuration and secrets are read again, OpenClaw's files are replaced where they changed, and OpenClaw is restarted
only for a secret that it reads from its environment alone; otherwise it re-reads what it can and goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mvm.guest import environment, identity, machine, openclaw_restart, tokens
from mvm.guest.config import ConfigError, GuestConfig
from mvm.guest.control import CATCH_UP_SECONDS, ControlAbsent, ControlError, ControlSocket
from mvm.guest.deliveries import Deliveries
from mvm.guest.drives import Drives
from mvm.guest.environment import News
from mvm.guest.integrations import describe
from mvm.guest.openclaw_restart import Renew
from mvm.guest.paths import GuestPaths
from mvm.guest.services import OPENCLAW, ROUTER
from mvm.guest.sleep import SleepDesk
from mvm.guest.status import StatusBoard
from mvm.guest.supervisor_socket import OperationRefused, SupervisorClient, SupervisorUnreachable
from mvm.wire.messages import BareWake, Refresh, RefreshAck, Wake, WakeAck

log = logging.getLogger(__name__)

RESTORE_PATIENCE_SECONDS = 4.0
"""How long a wake waits for integrations; the host waits for its answer for 10 s (CONTRACT 9)."""


class WakeDesk:
    """Answers `Wake` and `Refresh`, and starts OpenClaw in the first place."""

    def __init__(
        self,
        paths: GuestPaths,
        *,
        config: Callable[[], GuestConfig],
        reread_config: Callable[[], None],
        board: StatusBoard,
        control: ControlSocket,
        supervisor: SupervisorClient,
        sleep: SleepDesk,
        drives: Drives,
        deliveries: Deliveries | None,
        openclaw_ended: Callable[[], Awaitable[None]],
        on_event: Callable[[str, str], None],
        lock: asyncio.Lock,
        renew: Renew | None = None,
    ) -> None:
        """`reread_config` takes the config drive in again and raises `ConfigError`; `openclaw_ended` is called between
        the two halves of a restart; `lock` is the sleep desk's; `renew` restarts OpenClaw where somebody else does it.
        """
        self._paths = paths
        self._config = config
        self._reread_config = reread_config
        self._board = board
        self._control = control
        self._supervisor = supervisor
        self._sleep = sleep
        self._drives = drives
        self._deliveries = deliveries
        self._openclaw_ended = openclaw_ended
        self._on_event = on_event
        self._lock = lock
        self._renew = renew or self._renew_openclaw
        self._starting: asyncio.Task[None] | None = None
        self._restart: asyncio.Task[None] | None = None
        self._catching_up: asyncio.Task[None] | None = None
        self._reload_when_up = False

    async def start(self) -> None:
        """At the agent's start: files in place, OpenClaw running, everything open, nothing held."""
        async with self._lock:
            try:
                news = self._take_in_secrets()
                self._install_openclaw_config()
                if not self._board.runs_openclaw:
                    return
                if not await self._openclaw_runs():
                    self._paths.restart_pending.unlink(missing_ok=True)
                    self._begin_start()
                elif news.restart:
                    self._begin_restart(drain=True)
                else:
                    self._reload_when_up = True  # this agent's predecessor may have died before it came to that
            except (ConfigError, OSError) as error:
                log.error("OpenClaw is not started: %s", error)
                self._on_event("ConfigRejected", str(error))
            finally:
                await self._sleep.undo(self._drain_seconds)

    async def wake(self, request: Wake | BareWake) -> WakeAck:
        """Go on, with everything as it is now. Idempotent; a wake of a guest that is awake changes nothing."""
        self._sleep.interrupt()
        async with self._lock:
            if isinstance(request, Wake):
                machine.set_clock(self._paths, request.host_time)
                machine.add_entropy(self._paths, request.entropy)
            asleep = self._sleep.prepared
            problems: list[str] = []
            try:
                restarted = await self._apply(drain=not asleep)
            except (ConfigError, OSError) as error:
                restarted = False
                problems.append(str(error))
                self._on_event("ConfigRejected", str(error))
            else:
                if isinstance(request, Wake):
                    self._compare_versions(request.secrets_epoch, request.config_version)
            if failed := await self._sleep.undo(self._drain_seconds, patience=RESTORE_PATIENCE_SECONDS):
                problems.append(describe(failed) or "")
            # What could not be taken in is said, but the guest is awake, with what it had before.
            return WakeAck(success=True, detail="; ".join(problems) or None, restarted=restarted)

    async def refresh(self, request: Refresh) -> RefreshAck:
        """Take in new drives while awake."""
        async with self._lock:
            try:
                restarted = await self._apply(drain=True)
            except (ConfigError, OSError) as error:
                log.error("the new configuration is refused: %s", error)
                self._on_event("ConfigRejected", str(error))
                return RefreshAck(success=False)
            self._compare_versions(request.secrets_epoch, request.config_version)
            if self._deliveries is not None:
                self._deliveries.nudge()
            return RefreshAck(success=True, restarted=restarted)

    async def openclaw_is_up(self) -> None:
        """OpenClaw has just come up: catch up on what it missed, and repair what an unclean end left behind."""
        if self._reload_when_up:
            self._reload_when_up = False
            await self._control.reload_secrets()
        if suppressed := await self._control.suppressed_channels():
            names = ", ".join(suppressed)
            log.warning("OpenClaw held back %s after unclean starts; starting them", names)
            await self._control.start_channels()
            self._on_event("ChannelsRepaired", f"OpenClaw had held back {names} after unclean starts")

    async def close(self) -> None:
        """Stop what runs in the background."""
        for task in (self._catching_up, self._restart, self._starting):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    @property
    def _drain_seconds(self) -> float:
        return float(self._config().runtime_policy.drain_timeout_seconds)

    async def _apply(self, *, drain: bool) -> bool:
        """Take in the drives, and be who they say; True when OpenClaw is restarted because of them."""
        self._drives.take_in()
        self._reread_config()
        if identity.take(self._paths, self._config()):
            await self._be_somebody_else()
        news = self._take_in_secrets()
        other_config = self._install_openclaw_config()
        if self._deliveries is not None:
            self._deliveries.configure(self._config())
        if not self._board.runs_openclaw:
            return False
        if news.restart:
            self._begin_restart(drain=drain)
            return True
        if not self._sleep.restarting:
            self._begin_start()  # nothing happens when it runs
        if other_config and (news.reload or not drain):
            self._begin_catching_up(reload=news.reload, awake=drain)
        elif news.reload:
            return await self._reload(drain=drain)
        return False

    def _begin_catching_up(self, *, reload: bool, awake: bool) -> None:
        """Have OpenClaw go by another configuration, and by the secrets for it.

        In the background, for the host does not wait that long for its answer. Who was asleep lets nobody in until
        then: OpenClaw would ask the wrong provider.
        """
        if self._catching_up is not None:
            self._catching_up.cancel()
        if not awake:
            self._sleep.catching_up = True
            self._board.set_restarting(True)
        self._catching_up = asyncio.create_task(self._catch_up(reload=reload, awake=awake), name="catch up")

    async def _catch_up(self, *, reload: bool, awake: bool) -> None:
        try:
            try:
                await self._control.restore()
                await self._control.config_applied()
                if reload:
                    await self._control.reload_secrets(CATCH_UP_SECONDS)
            except ControlAbsent:
                self._reload_when_up = reload
            if self._deliveries is not None and not awake:
                await self._deliveries.open()  # before it looks ready to anybody
                self._deliveries.nudge()
        except ControlError as error:
            log.warning("OpenClaw does not take in what changed (%s): restarting it", error)
            self._begin_restart(drain=awake)
            return
        finally:
            self._sleep.catching_up = False
            if not self._sleep.restarting:
                self._board.set_restarting(False)

    async def _be_somebody_else(self) -> None:
        """This machine was another until now, of which there may be more copies: nothing of its own may stay."""
        tokens.renew_all(self._paths)
        if self._board.runs_openclaw:
            try:
                await self._control.forget_randomness()
            except ControlError as error:
                log.warning("OpenClaw keeps the random numbers that it has drawn: %s", error)
        if self._config().role in ROUTER.roles:
            await self._supervisor.restart(ROUTER.name, grace=ROUTER.stop_seconds)

    async def _reload(self, *, drain: bool) -> bool:
        """Have OpenClaw re-read its secrets, before anybody is let in again; True when it is restarted instead."""
        try:
            if self._sleep.prepared or (self._board.openclaw is not None and self._board.openclaw.suspended):
                await self._control.restore()  # it does not re-read anything while it is held
            await self._control.reload_secrets()
        except ControlAbsent:
            self._reload_when_up = True  # it is starting and may have read the old ones already
        except ControlError as error:
            log.warning("OpenClaw cannot re-read its secrets (%s): restarting it", error)
            self._begin_restart(drain=drain)
            return True
        return False

    def _take_in_secrets(self) -> News:
        return environment.take_in_secrets(
            self._paths, self._config(), lambda problem: self._on_event("SecretRejected", problem)
        )

    def _install_openclaw_config(self) -> bool:
        return self._board.runs_openclaw and environment.install_openclaw_config(self._paths)

    def _compare_versions(self, secrets_epoch: int, config_version: int) -> None:
        config = self._config()
        if config.config_version < config_version or config.secrets_epoch < secrets_epoch:
            log.warning(
                "the config drive holds version %d (secrets %d), the host spoke of %d (%d)",
                config.config_version,
                config.secrets_epoch,
                config_version,
                secrets_epoch,
            )

    async def _openclaw_runs(self) -> bool:
        try:
            status = await self._supervisor.status()
        except (OperationRefused, SupervisorUnreachable):
            return False
        return bool(status["services"][OPENCLAW.name]["state"] in ("running", "waiting"))

    def _begin_start(self) -> None:
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start_openclaw(), name="start OpenClaw")

    async def _start_openclaw(self) -> None:
        await openclaw_restart.start(self._supervisor, self._not_started)

    def _not_started(self, reason: str) -> None:
        self._on_event("OpenClawNotStarted", reason)

    async def _renew_openclaw(self) -> None:
        await openclaw_restart.renew(
            self._paths, self._supervisor, ended=self._openclaw_ended, on_failure=self._not_started
        )

    def _begin_restart(self, *, drain: bool) -> None:
        """Have OpenClaw restarted in the background; a restart under way sees the new environment, or is repeated."""
        self._paths.restart_pending.touch(mode=0o600)
        if not drain:
            self._board.set_restarting(True)
        if self._restart is None or self._restart.done():
            self._sleep.restarting = True
            self._restart = asyncio.create_task(self._restart_openclaw(drain=drain), name="restart OpenClaw")

    async def _restart_openclaw(self, *, drain: bool) -> None:
        try:
            with self._board.work():
                if drain:
                    await self._drain()
                self._board.set_restarting(True)
                await self._renew()
        except (OperationRefused, SupervisorUnreachable, OSError) as error:
            log.error("OpenClaw cannot be restarted: %s", error)
            self._not_started(str(error))
        finally:
            self._sleep.restarting = False
            try:
                if self._deliveries is not None:
                    await self._deliveries.open()  # before it looks ready to anybody
            finally:
                self._board.set_restarting(False)

    async def _drain(self) -> None:
        """Let what is under way end; what does not end in time OpenClaw itself finishes before it exits."""
        if self._deliveries is not None:
            await self._deliveries.close_for_sleep(self._drain_seconds)
        try:
            await self._control.checkpoint(self._drain_seconds)
        except ControlError as error:
            log.info("OpenClaw is restarted without being held first: %s", error)
