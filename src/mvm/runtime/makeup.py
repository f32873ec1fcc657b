"""What every virtual machine is made of, whatever runs it, and what is remembered of how it was started."""

from __future__ import annotations

import functools
import json
import platform
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from mvm.drives import images
from mvm.drives.table import CONFIG, DATA, ROOTFS, SECRETS, Drive, drives_of
from mvm.image.base import Manifest
from mvm.model.errors import MvmError, Unavailable
from mvm.runtime.base import GuestLayout, Machine

MADE_BY = "made_by.json"
"""What a machine was started with, beside its memory: its pool may be changed while it runs."""
CPUINFO = Path("/proc/cpuinfo")
SMALLEST: Mapping[Drive, int] = {SECRETS: images.SECRETS_IMAGE_BYTES, CONFIG: images.CONFIG_IMAGE_BYTES}
"""Least size of the image of each drive that is rebuilt."""


def image_of(machine: Machine) -> Path:
    """Directory of its image revision. Raises `Unavailable` when it has none."""
    if machine.image is None:
        raise Unavailable(f"{machine.ref} has no image", hint="build its pool's image: `mvm pool build`")
    return machine.image


def require_files(image: Path) -> None:
    """Raise `Unavailable` unless the revision is whole."""
    for name in _manifest(image).names:
        if not (image / name).is_file():
            raise Unavailable(f"the image '{image}' has no {name}", hint="build it again: `mvm pool build`")


def let_all_read(path: Path) -> None:
    """Part of an image, which may have been made or copied here under a umask that closes it to machines' own users.

    Nothing in an image is secret. Raises `Unavailable` when it cannot be changed.
    """
    try:
        if not path.stat().st_mode & stat.S_IROTH:
            path.chmod(0o444)
    except OSError as error:
        raise Unavailable(
            f"'{path}' cannot be opened to machines: {error.strerror or error}", hint=f"chmod a+r '{path}'"
        ) from error


def kernel_arguments(image: Path) -> str:
    """What the image wants on its kernel's command line."""
    return " ".join(_manifest(image).kernel_arguments)


@functools.lru_cache(maxsize=64)
def _manifest(image: Path) -> Manifest:
    """What a revision says of itself; it never changes."""
    try:
        return Manifest.read(image)
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"the image '{image}' has no manifest: {error}", hint="build it again: `mvm pool build`"
        ) from error


@functools.cache
def processor() -> str:
    """The host's processor, as its kernel names it: a guest's memory holds decisions made from it."""
    with suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def guest_layout(machine: Machine, *, host_address: str, relayed: bool = False) -> GuestLayout:
    """Every guest has a machine of its own: the same paths and ports everywhere."""
    return GuestLayout(
        run="/run",
        data=DATA.mount_point,
        secrets=SECRETS.mount_point,
        config=CONFIG.mount_point,
        plugin_dir="/opt/mvm/openclaw-plugin",
        discord_plugin_dir="/opt/openclaw/node_modules/@openclaw/discord" if machine.role.runs_openclaw else None,
        host_address=host_address,
        relayed=relayed,
    )


class DriveFiles(Protocol):
    """Where the images of an instance's own drives are."""

    @property
    def data(self) -> Path: ...

    @property
    def secrets_image(self) -> Path: ...

    @property
    def config_image(self) -> Path: ...


def drive_images(machine: Machine, files: DriveFiles) -> dict[Drive, Path]:
    """The image of each drive, in the order in which they are attached."""
    image = image_of(machine)
    paths = {
        ROOTFS: image / _manifest(image).root,
        DATA: files.data,
        SECRETS: files.secrets_image,
        CONFIG: files.config_image,
    }
    return {drive: paths[drive] for drive in drives_of(machine.role)}


def prepare_data(image: Path, *, mib: int) -> None:
    """Have a data drive of at least the size asked for."""
    if image.exists():
        images.grow(image, mib=mib)
    else:
        images.make_ext4(image, mib=mib)


def sizes(images_of_drives: Mapping[Drive, Path]) -> str:
    """The sizes of the drives that are rebuilt, also before their images were made: a guest knows them."""
    rebuilt = [drive for drive in images_of_drives if drive in SMALLEST]
    return ",".join(f"{drive.serial}={_size(images_of_drives[drive], SMALLEST[drive])}" for drive in rebuilt)


def _size(path: Path, smallest: int) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return smallest


def write_images(machine: Machine, files: DriveFiles) -> None:
    """Write the images of what is rebuilt at each start and wake, in place: a running guest reads them next."""
    rebuilt = ((CONFIG, machine.config, files.config_image), (SECRETS, machine.secrets, files.secrets_image))
    for drive, content, image in rebuilt:
        if drive in drives_of(machine.role):
            images.write_erofs(content, image, smallest=SMALLEST[drive])


def remember(memory: Path, made: Mapping[str, str]) -> None:
    """Write down what the machine that runs now was started with."""
    (memory / MADE_BY).write_text(json.dumps(dict(made)))


def remembered(memory: Path, *, who: str) -> dict[str, str]:
    """What the machine that runs was started with."""
    try:
        found = json.loads((memory / MADE_BY).read_text())
        return {str(name): str(value) for name, value in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise MvmError(f"what '{who}' was started with is not known: {error}") from error
