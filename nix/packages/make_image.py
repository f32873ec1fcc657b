"""Make the files of an image revision out of a NixOS system: `make_image.py DESCRIPTION TARGET`.

DESCRIPTION is a JSON file (`nix/lib/image.nix` writes it). The initial RAM disk is that of the Debian image: the same
busybox script, the same modules; only what it starts at last is NixOS instead of mvm's own init. So nothing waits for
udev, and the drives are found in the same way.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvm.image.base import INITRD, KERNEL, MANIFEST, ROOTFS
from mvm.image.debian import initrd
from mvm.image.debian.kernel import Kernel, modules
from mvm.image.debian.rootfs import TIME
from mvm.model.errors import MvmError

OWN_INIT = "/usr/bin/python3 -I -S /opt/mvm/guest.pyz init"
"""What the initial RAM disk of the Debian image starts."""
GOING_ON = f"exec /bin/busybox switch_root /root {OWN_INIT}\n"
"""Last line of the Debian image's script."""
INTO_NIXOS = """mount -t tmpfs -o mode=0755,nosuid,nodev run /root/run || fail "there is no place for /run"
system=@system@
# A system made for an initial RAM disk with systemd in it is activated from outside; another one does it by itself.
if [ -e "/root$system/prepare-root" ]; then
    IN_NIXOS_SYSTEMD_STAGE1=true /bin/busybox chroot /root "$system/prepare-root" || fail "NixOS cannot be activated"
fi
exec /bin/busybox switch_root /root "$system/init"
"""
"""What NixOS expects of an initial RAM disk, whichever of its own two kinds the system was made for."""
STORE = "nix/store"
PLACES = ("data", "dev", "etc/mvm-config", "proc", "root", "run", "sys", "tmp", "usr/bin", "var", STORE)
"""Directories of the root; of all else NixOS makes what it needs."""
FORMAT = 1
DIGEST_LENGTH = 32


class CannotMake(Exception):
    """An image that cannot be made of this; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the image is made of."""

    role: str
    profile: str
    architecture: str
    toplevel: str
    """The NixOS system, in the store."""
    closure: Path
    """File with one store path of the system in each line."""
    layout: dict[str, str]
    """Place in the image -> what is copied there; what begins with `link:` becomes a link."""
    kernel: Path
    kernel_release: str
    modules: Path
    """Directory with `lib/modules/<release>`."""
    wanted_modules: tuple[str, ...]
    busybox: Path
    strip: str
    """Program that takes debugging symbols out of a kernel; empty for a kernel that is no ELF file."""
    kernel_arguments: tuple[str, ...]
    node: str
    openclaw: str
    zipapp: str

    @classmethod
    def read(cls, path: Path) -> Description:
        """Read the JSON file."""
        given: dict[str, Any] = json.loads(path.read_text())
        for name in ("closure", "kernel", "modules", "busybox"):
            given[name] = Path(given[name])
        for name in ("wanted_modules", "kernel_arguments"):
            given[name] = tuple(given[name])
        return cls(**given)


