"""What a machine of this runtime is made of on this host, and what a snapshot of it fits to."""

from __future__ import annotations

import os

from mvm.drives.table import drives_of
from mvm.image.base import INITRD, KERNEL
from mvm.model.errors import Unavailable
from mvm.runtime import makeup
from mvm.runtime.base import ChannelKind, Machine, Snapshot
from mvm.runtime.qemu.accelerator import RETRY_SECONDS, Found
from mvm.runtime.qemu.command import Hardware, Network, layout
from mvm.runtime.qemu.files import Files
from mvm.runtime.qemu.tsc import host_tsc_khz


def hardware(
    machine: Machine,
    found: Found,
    network: Network = Network.HOST,
    channel: ChannelKind = ChannelKind.VIRTIO_SERIAL,
) -> Hardware:
    """What the machine is made of. Raises `Unavailable` when a part of it is not there."""
    image = makeup.image_of(machine)
    makeup.require_files(image)
    if machine.uid is not None:
        for name in (KERNEL, INITRD):  # QEMU opens these anew, as its own user; drives it is given open
            makeup.let_all_read(image / name)
    return Hardware(
        accelerator=found.accelerator,
        vcpus=machine.vcpus,
        mem_mib=machine.mem_mib,
        drives=drives_of(machine.role),
        kernel=image / KERNEL,
        initrd=image / INITRD,
        parameters=makeup.kernel_arguments(image),
        tsc_khz=host_tsc_khz(),
        network=network,
        channel=channel,
        limits=machine.limits,
    )


def made_by(machine: Machine, files: Files, made_of: Hardware, found: Found) -> dict[str, str]:
    """Everything that a snapshot of this machine must have in common with who restores it."""
    return {
        "image": makeup.image_of(machine).name,
        "qemu": found.version,
        "accelerator": made_of.accelerator.value,
        "layout": layout(made_of),
        "vcpus": str(made_of.vcpus),
        "mem_mib": str(made_of.mem_mib),
        "processor": makeup.processor(),
        "kernel": os.uname().release,
        makeup.SIZES: makeup.sizes(machine, files),
    }


def require_what_it_ran_on(snapshot: Snapshot, found: Found, *, now: float) -> None:
    """Raise `Unavailable` for a sleeper that an accelerator ran which fails only for now: it keeps its memory.

    One that is gone for certain, or for long, is found out as everything else that does not fit. `now` is Unix time.
    """
    before = snapshot.metadata.get("accelerator")
    if found.is_passing(now) and before != found.accelerator.value:
        raise Unavailable(
            f"its memory goes on only with {before}, which fails for the moment: {found.reason}",
            hint=f"it stays asleep; {before} is tried again every {RETRY_SECONDS:g} s. `mvm doctor` tries it too",
        )
