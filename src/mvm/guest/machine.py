"""What only a guest with a machine of its own may touch: its clock, its random numbers, its caches.

Under the process runtime the machine is the host's: there the clock is looked at and never set, and nothing is flushed
(the host's own file system goes on being there).
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import random
import struct
import time
from datetime import datetime
from pathlib import Path

from mvm.guest.paths import GuestPaths

log = logging.getLogger(__name__)

TOLERATED_SKEW_SECONDS = 0.05
DAY_SECONDS = 86400.0
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207


def set_clock(paths: GuestPaths, host_time: datetime) -> float:
    """Set the wall clock to the host's; returns by how many seconds it was behind."""
    behind = host_time.timestamp() - time.time()
    if abs(behind) <= TOLERATED_SKEW_SECONDS:
        return behind
    if not paths.owns_machine:
        log.info("the clock differs from the host's by %.3f s", behind)
        return behind
    try:
        time.clock_settime(time.CLOCK_REALTIME, host_time.timestamp())
    except OSError as error:
        log.error("the clock is %.3f s behind and cannot be set: %s", behind, error)
    return behind


def set_clock_back() -> None:
    """Put the clock of a machine that will be copied a day back, before anything else runs in it. Raises `OSError`.

    OpenSSL asks the kernel for randomness anew when the clock has moved by an hour or more. A copy gets the right time
    when it wakes, and then each of its processes does so: without that, all copies would draw the same numbers (ADR 8).
    """
    time.clock_settime(time.CLOCK_REALTIME, time.time() - DAY_SECONDS)


def add_entropy(paths: GuestPaths, entropy: bytes) -> None:
    """Mix the host's randomness in, credited where that is allowed: a clone must not draw its sibling's numbers.

    This is the kernel's generator and this process's; OpenClaw has its own (`ControlSocket.forget_randomness`).
    """
    if not entropy:
        return
    try:
        with open("/dev/urandom", "wb", buffering=0) as device:
            if paths.owns_machine:
                request = struct.pack(f"ii{len(entropy)}s", len(entropy) * 8, len(entropy), entropy)
                fcntl.ioctl(device, _RNDADDENTROPY, request)
                # Credited is not used yet: the kernel would take it up at its next turn, up to a minute later.
                fcntl.ioctl(device, _RNDRESEEDCRNG)
            else:
                device.write(entropy)
    except OSError as error:
        log.warning("the host's entropy cannot be mixed in: %s", error)
    random.seed()


async def settle(paths: GuestPaths) -> None:
    """Before a snapshot: everything on disk that belongs there, and no more memory in use than is needed."""
    if paths.owns_machine:
        await asyncio.to_thread(_settle)


def _settle() -> None:
    os.sync()
    # What is free in large pieces is given back to the host and is in no snapshot.
    for setting, value in (("drop_caches", "3"), ("compact_memory", "1")):
        try:
            (Path("/proc/sys/vm") / setting).write_text(f"{value}\n")
        except OSError as error:
            log.warning("%s: %s", setting, error)
