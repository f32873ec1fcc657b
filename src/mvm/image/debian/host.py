"""What the Debian builder needs from its host, looked for before anything begins."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from mvm.image.commands import search_path
from mvm.image.debian.initrd import BUSYBOX

PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.erofs": "erofs-utils",
    "lz4": "lz4",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "chroot": "coreutils",
    "mount": "mount",
}
"""Programs, each with the Debian package that it is in."""


def missing_packages() -> tuple[str, ...]:
    """Debian packages of this host that a build would need and that are not installed."""
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program, path=search_path()) is None]
    if not BUSYBOX.is_file() or not is_static(BUSYBOX):
        missing.append("busybox-static")
    return tuple(missing)


def explain(missing: Sequence[str]) -> tuple[str, str]:
    """What is wrong and what to type."""
    if "apt" in missing or "dpkg" in missing:
        return "this is no Debian: there is no apt", "build images on a Debian host, or copy a revision from one"
    return f"missing on this host: {', '.join(missing)}", f"apt-get install --yes {' '.join(missing)}"


def is_static(program: Path) -> bool:
    """Whether a program runs without libraries: it names no interpreter (program header PT_INTERP)."""
    content = program.read_bytes()
    if content[:5] != b"\x7fELF\x02":
        return False
    table = int.from_bytes(content[32:40], "little")
    size, count = (int.from_bytes(content[at : at + 2], "little") for at in (54, 56))
    kinds = (content[table + size * number :][:4] for number in range(count))
    return b"\x03\0\0\0" not in kinds
