"""What runs a guest's instructions here: found by running some, because that is the only thing that tells."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from mvm.model.errors import Unavailable
from mvm.runtime import payload
from mvm.runtime.qemu import own_user
from mvm.runtime.records import boot_id

log = logging.getLogger(__name__)

BINARY = "qemu-system-x86_64"
OLDEST = (7, 2)
"""Oldest QEMU that this was written for and tried with."""
TRY_SECONDS = 3.0
"""The payload takes 0.1 s emulated."""
PATIENT_SECONDS = 20.0
"""For a second trial, once per boot of the host: right after it QEMU is read from a disk that everybody reads from."""
RETRY_SECONDS = 120.0
"""After this it is tried again whether an accelerator that failed for no lasting reason works by now."""
LASTING_SECONDS = 900.0
"""What fails for as long as this, whenever it is tried, is taken to fail for good by whoever waits for it."""
CACHE = "accelerator.json"
KVM_DEVICE = Path("/dev/kvm")
_NO_ORDINARY_KERNELS = "KVM internal error"
_PASSING = tuple(
    os.strerror(number) for number in (errno.EBUSY, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
)
"""In what QEMU prints: reasons that may be gone a moment later."""


class Accelerator(StrEnum):
    """QEMU's names."""

    KVM = "kvm"
    HVF = "hvf"
    TCG = "tcg"

    @property
    def is_hardware(self) -> bool:
        """False when every instruction is emulated."""
        return self is not Accelerator.TCG

    @property
    def device(self) -> Path | None:
        """What a QEMU opens to use it."""
        return KVM_DEVICE if self is Accelerator.KVM else None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A QEMU and what it can use."""

    binary: str
    version: str
    accelerator: Accelerator
    reason: str
    """Why not a faster one; empty when there is none faster."""
    until: float | None = None
    """When a faster one is to be tried again (Unix time), for it may work by then; None: this is certain."""
    since: float | None = None
    """Since when every trial of a faster one has failed for no lasting reason."""

    def holds(self, now: float) -> bool:
        """False when it has to be found out again."""
        return self.until is None or now < self.until

    def is_passing(self, now: float) -> bool:
        """Whether it is worth it to wait for a faster one."""
        return self.since is not None and now < self.since + LASTING_SECONDS


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an accelerator runs no guest."""

    why: str
    certain: bool
    """False when the next trial may end otherwise: it was too slow, busy, or something else had its memory."""


async def find(
    run_dir: Path | None = None, *, binary: str = BINARY, uid: int | None = None, clock: Callable[[], float] = time.time
) -> Found:
    """The fastest accelerator that works, tried once per boot of the host and version of QEMU.

    One that failed for no lasting reason is given a second, longer trial, and another one every `RETRY_SECONDS`.

    `uid` is whom the trials run as: they must have the rights that machines have, and no more. None: this user.
    Raises `Unavailable` when there is no QEMU, it is too old, or not even its emulation works.
    """
    path = shutil.which(binary)
    if path is None:
        raise Unavailable(
            f"{binary} is not installed", hint="install QEMU (Debian: qemu-system-x86, macOS: brew install qemu)"
        )
    version = await _version(path)
    key = f"{boot_id()} {path} {version} {os.geteuid()} {uid} {_device_stamp()}"
    cached = None if run_dir is None else _read(run_dir / CACHE, key)
    if cached is not None and cached.holds(clock()):
        return cached
    found = await _try_all(path, version, uid, patient=cached is None)
    if found.until is not None:
        now = clock()
        before = cached.since if cached is not None else None
        found = replace(found, until=now + RETRY_SECONDS, since=now if before is None else before)
    if run_dir is not None:
        _write(run_dir / CACHE, key, found)
    return found


async def _version(path: str) -> str:
    status, output, _ = await _run([path, "--version"])
    version = parse_version(output) if status == 0 else None
    if version is None:
        raise Unavailable(f"'{path} --version' does not say which QEMU it is: {output.strip()[:200]!r}")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise Unavailable(
            f"QEMU {version} is too old", hint=f"install QEMU {'.'.join(map(str, OLDEST))} or newer; {path} was found"
        )
    return version


def parse_version(text: str) -> str | None:
    """The number in what `--version` prints; None when there is none."""
    match = re.search(r"version (\d+\.\d+(?:\.\d+)?)", text)
    return match[1] if match else None


