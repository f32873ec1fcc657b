"""The root file system in layers: Debian's packages, then Node and OpenClaw, then what is mvm's own.

The lower layers are kept as directories under the digest of what they were made from, so that a new guest program costs
seconds. An image is put together by hard links and packed as erofs.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from mvm.image import nix_settings, prune, trees
from mvm.image.base import Contents, GuestContents, OnProgress
from mvm.image.commands import run
from mvm.image.debian.apt import Package
from mvm.model.errors import MvmError
from mvm.openclaw.install import Progress

TIME = 946684800
"""Modification time of every file, in seconds: 2000-01-01."""
USERS = {"openclaw": 1000, "router": 990}
"""Users (each with a group of its own) that services run as."""
PACKAGES = (
    "python3",
    "ca-certificates",
    "e2fsprogs",
    "git",
    "curl",
    "jq",
    "procps",
    "libstdc++6",
    "usr-is-merged",
    "?and(?essential,?not(?exact-name(apt)))",
)
PROFILES = {"minimal": (), "python": ("python3-pip", "python3-venv")}
"""Packages that each profile adds."""
ROLES = {"builder": ("nix-bin", "busybox-static", "mount")}
"""Roles with images of their own, which have no Node and no OpenClaw, and the packages that each adds."""

_UNWANTED = ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian")
_LEFT_OVER = (
    "var/cache/apt",
    "var/cache/debconf",
    "var/lib/apt",
    "var/log",
    "etc/apt",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/machine-id",
    "etc/resolv.conf",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/diversions-old",
    "var/cache/ldconfig/aux-cache",
    "etc/passwd-",
    "etc/group-",
    "etc/shadow-",
    "etc/gshadow-",
)
_MERGED_USR = Path("/usr/share/mmdebstrap/hooks/merged-usr")
_HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
_SHADOW = "{name}:*:10957:0:99999:7:::\n"
_GROUP_SHADOW = "{name}:*::\n"
"""No password, last changed at `TIME`, so that the same packages always give the same bytes."""
_STEP = re.compile(r"^(?:Unpacking|Setting up) ", re.MULTILINE)
_IDENTITY = uuid.UUID("8f7ab5c2-6f0e-5c53-9f0f-6d766d726f6f")
"""Name space of the file systems' identities."""


def make_base(target: Path, packages: dict[Package, Path], codename: str, on_progress: OnProgress) -> None:
    """Install Debian's packages into `target`, a directory that is not there yet. Needs root."""
    repository = target.with_name(f"{target.name}.packages")
    _fill_repository(repository, packages)
    names = ",".join(package.name for package in packages)
    unwanted = [f"--dpkgopt=path-exclude=/{path}/*" for path in _UNWANTED]
    hooks = [f"--hook-directory={_MERGED_USR}"] if _MERGED_USR.is_dir() else []
    source = f"deb [trusted=yes] copy://{repository} ./"  # apt has checked them, against the archive's signed lists
    command = ["mmdebstrap", "--verbose", "--mode=root", "--variant=custom", "--format=directory", f"--include={names}"]
    options = [*hooks, *unwanted, '--aptopt=APT::Sandbox::User "root"', codename, str(target), source]
    try:
        run(
            [*command, *options],
            what="mmdebstrap",
            hint="the command can be run by hand; `mvm doctor` checks what it needs",
            watch=lambda written: on_progress(_installed(written, len(packages))),
        )
    finally:
        shutil.rmtree(repository)
    on_progress(Progress(text="settling the base system"))
    _settle(target)
    # The files' times become one and the same, so what Python compiled has to be valid whatever they are.
    compiling = ("-I", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash")
    run(
        ["chroot", str(target), "/usr/bin/python3", *compiling, "/usr/lib/python3", *_standard_library(target)],
        what="compiling Python's library",
        hint="can programs for this architecture run here?",
        watch=lambda _written: on_progress(Progress(text="compiling Python's library")),
    )


def make_node(target: Path, contents: Contents, on_progress: OnProgress) -> None:
    """Copy Node."""
    on_progress(Progress(text="copying Node"))
    trees.make_directory(target / "usr/local/bin")
    trees.copy_file(contents.node, target / "usr/local/bin/node", executable=True)


def make_openclaw(target: Path, contents: Contents, on_progress: OnProgress) -> None:
    """Copy the part of OpenClaw that a guest needs."""
    on_progress(Progress(text="copying OpenClaw"))
    modules = target / "opt/openclaw/node_modules"
    tree = module_tree(contents.openclaw_dir)
    if tree is None:
        trees.copy(contents.openclaw_dir, modules / "openclaw")
    else:
        trees.copy(tree, modules, prune.keeps)


def module_tree(openclaw_dir: Path) -> Path | None:
    """The `node_modules` that OpenClaw was installed into; None when it stands alone (a stand-in)."""
    return openclaw_dir.parent if openclaw_dir.parent.name == "node_modules" else None


def assemble(target: Path, layers: Sequence[Path], contents: GuestContents, role: str = "") -> None:
    """Put the layers over each other and mvm's own on top; `role` is the one that the image is for, if only one."""
    target.mkdir()
    target.chmod(0o755)
    for layer in layers:
        trees.link_layer(layer, target)
    trees.make_directory(target / "opt/mvm")
    trees.copy_file(contents.zipapp, target / "opt/mvm/guest.pyz")
    trees.copy(contents.plugin_dir, target / "opt/mvm/openclaw-plugin")
    if role == "builder":
        trees.make_directory(target / "nix")
        trees.make_directory(target / "etc/nix")
        _replace(target / "etc/nix/nix.conf", nix_settings.configuration())


def _replace(path: Path, text: str) -> None:
    """Write a file anew: what is there may be a layer's, by another name."""
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o644)


