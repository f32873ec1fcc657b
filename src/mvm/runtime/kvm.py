"""Whether KVM runs a guest here: found by running one, because opening /dev/kvm proves little (`mvm.runtime.payload`).

The guest is run by a program of its own (`python -m mvm.runtime.kvm`), which prints why it did not get
through, or nothing. That program may hang and is then killed; whatever it has open ends with it.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import mmap
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path

from mvm.runtime import payload

DEVICE = Path("/dev/kvm")
TRY_SECONDS = 10.0
"""The guest takes milliseconds, Python's start a few hundred, on a busy host more."""

_GUEST_BYTES = 4 * 1024 * 1024
_TSS_ADDRESS = 0x4000_0000
"""Three pages that the guest does not have otherwise."""

_CREATE_VM = 0xAE01
_VCPU_MMAP_SIZE = 0xAE04
_SUPPORTED_CPUID = 0xC008_AE05
_CREATE_VCPU = 0xAE41
_SET_TSS_ADDRESS = 0xAE47
_SET_MEMORY_REGION = 0x4020_AE46
_RUN = 0xAE80
_SET_REGS = 0x4090_AE82
_GET_SREGS = 0x8138_AE83
_SET_SREGS = 0x4138_AE84
_SET_CPUID = 0x4008_AE90

_MEMORY_REGION = struct.Struct("=IIQQQ")
_REGS = struct.Struct("=18Q")
_SEGMENT = struct.Struct("=QIH10B")
_SREGS_BYTES = 312
_CR0_AT = 224
_CPUID_ENTRIES = 256
_CPUID_BYTES = 8 + 40 * _CPUID_ENTRIES
_EXIT_REASON_AT, _EXIT_PORT_AT = 8, 34

_EXIT_IO, _EXIT_INTERRUPTED = 2, 10
_EXITS = {
    0: "it fails on an instruction",
    5: "the guest halts",
    6: "it does not find the guest's memory",
    8: "the guest shuts down",
    9: "the processor does not enter the guest",
    17: "it cannot run ordinary kernels (it fails on an instruction)",
}


async def why_not(*, seconds: float = TRY_SECONDS) -> str | None:
    """None when a guest got through, else why not."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        return f"it cannot be tried: {error.strerror or error}"
    try:
        async with asyncio.timeout(seconds):
            said, _ = await process.communicate()
    except TimeoutError:
        return f"a tiny guest did not get through in {seconds:g} s"
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        return f"the trial of it ended with status {process.returncode}"
    return said.decode(errors="replace").strip()[:200] or None


def attempt() -> str | None:
    """Run the guest in this process."""
    try:
        return _run()
    except OSError as error:
        return f"{DEVICE}: {error.strerror or error}"


def _run() -> str | None:
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    machine = fcntl.ioctl(device, _CREATE_VM, 0)
    with suppress(OSError):  # needed by some processors, unknown to others
        fcntl.ioctl(machine, _SET_TSS_ADDRESS, _TSS_ADDRESS)
    memory = mmap.mmap(-1, _GUEST_BYTES)
    memory[payload.ADDRESS : payload.ADDRESS + len(payload.TEXT)] = payload.TEXT
    pinned = (ctypes.c_char * _GUEST_BYTES).from_buffer(memory)
    fcntl.ioctl(machine, _SET_MEMORY_REGION, _MEMORY_REGION.pack(0, 0, 0, _GUEST_BYTES, ctypes.addressof(pinned)))
    vcpu = fcntl.ioctl(machine, _CREATE_VCPU, 0)
    _give_features(device, vcpu)
    _begin_at(vcpu, payload.ADDRESS)
    state = mmap.mmap(vcpu, fcntl.ioctl(device, _VCPU_MMAP_SIZE, 0))
    while True:
        with suppress(InterruptedError):
            fcntl.ioctl(vcpu, _RUN, 0)
        (reason,) = struct.unpack_from("=I", state, _EXIT_REASON_AT)
        if reason != _EXIT_INTERRUPTED:
            break
    if reason != _EXIT_IO:
        return _EXITS.get(reason, f"the guest ends for reason {reason}")
    (port,) = struct.unpack_from("=H", state, _EXIT_PORT_AT)
    return None if port == payload.EXIT_PORT else f"the guest writes to port {port:#x}"


def _give_features(device: int, vcpu: int) -> None:
    """Everything that this host can give a guest."""
    features = bytearray(_CPUID_BYTES)
    struct.pack_into("=I", features, 0, _CPUID_ENTRIES)
    fcntl.ioctl(device, _SUPPORTED_CPUID, features)
    fcntl.ioctl(vcpu, _SET_CPUID, features)


def _begin_at(vcpu: int, address: int) -> None:
    """As a kernel is entered: protected mode, all of the memory in every segment."""
    special = bytearray(_SREGS_BYTES)
    fcntl.ioctl(vcpu, _GET_SREGS, special)
    for number in range(6):
        code = number == 0
        selector, kind = (8, 11) if code else (16, 3)
        # base, limit, selector; type, present, privilege, 32 bits, no system segment, not 64 bits, in pages
        _SEGMENT.pack_into(special, number * _SEGMENT.size, 0, 0xFFFF_FFFF, selector, kind, 1, 0, 1, 1, 0, 1, 0, 0, 0)
    (cr0,) = struct.unpack_from("=Q", special, _CR0_AT)
    struct.pack_into("=Q", special, _CR0_AT, cr0 | 1)
    fcntl.ioctl(vcpu, _SET_SREGS, special)
    fcntl.ioctl(vcpu, _SET_REGS, _REGS.pack(*[0] * 16, address, 2))


if __name__ == "__main__":
    print(attempt() or "", end="")