async def _try_all(path: str, version: str, uid: int | None, *, patient: bool) -> Found:
    """What works. It holds until a time long ago when that is not certain to be the fastest."""
    reasons: list[str] = []
    certain = True
    for accelerator in candidates(platform.system()):
        failure = await attempt(path, accelerator, seconds=TRY_SECONDS, uid=uid)
        if failure is not None and not failure.certain and patient:
            log.warning("%s does not work here (%s); it is tried once more", accelerator, failure.why)
            failure = await attempt(path, accelerator, seconds=PATIENT_SECONDS, uid=uid)
        if failure is None:
            until = None if certain else 0.0
            return Found(binary=path, version=version, accelerator=accelerator, reason="; ".join(reasons), until=until)
        reasons.append(f"{accelerator} does not work here: {failure.why}")
        certain = certain and failure.certain
    raise Unavailable(f"QEMU runs no guest here ({'; '.join(reasons)})")


def candidates(system: str) -> tuple[Accelerator, ...]:
    """What an operating system may offer, fastest first."""
    hardware = {"Linux": (Accelerator.KVM,), "Darwin": (Accelerator.HVF,)}.get(system, ())
    return (*hardware, Accelerator.TCG)


async def attempt(
    path: str, accelerator: Accelerator, *, seconds: float = TRY_SECONDS, uid: int | None = None
) -> Failure | None:
    """Run the payload as a machine of user `uid` would run. None when it got through, else why not."""
    try:
        as_user = own_user.words(uid, device=accelerator.device)
    except Unavailable as error:
        return Failure(why=f"{error.message}; {error.hint}" if error.hint else error.message, certain=True)
    with tempfile.NamedTemporaryFile(prefix="mvm-payload-") as image:
        image.write(payload.elf())
        image.flush()
        # As a machine's kernel: another user may have no way to the file, and reads what is open.
        os.fchmod(image.fileno(), 0o444)
        kernel = f"/proc/self/fd/{image.fileno()}" if as_user else image.name
        # fmt: off
        arguments = [
            *as_user,
            path, "-M", "microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=off", "-accel", accelerator.value,
            "-cpu", "max", "-m", "16", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", kernel, "-device", f"isa-debug-exit,iobase={payload.EXIT_PORT:#x},iosize=4",
        ]
        # fmt: on
        began = time.monotonic()
        status, output, in_time = await _run(arguments, seconds=seconds, held=(image.fileno(),))
        log.debug("%s: status %s after %.3f s: %s", accelerator, status, time.monotonic() - began, output[:500])
    if status == payload.EXIT_STATUS:
        return None
    return Failure(
        why=why_not(output, in_time=in_time, seconds=seconds),
        certain=is_certain(output, status=status, in_time=in_time),
    )


def is_certain(output: str, *, status: int, in_time: bool) -> bool:
    """Whether a QEMU that ran no guest would run none in a while either, by how it ended and what it printed."""
    if _NO_ORDINARY_KERNELS in output:
        return True
    return in_time and status >= 0 and not any(words in output for words in _PASSING)  # else somebody killed it


def why_not(output: str, *, in_time: bool, seconds: float) -> str:
    """One line of why a guest did not get through, from what QEMU printed."""
    if _NO_ORDINARY_KERNELS in output:
        return "its KVM cannot run ordinary kernels (it fails on an instruction)"
    said = [line for line in output.strip().splitlines() if "warning:" not in line]
    if said:
        return re.sub(r"^qemu-system-\S+:\s*", "", said[0]).removeprefix("-accel ")[:200]
    return "the guest ended early" if in_time else f"a tiny guest did not get through in {seconds:g} s"


async def _run(arguments: list[str], *, seconds: float = 10.0, held: tuple[int, ...] = ()) -> tuple[int, str, bool]:
    """Status, output and whether it ended in time; it is killed as soon as KVM gives up or the time is over."""
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=held,
        )
    except OSError as error:
        raise Unavailable(f"'{arguments[0]}' cannot be started: {error.strerror or error}") from error
    assert process.stdout is not None
    lines, in_time = [], True
    try:
        async with asyncio.timeout(seconds):
            while line := await process.stdout.readline():
                lines.append(line.decode(errors="replace"))
                if _NO_ORDINARY_KERNELS in lines[-1]:
                    break
            else:
                await process.wait()
    except TimeoutError:
        in_time = False
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        status = await process.wait()
    return status, "".join(lines), in_time


def _device_stamp() -> str:
    """Changes when access to /dev/kvm does, this user's or that of machines."""
    with suppress(OSError):
        found = KVM_DEVICE.stat()
        return f"{os.access(KVM_DEVICE, os.R_OK | os.W_OK)} {stat.S_IMODE(found.st_mode):o} {found.st_gid}"
    return "none"


def _read(cache: Path, key: str) -> Found | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        document = json.loads(cache.read_text())
        if document.pop("key") == key:
            return Found(**document | {"accelerator": Accelerator(document["accelerator"])})
    return None


def _write(cache: Path, key: str, found: Found) -> None:
    with suppress(OSError):  # without it the next agent tries again
        fresh = cache.with_suffix(".new")
        fresh.write_text(json.dumps({"key": key, **asdict(found)}))
        fresh.replace(cache)
