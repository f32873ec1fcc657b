"""The files behind drives: opened as Firecracker does, watched for a second writer, and read as the guest would.

Config, secrets and root images are real erofs (read by the few lines at the end). The data drive is a real ext4 image
of which the stand-in, which has no kernel to mount it, keeps the superblock only: what the guest has on it is a
directory while it runs, and a tar written into the image whenever the guest is paused or ends in order, so that a copy
of the image is a copy of the data. See README.md.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import secrets
import shutil
import stat
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.standins.firecracker.jail import Jail
from tests.standins.firecracker.rules import Fault
from tests.standins.firecracker.settings import Settings

F_OFD_SETLK = 37
HEADER_BYTES = 1024
"""ext4 leaves the first kibibyte of its device alone."""
CONTENT_AT = 1 << 20
EXT4_MAGIC_AT = 1080
EROFS_MAGIC = 0xE0F5E1E2
NODES = struct.Struct("<HHHHIIIIHHI")


@dataclass(kw_only=True)
class Drive:
    """One attached drive."""

    drive_id: str
    named: str
    read_only: bool
    root_device: bool
    descriptor: int = field(repr=False)

    @classmethod
    def open(cls, jail: Jail, config: dict[str, Any]) -> Drive:
        """Raises `Fault` for what a virtio-block drive cannot be made of."""
        if config.get("socket") is not None:
            raise Fault("Unable to create the vhost-user block device: not modelled by the stand-in")
        if config.get("path_on_host") is None or config.get("is_read_only") is None:
            raise Fault("Running method expected different backend: path_on_host and is_read_only are needed")
        read_only = bool(config["is_read_only"])
        flags = os.O_RDONLY if read_only else os.O_RDWR
        descriptor = jail.open(config["path_on_host"], flags, "Unable to create the virtio block device: backing file")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Fault("Unable to create the virtio block device: not a regular file")
        return cls(
            drive_id=config["drive_id"],
            named=config["path_on_host"],
            read_only=read_only,
            root_device=bool(config["is_root_device"]),
            descriptor=descriptor,
        )

    def claim(self) -> str | None:
        """Be the only one who writes to it; what is wrong when somebody else does.

        Firecracker itself would let two of them destroy a file system; the stand-in is there to notice.
        """
        if self.read_only:
            return None
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        try:
            fcntl.fcntl(self.descriptor, F_OFD_SETLK, lock)
        except OSError:
            return f"two machines write to {self.named}"
        return None

    def close(self) -> None:
        os.close(self.descriptor)

    @property
    def is_erofs(self) -> bool:
        return os.pread(self.descriptor, 4, 1024) == struct.pack("<I", EROFS_MAGIC)

    @property
    def is_ext4(self) -> bool:
        return os.pread(self.descriptor, 2, EXT4_MAGIC_AT) == b"\x53\xef"

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Mode and content of every file on an erofs image."""
        size = os.fstat(self.descriptor).st_size
        return dict(read_erofs(os.pread(self.descriptor, size, 0)))


