"""Going to sleep: nothing new comes in, what is open ends, OpenClaw is held. Any refusal undoes all of it.

What was prepared for a sleep that never comes is undone after a while, so that no guest is left deaf: the host sends
`Wake` when it changes its mind, but the host may have died.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime

from mvm.guest import machine
from mvm.guest.control import ControlAbsent, ControlError, ControlSocket
from mvm.guest.deliveries import Deliveries
from mvm.guest.drives import Drives
from mvm.guest.integrations import SavesIntegrations
from mvm.guest.paths import GuestPaths
from mvm.guest.status import StatusBoard
from mvm.wire.messages import CheckpointResult, SleepPrepAck, WorkStatus

log = logging.getLogger(__name__)

ABANDONED_SECONDS = 300.0
"""How long a prepared guest waits for its sleep. Warm instances are frozen, and get a `Wake` before this matters."""


class SleepRefused(Exception):
    """The guest cannot sleep now; the text says why."""


class SleepDesk:
    """Prepares sleeps and undoes them."""

    def __init__(
        self,
        paths: GuestPaths,
        *,
        board: StatusBoard,
        control: ControlSocket,
        integrations: SavesIntegrations,
        drives: Drives,
        deliveries: Deliveries | None,
        lock: asyncio.Lock,
        abandoned_after: float = ABANDONED_SECONDS,
    ) -> None:
        """`lock` is what keeps sleeps, wakes and refreshes apart; `deliveries` is None where none arrive."""
        self._paths = paths
        self._board = board
        self._control = control
        self._integrations = integrations
        self._drives = drives
        self._deliveries = deliveries
        self._lock = lock
        self._abandoned_after = abandoned_after
        self._preparing: asyncio.Task[datetime | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._undoing: asyncio.Task[None] | None = None
        self.prepared = False
        """True from a successful preparation until it is undone."""
        self.catching_up = False
        """True while OpenClaw takes in another configuration, for which the doors stay shut."""
        self.restarting = False
        """True while OpenClaw is being restarted, which sees to itself that everything goes on afterwards."""

    async def prepare(self, drain_seconds: float) -> SleepPrepAck:
        """Answer `SleepPrep`: after success nothing moves any more; after a refusal everything goes on."""
        async with self._lock:
            self._stop_timer()
            self._preparing = asyncio.create_task(self._prepare(drain_seconds), name="sleep-prep")
            try:
                alarm = await self._preparing
            except asyncio.CancelledError:
                await self.undo(drain_seconds)
                current = asyncio.current_task()
                if current is not None and current.cancelling():
                    raise
                return SleepPrepAck(success=False, detail="a wake came meanwhile")
            except (SleepRefused, ControlError, OSError) as error:
                log.info("sleep is refused: %s", error)
                await self.undo(drain_seconds)
                return SleepPrepAck(success=False, detail=str(error))
            finally:
                self._preparing = None
            self.prepared = True
            self._start_timer()
            return SleepPrepAck(success=True, next_alarm_at=alarm)

    async def checkpoint(self, names: Sequence[str], seconds: float) -> CheckpointResult:
        """Answer `CheckpointIntegrations`; when a critical one fails everything goes on."""
        async with self._lock:
            self._stop_timer()
            result = await self._integrations.checkpoint(names, seconds)
            if result.success:
                self._start_timer()
            else:
                await self.undo(seconds)
            return result

    def interrupt(self) -> None:
        """A wake comes: give up a preparation that is under way."""
        if self._preparing is not None:
            self._preparing.cancel()

    async def undo(self, seconds: float, *, patience: float = 0.0) -> dict[str, str]:
        """Let everything go on; the caller holds the lock. Returns what could not be restored within `patience`.

        Integrations have `seconds` each and are not waited for any longer than `patience`.
        """
        self._stop_timer()
        self.prepared = False
        failed: dict[str, str] = {}
        if self._drives.wiped:
            try:
                self._drives.take_in()
            except OSError as error:
                failed["drives"] = str(error)
                log.error("the secrets cannot be brought back: %s", error)
        if self._board.runs_openclaw and not self.restarting:
            try:
                await self._control.restore()
            except ControlAbsent:
                pass  # it is starting afresh, held by nobody
            except ControlError as error:
                failed["openclaw"] = str(error)
                log.error("OpenClaw cannot be let go on: %s", error)
        failed.update(await self._integrations.restore(seconds, patience=patience))
        if self._deliveries is not None and not self.restarting and not self.catching_up:
            await self._deliveries.open()
            self._deliveries.nudge()
        return failed

    async def close(self) -> None:
        """Forget timers and tasks."""
        self._stop_timer()
        self.interrupt()
        if self._undoing is not None:
            self._undoing.cancel()
            await asyncio.gather(self._undoing, return_exceptions=True)

    async def _prepare(self, drain_seconds: float) -> datetime | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + drain_seconds

        def remaining() -> float:
            return max(0.0, deadline - loop.time())

        if self.restarting:
            raise SleepRefused("OpenClaw is being restarted")
        if self._board.current().status is WorkStatus.UNKNOWN:
            raise SleepRefused("OpenClaw is not up (yet), so nobody knows what it is doing")
        deliveries = self._deliveries
        if deliveries is not None and not await deliveries.close_for_sleep(remaining()):
            raise SleepRefused(f"{deliveries.in_flight} deliveries are still open")
        if not await self._board.wait_for(lambda: self._board.own_work == 0, remaining()):
            raise SleepRefused("a command is being run")
        if deliveries is not None and not await self._board.wait_for(lambda: deliveries.pending == 0, remaining()):
            raise SleepRefused(f"{deliveries.pending} messages wait to be delivered")
        alarm = None
        if self._board.runs_openclaw:
            alarm = await self._control.checkpoint(remaining())
        if deliveries is not None and deliveries.pending:
            raise SleepRefused(f"{deliveries.pending} messages wait to be delivered")
        self._drives.wipe()
        await machine.settle(self._paths)
        return alarm or self._board.current().next_alarm_at

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._abandoned_after, self._abandoned)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _abandoned(self) -> None:
        self._timer = None
        self._undoing = asyncio.get_running_loop().create_task(self._undo_abandoned(), name="undo an abandoned sleep")

    async def _undo_abandoned(self) -> None:
        async with self._lock:
            if self._timer is None:  # not prepared anew meanwhile
                log.warning("no sleep came within %g s of its preparation: going on", self._abandoned_after)
                await self.undo(self._abandoned_after)
