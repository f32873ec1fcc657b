"""QEMU's command line: only what was handed over, and the same machine whatever its files and its network are."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from mvm.drives.table import drives_of
from mvm.model.roles import Role
from mvm.runtime.base import ChannelKind, Limits
from mvm.runtime.qemu.accelerator import Accelerator
from mvm.runtime.qemu.command import Descriptors, Hardware, command, kernel_line, layout

HARDWARE = Hardware(
    accelerator=Accelerator.TCG,
    vcpus=2,
    mem_mib=512,
    drives=drives_of(Role.WORKER),
    kernel=Path("/image/vmlinux"),
    initrd=Path("/image/initrd"),
    parameters="rootfstype=erofs",
    tsc_khz=2_600_000,
)
FILES = Descriptors(
    monitor=10,
    channel=11,
    console=12,
    ram=13,
    kernel=14,
    initrd=15,
    drives={"rootfs": (20,), "data": (21, 22), "secrets": (23,), "config": (24,)},
    tap=30,
)


def line(hardware: Hardware = HARDWARE, files: Descriptors = FILES, *, incoming: bool = False) -> list[str]:
    return command(
        "/usr/bin/qemu", hardware, files, name="i-1", mac="02:fc:00:01:00:03", sandbox=True, incoming=incoming
    )


def following(arguments: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(arguments) if name == option]


def test_drives_come_in_the_order_of_the_table_with_their_serials() -> None:
    devices = [device for device in following(line(), "-device") if device.startswith("virtio-blk-device")]
    assert [device.rpartition("serial=")[2] for device in devices] == ["rootfs", "data", "secrets", "config"]


def test_only_the_data_drive_can_be_written() -> None:
    writable = [drive for drive in following(line(), "-drive") if "readonly=off" in drive]
    assert [drive.split(",")[0] for drive in writable] == ["id=data"]


def test_qemu_opens_no_path() -> None:
    paths = [word for word in line()[1:] if "/" in word]
    assert all("/dev/fdset/" in word or "/proc/self/fd/" in word for word in paths)


def test_every_descriptor_that_is_passed_is_used() -> None:
    words = " ".join(line())
    for number in FILES.all():
        assert (
            f"fd={number}," in words
            or f"/fd/{number}," in words
            or f"/fd/{number} " in words
            or f"fd={number} " in words
        ), number


def test_a_machine_without_network_has_the_same_device_at_a_loose_end() -> None:
    with_tap, without = line(), line(files=replace(FILES, tap=None))
    assert following(with_tap, "-device") == following(without, "-device")
    assert following(without, "-netdev") == ["hubport,id=net,hubid=0"]


def test_the_device_has_no_offload_by_which_its_other_end_could_be_told() -> None:
    device = next(device for device in following(line(), "-device") if device.startswith("virtio-net"))
    for feature in ("csum", "gso", "guest_csum", "host_tso4", "mrg_rxbuf"):
        assert f"{feature}=off" in device


def test_it_is_confined() -> None:
    sandbox = following(line(), "-sandbox")[0]
    assert all(f"{kind}=deny" in sandbox for kind in ("obsolete", "elevateprivileges", "spawn", "resourcecontrol"))


def test_only_a_wake_waits_for_a_snapshot() -> None:
    assert "-incoming" not in line()
    assert following(line(incoming=True), "-incoming") == ["defer"]


def test_an_emulated_guest_is_told_the_rate_of_its_clock() -> None:
    assert "tsc_early_khz=2600000" in kernel_line(HARDWARE)
    assert "tsc_early_khz" not in kernel_line(replace(HARDWARE, accelerator=Accelerator.KVM))


def test_the_image_has_a_say_in_the_kernels_command_line() -> None:
    assert kernel_line(HARDWARE).endswith(" rootfstype=erofs")
    assert len(kernel_line(HARDWARE)) < 1024


@pytest.mark.parametrize(
    "other",
    [
        replace(HARDWARE, vcpus=1),
        replace(HARDWARE, mem_mib=1024),
        replace(HARDWARE, accelerator=Accelerator.KVM),
        replace(HARDWARE, drives=HARDWARE.drives[:3]),
    ],
)
def test_another_make_has_another_layout(other: Hardware) -> None:
    assert layout(other) != layout(HARDWARE)


def test_the_image_is_no_part_of_the_layout() -> None:
    assert layout(replace(HARDWARE, kernel=Path("/other/vmlinux"), parameters="")) == layout(HARDWARE)


def test_a_channel_by_vsock_is_the_kernels_device_and_nothing_beside_it() -> None:
    hardware = replace(HARDWARE, channel=ChannelKind.VSOCK)
    arguments = command(
        "/usr/bin/qemu", hardware, FILES, name="i-1", mac="02:fc:00:01:00:03", sandbox=True, incoming=False, cid=77
    )
    devices = following(arguments, "-device")
    assert "vhost-vsock-device,guest-cid=77,vhostfd=11" in devices
    assert not [device for device in devices if "serial" in device.partition(",")[0]], "the guest would prefer it"
    assert layout(hardware) != layout(HARDWARE)


def test_limits_of_the_disk_are_for_each_drive_and_no_part_of_the_layout() -> None:
    limited = replace(HARDWARE, limits=Limits(disk_mib=20, disk_ops=300, network_mib=5))
    for drive in following(line(limited), "-drive"):
        assert drive.endswith(",throttling.bps-total=20971520,throttling.iops-total=300")
    assert "throttling" not in " ".join(line())
    assert layout(limited) == layout(HARDWARE)
