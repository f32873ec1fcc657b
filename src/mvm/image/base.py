"""What every builder of images does, and what an image says of itself.

An image revision is a directory of four files: `vmlinux`, `initrd`, `rootfs.erofs` (or `rootfs.ext4`) and
`manifest.json`. A builder first resolves a request into its inputs, everything that decides what comes out, down to
package versions and digests of programs; the digest of the inputs names the revision. The same inputs are never built
twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from mvm.model.base import Frozen
from mvm.model.validation import problems_of
from mvm.openclaw.install import Progress

KERNEL = "vmlinux"
INITRD = "initrd"
ROOTFS = "rootfs.erofs"
MANIFEST = "manifest.json"
FILES = (KERNEL, INITRD, ROOTFS)
"""What mvm's own builders write beside the manifest."""
ROOTS = {ROOTFS: "erofs", "rootfs.ext4": "ext4"}
"""Names that a root may have, and the kind of file system that each is; a revision has one of them."""
DIGEST_LENGTH = 32

OnProgress = Callable[[Progress], None]
"""Told how far a build is, in the thread that builds. What it raises ends the build, which then leaves nothing."""

Json = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class GuestContents:
    """What mvm itself puts into every image. Directories and files are on the host."""

    zipapp: Path
    """To become `/opt/mvm/guest.pyz`."""
    plugin_dir: Path
    """To become `/opt/mvm/openclaw-plugin`."""


@dataclass(frozen=True, kw_only=True)
class Contents(GuestContents):
    """The same with OpenClaw, for images of roles that may run it."""

    node: Path
    """Executable to become `/usr/local/bin/node`."""
    openclaw_dir: Path
    """Directory of the npm package `openclaw`; when it lies in a `node_modules`, all of that comes along."""


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What an image is wanted for."""

    contents: GuestContents | None = None
    """There for builders that need it."""
    role: str = "worker"
    profile: str = "minimal"
    flake: str = ""
    """Where the pool says its image comes from; empty: wherever."""
    tenant: str = ""
    """Who asks for it: a machine that it is built in is in their network. Does not change what is built."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A resolved request."""

    builder: str
    request: BuildRequest
    document: Json
    """Everything that decides what the image holds; only data."""

    @property
    def digest(self) -> str:
        """Name of the revision that these inputs make."""
        text = json.dumps({"builder": self.builder, **self.document}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """Whether a builder can build here, found out without building."""

    usable: bool
    reason: str
    remedy: str | None = None
    replaceable: bool = True
    """Whether another builder may do it instead where this one is not usable."""


class Work(Protocol):
    """A builder at work on one image. Methods block: call them in a thread. They raise `MvmError`."""

    def resolve(self, request: BuildRequest, on_progress: OnProgress) -> Inputs:
        """Find out what would be built; needs no more of the network than lists of packages, or a flake's sources."""

    def build(self, inputs: Inputs, target: Path, on_progress: OnProgress) -> Manifest:
        """Write the files of the revision into `target`, an empty directory that the caller removes on any error."""


class Builder(Protocol):
    """One way to build images. Methods block: call them in a thread. They raise `MvmError`."""

    @property
    def name(self) -> str: ...

    @property
    def needs_contents(self) -> bool:
        """Whether it puts this host's OpenClaw and Node into images; else a request need not have any contents."""

    def serves(self, role: str) -> str:
        """The role whose instances an image for `role` serves; empty: every one that has none of its own."""

    def probe(self) -> Readiness:
        """Whether everything that a build needs from this host is there."""

    def at_work(self) -> AbstractContextManager[Work]:
        """What resolves a request and then builds it; what it has taken for that is given back at the end."""

    def stale(self) -> list[Path]:
        """What it keeps for later builds and no recent one needed; removing it only costs time."""


class ImageFile(Frozen):
    """One file of a revision."""

    sha256: str
    size: int


class Source(Frozen):
    """The flake that an image was built from."""

    flake: str
    """As the pool names it; empty: the builder's own."""
    url: str
    """Locked: it names one content for ever, where the flake can be locked."""
    lock_hash: str
    """SHA-256 over the locks of the flake and of all that it takes in."""
    application: str = ""
    """The locked application that mvm's own flake was put together with."""
    attribute: str
    derivation: str
    """Name of what was built in Nix's store: a digest of everything that decides what comes out."""


class Manifest(Frozen):
    """What is in an image and how it is booted."""

    format: int = 1
    digest: str
    builder: str
    role: str = ""
    """The one role that it serves; empty: every one."""
    profile: str
    architecture: str
    kernel_release: str
    kernel_arguments: tuple[str, ...]
    """What the image itself needs on the kernel's command line; the runtime adds what its machine needs."""
    modules: tuple[str, ...]
    """Kernel modules that the initrd loads, in its order."""
    node: str
    openclaw: str
    zipapp: str
    """SHA-256 of the guest's program."""
    packages: dict[str, str]
    """Debian packages (or what the builder has instead) with their versions."""
    files: dict[str, ImageFile]
    source: Source | None = None
    """Where it was built from, when that is a flake."""

    @property
    def root(self) -> str:
        """Name of the file with the root."""
        return next((name for name in ROOTS if name in self.files), ROOTFS)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the files that make the revision with this manifest."""
        return (KERNEL, INITRD, self.root)

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """The manifest of a revision; `OSError` or `ValueError` when it has none that can be read."""
        try:
            return cls.model_validate_json((directory / MANIFEST).read_bytes())
        except ValidationError as error:
            raise ValueError(str(problems_of(error, cls)[0])) from error

    def write(self, directory: Path) -> None:
        """Write it beside the files that it describes."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True)
        (directory / MANIFEST).write_text(f"{text}\n")


def describe_files(directory: Path, names: Iterable[str] = FILES) -> dict[str, ImageFile]:
    """The files of a revision as they are."""
    return {name: ImageFile(sha256=sha256(directory / name), size=(directory / name).stat().st_size) for name in names}


def sha256(path: Path) -> str:
    """Digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
