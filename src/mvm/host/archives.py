"""What a backup of a tenant holds and how it is laid out: a tar of a manifest and every instance's data drive.

The tar is compressed and sealed (`mvm.security.sealed_files`). A data drive is a directory (`process`) or an image,
of which only what was ever written is kept. Guests filled these drives: on the way in and out no symbolic link is
followed, and nothing but files, directories and links is taken.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, Literal, cast

import zstandard
from pydantic import ValidationError

from mvm.model.base import Frozen, InstanceIdField, PoolIdField, UserIdField
from mvm.model.entities import PoolSpec, Tenant, User
from mvm.model.errors import InvalidInput
from mvm.model.ids import InstanceId
from mvm.security.sealed_files import SealedReader, SealedWriter

VERSION = 1
MANIFEST = "manifest.json"
DIRECTORY, IMAGE, EXTENTS = "data", "data.img", "data.img.extents"
MAX_MANIFEST = 64 * 1024 * 1024
_COPY = 1024 * 1024


class ArchivedInstance(Frozen):
    """An instance as it was."""

    instance_id: InstanceIdField
    pool_id: PoolIdField
    user: UserIdField | None = None
    runtime: str
    drive: Literal["directory", "image", "none"]
    held: bool = False
    was_up: bool = False
    next_alarm_at: str | None = None


class Manifest(Frozen):
    """Everything of a tenant but its drives. Holds its secrets."""

    version: int
    made_at: str
    made_by: str
    tenant: Tenant
    pools: tuple[PoolSpec, ...]
    users: tuple[User, ...]
    instances: tuple[ArchivedInstance, ...]
    secrets: dict[str, str]

    def __repr__(self) -> str:
        return f"Manifest({self.tenant.tenant_id!r})"


def drive_of(state_dir: Path) -> Literal["directory", "image", "none"]:
    """What form the data drive in an instance's directory has."""
    if (state_dir / IMAGE).is_file():
        return "image"
    return "directory" if (state_dir / DIRECTORY).is_dir() else "none"


