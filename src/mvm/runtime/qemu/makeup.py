"""What a machine is made of on this host, and what a snapshot of it fits to."""

from __future__ import annotations

import functools
import json
import os
import platform
from contextlib import suppress
from pathlib import Path

from mvm.drives import images
from mvm.drives.table import CONFIG, DATA, ROOTFS, SECRETS, Drive, drives_of
from mvm.image.base import FILES, INITRD, KERNEL, Manifest
from mvm.image.base import ROOTFS as ROOT_IMAGE
from mvm.model.errors import MvmError, Unavailable
from mvm.runtime.base import ChannelKind, Machine
from mvm.runtime.qemu.accelerator import Found
from mvm.runtime.qemu.command import Hardware, Network, layout
from mvm.runtime.qemu.files import Files
from mvm.runtime.qemu.tsc import host_tsc_khz

MADE_BY = "made_by.json"
"""What a machine was started with, beside its memory: its pool may be changed while it runs."""
CPUINFO = Path("/proc/cpuinfo")


def hardware(
    machine: Machine,
    found: Found,
    network: Network = Network.HOST,
    channel: ChannelKind = ChannelKind.VIRTIO_SERIAL,
) -> Hardware:
    """What the machine is made of. Raises `Unavailable` when a part of it is not there."""
    image = _image(machine)
    for name in FILES:
        if not (image / name).is_file():
            raise Unavailable(f"the image '{image}' has no {name}", hint="build it again: `mvm pool build`")
    return Hardware(
        accelerator=found.accelerator,
        vcpus=machine.vcpus,
        mem_mib=machine.mem_mib,
        drives=drives_of(machine.role),
        kernel=image / KERNEL,
        initrd=image / INITRD,
        parameters=_kernel_arguments(image),
        tsc_khz=host_tsc_khz(),
        network=network,
        channel=channel,
    )


def drive_images(machine: Machine, files: Files) -> dict[Drive, Path]:
    """The image of each drive, in the order in which they are attached."""
    paths = {
        ROOTFS: _image(machine) / ROOT_IMAGE,
        DATA: files.data,
        SECRETS: files.secrets_image,
        CONFIG: files.config_image,
    }
    return {drive: paths[drive] for drive in drives_of(machine.role)}


def made_by(machine: Machine, files: Files, made_of: Hardware, found: Found) -> dict[str, str]:
    """Everything that a snapshot of this machine must have in common with who restores it (`snapshots.PARTS`)."""
    smallest = {CONFIG: images.CONFIG_IMAGE_BYTES, SECRETS: images.SECRETS_IMAGE_BYTES}
    paths = drive_images(machine, files)
    sizes = [f"{drive.serial}={_size(paths[drive], smallest[drive])}" for drive in paths if drive in smallest]
    return {
        "image": _image(machine).name,
        "qemu": found.version,
        "accelerator": made_of.accelerator.value,
        "layout": layout(made_of),
        "vcpus": str(made_of.vcpus),
        "mem_mib": str(made_of.mem_mib),
        "processor": processor(),
        "kernel": os.uname().release,
        "drives": ",".join(sizes),
    }


def remember(files: Files, made: dict[str, str]) -> None:
    """Write down what the machine that runs now was started with."""
    (files.memory / MADE_BY).write_text(json.dumps(made))


def remembered(files: Files) -> dict[str, str]:
    """What the machine that runs was started with."""
    try:
        found = json.loads((files.memory / MADE_BY).read_text())
        return {str(name): str(value) for name, value in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise MvmError(f"what '{files.run_dir.name}' was started with is not known: {error}") from error


@functools.cache
def processor() -> str:
    """The host's processor, as its kernel names it: a guest's memory holds decisions made from it."""
    with suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _image(machine: Machine) -> Path:
    if machine.image is None:
        raise Unavailable(f"{machine.ref} has no image", hint="build its pool's image: `mvm pool build`")
    return machine.image


@functools.lru_cache(maxsize=64)
def _kernel_arguments(image: Path) -> str:
    """What the image wants on its kernel's command line; a revision never changes."""
    try:
        return " ".join(Manifest.read(image).kernel_arguments)
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"the image '{image}' has no manifest: {error}", hint="build it again: `mvm pool build`"
        ) from error


def _size(path: Path, smallest: int) -> int:
    """Size of a drive's image, also before it was made."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return smallest
