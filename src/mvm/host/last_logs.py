"""The last logs of machines whose files are their own: taken from the guest before it ends, kept on the host.

Where instances are processes the host sees their log files anyway; of a machine nothing is left to read once it ended.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from mvm.drives.content import CONFIG_FILE_MODE, write_tree
from mvm.host.guests import Guests
from mvm.model.errors import MvmError
from mvm.runtime.base import Machine, Runtime
from mvm.telemetry.redaction import redact
from mvm.wire import messages

log = structlog.get_logger(__name__)

LINES = 400
"""Of each service's log."""
SECONDS = 5.0
"""A guest that is about to be ended is not asked for longer."""


def directory_of(machine: Machine) -> Path:
    """Where an instance's logs are on the host: `<service>.log`."""
    return machine.data / "log"


async def keep_last_logs(guests: Guests, runtime: Runtime, machine: Machine) -> None:
    """Keep what a guest that is about to end has written; one that does not answer leaves what was kept before."""
    if not runtime.capabilities.images:
        return
    try:
        answer = await guests.call(runtime, machine, messages.Logs(lines=LINES), timeout=SECONDS)
        files = {f"{one.service}.log": redact(one.text).encode() for one in answer.logs}
        await asyncio.to_thread(write_tree, directory_of(machine), files, file_mode=CONFIG_FILE_MODE)
    except MvmError as error:
        log.debug("no last logs", instance=str(machine.ref), reason=error.message)
