"""A sleeper of this runtime: its memory file is the one that it had while it ran, so only the devices are written."""

from __future__ import annotations

import os

from mvm.runtime.qemu.files import Files
from mvm.runtime.qemu.monitor import Monitor
from mvm.runtime.saved import DEVICES, Snapshots, discard_name

SNAPSHOTS = Snapshots(
    {
        "image": "the image revision",
        "qemu": "QEMU's version",
        "accelerator": "the accelerator",
        "layout": "the machine's make-up",
        "vcpus": "the number of processors",
        "mem_mib": "the size of the memory",
        "processor": "the host's processor",
        "kernel": "the host's kernel",
        "drives": "the sizes of the config and secrets drives",
    }
)


async def write(files: Files, monitor: Monitor) -> None:
    """Write the devices of a paused guest. Afterwards `finish` makes a snapshot of it; on failure nothing is left."""
    discard_name(files)
    devices = files.memory / DEVICES
    descriptor = os.open(devices, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        await monitor.save_devices(descriptor)
    except BaseException:
        devices.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
