"""What a machine of this runtime is made of on this host, and what a snapshot of it fits to."""

from __future__ import annotations

import os

from mvm.drives.table import drives_of
from mvm.model.errors import InvalidInput
from mvm.runtime import makeup
from mvm.runtime.base import Machine
from mvm.runtime.firecracker.configuration import Hardware, layout
from mvm.runtime.firecracker.files import Files
from mvm.runtime.firecracker.versions import Version

MOST_VCPUS = 32


def hardware(machine: Machine) -> Hardware:
    """What the machine is made of. Raises `Unavailable` when a part of it is not there."""
    if not 1 <= machine.vcpus <= MOST_VCPUS:
        raise InvalidInput(
            f"{machine.ref} would have {machine.vcpus} processors; Firecracker takes 1 to {MOST_VCPUS}",
            hint="give its pool fewer `vcpus`",
        )
    image = makeup.image_of(machine)
    makeup.require_files(image)
    return Hardware(
        vcpus=machine.vcpus,
        mem_mib=machine.mem_mib,
        drives=drives_of(machine.role),
        mac=machine.mac,
        parameters=makeup.kernel_arguments(image),
        limits=machine.limits,
    )


def made_by(machine: Machine, files: Files, made_of: Hardware, version: Version) -> dict[str, str]:
    """Everything that a snapshot of this machine must have in common with who restores it."""
    return {
        "image": makeup.image_of(machine).name,
        "firecracker": str(version),
        "layout": layout(made_of),
        "vcpus": str(made_of.vcpus),
        "mem_mib": str(made_of.mem_mib),
        "processor": makeup.processor(),
        "kernel": os.uname().release,
        makeup.SIZES: makeup.sizes(machine, files),
    }
