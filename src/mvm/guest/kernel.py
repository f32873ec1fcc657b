"""The few calls of Linux that Python has no name for: mounts, swap, the end of the machine."""

from __future__ import annotations

import ctypes
import os
from enum import IntFlag
from pathlib import Path

_RB_AUTOBOOT = 0x01234567
_RB_DISABLE_CAD = 0
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


class MountFlag(IntFlag):
    """Flags of mount(2)."""

    READ_ONLY = 1
    NO_SETUID = 2
    NO_DEVICES = 4
    NO_EXECUTION = 8
    REMOUNT = 32
    NO_ACCESS_TIMES = 1024
    BIND = 4096


def mount(source: str, target: Path, kind: str, flags: MountFlag, options: str = "") -> None:
    """Mount a file system. Raises `OSError`."""
    result = _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), int(flags), options.encode())
    _check(result, f"{source} cannot be mounted on {target}")


def unmount(target: Path, *, lazily: bool = False) -> None:
    """Unmount what is mounted there. Raises `OSError`, `EBUSY` while something is open.

    With `lazily` nobody finds it there any more, and what is open stays open.
    """
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH if lazily else 0), f"{target} cannot be unmounted")


def swap_on(device: Path) -> None:
    """Use a prepared device as swap space. Raises `OSError`."""
    _check(_libc.swapon(os.fsencode(device), 0), f"{device} cannot be used as swap space")


def keep_keyboard_quiet() -> None:
    """Have Ctrl-Alt-Del sent to the first process as a signal instead of restarting the machine. Raises `OSError`."""
    _check(_libc.reboot(_RB_DISABLE_CAD), "Ctrl-Alt-Del cannot be taken over")


def restart_machine() -> None:
    """End this machine at once, whatever is not on disk being lost: virtual machines of mvm end when they restart."""
    _check(_libc.reboot(_RB_AUTOBOOT), "the machine cannot be restarted")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
