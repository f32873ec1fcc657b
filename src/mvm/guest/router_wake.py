"""Wakes: have a worker running before a message is delivered to it.

Everybody who needs the same worker at the same time shares one wake. A wake that fails is tried again with growing
pauses until its time is over; then the person gets an honest sentence and the operator the reason.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass

from mvm.guest import pipe
from mvm.guest.router_host import Host, HostRefused, HostUnreachable
from mvm.guest.router_table import Worker
from mvm.wire import messages

log = logging.getLogger(__name__)

WAKE_SECONDS = 120.0
"""How long a wake may take, retries included."""
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 8.0
MAX_REFUSALS = 3
"""A refusal is final, but the host may also be in the middle of a change of its table."""
PROBE_SECONDS = 1.0
RUNNING = "running"
"""The state (CONTRACT 4) of an instance whose programs run."""

_TRY_LATER = "Please try again in a few minutes; the operator has been told."
NOTICE_UNREACHABLE = f"Your assistant could not be woken: the machine that runs it does not answer. {_TRY_LATER}"
NOTICE_NOT_STARTED = f"Your assistant could not be started. {_TRY_LATER}"
NOTICE_TOO_SLOW = f"Your assistant is taking too long to wake up. {_TRY_LATER}"
NOTICE_REFUSED = "Your assistant cannot be reached through this bot at the moment. The operator has been told."
NOTICE_OVER_BUDGET = "Your assistant has used up what it may use for now: "
NOTICE_NO_ANSWER = f"Your assistant was woken but does not answer. {_TRY_LATER}"


@dataclass
class WakeFailed(Exception):
    """A worker that does not run after all attempts."""

    notice: str
    """For the person who wrote."""
    reason: str
    """For the operator."""
    retry: bool
    """Whether asking again later may help."""

    def __str__(self) -> str:
        return self.reason


class Wakes:
    """Wakes workers through the host, coalesced per worker."""

    def __init__(self, host: Host, *, source: str, wake_seconds: float = WAKE_SECONDS) -> None:
        """`source` is this gateway's own address in its tenant's network."""
        self._host = host
        self._source = source
        self._wake_seconds = wake_seconds
        self._running: dict[str, asyncio.Task[str]] = {}
        self._addresses: dict[str, str] = {}

    @property
    def wake_seconds(self) -> float:
        """How long a wake may take, retries included."""
        return self._wake_seconds

    def known_address(self, worker: Worker) -> str | None:
        """Where that worker was when it was last woken or asked for."""
        return self._addresses.get(worker.instance_id)

    async def wake(self, worker: Worker, *, trace: str | None = None) -> str:
        """Address of the worker, which runs when this returns. Raises `WakeFailed`. `trace`: the message it is for.

        A caller that goes away does not end the wake, which others may share.
        """
        task = self._running.get(worker.instance_id)
        if task is None:
            task = asyncio.create_task(self._wake(worker, trace), name=f"wake {worker.key}")
            self._running[worker.instance_id] = task
            task.add_done_callback(lambda done: self._ended(worker.instance_id, done))
        return await asyncio.shield(task)

    async def address(self, worker: Worker) -> str:
        """Address of the worker without waking it. Raises `HostUnreachable` or `HostRefused`."""
        found = await self._host.ask(_query(worker))
        if found.guest_ip is None:
            raise HostUnreachable("the host does not know the worker's address yet")
        self._addresses[worker.instance_id] = found.guest_ip
        return found.guest_ip

    async def runs(self, worker: Worker) -> bool:
        """Whether a worker runs for this gateway, as the host says; also true while the host cannot be asked."""
        try:
            found = await self._host.ask(_query(worker))
        except HostUnreachable as error:
            log.debug("nobody knows whether %s runs: %s", worker.key, error)
            return True
        except HostRefused as error:
            log.info("%s is not ours any more: %s", worker.key, error)
            return False
        return found.status == RUNNING

    async def close(self) -> None:
        """End the wakes that are waited for here (the host goes on with them)."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, instance_id: str, task: asyncio.Task[str]) -> None:
        self._running.pop(instance_id, None)
        if not task.cancelled():
            task.exception()  # every caller may have gone away; then nobody else looks at it

    async def _wake(self, worker: Worker, trace: str | None) -> str:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wake_seconds
        request = messages.WakeInstance(
            tenant_id=worker.tenant_id, pool_id=worker.pool_id, instance_id=worker.instance_id, trace=trace
        )
        log.info("trace %s: asking for %s", trace, worker.key)
        pause = FIRST_PAUSE
        refusals = 0
        while True:
            try:
                result = await self._host.ask(request, seconds=max(deadline - loop.time(), 0.1))
                if result.success and result.guest_ip is not None:
                    self._addresses[worker.instance_id] = result.guest_ip
                    return result.guest_ip
                failure = WakeFailed(NOTICE_NOT_STARTED, result.detail or "the host could not wake it", True)
            except HostRefused as error:
                refusals += 1
                if (words := _for_the_person(error)) is not None:
                    raise WakeFailed(words, f"the host refused the wake: {error}", False) from error
                failure = WakeFailed(NOTICE_REFUSED, f"the host refused the wake: {error}", False)
                if refusals >= MAX_REFUSALS:
                    raise failure from error
            except HostUnreachable as error:
                if (address := await self._reachable_without_host(worker)) is not None:
                    return address
                late = loop.time() >= deadline
                failure = WakeFailed(NOTICE_TOO_SLOW if late else NOTICE_UNREACHABLE, str(error), True)
            if loop.time() + pause >= deadline:
                raise failure
            log.warning("wake of %s is tried again in %.1f s: %s", worker.key, pause, failure.reason)
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads retries only
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _reachable_without_host(self, worker: Worker) -> str | None:
        """A worker that runs is served even while the host's agent is away."""
        address = self._addresses.get(worker.instance_id)
        if address is None:
            return None
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                _, writer = await asyncio.open_connection(address, worker.port, local_addr=(self._source, 0))
        except OSError:
            return None
        await pipe.close(writer)
        return address


def _query(worker: Worker) -> messages.QueryInstanceStatus:
    return messages.QueryInstanceStatus(
        tenant_id=worker.tenant_id, pool_id=worker.pool_id, instance_id=worker.instance_id
    )


def _for_the_person(refusal: HostRefused) -> str | None:
    """What the host wants the person to be told; None when the refusal is not for them."""
    _, found, words = str(refusal).partition(messages.OVER_BUDGET)
    return f"{NOTICE_OVER_BUDGET}{words}." if found else None
