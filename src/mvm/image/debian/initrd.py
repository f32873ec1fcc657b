"""The initial file system: busybox, a few modules and a script."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from mvm.image.cpio import Archive

BUSYBOX = Path("/bin/busybox")
MODULES = (
    "virtio_mmio",
    "virtio_blk",
    "erofs",
    "ext4",
    "overlay",
    "virtio_console",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "zram",
    "lzo_rle",
    "lz4",
    "zstd",
)
"""What a guest needs, the root's drive first; the modules that these need come along."""

_APPLETS = ("sh", "mount", "insmod", "mkdir", "cat", "sleep", "reboot")
_DIRECTORIES = ("bin", "dev", "proc", "sys", "lower", "layer", "root", "modules")


def script() -> bytes:
    """The first program in a guest."""
    return (resources.files("mvm.image.debian") / "init.sh").read_bytes()


def build(modules: Mapping[str, bytes], busybox: bytes, first: bytes | None = None) -> bytes:
    """The archive; the modules are loaded in the order given. `first` is the first program, if not `script`."""
    archive = Archive()
    for name in _DIRECTORIES:
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.file("bin/busybox", busybox, 0o755)
    for applet in _APPLETS:
        archive.link(f"bin/{applet}", "busybox")
    for name, content in modules.items():
        archive.file(f"modules/{name}.ko", content)
    archive.file("modules/order", "".join(f"{name}\n" for name in modules).encode())
    archive.file("init", script() if first is None else first, 0o755)
    return bytes(archive)
