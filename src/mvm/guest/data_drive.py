"""The drive that is kept: checked when it was not left in order, grown when its device has grown, and mounted.

All of it happens in the guest, for the guest wrote what is on it; the host never looks inside.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mvm.guest.kernel import MountFlag, mount

CHECK_PROGRAM = "/sbin/e2fsck"
MOUNT_OPTIONS = "errors=remount-ro"
LEAST_GROWTH_BYTES = 1024 * 1024
_FLAGS = MountFlag.NO_SETUID | MountFlag.NO_DEVICES | MountFlag.NO_ACCESS_TIMES

_SUPERBLOCK_AT = 1024
_SUPERBLOCK_BYTES = 1024
_MAGIC = 0xEF53
_VALID, _ERRORS = 1, 2
_NEEDS_RECOVERY = 0x4
_SIXTY_FOUR_BIT = 0x80
_EXT4_IOC_RESIZE_FS = 0x40086610
_UNREPAIRED = 4
"""From this exit status of e2fsck on, something was left as it was."""


class DataDriveError(Exception):
    """The data drive cannot be used; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Superblock:
    """What an ext4 file system says of itself."""

    block_bytes: int
    blocks: int
    clean: bool
    """It was unmounted, and nothing is known to be wrong with it."""

    @classmethod
    def parse(cls, data: bytes) -> Superblock:
        """Read a superblock. Raises `DataDriveError` when that is not one."""
        if len(data) < _SUPERBLOCK_BYTES or _u16(data, 0x38) != _MAGIC:
            raise DataDriveError("there is no ext4 file system on it")
        incompatible = _u32(data, 0x60)
        high = _u32(data, 0x150) if incompatible & _SIXTY_FOUR_BIT else 0
        state = _u16(data, 0x3A)
        return cls(
            block_bytes=1024 << min(_u32(data, 0x18), 6),
            blocks=(high << 32) | _u32(data, 0x4),
            clean=bool(state & _VALID) and not state & _ERRORS and not incompatible & _NEEDS_RECOVERY,
        )

    def growth(self, device_bytes: int) -> int | None:
        """Number of blocks that the file system should have on a device of that size; None when it has them."""
        if device_bytes - self.blocks * self.block_bytes < LEAST_GROWTH_BYTES:
            return None
        return device_bytes // self.block_bytes


def _u16(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<H", data, at)[0])


def _u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


def bring_up(device: Path, target: Path, note: Callable[[str], None]) -> None:
    """Check, mount and grow. `note` is told what was out of the ordinary. Raises `DataDriveError`."""
    try:
        superblock = _superblock(device)
        if not superblock.clean:
            note("the data drive was not unmounted: checking it")
            check(device)
            superblock = _superblock(device)
        target.mkdir(mode=0o755, exist_ok=True)
        mount(str(device), target, "ext4", _FLAGS, MOUNT_OPTIONS)
        blocks = superblock.growth(_size(device))
    except OSError as error:
        raise DataDriveError(str(error)) from error
    if blocks is not None:
        try:
            grow(target, blocks)
            note(f"the data drive has grown to {blocks * superblock.block_bytes // 2**20} MiB")
        except OSError as error:  # it is as usable as it was
            note(f"the data drive cannot grow: {error}")


def check(device: Path) -> None:
    """Repair a file system: what is safe first, everything if that is not enough. Raises `DataDriveError`."""
    for how in ("-p", "-fy"):
        result = subprocess.run(
            [CHECK_PROGRAM, how, str(device)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if 0 <= result.returncode < _UNREPAIRED:
            return
    said = result.stdout[-300:].decode(errors="replace").strip()
    raise DataDriveError(f"it cannot be repaired: e2fsck ended with status {result.returncode}: {said}")


def grow(mount_point: Path, blocks: int) -> None:
    """Have a mounted file system take up `blocks` blocks. Raises `OSError`."""
    descriptor = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _EXT4_IOC_RESIZE_FS, struct.pack("=Q", blocks))
    finally:
        os.close(descriptor)


def _superblock(device: Path) -> Superblock:
    with device.open("rb") as file:
        file.seek(_SUPERBLOCK_AT)
        return Superblock.parse(file.read(_SUPERBLOCK_BYTES))


def _size(device: Path) -> int:
    with device.open("rb") as file:
        return file.seek(0, os.SEEK_END)
