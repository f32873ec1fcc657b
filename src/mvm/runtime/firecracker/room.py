"""The room of one Firecracker: all that it can see while it is jailed, and nothing that is not its instance's.

Files get into it as second names of what they are (hard links): nothing is copied. What is on another file system, as
the secrets are, which must not get onto a disk, is mounted there for as long as Firecracker needs to open it. The
directory belongs to the user of that Firecracker, who must be expected to be hostile once a guest has run: whatever is
looked for in it afterwards is taken by its own name, never through a link.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mvm.drives.table import Drive, Life, Mode
from mvm.guest.kernel import MountFlag, mount, unmount
from mvm.model.errors import MvmError, Unavailable
from mvm.runtime import makeup, sparse
from mvm.runtime.firecracker import configuration, files, logs

_ANOTHER = {errno.EXDEV, errno.EMLINK, errno.EPERM}
"""Why a file cannot have another name."""


class Room:
    """A room while it is furnished."""

    def __init__(self, directory: Path, *, uid: int | None, jailed: bool) -> None:
        """`uid` is whom it belongs to; None: this user."""
        self.directory = directory
        self._uid = uid
        self._jailed = jailed
        self._mounted: list[Path] = []

    def make(self) -> None:
        """Make it, empty. Its parents are closed to everybody else."""
        try:
            self.directory.mkdir(mode=0o700, parents=True)
            for name in (files.LOG, files.METRICS):
                logs.make_pipe(self.directory / name, owner=self._uid)
            if self._uid is not None:
                os.chown(self.directory, self._uid, self._uid)
        except OSError as error:
            raise MvmError(f"the jail '{self.directory}' cannot be made: {error.strerror or error}") from error

    def put_image(self, name: str, source: Path) -> None:
        """Something of an image revision, which all its instances share: nothing in it is secret."""
        if self._uid is not None and source.exists():  # else as is said below
            makeup.let_all_read(source)
        self._put(name, source, "part of the image")

    def put_drives(self, drives: Mapping[Drive, Path]) -> None:
        """The images of drives."""
        for drive, image in drives.items():
            name = configuration.drive_file(drive)
            if drive.life is Life.IMMUTABLE:
                self.put_image(name, image)
            else:
                self._let_use(image, writing=drive.mode is Mode.READ_WRITE)
                self._put(name, image, f"image of drive {drive.serial}", secret=drive.memory_only)

    def put_memory(self, ram: Path, devices: Path) -> None:
        """What a sleeper goes on from. It can be read here and not written."""
        for name, source in ((files.MEMORY, ram), (files.DEVICES, devices)):
            self._let_use(source, writing=False)
            self._put(name, source, "saved memory")

    def _let_use(self, path: Path, *, writing: bool) -> None:
        """Let the room's user read a file that is its instance's, or write it."""
        if self._uid is None:
            return
        try:
            if path.stat().st_mode & stat.S_IROTH:  # a base's memory, which many have
                return
            if writing:
                os.chown(path, self._uid, self._uid)
            else:
                os.chown(path, 0, self._uid)
                path.chmod(0o640)
        except OSError as error:
            raise Unavailable(f"'{path}' cannot be given to its machine: {error.strerror}") from error

    def _put(self, name: str, source: Path, what: str, *, secret: bool = False) -> None:
        target = self.directory / name
        try:
            os.link(source, target)
            return
        except FileNotFoundError as error:
            raise Unavailable(f"the {what} is not there: {source}") from error
        except OSError as error:
            if error.errno not in _ANOTHER:
                raise MvmError(f"the {what} cannot be put into the jail: {error.strerror}") from error
        if not self._jailed:
            target.symlink_to(source)
        elif secret:
            self._mount(source, target)
        else:
            sparse.copy(source, target, mode=0o444)

    def _mount(self, source: Path, target: Path) -> None:
        target.touch(0o600)
        mount(str(source), target, "", MountFlag.BIND)
        self._mounted.append(target)

    def let_go(self) -> None:
        """Everything is open: what was mounted here need not be any longer."""
        while self._mounted:
            # Lazily: in the jail, which has it from here, it is open and stays so.
            unmount(self._mounted.pop(), lazily=True)

    def give(self, source: Path, name: str) -> None:
        """Move a file into the room, for its user to write. It belongs to them before it is there: what has a name in
        the room may be exchanged by them at any time."""
        if self._uid is not None:
            os.chown(source, self._uid, self._uid)
        os.replace(source, self.directory / name)

    def take(self, name: str, target: Path, *, mode: int) -> None:
        """Take a file that Firecracker has written out of the room, in place of what `target` is."""
        source = self.directory / name
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise MvmError(f"'{source}' is no file that Firecracker has written")
            if self._uid is not None:
                os.fchown(descriptor, 0, 0)
            os.fchmod(descriptor, mode)
            try:
                os.replace(source, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                target.unlink(missing_ok=True)
                sparse.copy(source, target, mode=mode)
                source.unlink()
        finally:
            os.close(descriptor)

    def clear(self, *names: str) -> None:
        """Remove files of these names. Idempotent."""
        for name in names:
            (self.directory / name).unlink(missing_ok=True)


@contextmanager
def furnished(directory: Path, *, uid: int | None, jailed: bool) -> Iterator[Room]:
    """A room to be furnished, and mounted in as long as the block lasts."""
    room = Room(directory, uid=uid, jailed=jailed)
    room.make()
    try:
        yield room
    finally:
        room.let_go()


def remove(jail: Path) -> None:
    """Remove an instance's jail; no process is in it. Idempotent."""
    for target in _mounted_below(jail):
        with suppress(OSError):
            unmount(target, lazily=True)
    with suppress(FileNotFoundError):
        shutil.rmtree(jail)


def _mounted_below(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> list[Path]:
    """What an agent that was killed left mounted."""
    with suppress(OSError):
        places = [line.split(" ")[4] for line in mounts.read_text().splitlines()]
        return [Path(place) for place in places if Path(place).is_relative_to(directory)]
    return []
