"""Bases of this runtime, whose machines are only ever given copies.

QEMU writes into whatever memory file it is given, also one that it maps privately: what the guest's balloon gives back
is punched out of the file, and the next clone would read wrong content without an error (facts/QEMU.md, section 6). So
the files of a base are readable by their owner only, opened here and nowhere else, for reading.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from mvm.runtime import bases, sparse
from mvm.runtime.bases import DATA, DEVICES, FILE_MODE, RAM
from mvm.runtime.qemu.files import Files
from mvm.runtime.qemu.monitor import Monitor
from mvm.runtime.qemu.snapshots import SNAPSHOTS


async def keep(files: Files, monitor: Monitor, directory: Path, made_by: Mapping[str, str]) -> None:
    """Copy a paused guest into an empty directory, whole or not at all."""
    bases.require_empty(directory)
    try:
        descriptor = os.open(directory / DEVICES, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            await monitor.save_devices(descriptor)
            os.fsync(descriptor)
            os.fchmod(descriptor, FILE_MODE)
        finally:
            os.close(descriptor)
        await asyncio.to_thread(keep_files, files, directory, made_by)
    except BaseException:
        bases.remove_files(directory)
        raise


def keep_files(files: Files, directory: Path, made_by: Mapping[str, str]) -> None:
    """Copy memory and data drive to where the devices were written, and finish the base."""
    sparse.copy(files.ram, directory / RAM, mode=FILE_MODE)
    sparse.copy(files.data, directory / DATA, mode=FILE_MODE)
    bases.finish(directory, made_by, SNAPSHOTS)
