"""The host's side of the conversation with guest agents (host -> guest, CONTRACT 9).

The guest is hostile: every answer is parsed strictly, bounded, and waited for no longer than a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

import structlog

from mvm.host.channel_logins import LINES, LOOK_AFTER_SECONDS, LOOK_SECONDS, ChannelRefused, refusal_in
from mvm.host.clock import Clock
from mvm.host.reports import Activity, Report, Reports
from mvm.model.entities import ProcessIdentity
from mvm.model.errors import MvmError, TimedOut, Unavailable
from mvm.model.roles import Role
from mvm.runtime.base import GUEST_AGENT_PORT, Machine, Runtime
from mvm.wire import frames, messages, rpc
from mvm.wire.schema import MessageError
from mvm.wire.tagged import Answer, Request

log = structlog.get_logger(__name__)

CALL_TIMEOUT_SECONDS = 10.0
"""Default limit to connect, read and write (CONTRACT 9)."""
DRAIN_MARGIN_SECONDS = 5.0
"""What CheckpointIntegrations and SleepPrep may take beyond the drain time-out (CONTRACT 9)."""
ENTROPY_BYTES = 64
RESTARTS_OF_A_FAILURE = 3
"""A service that ended this often while it was waited for is not waited for any longer."""
_FIRST_RETRY_SECONDS = 0.005
_LAST_RETRY_SECONDS = 0.25

A = TypeVar("A", bound=Answer)


class GuestRefused(Unavailable):
    """The guest answered that it will not; `words` are its own, bounded and not to be trusted."""

    words = ""


class _ServiceFails(Unavailable):
    """The service does not come up; waiting longer would not help."""


class Guests:
    """Calls to guest agents through whatever channel their runtime has."""

    def __init__(self, reports: Reports, clock: Clock) -> None:
        self._reports = reports
        self._clock = clock

    async def call(
        self, runtime: Runtime, machine: Machine, request: Request[A], *, timeout: float = CALL_TIMEOUT_SECONDS
    ) -> A:
        """Send one request on a connection of its own and return its answer.

        Raises `GuestRefused` when the guest answers with an error, `Unavailable` when it does not listen or answers
        with something else, `TimedOut` when it takes longer than `timeout` seconds.
        """
        what = f"{request.tag} to {machine.ref}"
        hint = f"`mvm instance logs {machine.ref}` shows why"
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await runtime.connect(machine, GUEST_AGENT_PORT)
                try:
                    return await rpc.call(reader, writer, request, timeout=timeout)
                finally:
                    writer.close()
        except TimeoutError:
            raise TimedOut(f"{what} was not answered within {timeout:g} s", hint=hint) from None
        except rpc.CallFailed as error:
            refusal = GuestRefused(f"{what} was refused by the guest: {str(error)[:500]}", hint=hint)
            refusal.words = str(error)[:500]
            raise refusal from error
        except (OSError, frames.FrameError, MessageError) as error:
            raise Unavailable(f"{what} failed: {error}", hint=hint) from error

    async def ping(self, runtime: Runtime, machine: Machine, *, timeout: float = CALL_TIMEOUT_SECONDS) -> None:
        """Return when the guest agent answered Pong."""
        await self.call(runtime, machine, messages.Ping(), timeout=timeout)

    async def wait_for_agent(
        self, runtime: Runtime, machine: Machine, process: ProcessIdentity, *, limit: float
    ) -> None:
        """Ping until the agent answers; gives up after `limit` seconds or as soon as the process has ended."""
        deadline = self._clock.monotonic() + limit
        pause = _FIRST_RETRY_SECONDS
        while True:
            try:
                return await self.ping(runtime, machine)
            except MvmError as error:
                if not await runtime.alive(process):
                    raise Unavailable(
                        f"the process of {machine.ref} ended before its guest agent answered",
                        hint=f"`mvm instance logs {machine.ref}` shows why",
                    ) from error
                if self._clock.monotonic() >= deadline:
                    raise TimedOut(
                        f"the guest agent of {machine.ref} did not answer within {limit:g} s",
                        hint=f"`mvm instance logs {machine.ref}` shows why",
                    ) from error
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LAST_RETRY_SECONDS)

    async def status(self, runtime: Runtime, machine: Machine) -> Report:
        """Ask for the guest's status and record it. Never fences work in the guest."""
        answer = await self.call(runtime, machine, messages.QueryWorkerStatus())
        return self._reports.record(
            machine.ref.instance_id,
            Activity(answer.status.value),
            in_flight=answer.in_flight,
            next_alarm_at=answer.next_alarm_at,
            last_busy_at=answer.last_busy_at,
        )

    async def wait_for_service(
        self, runtime: Runtime, machine: Machine, process: ProcessIdentity, *, limit: float
    ) -> Report:
        """Wait until the guest says that its service answers its health check (its status is known).

        The guest reports by itself as soon as that is so; asking again every second is only in case a report got lost.
        Raises `TimedOut` after `limit` seconds, and `Unavailable` as soon as it is known that it does not come up.
        """
        deadline, since = self._clock.monotonic() + limit, self._clock.now()
        next_look = self._clock.monotonic() + LOOK_AFTER_SECONDS * runtime.capabilities.slowness
        instance = machine.ref.instance_id
        restarts_before: int | None = None
        # A service that is too slow for limits of its own gets there after a few attempts.
        too_often = RESTARTS_OF_A_FAILURE * runtime.capabilities.slowness
        while True:
            try:
                await self.status(runtime, machine)
                if self._reports.latest(instance).activity is Activity.UNKNOWN:
                    restarts = await self._restarts(runtime, machine)
                    restarts_before = restarts if restarts_before is None else restarts_before
                    if restarts - restarts_before >= too_often:
                        raise _ServiceFails(
                            f"the service of {machine.ref} ended {restarts - restarts_before} times while it started",
                            hint=f"`mvm instance logs {machine.ref} --service openclaw` shows why",
                        )
                    if machine.role is Role.GATEWAY and self._clock.monotonic() >= next_look:
                        next_look = self._clock.monotonic() + LOOK_SECONDS
                        await self.require_login(runtime, machine, since=since)
            except (_ServiceFails, ChannelRefused):
                raise
            except MvmError as error:
                log.debug("status is not known yet", instance=str(machine.ref), reason=error.message)
            if self._reports.latest(instance).activity is not Activity.UNKNOWN:
                return self._reports.latest(instance)
            if self._clock.monotonic() >= deadline:
                raise TimedOut(
                    f"the service of {machine.ref} was not ready within {limit:g} s",
                    hint=f"`mvm instance logs {machine.ref} --service openclaw` shows why",
                )
            if not await runtime.alive(process):
                raise Unavailable(
                    f"the process of {machine.ref} ended before its service was ready",
                    hint=f"`mvm instance logs {machine.ref}` shows why",
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._reports.changed(instance)

    async def require_login(self, runtime: Runtime, machine: Machine, *, since: datetime) -> None:
        """Raise `ChannelRefused` when OpenClaw's log says that a channel has not let it in since then."""
        if (refusal := refusal_in(await self.newest_log(runtime, machine), ref=machine.ref, since=since)) is not None:
            raise refusal

    async def newest_log(self, runtime: Runtime, machine: Machine) -> str:
        """The newest lines of OpenClaw's log, where it tells of its channels."""
        answer = await self.call(runtime, machine, messages.Logs(service="openclaw", lines=LINES))
        return "".join(log_of.text for log_of in answer.logs)

    async def _restarts(self, runtime: Runtime, machine: Machine) -> int:
        """How often services of the guest have been started again since its supervisor runs."""
        stats = await self.call(runtime, machine, messages.Stats())
        return sum(service.restarts for service in stats.services)

    async def checkpoint(
        self, runtime: Runtime, machine: Machine, integrations: Sequence[str], *, drain_seconds: float
    ) -> messages.CheckpointResult:
        """Have integrations checkpointed; the caller decides what a failed one means."""
        return await self.call(
            runtime,
            machine,
            messages.CheckpointIntegrations(integrations=tuple(integrations)),
            timeout=drain_seconds + DRAIN_MARGIN_SECONDS,
        )

    async def sleep_prep(self, runtime: Runtime, machine: Machine, *, drain_seconds: int) -> messages.SleepPrepAck:
        """Have the guest drained for a sleep; an Ack without success has changed nothing in the guest."""
        return await self.call(
            runtime,
            machine,
            messages.SleepPrep(drain_timeout_secs=drain_seconds),
            timeout=drain_seconds + DRAIN_MARGIN_SECONDS,
        )

    async def wake(
        self, runtime: Runtime, machine: Machine, *, secrets_epoch: int, config_version: int
    ) -> messages.WakeAck:
        """Tell the guest that it is awake: clock, entropy, drives, integrations. Raises when it says that it failed.

        One that is slow gets its time: given up, it would lose its memory and have to boot.
        """
        ack = await self.call(
            runtime,
            machine,
            messages.Wake(
                host_time=self._clock.now(),
                secrets_epoch=secrets_epoch,
                config_version=config_version,
                entropy=self._clock.entropy(ENTROPY_BYTES),
            ),
            timeout=CALL_TIMEOUT_SECONDS * runtime.capabilities.slowness,
        )
        if not ack.success:
            raise Unavailable(f"{machine.ref} could not finish its wake: {ack.detail or 'no reason given'}")
        return ack

    async def refresh(
        self, runtime: Runtime, machine: Machine, *, secrets_epoch: int, config_version: int
    ) -> messages.RefreshAck:
        """Have new config and secrets taken in by a running guest. Raises when it says that it failed."""
        ack = await self.call(
            runtime,
            machine,
            messages.Refresh(secrets_epoch=secrets_epoch, config_version=config_version),
            timeout=60.0,
        )
        if not ack.success:
            raise Unavailable(f"{machine.ref} could not take in its new configuration")
        return ack


def earliest(*times: datetime | None) -> datetime | None:
    """The earliest of the given times that are known."""
    return min((time for time in times if time is not None), default=None)
