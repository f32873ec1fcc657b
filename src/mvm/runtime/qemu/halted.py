"""Machines that QEMU itself has stopped: their process lives and their guest does nothing, so nobody else would notice.

QEMU stops a guest whose drive cannot be written because the host's disk is full; told to go on, it tries that write
again. And it stops one whose processor it cannot run any further, for good.
"""

from __future__ import annotations

import asyncio
import logging
import signal

from mvm.guest import processes
from mvm.model.errors import MvmError
from mvm.runtime.qemu import launching
from mvm.runtime.qemu.files import Files
from mvm.runtime.qemu.monitor import Monitor, open_monitor

log = logging.getLogger(__name__)

LOOK_SECONDS = 30.0
"""How often a machine is asked whether its guest runs: as long as one may stand still after space was made."""
NO_SPACE = "io-error"
LOST = frozenset({"internal-error", "guest-panicked"})
"""QEMU's names of the states of a guest that never goes on."""


async def watch(files: Files, turn: asyncio.Lock, *, who: str) -> None:
    """Look at the machine now and then, for ever; `turn` is whose turn it is at its monitor."""
    waiting = False
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            async with turn, open_monitor(files.monitor, who=who) as monitor:
                waiting = await _look(monitor, files, who=who, waiting=waiting)
        except MvmError as error:  # whoever wants something of it finds out; one that ends takes this with it
            log.debug("%s: %s", who, error.message)


async def _look(monitor: Monitor, files: Files, *, who: str, waiting: bool) -> bool:
    """Help on a guest that stands still by no wish of mvm's. True when it waits for space, as `waiting` says it did."""
    status = await monitor.status()
    if status == NO_SPACE:
        if not waiting:
            log.warning("%s stands still: its drive cannot be written, the host's disk is full", who)
        await monitor.execute("cont")
        return True
    if waiting:
        log.info("%s goes on: its drive can be written again", who)
    if status in LOST:
        log.warning("%s stands still for good (QEMU says %s) and is ended", who, status)
        _end(files)
    return False


def _end(files: Files) -> None:
    """Kill it, and no more: from there on it is a machine that crashed, which is cleared away and booted as any."""
    identity = launching.find(files)
    if identity is not None:
        processes.send(identity, signal.SIGKILL)
