"""Firecracker and its jailer of one release, installed beside mvm's other programs.

`<programs>/firecracker/<version>/{firecracker,jailer}` exists whole or not at all: a release is downloaded and unpacked
in a staging directory, which is renamed when both programs have said their version. What is unpacked was verified
against a SHA-256 first: the one that the operator gives, else the one that Firecracker publishes beside the release.
That one comes from the same place as the release, so it proves that nothing was cut or garbled; who wants proof that it
is the release somebody has looked at gives the digest. This is the only place in mvm with an address of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from mvm.model.errors import Conflict, InvalidInput, MvmError, NotFound, Unavailable
from mvm.runtime.firecracker.binaries import FIRECRACKER, JAILER, version_of

DEFAULT_VERSION = "1.16.1"
"""The newest release when this was written (facts/FIRECRACKER.md)."""
RELEASES = "https://github.com/firecracker-microvm/firecracker/releases/download"
ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
"""What kernels call a machine -> what releases call it."""
PROGRAMS = (FIRECRACKER, JAILER)
MANIFEST = "installation.json"
MAX_RELEASE_BYTES = 256 * 1024 * 1024
MAX_PROGRAM_BYTES = 64 * 1024 * 1024
REQUEST_SECONDS = 60.0
_CHUNK = 256 * 1024
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an installation is, in MiB; `total` is None where nothing can be counted."""

    text: str
    done: float = 0
    total: float | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A complete installation."""

    version: str
    directory: Path
    sha256: str
    """Of the release's tarball."""
    source: str
    """Where that came from: an address or a path."""
    new: bool
    """False when it was there already."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which release, and how it is known to be the right one."""

    version: str = DEFAULT_VERSION
    sha256: str | None = None
    """Digest that the tarball must have; None: whatever Firecracker publishes beside it."""
    tarball: Path | None = None
    """A tarball that is here already; None: it is downloaded."""
    machine: str | None = None
    """Architecture as a kernel names it; None: this machine's."""

    @property
    def architecture(self) -> str:
        """As releases name it. Raises `Unavailable` where there are no releases for it."""
        machine = self.machine or platform.machine()
        try:
            return ARCHITECTURES[machine.lower()]
        except KeyError:
            raise Unavailable(
                f"Firecracker is not released for {machine}",
                hint="it runs on x86_64 and aarch64; or use MVM_RUNTIME=qemu",
            ) from None

    @property
    def name(self) -> str:
        """File name of the release."""
        return f"firecracker-v{self.version}-{self.architecture}.tgz"

    def check(self) -> None:
        """Raise `InvalidInput` for what cannot be a version or a digest."""
        if not _VERSION.fullmatch(self.version):
            raise InvalidInput(f"{self.version!r} is no version of Firecracker", hint=f"such as {DEFAULT_VERSION}")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise InvalidInput("a SHA-256 has 64 hexadecimal digits (0-9, a-f)", hint="`sha256sum FILE` prints it")


