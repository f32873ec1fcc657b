"""Compressed swap in memory (zram): what a machine does not use right now takes a third of its place.

The initial RAM disk has loaded the module, or there is no such device and nothing happens.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

from mvm.guest.kernel import swap_on

DEVICE = "zram0"
COMPRESSORS = ("zstd", "lzo-rle", "lz4", "lzo")
"""The best first: this is about room; each page is compressed once and mostly stays so."""
_PAGE = 4096
_SIGNATURE = b"SWAPSPACE2"


def begin(block: Path = Path("/sys/block"), devices: Path = Path("/dev"), proc: Path = Path("/proc")) -> None:
    """Swap to compressed memory. Raises `OSError` or `ValueError`."""
    settings = block / DEVICE
    if not settings.exists():
        return
    _choose_compressor(settings / "comp_algorithm")
    size = memory_bytes((proc / "meminfo").read_text())
    (settings / "disksize").write_text(f"{size}\n")
    device = devices / DEVICE
    with device.open("r+b") as file:
        file.write(header(size))
    swap_on(device)


def _choose_compressor(setting: Path) -> None:
    there = setting.read_text().replace("[", "").replace("]", "").split()
    for name in COMPRESSORS:
        if name in there:
            with suppress(OSError):  # known, but its module is not there
                setting.write_text(f"{name}\n")
                return


def memory_bytes(meminfo: str) -> int:
    """All of the machine's memory, from `/proc/meminfo`, in whole pages."""
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024 // _PAGE * _PAGE
    raise ValueError("/proc/meminfo does not say how much memory there is")


def header(size: int) -> bytes:
    """The page that makes a device of `size` bytes a swap device (`mkswap`)."""
    page = bytearray(_PAGE)
    struct.pack_into("<II", page, 1024, 1, size // _PAGE - 1)
    page[-len(_SIGNATURE) :] = _SIGNATURE
    return bytes(page)
