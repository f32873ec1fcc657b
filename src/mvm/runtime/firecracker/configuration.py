"""What a Firecracker is told before its machine starts: a pure function of what an instance is given.

What is in it besides the TAP, the address and the kernel's command line decides whether a snapshot fits: `layout` names
that part.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from mvm.drives.table import ROOTFS, Drive, Mode
from mvm.runtime.base import NO_LIMITS, Limits
from mvm.runtime.firecracker import api, files, limiting
from mvm.runtime.firecracker.api import Body, Command

LAYOUT = 1
"""Grows with every change after which an earlier snapshot must not be restored and that `layout` does not see."""
GUEST_CID = 3
"""The same in every machine: it is known by its sockets."""
INTERFACE = "eth0"
KERNEL_PARAMETERS = (
    "reboot=k panic=1 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd quiet loglevel=1 cryptomgr.notests "
    "random.trust_cpu=on init_on_free=1"
)
"""`reboot=k`: a guest that restarts ends its machine. No serial line: what it writes there the host would have to
bound. `init_on_free`: what a guest has freed is in no snapshot."""

Step = tuple[Command, Body]


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the guest's hardware is made of."""

    vcpus: int
    mem_mib: int
    drives: tuple[Drive, ...]
    mac: str
    parameters: str = ""
    """What the image wants on the kernel's command line."""
    limits: Limits = NO_LIMITS


def drive_file(drive: Drive) -> str:
    """Name of a drive's image in the room."""
    return f"{drive.serial}.img"


def logging() -> list[Step]:
    """What comes before everything else, before a load as well."""
    return [
        (api.PUT_LOGGER, api.Logger(log_path=files.LOG, level="Warning", show_level=True)),
        (api.PUT_METRICS, api.Metrics(metrics_path=files.METRICS)),
    ]


def devices(hardware: Hardware, *, tap: str) -> list[Step]:
    """What makes the machine, in the order in which the guest finds it."""
    return [
        (
            api.PUT_MACHINE,
            api.MachineConfiguration(vcpu_count=hardware.vcpus, mem_size_mib=hardware.mem_mib),
        ),
        *((api.PUT_DRIVE, _drive(drive, hardware.limits)) for drive in hardware.drives),
        (api.PUT_NETWORK, _interface(hardware, tap)),
        (api.PUT_VSOCK, api.Vsock(guest_cid=GUEST_CID, uds_path=files.VSOCK)),
        (api.PUT_ENTROPY, api.EntropyDevice()),
        # Without reports of free pages: the guest's kernel leaves them out when it clears what it frees, because this
        # balloon cannot promise to keep a page clear.
        (api.PUT_BALLOON, api.Balloon(amount_mib=0, deflate_on_oom=True)),
    ]


def _interface(hardware: Hardware, tap: str) -> api.NetworkInterface:
    limiter = limiting.of_network(hardware.limits)
    return api.NetworkInterface(
        iface_id=INTERFACE,
        host_dev_name=tap,
        guest_mac=hardware.mac,
        rx_rate_limiter=limiter,
        tx_rate_limiter=limiter,
    )


def _drive(drive: Drive, limits: Limits) -> api.Drive:
    read_only = drive.mode is Mode.READ_ONLY
    return api.Drive(
        drive_id=drive.serial,
        path_on_host=drive_file(drive),
        is_root_device=drive is ROOTFS,
        is_read_only=read_only,
        # What the guest has flushed is on the disk: its queues and journals depend on it.
        cache_type="Unsafe" if read_only else "Writeback",
        rate_limiter=limiting.of_drive(limits),
    )


def boot(hardware: Hardware, *, tap: str) -> list[Step]:
    """Everything from a fresh Firecracker to a machine that starts."""
    source = api.BootSource(kernel_image_path=files.KERNEL, initrd_path=files.INITRD, boot_args=kernel_line(hardware))
    return [
        *logging(),
        (api.PUT_BOOT_SOURCE, source),
        *devices(hardware, tap=tap),
        (api.START, api.Action(action_type="InstanceStart")),
    ]


def kernel_line(hardware: Hardware) -> str:
    """The kernel's command line, to which Firecracker adds what concerns its devices."""
    return " ".join([KERNEL_PARAMETERS, *([hardware.parameters] if hardware.parameters else [])])


def load(*, tap: str, tracked: bool = False) -> api.SnapshotLoad:
    """Restore what is in the room, paused, on that TAP; `tracked`: what the guest writes from then on is noted."""
    return api.SnapshotLoad(
        snapshot_path=files.DEVICES,
        mem_backend=api.MemoryBackend(backend_type="File", backend_path=files.MEMORY),
        network_overrides=(api.NetworkOverride(iface_id=INTERFACE, host_dev_name=tap),),
        track_dirty_pages=tracked,
    )


def limits(hardware: Hardware) -> list[Step]:
    """What a machine that was loaded is told, so that it has the limits of now and not those of its snapshot."""
    return limiting.changes(hardware.drives, INTERFACE, hardware.limits)


def layout(hardware: Hardware) -> str:
    """Names the hardware as the guest's memory knows it: equal for two machines between which it can move."""
    changing = {"host_dev_name", "guest_mac", *limiting.LIMITERS}
    steps = [
        (call.path_for(body), body.model_dump(mode="json", exclude=changing))
        for call, body in devices(hardware, tap="")
    ]
    return hashlib.sha256(json.dumps([LAYOUT, steps]).encode()).hexdigest()[:16]
