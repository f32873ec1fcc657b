"""What is taken out of Nix's store, and what is not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.standins.nix.world import DESCRIBED, write_image
from tests.unit.image.ext4 import superblock

from mvm.image.base import INITRD, KERNEL, MANIFEST, ROOTFS, BuildRequest, Inputs, Manifest, Source, sha256
from mvm.image.nix import artifacts
from mvm.model.errors import InvalidInput, MvmError
from mvm.openclaw.install import Progress

SOURCE = Source(flake="f", url="f?narHash=x", lock_hash="0", attribute="packages.x.y", derivation="d.drv")
MACHINE = os.uname().machine
EXT4 = "rootfs.ext4"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def take(output: Path, *, machine: str = "x86_64") -> Manifest:
    target = output.parents[1] / "target"
    target.mkdir()
    inputs = Inputs(builder="nix", request=BuildRequest(role="worker", profile="minimal"), document={})
    return artifacts.take(output, target, inputs, SOURCE, machine, lambda _step: None)


def described(**changes: Any) -> dict[str, Any]:
    return {**DESCRIBED, **changes}


def test_the_manifest_is_completed_with_what_is_known_here(store: Path) -> None:
    manifest = take(write_image(store / "image"))
    assert manifest == Manifest.read(store.parent / "target")
    assert manifest.architecture == "x86_64"
    assert manifest.source == SOURCE
    assert manifest.packages == {"curl": "8.9"}
    assert manifest.files[KERNEL].sha256 == sha256(store / "image" / KERNEL)


def test_links_within_the_store_are_followed_and_become_files(store: Path) -> None:
    output = write_image(store / "image")
    kernel = store / "kernel/vmlinux"
    kernel.parent.mkdir()
    (output / KERNEL).rename(kernel)
    (output / KERNEL).symlink_to(kernel)
    take(output)
    copy = store.parent / "target" / KERNEL
    assert not copy.is_symlink()
    assert copy.read_bytes() == kernel.read_bytes()


@pytest.mark.parametrize("name", [KERNEL, INITRD, ROOTFS, MANIFEST])
def test_a_link_out_of_the_store_carries_nothing_into_a_guest(name: str, store: Path, tmp_path: Path) -> None:
    output = write_image(store / "image")
    secret = tmp_path / "shadow"
    (output / name).rename(secret)
    (output / name).symlink_to(secret)
    with pytest.raises(InvalidInput, match=f"{name} of what was built is no file of Nix's store"):
        take(output)
    assert not (tmp_path / "target" / name).exists()


def test_a_directory_of_links_out_of_the_store_is_no_way_around(store: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere")
    store.mkdir()
    (store / "image").mkdir()
    for name in (KERNEL, INITRD, ROOTFS, MANIFEST):
        (store / "image" / name).symlink_to(f"../../elsewhere/{name}")
    with pytest.raises(InvalidInput, match="no file of Nix's store"):
        take(store / "image")


@pytest.mark.parametrize("name", [KERNEL, INITRD, ROOTFS, MANIFEST])
def test_every_file_must_be_there(name: str, store: Path) -> None:
    output = write_image(store / "image")
    (output / name).unlink()
    with pytest.raises(InvalidInput, match=f"what was built has no {name}"):
        take(output)


def with_ext4(output: Path, content: bytes) -> Path:
    (output / ROOTFS).unlink()
    (output / EXT4).write_bytes(content)
    return output


def test_a_root_of_ext4_keeps_its_name_and_the_kernel_is_told(store: Path) -> None:
    arguments = ["init=/x", "rootfstype=erofs"]
    manifest = take(with_ext4(write_image(store / "image", described(kernel_arguments=arguments)), superblock()))
    assert manifest.root == EXT4
    assert manifest.files.keys() == {KERNEL, INITRD, EXT4}
    assert manifest.kernel_arguments == ("init=/x", "rootfstype=ext4")
    assert (store.parent / "target" / EXT4).read_bytes() == superblock()


def test_a_root_of_ext4_must_be_one_that_was_unmounted(store: Path) -> None:
    output = with_ext4(write_image(store / "image"), superblock(unsettled=True))
    with pytest.raises(InvalidInput, match=r"rootfs\.ext4 of what was built was not unmounted"):
        take(output)
    shutil.rmtree(store.parent / "target")
    with_ext4(write_image(store / "other"), bytes(4096))
    with pytest.raises(InvalidInput, match=r"rootfs\.ext4 of what was built is not an ext4 file system"):
        take(store / "other")


@pytest.mark.parametrize("size", [0x43A, 0x460, 2047])
def test_a_root_of_ext4_that_ends_within_its_superblock_is_none(size: int, store: Path) -> None:
    output = with_ext4(write_image(store / "image"), superblock()[:size])
    with pytest.raises(InvalidInput, match=r"rootfs\.ext4 of what was built is not an ext4 file system"):
        take(output)


def test_an_image_has_one_root(store: Path) -> None:
    output = write_image(store / "image")
    (output / EXT4).write_bytes(superblock())
    with pytest.raises(InvalidInput, match=r"has both rootfs\.erofs and rootfs\.ext4"):
        take(output)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (KERNEL, b"MZ a bzImage", "not an ELF file"),
        (ROOTFS, b"x" * 4096, "not an erofs file system"),
        (INITRD, b"", "not of any size"),
    ],
)
def test_a_file_of_another_form_is_found_before_a_machine_fails_on_it(
    name: str, content: bytes, words: str, store: Path
) -> None:
    output = write_image(store / "image")
    (output / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=words):
        take(output)


def test_kernels_of_arm_are_no_elf_files(store: Path) -> None:
    output = write_image(store / "image")
    (output / KERNEL).write_bytes(b"MZ arm64 Image")
    assert take(output, machine="aarch64").architecture == "aarch64"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"role": "gateway"}, "of role 'gateway' instead of 'worker'"),
        ({"profile": "python"}, "of profile 'python' instead of 'minimal'"),
        ({"architecture": "riscv64"}, "of architecture 'riscv64' instead of 'x86_64'"),
        ({"format": 2}, "of format '2' instead of '1'"),
        ({"kernel_release": 6}, "kernel_release"),
        ({"kernel_arguments": ["quiet init=/bin/sh"]}, "kernel argument with a space"),
        ({"files": {KERNEL: {"sha256": "0" * 64, "size": 1}}}, "vmlinux is not the file"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(changes: dict[str, Any], words: str, store: Path) -> None:
    output = write_image(store / "image", described(**changes))
    with pytest.raises(MvmError, match=words):
        take(output)


def test_a_manifest_may_say_what_is_not_known_here(store: Path) -> None:
    assert take(write_image(store / "image", described(role="worker", colour="green"))).role == "worker"


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "null"])
def test_a_manifest_must_be_one(text: str, store: Path) -> None:
    output = write_image(store / "image")
    (output / MANIFEST).write_text(text)
    with pytest.raises(InvalidInput, match=MANIFEST):
        take(output)


def test_who_stops_watching_ends_the_copying(store: Path) -> None:
    output = write_image(store / "image")
    target = store.parent / "target"
    target.mkdir()

    def stop(_step: Progress) -> None:
        raise KeyboardInterrupt

    inputs = Inputs(builder="nix", request=BuildRequest(role="worker", profile="minimal"), document={})
    with pytest.raises(KeyboardInterrupt):
        artifacts.take(output, target, inputs, SOURCE, "x86_64", stop)
    assert not (target / MANIFEST).exists()
