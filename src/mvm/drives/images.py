"""Disk images of drives, made without mounting anything (virtual machines; DESIGN, "Drives").

Config and secrets are small read-only erofs images of a fixed size, rewritten in place: whoever holds one open, as QEMU
does, sees what was written last. The data drive is a sparse ext4 image that is made once; from then on only the guest
reads its file system, because a guest may write anything into it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from mvm.drives import erofs
from mvm.model.errors import MvmError, Unavailable
from mvm.runtime import sparse

CONFIG_IMAGE_BYTES = 1024 * 1024
SECRETS_IMAGE_BYTES = 256 * 1024
GATEWAY_IMAGE_BYTES = 16 * 1024 * 1024
"""Smallest sizes; a content that needs more gets the next power of two.

A machine that runs cannot be given a larger drive, and a gateway's hold something of everybody whom it serves: a token
is a block (4 KiB), so there is room for 4000 people. What is not used is a hole, which takes neither memory nor disk.
"""
_ZEROS = bytes(1024 * 1024)
EXT4_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
"""Named one by one: what a newer mkfs turns on by itself may be unknown to the guest's kernel and e2fsck."""
JOURNAL_MIB = 16
PROGRAM_SECONDS = 60.0
FILLING_SECONDS = 600.0
"""The same for a drive that is made with something on it."""
PROGRAMS = {"mkfs.ext4": "e2fsprogs"}
"""What is needed on the host, with the Debian package that has it."""


def missing_programs() -> dict[str, str]:
    """Program -> package of those that are not installed."""
    return {program: package for program, package in PROGRAMS.items() if _which(program) is None}


def write_erofs(content: Path, image: Path, *, smallest: int) -> int:
    """Make `image` hold the files of the directory `content`; returns its size in bytes."""
    return write_image(render_erofs(content), image, smallest=smallest)


def render_erofs(content: Path) -> bytes:
    """What an image with the files of the directory `content` holds: all belong to root in it; modes are kept."""
    try:
        return erofs.render(content)
    except OSError as error:
        raise MvmError(f"'{content}' cannot be read: {error.strerror or error}") from error


def write_image(made: bytes, image: Path, *, smallest: int) -> int:
    """Make `image` hold what was rendered; returns its size in bytes.

    The image keeps its inode and is never shorter than before. A reader meanwhile sees a mixture: it must be told
    afterwards.
    """
    try:
        return _replace_content(made, image, fixed_size(len(made), smallest))
    except OSError as error:
        raise MvmError(
            f"the image '{image}' cannot be written: {error.strerror or error}", hint="is the file system full?"
        ) from error


def fixed_size(needed: int, smallest: int) -> int:
    """The smallest size that is `smallest` doubled any number of times and holds `needed` bytes."""
    size = smallest
    while size < needed:
        size *= 2
    return size


def make_ext4(image: Path, *, mib: int, content: Path | None = None) -> None:
    """Make a data drive of that size, whole or not at all: empty, or with what is in the directory `content`."""
    unfinished = image.with_name(f".{image.name}.new")
    unfinished.unlink(missing_ok=True)
    try:
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, mib << 20)
        finally:
            os.close(descriptor)
        # Tables of a drive that is thrown away soon are for the guest to clear, should it get so far.
        lazy = 0 if content is None else 1
        # fmt: off
        _run(
            "mkfs.ext4", "-q", "-F", "-L", "data", "-m", "0", "-O", EXT4_FEATURES, "-J", f"size={JOURNAL_MIB}",
            "-E", f"lazy_itable_init={lazy},lazy_journal_init=1,root_owner=0:0",
            *(() if content is None else ("-d", str(content))), str(unfinished),
            seconds=PROGRAM_SECONDS if content is None else FILLING_SECONDS,
        )
        # fmt: on
        unfinished.replace(image)
    except OSError as error:
        raise MvmError(f"the data drive '{image}' cannot be made: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def grow(image: Path, *, mib: int) -> bool:
    """Make an image at least that large; the guest grows its file system at its next boot. True when it grew."""
    if image.stat().st_size >= mib << 20:
        return False
    os.truncate(image, mib << 20)
    return True


def _replace_content(content: bytes, image: Path, size: int) -> int:
    """Write `content` over `image`, zeros up to the size."""
    descriptor = os.open(image, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "r+b") as target:
        before = os.fstat(descriptor).st_size
        size = max(size, before)
        target.write(content)
        target.flush()
        _clear(descriptor, len(content))
        os.ftruncate(descriptor, size)
    return size


def _clear(descriptor: int, begin: int) -> None:
    """Write zeros over what an earlier content has left behind `begin`; holes stay holes."""
    for offset, length in list(sparse.extents(descriptor)):
        at, end = max(offset, begin), offset + length
        while at < end:
            at += os.pwrite(descriptor, _ZEROS[: end - at], at)


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _run(program: str, *arguments: str, seconds: float = PROGRAM_SECONDS) -> None:
    path = _which(program)
    if path is None:
        raise Unavailable(f"{program} is not installed", hint=f"install it (Debian: {PROGRAMS[program]})")
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            env={"LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MvmError(f"{program} failed: {error}") from error
    if done.returncode != 0:
        with suppress(IndexError):
            said = done.stdout.decode(errors="replace").strip().splitlines()[-1]
            raise MvmError(f"{program} failed: {said[:300]}", hint="is the file system full?")
        raise MvmError(f"{program} failed with status {done.returncode}")
