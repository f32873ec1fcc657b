"""Debian packages by the host's own apt: resolved and downloaded into a directory of ours, nothing installed.

apt keeps doing what it is trusted for: it reads the host's sources, checks signatures and digests, and resolves. It is
told that nothing is installed, and to take nothing but Debian's packages whatever other sources the host has.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mvm.image.base import OnProgress
from mvm.image.commands import run
from mvm.model.errors import MvmError, Unavailable
from mvm.openclaw.install import Progress

LISTS_FRESH_SECONDS = 24 * 3600.0
"""Package lists younger than this are not fetched again."""
REACH_SECONDS = 20.0
HOST_LISTS = Path("/var/lib/apt/lists")

_ONLY_DEBIAN = """Package: *
Pin: release o=Debian
Pin-Priority: 500

Package: *
Pin: release *
Pin-Priority: -1
"""
_HINT = "can this machine reach its Debian mirror? `apt-get update` shows it"


@dataclass(frozen=True, kw_only=True)
class Package:
    """One version of a package, as apt's signed lists describe it."""

    name: str
    version: str
    architecture: str
    sha256: str
    size: int
    record: str
    """Its paragraph in the list."""

    @property
    def file_name(self) -> str:
        """Name under which apt stores the downloaded file."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"

    @property
    def wanted(self) -> str:
        """How to ask apt for just this."""
        return f"{self.name}={self.version}"


class Apt:
    """apt with its state in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._archives = directory / "archives"

    def prepare(self, on_progress: OnProgress) -> None:
        """Have lists of Debian's packages that are recent enough; old ones do when no newer can be fetched."""
        self._make_directories()
        known = self._knows_debian()
        if known and time.time() - self._lists.stat().st_mtime < LISTS_FRESH_SECONDS:
            return
        try:
            self._update(on_progress)
        except MvmError:
            if not known:
                raise
        if not self._knows_debian():
            raise Unavailable(
                "the sources of this host's apt have no packages of Debian",
                hint="images are built from Debian: build on a Debian host, or add a Debian source to /etc/apt",
            )

    def reach(self, package: str) -> Package:
        """Fetch a small package to see whether the mirror answers; lists are taken as they are."""
        self._make_directories()
        if not self._knows_debian():
            raise Unavailable("this host has no lists of Debian's packages yet", hint="apt-get update")
        (found,) = self.describe([package])
        run(
            ["apt-get", *self._options(), "-o", "Acquire::Retries=0", "download", found.wanted],
            what=f"downloading {found.name}",
            hint=_HINT,
            directory=self._archives,
            limit=REACH_SECONDS,
        )
        return found

    def codename(self) -> str:
        """Debian's release that the packages come from, such as `bookworm`."""
        names = self._index("$(CODENAME)")
        return min(names, key=len)

    def resolve(self, packages: Sequence[str]) -> tuple[Package, ...]:
        """These packages and all that they need on a machine where nothing is installed, in apt's order."""
        text = self._get("--simulate", "install", *packages)
        chosen = re.findall(r"^Inst (\S+) \((\S+) ", text, re.MULTILINE)
        return self.describe([f"{name}={version}" for name, version in chosen])

    def describe(self, packages: Sequence[str]) -> tuple[Package, ...]:
        """What the lists say of each, `name` or `name=version`."""
        text = self._run("apt-cache", "show", "--no-all-versions", *packages)
        return tuple(sorted((_parse(record) for record in _records(text)), key=lambda package: package.name))

    def download(self, packages: Sequence[Package], on_progress: OnProgress) -> dict[Package, Path]:
        """Where each package's file is; what is missing is downloaded and checked by apt."""
        missing = [package for package in packages if not self._has(package)]
        if missing:
            sizes = {package: self._archives / package.file_name for package in missing}
            total = sum(package.size for package in missing) // 2**20 + 1

            def watch(_written: str) -> None:
                done = sum(path.stat().st_size for path in sizes.values() if path.exists()) // 2**20
                on_progress(Progress(text="Debian packages (MiB)", done=min(done, total), total=total))

            watch("")
            command = ["apt-get", *self._options(), "download", *(package.wanted for package in missing)]
            run(command, what="downloading packages", hint=_HINT, directory=self._archives, watch=watch)
        absent = [package.name for package in packages if not self._has(package)]
        if absent:
            raise Unavailable(f"apt downloaded something else than its lists say of {', '.join(absent)}", hint=_HINT)
        files = {package: self._archives / package.file_name for package in packages}
        for path in files.values():
            os.utime(path)  # needed now
        return files

    def _has(self, package: Package) -> bool:
        path = self._archives / package.file_name
        return path.is_file() and path.stat().st_size == package.size

    def _make_directories(self) -> None:
        for path in (self._directory / "lists/partial", self._archives / "partial"):
            path.mkdir(parents=True, exist_ok=True)
        (self._directory / "status").touch()
        (self._directory / "preferences").write_text(_ONLY_DEBIAN)

    @property
    def _lists(self) -> Path:
        """Our own lists once there are any, the host's until then."""
        own = self._directory / "lists"
        return own if any(own.glob("*_Packages*")) else HOST_LISTS

    def _update(self, on_progress: OnProgress) -> None:
        on_progress(Progress(text="fetching Debian's lists of packages"))
        own = self._directory / "lists"
        command = ["apt-get", *self._options(lists=own), "update", "--error-on=any"]
        run(
            command,
            what="apt-get update",
            hint=_HINT,
            watch=lambda _written: on_progress(Progress(text="fetching Debian's lists of packages")),
        )

    def _knows_debian(self) -> bool:
        return any(Path(path).exists() for path in self._index("$(FILENAME)"))

    def _index(self, what: str) -> list[str]:
        """A field of each of Debian's lists."""
        text = self._run("apt-get", "indextargets", "--format", f"$(ORIGIN)|{what}", "Created-By: Packages")
        pairs = (line.partition("|") for line in text.splitlines())
        return [value for origin, _, value in pairs if origin == "Debian"]

    def _get(self, *arguments: str) -> str:
        return self._run("apt-get", *arguments)

    def _run(self, program: str, *arguments: str) -> str:
        with (self._directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # apt writes its caches
            return run([program, *self._options(), *arguments], what=program, hint=_HINT)

    def _options(self, lists: Path | None = None) -> list[str]:
        ours = self._directory
        settings = {
            "Dir::State::status": ours / "status",
            "Dir::State::lists": lists or self._lists,
            "Dir::State::extended_states": ours / "extended",
            "Dir::Cache": ours,
            "Dir::Cache::archives": self._archives,
            "Dir::Cache::pkgcache": "pkgcache.bin",  # containers' apt is often told to keep none
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
            "Dir::Etc::preferences": ours / "preferences",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Debug::NoLocking": "true",
        }
        return ["-qq", *(part for name, value in settings.items() for part in ("-o", f"{name}={value}"))]


def _records(text: str) -> list[str]:
    return [record for record in text.strip().split("\n\n") if record]


def _parse(record: str) -> Package:
    fields = dict(re.findall(r"^([\w-]+): (.*)$", record, re.MULTILINE))
    return Package(
        name=fields["Package"],
        version=fields["Version"],
        architecture=fields["Architecture"],
        sha256=fields["SHA256"],
        size=int(fields["Size"]),
        record=record,
    )
