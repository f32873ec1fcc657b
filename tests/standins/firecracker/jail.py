"""What a jailed process could see and do, told by path prefix and permission bits instead of by a real chroot.

The stand-in goes on as root outside of its chroot: it needs Python and the guest's programs. So it asks here what its
user could open below its root, and gives what it makes to that user.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.standins.firecracker.rules import Fault

READ, WRITE, SEARCH = 4, 2, 1


@contextmanager
def short(path: Path) -> Iterator[str]:
    """A socket's path that the kernel takes, however deep the jail is: who is really in it has a short one."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listening(path: Path) -> socket.socket:
    """A Unix socket bound there."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short(path) as place:
        listener.bind(place)
    listener.listen(64)
    return listener


@dataclass(frozen=True, kw_only=True)
class Jail:
    """A root and a user; `Jail.none()` is the whole machine as root."""

    root: Path
    uid: int
    gid: int

    @classmethod
    def none(cls) -> Jail:
        return cls(root=Path("/"), uid=os.geteuid(), gid=os.getegid())

    @property
    def confined(self) -> bool:
        return self.root != Path("/")

    def path(self, named: str) -> Path:
        """Where that is on the host. A path that does not begin with `/` is below the root of a jail too."""
        if not self.confined:
            return Path(named).absolute()
        place = self.root / named.lstrip("/")
        real = Path(os.path.realpath(place.parent)) / place.name
        root = Path(os.path.realpath(self.root))
        leads_out = place.is_symlink() and root not in Path(os.path.realpath(place)).parents
        if leads_out or root not in (real, *real.parents):
            raise Fault(f"{named}: No such file or directory (os error 2)")
        return real

    def open(self, named: str, flags: int, what: str) -> int:
        """Open an existing file as the jail's user would. Raises `Fault`."""
        path = self.path(named)
        wanted = READ | (WRITE if flags & os.O_RDWR else 0)
        self._require(path, wanted, f"{what}: {named}")
        try:
            return os.open(path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise Fault(f"{what}: {error.strerror} (os error {error.errno}) {named}") from None

    def create(self, named: str, what: str) -> int:
        """Create a file, or empty an existing one, as the jail's user would. Raises `Fault`."""
        path = self.path(named)
        if path.exists():
            self._require(path, READ | WRITE, f"{what}: {named}")
        else:
            self._require(path.parent, WRITE | SEARCH, f"{what}: {named}")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Fault(f"{what}: {error.strerror} (os error {error.errno}) {named}") from None
        self.give(path)
        return descriptor

    def may_bind(self, named: str, what: str) -> Path:
        """Where a socket may be made. Raises `Fault` when something is there already."""
        path = self.path(named)
        if path.exists() or path.is_symlink():
            raise Fault(f"{what}: Address in use (os error 98) {named}")
        self._require(path.parent, WRITE | SEARCH, f"{what}: {named}")
        if len(os.fsencode(named)) > 107:
            raise Fault(f"{what}: path must be shorter than SUN_LEN {named}")
        return path

    def give(self, path: Path) -> None:
        """Let the jail's user own what was made for it."""
        if self.confined:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def _require(self, path: Path, wanted: int, what: str) -> None:
        if not path.exists():
            raise Fault(f"{what}: No such file or directory (os error 2)")
        if not self.confined or self.uid == 0:
            return
        root = Path(os.path.realpath(self.root))
        for place in [path, *path.parents]:
            if not self._allows(place.stat(), wanted if place == path else SEARCH):
                raise Fault(f"{what}: Permission denied (os error 13)")
            if place == root:
                break

    def _allows(self, found: os.stat_result, wanted: int) -> bool:
        if found.st_uid == self.uid:
            bits = found.st_mode >> 6
        elif found.st_gid == self.gid:
            bits = found.st_mode >> 3
        else:
            bits = found.st_mode
        return stat.S_IMODE(bits) & wanted == wanted
