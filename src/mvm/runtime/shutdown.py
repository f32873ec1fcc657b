"""Having a guest shut down by itself: its supervisor is asked over the channel, then its machine ends."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from mvm.guest import processes
from mvm.model.entities import ProcessIdentity
from mvm.model.errors import MvmError, TimedOut, Unavailable
from mvm.runtime import spawning
from mvm.runtime.base import Connection, Machine

log = logging.getLogger(__name__)

SUPERVISOR_PORT = 51
"""Guest port of the supervisor's control socket: one JSON line asks, one answers (`mvm.guest.supervisor_socket`)."""
POWER_OFF_SECONDS = 10.0
"""How long the machine may take to end after its last service did: the guest writes back and unmounts."""


class Connects(Protocol):
    """What is needed of a runtime."""

    async def connect(self, machine: Machine, port: int) -> Connection: ...


async def attempt(
    runtime: Connects,
    machine: Machine,
    process: ProcessIdentity,
    *,
    grace_seconds: float,
    running: Callable[[], Awaitable[bool]],
) -> bool:
    """`ask`, where there is time for it and the guest is `running`, or was made to for its end. True when it ended.

    What goes wrong is logged: whoever is not ended by this is ended all the same.
    """
    try:
        if grace_seconds > 0 and spawning.alive(process) and await running():
            return await ask(runtime, machine, process, grace_seconds=grace_seconds)
    except MvmError as error:
        log.warning("%s does not end by itself and is killed: %s", machine.ref, error.message)
    return False


async def ask(runtime: Connects, machine: Machine, process: ProcessIdentity, *, grace_seconds: float) -> bool:
    """Ask the supervisor and wait for the machine's end. True when it ended and no service had to be killed.

    Raises `Unavailable` when nobody answers, `TimedOut` when the time is over.
    """
    identity = spawning.identity_of(process)
    try:
        async with asyncio.timeout(grace_seconds + POWER_OFF_SECONDS):
            killed = await _request(runtime, machine, grace_seconds)
            left = await processes.wait_until_ended([identity], grace_seconds + POWER_OFF_SECONDS)
    except TimeoutError:
        raise TimedOut(f"the guest of {machine.ref} did not shut down within {grace_seconds:g} s") from None
    return not left and not killed


async def _request(runtime: Connects, machine: Machine, grace_seconds: float) -> bool:
    """Returns whether a service had to be killed."""
    reader, writer = await runtime.connect(machine, SUPERVISOR_PORT)
    try:
        writer.write(json.dumps({"op": "shutdown", "grace_seconds": grace_seconds}).encode() + b"\n")
        await writer.drain()
        line = await reader.readline()
    except (OSError, ValueError):
        line = b""
    finally:
        writer.close()
    if not line:  # it hung up: the machine's end tells the rest
        return False
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        raise Unavailable(f"the supervisor of {machine.ref} answers with {line[:80]!r}") from None
    if not isinstance(answer, dict) or not answer.get("ok"):
        raise Unavailable(f"the supervisor of {machine.ref} refuses to shut down: {str(answer)[:200]}")
    return bool(answer.get("killed"))