class ArchiveWriter:
    """Writes a backup into a file that nobody else reads; it is whole after `finish` only. Blocks: for threads."""

    def __init__(self, path: Path, passphrase: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._file: BinaryIO = open(descriptor, "wb")  # noqa: SIM115 - closed in `finish` and `abandon`
        try:
            self._sealed = SealedWriter(self._file, passphrase)
        except BaseException:
            self._file.close()
            raise
        self._compressed = zstandard.ZstdCompressor(level=3).stream_writer(cast(IO[bytes], self._sealed), closefd=False)
        self._tar = tarfile.open(fileobj=self._compressed, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def manifest(self, manifest: Manifest) -> None:
        """Must be first."""
        self._text(MANIFEST, manifest.model_dump_json())

    def drive(self, instance: InstanceId, state_dir: Path) -> None:
        """Add the data drive of an instance that does not run."""
        match drive_of(state_dir):
            case "directory":
                self._directory(f"{instance}/{DIRECTORY}", state_dir / DIRECTORY)
            case "image":
                self._image(str(instance), state_dir / IMAGE)

    def finish(self) -> None:
        """The backup is whole and on the disk when this returns."""
        self._tar.close()
        self._compressed.close()  # type: ignore[no-untyped-call]
        self._sealed.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Leave it unfinished."""
        self._sealed.abandon()
        self._file.close()

    def _text(self, name: str, text: str) -> None:
        data = text.encode()
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))

    def _directory(self, name: str, root: Path) -> None:
        for folder, subfolders, files in os.walk(root):  # does not follow symbolic links
            subfolders.sort()
            for entry in (*sorted(files), *subfolders):
                path = Path(folder, entry)
                self._entry(f"{name}/{path.relative_to(root).as_posix()}", path)

    def _entry(self, name: str, path: Path) -> None:
        found = path.lstat()
        info = tarfile.TarInfo(name)
        info.mode, info.mtime = stat.S_IMODE(found.st_mode) & 0o777, int(found.st_mtime)
        if stat.S_ISDIR(found.st_mode):
            info.type = tarfile.DIRTYPE
            self._tar.addfile(info)
        elif stat.S_ISLNK(found.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
            self._tar.addfile(info)
        elif stat.S_ISREG(found.st_mode):
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                info.size = os.fstat(file.fileno()).st_size
                self._tar.addfile(info, file)

    def _image(self, name: str, path: Path) -> None:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            extents = list(_written(file.fileno(), size))
            self._text(f"{name}/{EXTENTS}", json.dumps({"size": size, "extents": extents}))
            info = tarfile.TarInfo(f"{name}/{IMAGE}")
            info.size = sum(length for _, length in extents)
            self._tar.addfile(info, io.BufferedReader(_Pieces(file, extents), _COPY))


def read_manifest(path: Path, passphrase: str) -> Manifest:
    """Read a backup from its beginning to its end, and return what it says when all of it is in order."""
    manifest, known = None, set[InstanceId]()
    with _opened(path, passphrase) as tar:
        for member in tar:
            if manifest is not None:
                _checked(member, known)
            elif member.name == MANIFEST and member.isreg() and member.size <= MAX_MANIFEST:
                manifest = _parse(_read(tar, member))
                known = {instance.instance_id for instance in manifest.instances}
            else:
                break
    if manifest is None:
        raise InvalidInput("this is no backup of a tenant", hint="`mvm tenant export` makes one")
    return manifest


def unpack(path: Path, passphrase: str, places: dict[InstanceId, Path]) -> None:
    """Write the data drives of a backup into the directories of instances (archived id -> directory).

    Directories and files first, symbolic links last: whatever a name contains, nothing is written through one.
    """
    links: list[tuple[Path, str]] = []
    extents: dict[str, tuple[int, list[tuple[int, int]]]] = {}
    with _opened(path, passphrase) as tar:
        for member in tar:
            if member.name == MANIFEST:
                continue
            instance, inner = _checked(member, places)
            target = places[instance] / inner
            if member.issym():
                links.append((target, member.linkname))
            elif member.isdir():
                target.mkdir(mode=0o700, parents=True, exist_ok=True)
                target.chmod(member.mode & 0o777 | 0o700)
            elif inner == PurePosixPath(EXTENTS):
                extents[instance] = _extents(_read(tar, member))
            elif inner == PurePosixPath(IMAGE):
                _write_image(tar, member, target, *extents[instance])
            else:
                _write_file(tar, member, target)
    for target, text in links:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.symlink(text, target)


@contextlib.contextmanager
def _opened(path: Path, passphrase: str) -> Iterator[tarfile.TarFile]:
    """The tar inside a backup. At the end of the block the rest of the file is read and checked too."""
    with path.open("rb") as file:
        sealed = io.BufferedReader(SealedReader(file, passphrase), _COPY)
        plain = zstandard.ZstdDecompressor().stream_reader(sealed)
        try:
            with tarfile.open(fileobj=plain, mode="r|") as tar:
                yield tar
            while sealed.read(_COPY):
                pass
        except (tarfile.TarError, zstandard.ZstdError, KeyError) as error:
            raise InvalidInput(f"the backup is damaged: {error}", hint="take another copy") from None


def _checked(member: tarfile.TarInfo, instances: object) -> tuple[InstanceId, PurePosixPath]:
    """The instance and the path inside its directory that a member is for; raises `InvalidInput` for any other one."""
    parts = PurePosixPath(member.name).parts
    inside = len(parts) > 1 and not member.name.startswith("/") and ".." not in parts
    if (
        inside
        and parts[0] in instances  # type: ignore[operator]
        and (parts[1] == DIRECTORY or (len(parts) == 2 and parts[1] in (IMAGE, EXTENTS)))
        and (member.isreg() or member.isdir() or (member.issym() and len(parts) > 2))
    ):
        return InstanceId(parts[0]), PurePosixPath(*parts[1:])
    raise InvalidInput(f"the backup holds {member.name[:200]!r}, which does not belong into one", hint="do not use it")


def _parse(text: bytes) -> Manifest:
    try:
        version = json.loads(text)["version"]
        if version != VERSION:
            raise InvalidInput(
                f"the backup is of version {version}, and this mvm knows version {VERSION}", hint="use a newer mvm"
            )
        return Manifest.model_validate_json(text)
    except (ValidationError, ValueError, KeyError, TypeError):
        raise InvalidInput("the backup's manifest is not one of this mvm", hint="is it of a newer version?") from None


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _write_file(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None, "members are checked to be regular"
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        while chunk := source.read(_COPY):
            file.write(chunk)
        os.fchmod(file.fileno(), member.mode & 0o777)
    os.utime(target, (member.mtime, member.mtime))


def _extents(text: bytes) -> tuple[int, list[tuple[int, int]]]:
    try:
        found = json.loads(text)
        size, extents = int(found["size"]), [(int(begin), int(length)) for begin, length in found["extents"]]
    except (ValueError, KeyError, TypeError):
        raise InvalidInput("the backup is damaged: a drive's map cannot be read", hint="take another copy") from None
    if any(begin < 0 or length < 0 or begin + length > size for begin, length in extents):
        raise InvalidInput("the backup is damaged: a drive's map is not of its size", hint="take another copy")
    return size, extents


def _write_image(
    tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, size: int, extents: list[tuple[int, int]]
) -> None:
    source = tar.extractfile(member)
    assert source is not None, "members are checked to be regular"
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.truncate(size)
        for begin, length in extents:
            file.seek(begin)
            while length and (chunk := source.read(min(length, _COPY))):
                file.write(chunk)
                length -= len(chunk)


def _written(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Beginning and length of every part of a sparse file that was ever written."""
    position = 0
    while position < size:
        try:
            begin = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        position = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield begin, position - begin


class _Pieces(io.RawIOBase):
    """Parts of a file, one after the other."""

    def __init__(self, file: BinaryIO, extents: list[tuple[int, int]]) -> None:
        self._file = file
        self._left = list(extents)

    def readable(self) -> bool:
        return True

    def readinto(self, target: object) -> int:
        view = memoryview(target).cast("B")  # type: ignore[arg-type]
        while self._left and not self._left[0][1]:
            self._left.pop(0)
        if not self._left:
            return 0
        begin, length = self._left[0]
        self._file.seek(begin)
        taken = self._file.readinto(view[: min(len(view), length)])  # type: ignore[attr-defined]
        self._left[0] = (begin + taken, length - taken)
        return int(taken)
