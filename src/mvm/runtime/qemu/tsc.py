"""How fast this processor's time stamp counter runs.

An emulated guest sees the host's counter and has nothing to measure it by: without being told its rate, its kernel may
hang at boot (facts/QEMU.md, section 1).
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import time

RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")
"""rdtsc; shl $32, %rdx; or %rdx, %rax; ret"""
MEASURE_SECONDS = 0.05
_SAMPLES = 50


@functools.cache
def host_tsc_khz() -> int | None:
    """Ticks per millisecond, measured once per process; None on other architectures than x86-64."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(RDTSC)
        view = ctypes.c_char.from_buffer(page)
        try:
            rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(view))
            begin, first = _sample(rdtsc)
            time.sleep(MEASURE_SECONDS)
            end, last = _sample(rdtsc)
        finally:
            del view  # the page cannot be unmapped as long as anything points into it
    return round((last - first) * 1e6 / (end - begin))


def _sample(rdtsc: ctypes._FuncPointer) -> tuple[int, int]:
    """A moment in nanoseconds and the counter at it: of many looks the one that took least time."""
    looks = []
    for _ in range(_SAMPLES):
        before = time.monotonic_ns()
        count = rdtsc()
        after = time.monotonic_ns()
        looks.append((after - before, (before + after) // 2, count))
    _, moment, count = min(looks)
    return moment, count