def main(arguments: list[str]) -> int:
    """Do it; returns the exit status."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        make(Description.read(Path(arguments[0])), Path(arguments[1]))
    except (CannotMake, MvmError) as error:
        print(f"make_image: {error}", file=sys.stderr)
        return 1
    return 0


def make(description: Description, target: Path) -> None:
    """Write the revision into `target`, which is not there yet. Raises `CannotMake`."""
    target.mkdir()
    make_kernel(description, target / KERNEL)
    loaded = make_initrd(description, target / INITRD)
    tree = Path("root").absolute()
    make_tree(description, tree)
    pack(tree, target / ROOTFS, identity(description))
    (target / MANIFEST).write_text(json.dumps(manifest(description, loaded, target), indent=1, sort_keys=True) + "\n")


def make_kernel(description: Description, target: Path) -> None:
    """The kernel as a machine starts it."""
    if description.strip:
        run([description.strip, "--strip-debug", "-o", str(target), str(description.kernel)])
    else:
        shutil.copyfile(description.kernel, target)


def first_program(toplevel: str) -> bytes:
    """The script of the initial RAM disk, going on with NixOS. Raises `CannotMake` when there is another script."""
    script = initrd.script().decode()
    if not script.endswith(GOING_ON) or script.count(GOING_ON) != 1:
        raise CannotMake(f"the script of the initial RAM disk does not end with {GOING_ON!r}")
    return (script.removesuffix(GOING_ON) + INTO_NIXOS.replace("@system@", toplevel)).encode()


def make_initrd(description: Description, target: Path) -> tuple[str, ...]:
    """Write the initial RAM disk; returns the modules that it loads, in order."""
    kernel = Kernel(release=description.kernel_release, root=description.modules)
    loaded = modules(kernel, description.wanted_modules)
    program = first_program(description.toplevel)
    target.write_bytes(initrd.build(loaded, description.busybox.read_bytes(), program))
    return tuple(loaded)


def make_tree(description: Description, tree: Path) -> None:
    """The root file system as a directory."""
    tree.mkdir()
    for place in PLACES:
        (tree / place).mkdir(parents=True, exist_ok=True)
    for path in store_paths(description.closure):
        # Hard to be told apart from what it is copied of: links as links, times and modes kept.
        run(["cp", "--archive", "--reflink=auto", str(path), str(tree / STORE)])
    for place, source in sorted(description.layout.items()):
        target = tree / place.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.startswith("link:"):
            target.symlink_to(source.removeprefix("link:"))
        else:
            run(["cp", "--archive", "--no-target-directory", source, str(target)])


def store_paths(closure: Path) -> list[Path]:
    """The store paths of a system, each once."""
    return sorted({Path(line) for line in closure.read_text().split()})


def pack(tree: Path, target: Path, name: uuid.UUID) -> None:
    """Make the erofs image; everything in it is root's."""
    run(["mkfs.erofs", "-zlz4", f"-T{TIME}", f"-U{name}", "-x-1", "--all-root", str(target), str(tree)])


def identity(description: Description) -> uuid.UUID:
    """Name of the file system: the same system has the same."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"mvm:{description.role}:{description.profile}:{description.toplevel}")


def manifest(description: Description, loaded: tuple[str, ...], target: Path) -> dict[str, object]:
    """What the image says of itself (`mvm.image.base.Manifest`); its digest is the name that Nix gave it."""
    return {
        "format": FORMAT,
        "digest": hashlib.sha256(str(target).encode()).hexdigest()[:DIGEST_LENGTH],
        "builder": "nix",
        "role": description.role,
        "profile": description.profile,
        "architecture": description.architecture,
        "kernel_release": description.kernel_release,
        "kernel_arguments": list(description.kernel_arguments),
        "modules": list(loaded),
        "node": description.node,
        "openclaw": description.openclaw,
        "zipapp": digest(Path(description.zipapp)),
        "packages": dict(named(path) for path in store_paths(description.closure)),
        "files": {
            name: {"sha256": digest(target / name), "size": (target / name).stat().st_size}
            for name in (KERNEL, INITRD, ROOTFS)
        },
    }


def named(path: Path) -> tuple[str, str]:
    """Name and version of a store path, such as `bash` and `5.3`; the version is empty where there is none."""
    words = path.name.partition("-")[2].split("-")
    at = next((i for i, word in enumerate(words) if i and word[:1].isdigit()), len(words))
    return "-".join(words[:at]), "-".join(words[at:])


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(command: list[str]) -> None:
    """Run a program. Raises `CannotMake` with what it says."""
    try:
        result = subprocess.run(command, check=False, env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise CannotMake(f"{command[0]} cannot be started: {error.strerror}") from error
    if result.returncode:
        raise CannotMake(f"{' '.join(command)} ended with status {result.returncode}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