def pack(tree: Path, target: Path, digest: str, on_progress: OnProgress) -> None:
    """Make the erofs image of a tree; the same tree and digest give the same bytes."""
    command = ["mkfs.erofs", "-zlz4", f"-T{TIME}", f"-U{uuid.uuid5(_IDENTITY, digest)}", "-x-1", str(target), str(tree)]
    packing = Progress(text="packing the root file system")
    on_progress(packing)
    run(command, what="mkfs.erofs", hint="is the disk full?", watch=lambda _written: on_progress(packing))
    target.chmod(0o644)


def _installed(written: str, packages: int) -> Progress:
    """How far mmdebstrap is: each package is unpacked, then set up."""
    steps = len(_STEP.findall(written))
    return Progress(text="installing Debian packages", done=min(steps, 2 * packages), total=2 * packages)


def _fill_repository(repository: Path, packages: dict[Package, Path]) -> None:
    """A local source of just these packages, so that what is installed is what was resolved."""
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir()
    records = []
    for package, file in packages.items():
        name = f"{package.name}.deb"
        os.link(file, repository / name)
        lines = package.record.splitlines()
        records.append("\n".join(f"Filename: ./{name}" if line.startswith("Filename:") else line for line in lines))
    (repository / "Packages").write_text("\n\n".join(records) + "\n")


def _settle(root: Path) -> None:
    """Take out what belongs to the building host and to the moment, and put in what every guest has."""
    for left in _LEFT_OVER:
        path = root / left
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
            path.mkdir()
        else:
            path.unlink(missing_ok=True)
    (root / "etc/apt").rmdir()
    for place in ("dev", "run", "tmp"):
        _empty(root / place)
    for cache in list(root.rglob("__pycache__")):
        shutil.rmtree(cache)
    for path in _setuid(root):
        path.chmod(stat.S_IMODE(path.lstat().st_mode) & ~(stat.S_ISUID | stat.S_ISGID))
    for name, content in {
        "machine-id": "",
        "resolv.conf": "",
        "hostname": "mvm\n",
        "hosts": _HOSTS,
        "fstab": "",
    }.items():
        (root / "etc" / name).write_text(content)
        (root / "etc" / name).chmod(0o644)
    for place in ("data", "etc/mvm-config"):
        trees.make_directory(root / place)
    _add_users(root / "etc")


def _empty(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _setuid(root: Path) -> Iterator[Path]:
    """Programs that would run with more rights than their caller; nothing in a guest needs one."""
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                yield path


def _add_users(etc: Path) -> None:
    for name, number in USERS.items():
        taken = [line for line in (etc / "passwd").read_text().splitlines() if line.split(":")[2] == str(number)]
        if taken:
            raise MvmError(f"Debian's packages already use the user id {number} ({taken[0].partition(':')[0]})")
        home = "/data/home" if name == "openclaw" else "/nonexistent"
        _append(etc / "passwd", f"{name}:x:{number}:{number}::{home}:/usr/sbin/nologin\n")
        _append(etc / "group", f"{name}:x:{number}:\n")
    for file, form in (("passwd", _SHADOW), ("group", _GROUP_SHADOW)):
        names = [line.partition(":")[0] for line in (etc / file).read_text().splitlines()]
        shadow = etc / ("shadow" if file == "passwd" else "gshadow")
        shadow.write_text("".join(form.format(name=name) for name in names))
        shadow.chmod(0o600)


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line)


def _standard_library(root: Path) -> list[str]:
    return [f"/{path.relative_to(root)}" for path in sorted(root.glob("usr/lib/python3.[0-9]*"))]