class Installer:
    """Installs releases into one programs directory."""

    def __init__(self, programs_dir: Path, *, on_progress: OnProgress, releases: str = RELEASES) -> None:
        """`on_progress` is called in the thread that installs."""
        self._home = programs_dir / "firecracker"
        self._on_progress = on_progress
        self._releases = releases.rstrip("/")

    def install(self, wanted: Wanted) -> Installation:
        """Install a release unless it is there and works. On any error nothing of it is left.

        Raises `InvalidInput`, `NotFound` (no such release), `Unavailable` (no network, no digest), or `MvmError`
        (it is not what its digest says, or its programs do not run here).
        """
        wanted.check()
        if (found := self.installed(wanted)) is not None:
            return found
        self._home.mkdir(parents=True, exist_ok=True)
        with _only_one(self._home / ".lock"):
            if (found := self.installed(wanted)) is not None:
                return found
            for left_over in self._home.glob(".staging-*"):
                shutil.rmtree(left_over)
            staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=self._home))
            try:
                return self._install(wanted, staging)
            except OSError as error:
                raise MvmError(
                    f"Firecracker {wanted.version} cannot be installed in '{self._home}': {error.strerror or error}",
                    hint="is the file system full, or somebody else's? MVM_PROGRAMS_DIR names another place",
                ) from error
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def installed(self, wanted: Wanted) -> Installation | None:
        """The installation of that version, if there is one whose programs still say so."""
        directory = self._home / wanted.version
        try:
            manifest = json.loads((directory / MANIFEST).read_text())
            if wanted.sha256 not in (None, manifest["sha256"]):
                return None
            _check_programs(directory, wanted.version)
            return Installation(
                version=wanted.version,
                directory=directory,
                sha256=manifest["sha256"],
                source=manifest["source"],
                new=False,
            )
        except (OSError, ValueError, KeyError, TypeError, MvmError):
            return None

    def _install(self, wanted: Wanted, staging: Path) -> Installation:
        tarball = staging / "release.tgz"
        expected = self._expected_digest(wanted)
        source = str(wanted.tarball) if wanted.tarball is not None else self._address(wanted)
        if wanted.tarball is not None:
            self._copy(wanted.tarball, tarball)
        else:
            self._download(source, tarball, wanted)
        found = _digest(tarball)
        if found != expected:
            raise MvmError(
                f"{source} is not what was expected: its SHA-256 is {found}, not {expected}",
                hint="nothing was installed; download it again, and do not use it if it stays so",
            )
        self._on_progress(Progress(text="unpacking"))
        complete = staging / "complete"
        complete.mkdir(mode=0o755)
        _unpack(tarball, complete, wanted)
        _check_programs(complete, wanted.version)
        manifest = {"version": wanted.version, "architecture": wanted.architecture, "sha256": found, "source": source}
        (complete / MANIFEST).write_text(json.dumps(manifest) + "\n")
        os.sync()
        directory = self._home / wanted.version
        if directory.exists():  # damaged, or of another digest; what runs from it keeps its open files
            directory.rename(staging / "former")
        complete.rename(directory)
        return Installation(version=wanted.version, directory=directory, sha256=found, source=source, new=True)

    # Digest and content

    def _expected_digest(self, wanted: Wanted) -> str:
        if wanted.sha256 is not None:
            return wanted.sha256
        if wanted.tarball is not None:
            beside = wanted.tarball.with_name(f"{wanted.tarball.name}.sha256.txt")
            try:
                return _published(beside.read_text(errors="replace"), str(beside))
            except FileNotFoundError:
                raise Unavailable(
                    f"nothing says what '{wanted.tarball}' should be",
                    hint=f"give --sha256, or put the release's {beside.name} beside it",
                ) from None
        address = f"{self._address(wanted)}.sha256.txt"
        self._on_progress(Progress(text="asking for the release's digest"))
        with self._open(address, wanted) as (response, _):
            return _published(response.read(4096).decode(errors="replace"), address)

    def _address(self, wanted: Wanted) -> str:
        return f"{self._releases}/v{wanted.version}/{wanted.name}"

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        try:
            shutil.copyfile(source, target)
        except FileNotFoundError:
            raise NotFound(f"there is no '{source}'") from None

    def _download(self, address: str, target: Path, wanted: Wanted) -> None:
        text = f"Firecracker {wanted.version} for {wanted.architecture}, in MiB"
        with self._open(address, wanted) as (response, length), target.open("wb") as file:
            total = None if length is None else round(length / 2**20, 1)
            done = 0
            while chunk := response.read(_CHUNK):
                done += len(chunk)
                if done > MAX_RELEASE_BYTES:
                    raise MvmError(f"{address} is larger than any release of Firecracker ({done} bytes)")
                file.write(chunk)
                self._on_progress(Progress(text=text, done=round(done / 2**20, 1), total=total))
            if length is not None and done != length:
                raise Unavailable(f"{address} broke off after {done} of {length} bytes", hint="run it again")

    @contextlib.contextmanager
    def _open(self, address: str, wanted: Wanted) -> Iterator[tuple[IO[bytes], int | None]]:
        """An answer and its length, if it says it. What is secure does not lead to what is not."""
        try:
            opener = urllib.request.build_opener(_NoDowngrade())
            with opener.open(address, timeout=REQUEST_SECONDS) as response:
                length = response.headers.get("Content-Length", "")
                yield response, int(length) if length.isdecimal() else None
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                raise NotFound(
                    f"there is no release {wanted.version} of Firecracker for {wanted.architecture} ({address})",
                    hint="its releases are listed at https://github.com/firecracker-microvm/firecracker/releases",
                ) from None
            raise Unavailable(f"{address} answers {error.code} {error.reason}", hint="try again later") from None
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise Unavailable(
                f"{address} cannot be reached: {reason or type(error).__name__}",
                hint="set HTTPS_PROXY if this machine needs one, or fetch it elsewhere and use --from FILE",
            ) from error


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows a redirection of GitHub's to where it keeps its files, and none to a connection that others can read."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError(f"it leads to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _published(text: str, where: str) -> str:
    """The digest that a `.sha256.txt` names."""
    word = text.split()[0] if text.split() else ""
    if not _SHA256.fullmatch(word):
        raise MvmError(f"{where} does not begin with a SHA-256", hint="give the digest yourself: --sha256")
    return word


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(tarball: Path, directory: Path, wanted: Wanted) -> None:
    """Take the two programs out of a release, and nothing else that may be in it."""
    folder = f"release-v{wanted.version}-{wanted.architecture}"
    try:
        with tarfile.open(tarball, mode="r:gz") as archive:
            for program in PROGRAMS:
                _extract(archive, f"{folder}/{program}-v{wanted.version}-{wanted.architecture}", directory / program)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise MvmError(
            f"the release cannot be unpacked: {error}", hint=f"it should be {wanted.name} as Firecracker publishes it"
        ) from error


def _extract(archive: tarfile.TarFile, name: str, target: Path) -> None:
    try:
        member = archive.getmember(name)
    except KeyError:
        raise MvmError(f"there is no {name} in the release", hint="is it of another version or machine?") from None
    content = archive.extractfile(member) if member.isreg() and member.size <= MAX_PROGRAM_BYTES else None
    if content is None:
        raise MvmError(f"{name} in the release is no program ({member.size} bytes)")
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file)
    target.chmod(0o755)


def _check_programs(directory: Path, version: str) -> None:
    """Both run here and say that version."""
    for name in PROGRAMS:
        try:
            said = version_of(directory / name)
        except Unavailable as error:
            raise MvmError(f"{name} {version} does not run on this machine: {error.message}") from error
        if str(said) != version:
            raise MvmError(f"`{name} --version` says {said} and should say {version}")


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold the installers' lock; the kernel lets go of it however its holder ends."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("Firecracker is being installed by another process", hint="wait for it") from None
        yield
