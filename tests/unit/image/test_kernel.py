"""Kernels and their modules."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

import pytest

from mvm.image.debian import kernel
from mvm.image.debian.kernel import Kernel
from mvm.model.errors import MvmError


def module(*needs: str) -> bytes:
    """The part of a module that says what it needs."""
    return b"\x7fELF....\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0retpoline=Y\0"


@pytest.fixture
def unpacked(tmp_path: Path) -> Kernel:
    """A kernel with a few modules, one of them packed, and one built in."""
    found = Kernel(release="6.1.0", root=tmp_path)
    drivers = found.modules / "kernel/drivers"
    drivers.mkdir(parents=True)
    (drivers / "virtio.ko").write_bytes(module("virtio_ring"))
    (drivers / "virtio_ring.ko").write_bytes(module())
    (drivers / "virtio_blk.ko.xz").write_bytes(lzma.compress(module("virtio", "virtio_ring")))
    (drivers / "virtio-rng.ko").write_bytes(module("rng-core", "virtio"))
    (found.modules / "modules.builtin").write_text("kernel/drivers/char/rng-core.ko\nkernel/fs/ext4/ext4.ko\n")
    return found


def test_a_module_comes_after_what_it_needs(unpacked: Kernel) -> None:
    assert list(kernel.modules(unpacked, ["virtio_blk"])) == ["virtio_ring", "virtio", "virtio_blk"]


def test_modules_are_given_unpacked(unpacked: Kernel) -> None:
    assert kernel.modules(unpacked, ["virtio_blk"])["virtio_blk"].startswith(b"\x7fELF")


def test_what_is_built_in_is_not_looked_for(unpacked: Kernel) -> None:
    assert list(kernel.modules(unpacked, ["ext4", "virtio-rng"])) == ["virtio_ring", "virtio", "virtio_rng"]


def test_a_missing_module_is_named_with_who_needs_it() -> None:
    with pytest.raises(MvmError, match="no module 'libcrc32c', which 'erofs' needs"):
        kernel.load_order(["erofs"], {"erofs": ("libcrc32c",)})


def test_modules_that_need_each_other_are_refused() -> None:
    with pytest.raises(MvmError, match="a -> b -> a"):
        kernel.load_order(["a"], {"a": ("b",), "b": ("a",)})


def test_the_order_asked_for_is_kept_where_it_can_be() -> None:
    assert kernel.load_order(["c", "a"], {"a": (), "b": (), "c": ("b",)}) == ("b", "c", "a")


def test_a_kernel_in_an_unknown_form_is_refused(tmp_path: Path) -> None:
    image = bytearray(4096)
    image[0x1F1] = 1
    struct.pack_into("<II", image, 0x248, 16, 64)
    (tmp_path / "vmlinuz").write_bytes(bytes(image))
    with pytest.raises(MvmError, match="packed in a form"):
        kernel.extract(tmp_path / "vmlinuz", tmp_path / "vmlinux")
    assert not (tmp_path / "vmlinux").exists()


def configuration(*left_out: str) -> str:
    lines = [f"CONFIG_{name}={'ym'[number % 2]}" for number, name in enumerate(kernel.NEEDED) if name not in left_out]
    return "\n".join([*lines, "# CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES is not set", 'CONFIG_LOCALVERSION=""', ""])


def test_a_kernel_with_what_guests_need_is_taken() -> None:
    kernel.require_options(configuration(), of="6.1.0")


@pytest.mark.parametrize("name", ["ACPI", "PCI", "VIRTIO_VSOCKETS"])
def test_an_option_that_a_kernel_has_not_is_named(name: str) -> None:
    with pytest.raises(MvmError, match=rf"6\.1\.0 has no CONFIG_{name} \("):
        kernel.require_options(configuration(name), of="6.1.0")
    with pytest.raises(MvmError, match=f"CONFIG_{name} "):
        kernel.require_options(configuration(name) + f"# CONFIG_{name} is not set\n", of="6.1.0")
