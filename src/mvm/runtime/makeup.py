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
from mvm.model.errors import Conflict, MvmError, Unavailable
from mvm.model.roles import Role
from mvm.runtime.base import GuestLayout, Machine

MADE_BY = "made_by.json"
"""What a machine was started with, beside its memory: its pool may be changed while it runs."""
CPUINFO = Path("/proc/cpuinfo")
_SMALLEST: Mapping[Drive, int] = {SECRETS: images.SECRETS_IMAGE_BYTES, CONFIG: images.CONFIG_IMAGE_BYTES}
SIZES = "drives"
"""Name of what `sizes` tells among what a machine is made by."""


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


def smallest(drive: Drive, role: Role) -> int:
    """Least size of the image of a drive that is rebuilt."""
    return images.GATEWAY_IMAGE_BYTES if role is Role.GATEWAY else _SMALLEST[drive]


def sizes(machine: Machine, files: DriveFiles) -> str:
    """The sizes of the drives that are rebuilt, also before their images were made: a guest knows them."""
    found = {drive: path for drive, path in drive_images(machine, files).items() if drive in _SMALLEST}
    return ",".join(f"{drive.serial}={_size(path, smallest(drive, machine.role))}" for drive, path in found.items())


def _sizes_in(told: str) -> dict[str, int]:
    """What `sizes` tells, by serial."""
    return {serial: int(size) for serial, _, size in (part.partition("=") for part in told.split(",") if part)}


def _size(path: Path, otherwise: int) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return otherwise


def write_images(machine: Machine, files: DriveFiles, *, running: Mapping[str, str] | None = None) -> None:
    """Write the images of what is rebuilt at each start and wake, in place: a running guest reads them next.

    `running` is what the machine that runs was started with, if one does. Its drives have the size that they had then:
    raises `Conflict` for what does not fit any more, and nothing is written.
    """
    content = {CONFIG: (machine.config, files.config_image), SECRETS: (machine.secrets, files.secrets_image)}
    rebuilt = [drive for drive in content if drive in drives_of(machine.role)]
    made = {drive: images.render_erofs(content[drive][0]) for drive in rebuilt}
    held = {} if running is None else _sizes_in(running.get(SIZES, ""))
    for drive in rebuilt:
        if (needed := len(made[drive])) > held.get(drive.serial, needed):
            raise Conflict(
                f"what {machine.ref} is to have on its drive '{drive.serial}' takes {needed} bytes, "
                f"and it runs with a drive of {held[drive.serial]}",
                hint=f"restart it: `mvm instance stop {machine.ref}`, then `mvm instance start {machine.ref}`",
            )
    for drive in rebuilt:
        images.write_image(made[drive], content[drive][1], smallest=smallest(drive, machine.role))


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
