"""The kernel of Debian's package as a virtual machine starts it, and the modules that an initrd needs."""

from __future__ import annotations

import lzma
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mvm.image.commands import run
from mvm.model.errors import MvmError

NEEDED = {
    "BLK_DEV_INITRD": "the initial RAM disk",
    "KVM_GUEST": "the clock",
    "ACPI": "finding devices",
    "PCI": "ACPI under Firecracker, though it has no PCI devices",
    "VIRTIO_MMIO": "devices",
    "VIRTIO_BLK": "drives",
    "VIRTIO_NET": "the network",
    "VIRTIO_CONSOLE": "the channel to the host under QEMU",
    "VIRTIO_VSOCKETS": "the channel to the host under Firecracker",
    "VIRTIO_BALLOON": "giving memory back",
    "HW_RANDOM_VIRTIO": "randomness",
    "DEVTMPFS": "/dev",
    "EROFS_FS": "the root, configuration and secrets",
    "OVERLAY_FS": "the root",
    "EXT4_FS": "the data drive, and roots that flakes make so",
    "ZRAM": "swap in memory",
}
"""Options of a kernel's configuration that guests need, built in or as modules, and what for. How devices are found
decides: QEMU's microvm and Firecracker since 1.8 tell of them by ACPI, so no command line has to."""

_SETUP_SECTORS = 0x1F1
_PAYLOAD = 0x248
"""Offsets in the boot header of a bzImage (Linux, Documentation/arch/x86/boot.rst)."""
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_ELF = b"\x7fELF"


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """An unpacked kernel package."""

    release: str
    root: Path

    @property
    def image(self) -> Path:
        return self.root / f"boot/vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        return self.root / f"lib/modules/{self.release}"

    @property
    def configuration(self) -> Path:
        return self.root / f"boot/config-{self.release}"


def unpack(package: Path, directory: Path) -> Kernel:
    """Unpack a kernel's Debian package."""
    run(["dpkg-deb", "--extract", package, directory], what="unpacking the kernel", hint="is the disk full?")
    images = list(directory.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise MvmError(f"{package.name} holds {len(images)} kernels instead of one", hint="report this with its name")
    return Kernel(release=images[0].name.removeprefix("vmlinuz-"), root=directory)


def require_options(configuration: str, *, of: str) -> None:
    """Raise `MvmError` unless a kernel with that configuration can be a guest of every runtime."""
    set_ones = set(re.findall(r"^CONFIG_(\w+)=[ym]$", configuration, re.MULTILINE))
    missing = [f"CONFIG_{name} ({purpose})" for name, purpose in NEEDED.items() if name not in set_ones]
    if missing:
        raise MvmError(
            f"the kernel {of} has no {', '.join(missing)}", hint="mvm needs Debian's cloud kernel, or one configured so"
        )


def extract(image: Path, target: Path) -> None:
    """Write the ELF kernel that is packed in a bzImage, so that no guest has to unpack it at its boot."""
    payload = _payload(image.read_bytes())
    packed = target.with_name(f".{target.name}.lz4")
    try:
        packed.write_bytes(payload)
        run(
            ["lz4", "--decompress", "--force", packed, target],
            what="unpacking vmlinux",
            hint="is the disk full? Is `lz4` installed?",
        )
    finally:
        packed.unlink(missing_ok=True)
    with target.open("rb") as file:
        if file.read(4) != _ELF:
            raise MvmError(f"what is packed in {image.name} is no ELF file", hint="report this with the kernel's name")


def _payload(content: bytes) -> bytes:
    start = (content[_SETUP_SECTORS] + 1) * 512
    offset, length = struct.unpack_from("<II", content, _PAYLOAD)
    payload = content[start + offset : start + offset + length]
    if payload[:4] != _LZ4_LEGACY:
        raise MvmError(
            f"the kernel is packed in a form that mvm does not know ({payload[:4].hex()})",
            hint="report this with the kernel's name",
        )
    return payload[:-4]  # behind it is the unpacked size


def module_name(path: Path) -> str:
    """How the kernel calls the module of a file; `-` and `_` are the same to it."""
    return path.name.partition(".ko")[0].replace("-", "_")


def read_module(path: Path) -> bytes:
    """The module's content as the kernel takes it."""
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def depends(module: bytes) -> tuple[str, ...]:
    """The modules that a module says it needs (its section `.modinfo`)."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    names = found.group(1).decode() if found else ""
    return tuple(name.replace("-", "_") for name in names.split(",") if name)


def load_order(wanted: Iterable[str], needs: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The wanted modules and what they need, each behind what it needs. `needs` has an entry for every module."""
    order: list[str] = []

    def add(name: str, chain: tuple[str, ...]) -> None:
        if name in order:
            return
        if name in chain:
            raise MvmError(f"the kernel's modules need each other in a circle: {' -> '.join((*chain, name))}")
        if name not in needs:
            raise MvmError(
                f"the kernel has no module '{name}'" + (f", which '{chain[-1]}' needs" if chain else ""),
                hint="mvm needs Debian's cloud kernel",
            )
        for other in needs[name]:
            add(other, (*chain, name))
        order.append(name)

    for name in wanted:
        add(name, ())
    return tuple(order)


def modules(kernel: Kernel, wanted: Iterable[str]) -> dict[str, bytes]:
    """Content of the wanted modules and of what they need, in the order to load them; without what is built in."""
    files = {module_name(path): path for path in kernel.modules.rglob("*.ko*")}
    built_in = {module_name(Path(line)) for line in (kernel.modules / "modules.builtin").read_text().split()}
    content: dict[str, bytes] = {}
    needs: dict[str, tuple[str, ...]] = {}
    queue = [name.replace("-", "_") for name in wanted]
    queue = [name for name in queue if name not in built_in]
    first = tuple(queue)
    while queue:
        name = queue.pop()
        if name in content or name not in files:
            continue
        content[name] = read_module(files[name])
        needs[name] = tuple(other for other in depends(content[name]) if other not in built_in)
        queue += needs[name]
    return {name: content[name] for name in load_order(first, needs)}
