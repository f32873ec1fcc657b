"""The image revisions of a host: directories named by the digest of what they were built from, whole or not there.

A build works in a staging directory that is renamed when all is written and on the disk. Whoever asks for the same
revision meanwhile, in whatever process, waits for that build and gets its result.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mvm.image import trees
from mvm.image.base import DIGEST_LENGTH, MANIFEST, ROOTS, Inputs, Manifest, OnProgress, Work
from mvm.image.locks import only_one
from mvm.model.errors import MvmError, NotFound
from mvm.openclaw.install import Progress

_NAME = re.compile(rf"[0-9a-f]{{{DIGEST_LENGTH}}}")
_LOCKS = ".locks"
_STAGING = ".staging-"


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A revision that is there, whole."""

    digest: str
    directory: Path
    manifest: Manifest

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(file.size for file in self.manifest.files.values())


class Revisions:
    """The store; its directory is made when the first revision is built."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, digest: str) -> Path:
        """Directory of a revision, which must be there; `NotFound` otherwise."""
        if not self.has(digest):
            raise NotFound(f"there is no image revision '{digest[:80]}'", hint="`mvm pool build` makes one")
        return self.directory / digest

    def has(self, digest: str) -> bool:
        """Whether a revision is there."""
        return bool(_NAME.fullmatch(digest)) and (self.directory / digest / MANIFEST).is_file()

    def manifest(self, digest: str) -> Manifest:
        """What a revision says of itself."""
        path = self.path(digest)
        try:
            return Manifest.read(path)
        except (OSError, ValueError) as error:
            raise MvmError(f"{path / MANIFEST} cannot be read: {error}", hint=f"remove {path}") from error

    def all(self) -> list[Revision]:
        """Every revision, by digest."""
        names = sorted(path.name for path in self.directory.glob("*") if self.has(path.name))
        return [Revision(digest=name, directory=self.directory / name, manifest=self.manifest(name)) for name in names]

    def build(self, work: Work, inputs: Inputs, on_progress: OnProgress, *, force: bool = False) -> Path:
        """Build a revision unless it is there; with `force` in any case, and put in the place of the one that is.

        Raises what the builder or `on_progress` raises; nothing but the builder's cache is left then.
        """
        digest = inputs.digest
        if self.has(digest) and not force:
            return self.directory / digest
        waiting = Progress(text="waiting for another build of the same image")
        with only_one(self._lock(digest), lambda: on_progress(waiting)):
            if self.has(digest) and not force:
                return self.directory / digest
            for left_over in self.directory.glob(f"{_STAGING}{digest}-*"):
                shutil.rmtree(left_over)
            staging = Path(tempfile.mkdtemp(prefix=f"{_STAGING}{digest}-", dir=self.directory))
            try:
                manifest = work.build(inputs, staging, on_progress)
                self._publish(staging, digest, (*manifest.names, MANIFEST))
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
        return self.directory / digest

    def _publish(self, staging: Path, digest: str, names: Collection[str]) -> None:
        staging.chmod(0o755)
        for name in names:
            # Whatever the umask is: machines of other users than this one read it, and nothing in it is secret.
            (staging / name).chmod(0o644)
            _sync(staging / name)
        _sync(staging)
        final = self.directory / digest
        if final.exists():
            # Files are replaced one by one, each whole: who has one open keeps what it has.
            for name in names:
                (staging / name).replace(final / name)
            for name in ROOTS.keys() - names:
                (final / name).unlink(missing_ok=True)
            staging.rmdir()
        else:
            staging.rename(final)
        _sync(self.directory)

    def unused(self, in_use: Collection[str]) -> list[Revision]:
        """Revisions that are not among those in use."""
        return [revision for revision in self.all() if revision.digest not in in_use]

    def remove(self, digest: str) -> None:
        """Remove a revision. Idempotent."""
        if _NAME.fullmatch(digest):
            trees.remove(self.directory / digest)

    def clear_unfinished(self) -> None:
        """Remove what builds and removals that were killed have left, but nothing that a build is working on."""
        for directory in (*self.directory.glob(f"{_STAGING}*"), *self.directory.glob(".removed-*")):
            digest = directory.name.removeprefix(_STAGING)[:DIGEST_LENGTH]
            with contextlib.suppress(_Busy), only_one(self._lock(digest), _give_up):
                shutil.rmtree(directory, ignore_errors=True)

    def _lock(self, digest: str) -> Path:
        locks = self.directory / _LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        return locks / digest


class _Busy(Exception):
    """Somebody else holds a lock."""


def _give_up() -> None:
    raise _Busy


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
