"""The drives that a machine of its own gets from its host: found by serial, read whole, and let go at once (ADR 6).

Configuration and secrets are not kept mounted: the host replaces what is on their devices, and a file system that
changes underneath is read wrong. Each reading mounts a drive where nobody else can look, copies it to memory and
unmounts it. The host made what is on them, and yet nothing but plain files and directories within bounds is taken.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mvm.guest import config as config_files
from mvm.guest import users
from mvm.guest.kernel import MountFlag, mount, unmount
from mvm.guest.paths import GuestPaths, write_atomically
from mvm.guest.services import Role
from mvm.guest.users import Access

log = logging.getLogger(__name__)

BLOCK_DEVICES = Path("/sys/block")
DEVICES = Path("/dev")
FILE_SYSTEM = "erofs"
MAX_TOTAL_BYTES = 32 * 1024 * 1024
MAX_FILES = 16 * 1024
MAX_DEPTH = 4
_READ_ONLY = MountFlag.READ_ONLY | MountFlag.NO_SETUID | MountFlag.NO_DEVICES | MountFlag.NO_EXECUTION


class DriveError(OSError):
    """A drive that cannot be used; the text names it and says why."""


@dataclass(frozen=True)
class GuestDrive:
    """A drive as the guest knows it; the host's table (`mvm.drives.table`) says the same."""

    serial: str
    device: str
    """Its name where devices do not tell their serials."""


DATA = GuestDrive("data", "vdb")
SECRETS = GuestDrive("secrets", "vdc")
CONFIG = GuestDrive("config", "vdd")


def find(drive: GuestDrive, *, devices: Path = BLOCK_DEVICES) -> Path | None:
    """The device that says it is this drive, else the one of its usual name that does not say it is another.

    None without either. Firecracker's devices say a number that nobody chose.
    """
    try:
        names = sorted(os.listdir(devices))
    except OSError:
        return None
    serials = {name: _serial(devices / name) for name in names}
    for name, serial in serials.items():
        if serial == drive.serial:
            return DEVICES / name
    said = serials.get(drive.device)
    return DEVICES / drive.device if said is not None and (not said or said.isdecimal()) else None


def _serial(device: Path) -> str:
    try:
        return (device / "serial").read_text(errors="replace").strip()
    except OSError:
        return ""


Tree = dict[str, bytes]
"""Files by their path relative to the top."""


def read_tree(top: Path) -> Tree:
    """Every file below a directory. Raises `DriveError` for anything but plain files and directories within bounds."""
    found: Tree = {}
    left = MAX_TOTAL_BYTES

    def walk(directory: Path, prefix: str, depth: int) -> None:
        nonlocal left
        if depth > MAX_DEPTH:
            raise DriveError(f"directories more than {MAX_DEPTH} deep")
        with os.scandir(directory) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    walk(directory / entry.name, f"{name}/", depth + 1)
                    continue
                if len(found) >= MAX_FILES:
                    raise DriveError(f"more than {MAX_FILES} files")
                found[name] = _read_file(directory / entry.name, name, left)
                left -= len(found[name])

    walk(top, "", 1)
    return found


def _read_file(path: Path, name: str, limit: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DriveError(f"{name!r} is not a plain file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DriveError(f"more than {MAX_TOTAL_BYTES} bytes")
    return content


def replace_tree(
    target: Path, files: Mapping[str, bytes], access: Callable[[str], Access], directory: Callable[[str], Access]
) -> None:
    """Make `target` hold just these files; each is replaced whole, and one that is the same already is not touched.

    `access` gives the access to a file and `directory` that to a directory, by relative path. Raises `OSError`.
    """
    wanted = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    for name in sorted(wanted):
        place = target / name
        if not place.is_dir() or place.is_symlink():
            _remove(place)
            place.mkdir(mode=0o700)
        directory(name).give(place)
    for name, content in files.items():
        _replace_file(target / name, content, access(name))
    for path in sorted(target.rglob("*"), reverse=True):  # what is inside comes first
        relative = str(path.relative_to(target))
        if relative not in files and relative not in wanted:
            _remove(path)


def _replace_file(path: Path, content: bytes, access: Access) -> None:
    if path.is_dir() and not path.is_symlink():
        _remove(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            same = file.read(len(content) + 1) == content
    except OSError:
        same = False
    if not same:
        write_atomically(path, content, mode=access.mode, owner=access.numbers)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Drives:
    """Configuration and secrets of a machine of its own. Under the process runtime every call does nothing."""

    def __init__(self, paths: GuestPaths, *, devices: Path = BLOCK_DEVICES) -> None:
        self._paths = paths
        self._devices = devices
        self._wiped = False

    @property
    def wiped(self) -> bool:
        """True from `wipe` until the secrets are taken in again."""
        return self._wiped

    def take_in(self) -> None:
        """Make the files what the drives hold now. A drive that is not there changes nothing; raises `DriveError`."""
        if not self._paths.owns_machine:
            return
        config = self._read(CONFIG)
        if config is None:
            config = self._orders()
        secrets = self._read(SECRETS)
        if secrets is not None:
            replace_tree(
                self._paths.secrets,
                secrets,
                lambda name: users.secret_file(name.partition("/")[0]),
                lambda name: users.secret_scope(name.partition("/")[0]),
            )
        if config is not None:
            readable, searchable = Access(mode=0o644), Access(mode=0o755)
            replace_tree(self._paths.config_dir, config, lambda _: readable, lambda _: searchable)
        self._wiped = False

    def wipe(self) -> None:
        """Remove the secrets from memory (the kernel clears what is freed): the memory is about to be written down."""
        if self._paths.owns_machine and find(SECRETS, devices=self._devices) is not None:
            self._wiped = True
            replace_tree(self._paths.secrets, {}, users.secret_file, users.secret_scope)

    def _orders(self) -> Tree | None:
        """The configuration of a builder, which has no drive for it; None in any other guest."""
        try:
            if config_files.role_of(self._paths.builder_config) is not Role.BUILDER:
                return None
            return {self._paths.config.name: _read_file(self._paths.builder_config, "config.json", MAX_TOTAL_BYTES)}
        except (config_files.ConfigError, OSError):
            return None

    def _read(self, drive: GuestDrive) -> Tree | None:
        device = find(drive, devices=self._devices)
        if device is None:
            return None
        place = self._paths.drive_mount
        place.mkdir(mode=0o700, exist_ok=True)
        try:
            mount(str(device), place, FILE_SYSTEM, _READ_ONLY)
            try:
                return read_tree(place)
            finally:
                unmount(place)
        except OSError as error:
            raise DriveError(f"the drive {drive.serial!r} cannot be read: {error}") from error