@dataclass(kw_only=True)
class Data:
    """What the guest has on its data drive."""

    drive: Drive
    directory: Path

    @classmethod
    def attach(cls, settings: Settings, drive: Drive) -> Data:
        """The directory for that image: the one it had here, or made from what is in the image. Raises `Fault`."""
        if not drive.is_ext4:
            raise Fault(f"the guest panics: there is no ext4 file system on {drive.named}")
        found = os.fstat(drive.descriptor)
        directory = settings.control / "data" / f"{found.st_dev}-{found.st_ino}"
        data = cls(drive=drive, directory=directory)
        header = data._header()
        if not directory.is_dir() or header.get("mark") not in data._marks():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            data._unpack(header)
        return data

    def in_use(self) -> None:
        """The guest is about to write: the image is another one from here on, as a mounted file system is."""
        self._set_header(self._header() | {"mark": secrets.token_hex(8)})

    def flush(self) -> None:
        """Write what the guest has into the image."""
        packed = pack(self.directory)
        if CONTENT_AT + len(packed) > os.fstat(self.drive.descriptor).st_size:
            raise Fault(f"the data drive {self.drive.named} is too small for what the guest has on it")
        os.pwrite(self.drive.descriptor, packed, CONTENT_AT)
        self._set_header(
            {
                "mark": secrets.token_hex(8),
                "bytes": len(packed),
                "sha256": hashlib.sha256(packed).hexdigest(),
            }
        )

    def _header(self) -> dict[str, Any]:
        text = os.pread(self.drive.descriptor, HEADER_BYTES, 0).rstrip(b"\0")
        return dict(json.loads(text)) if text else {}

    def _set_header(self, header: dict[str, Any]) -> None:
        marks = [*self._marks()[-1:], header["mark"]]  # killed in between, either is right
        self._marks_file.write_text("\n".join(marks))
        os.pwrite(self.drive.descriptor, json.dumps(header).encode().ljust(HEADER_BYTES, b"\0"), 0)

    @property
    def _marks_file(self) -> Path:
        return self.directory.with_suffix(".marks")

    def _marks(self) -> list[str]:
        try:
            return self._marks_file.read_text().split()
        except FileNotFoundError:
            return []

    def _unpack(self, header: dict[str, Any]) -> None:
        if "bytes" in header:
            packed = os.pread(self.drive.descriptor, header["bytes"], CONTENT_AT)
            if hashlib.sha256(packed).hexdigest() != header["sha256"]:
                raise Fault(f"the guest panics: the file system on {self.drive.named} is damaged")
            unpack(packed, self.directory)


def data_of(control: Path, image: Path) -> Path:
    """Where the content of a data drive's image is, for tests that look at it from outside."""
    found = image.stat()
    return control / "data" / f"{found.st_dev}-{found.st_ino}"


def pack(directory: Path, leave_out: tuple[str, ...] = ()) -> bytes:
    """A directory as a tar, without sockets and what is named."""

    def chosen(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if member.name.removeprefix("./") in leave_out else member

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(directory, ".", filter=chosen)
    return buffer.getvalue()


def unpack(packed: bytes, directory: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(directory, filter="fully_trusted")  # noqa: S202 - written above


def read_erofs(image: bytes) -> Iterator[tuple[str, tuple[int, bytes]]]:
    """Path, mode and content of every file of an erofs in the plain form that mvm writes. Raises `Fault`."""
    magic, _, features, bits, _, root = struct.unpack_from("<IIIBBH", image, 1024)
    if magic != EROFS_MAGIC or features or bits != 12:
        raise Fault("the guest panics: this is no erofs that the stand-in reads")
    yield from _walk(image, root, "")


def _walk(image: bytes, number: int, prefix: str) -> Iterator[tuple[str, tuple[int, bytes]]]:
    mode, content = _inode(image, number)
    for name, child in _entries(content):
        if name in (".", ".."):
            continue
        child_mode, child_content = _inode(image, child)
        if stat.S_ISDIR(child_mode):
            yield from _walk(image, child, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", (stat.S_IMODE(child_mode), child_content)
    assert stat.S_ISDIR(mode)


def _inode(image: bytes, number: int) -> tuple[int, bytes]:
    form, _, mode, _, size, _, block, *_ = NODES.unpack_from(image, number * NODES.size)
    if form:
        raise Fault("the guest panics: this form of erofs inodes is not read by the stand-in")
    return mode, image[block * 4096 : block * 4096 + size]


def _entries(content: bytes) -> Iterator[tuple[str, int]]:
    for at in range(0, len(content), 4096):
        block = content[at : at + 4096]
        count = struct.unpack_from("<H", block, 8)[0] // 12
        rows = [struct.unpack_from("<QH", block, 12 * row) for row in range(count)]
        ends = [offset for _, offset in rows[1:]] + [len(block)]
        for (number, offset), end in zip(rows, ends, strict=True):
            yield os.fsdecode(block[offset:end].rstrip(b"\0")), number
