"""Starting a QEMU: what it is given, how it is known again, and that a failure leaves nothing."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.runtime.qemu_machines import machine

from mvm.drives.table import Drive, drives_of
from mvm.model.errors import Conflict, InvalidInput, Unavailable
from mvm.model.roles import Role
from mvm.runtime import spawning
from mvm.runtime.base import Machine
from mvm.runtime.qemu import accelerator, launching, own_user
from mvm.runtime.qemu.accelerator import Accelerator
from mvm.runtime.qemu.command import Descriptors, Hardware
from mvm.runtime.qemu.files import Files
from mvm.runtime.qemu.launching import Qemu

HARDWARE = Hardware(
    accelerator=Accelerator.TCG,
    vcpus=1,
    mem_mib=64,
    drives=drives_of(Role.WORKER),
    kernel=Path("/image/vmlinux"),
    initrd=Path("/image/initrd"),
)

DEVICE_GID = 61_020
"""A group in which nobody is."""


def program(path: Path, text: str) -> Qemu:
    """Something in QEMU's place."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return Qemu(binary=str(path), sandbox=False)


@pytest.fixture
def subject(short_directory: Path) -> Machine:
    return machine(short_directory)


def images(base: Path) -> dict[Drive, Path]:
    found = {}
    for drive in HARDWARE.drives:
        found[drive] = base / f"{drive.serial}.img"
        found[drive].write_bytes(bytes(512))
    return found


def hardware(base: Path) -> Hardware:
    for name in ("vmlinux", "initrd"):
        (base / name).write_bytes(b"code")
    return replace(HARDWARE, kernel=base / "vmlinux", initrd=base / "initrd")


def open_numbers() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def ram(files: Files) -> int:
    return files.make_ram(mib=64, uid=None)


async def test_a_process_is_known_by_record_and_by_marker_and_nothing_is_left_of_it(
    subject: Machine, tmp_path: Path
) -> None:
    files = Files.of(subject)
    before = open_numbers()
    with launching.opened(hardware(tmp_path), files, images(tmp_path), ram(files), None) as descriptors:
        identity = launching.launch(
            program(tmp_path / "qemu", "exec sleep 600"), subject, files, HARDWARE, descriptors, incoming=False
        )
    assert open_numbers() == before
    assert launching.find(files) == identity
    files.record.unlink()
    assert launching.find(files) == identity
    await launching.end_all(files, who="it")
    assert launching.find(files) is None
    assert sorted(path.name for path in files.run_dir.iterdir()) == ["config", "qemu.log"]


async def test_it_inherits_its_files_and_no_other_and_no_environment(subject: Machine, tmp_path: Path) -> None:
    files = Files.of(subject)
    qemu = program(tmp_path / "qemu", f"ls -l /proc/self/fd > {tmp_path}/fds; env > {tmp_path}/env; exec sleep 600")
    with launching.opened(hardware(tmp_path), files, images(tmp_path), ram(files), None) as descriptors:
        launching.launch(qemu, subject, files, HARDWARE, descriptors, incoming=False)
        wanted = {str(number) for number in descriptors.all()}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(files.monitor))  # it is listened on as long as the process lives
    while not (tmp_path / "env").exists() or "MVM_MACHINE" not in (tmp_path / "env").read_text():
        os.sched_yield()
    await launching.end_all(files, who="it")
    lines = (tmp_path / "fds").read_text().splitlines()
    seen = {line.split(" -> ")[0].split()[-1] for line in lines if " -> " in line and "/proc/" not in line}
    assert seen - {"0", "1", "2"} == wanted
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names <= {"PATH", "MVM_MACHINE", "PWD", "SHLVL", "_", "OLDPWD"}


async def test_it_cannot_make_a_file_longer_than_those_it_is_given(subject: Machine, tmp_path: Path) -> None:
    files = Files.of(subject)
    qemu = program(tmp_path / "qemu", "exec sleep 600")
    with launching.opened(hardware(tmp_path), files, images(tmp_path), ram(files), None) as descriptors:
        identity = launching.launch(qemu, subject, files, HARDWARE, descriptors, incoming=False)
    assert resource.prlimit(identity.pid, resource.RLIMIT_FSIZE) == (64 << 20, 64 << 20)
    await launching.end_all(files, who="it")


async def test_one_that_cannot_be_started_leaves_nothing(subject: Machine, tmp_path: Path) -> None:
    files = Files.of(subject)
    before = open_numbers()
    missing = Qemu(binary=str(tmp_path / "none"), sandbox=False)
    with (
        launching.opened(hardware(tmp_path), files, images(tmp_path), ram(files), None) as descriptors,
        pytest.raises(Unavailable, match="cannot be started"),
    ):
        launching.launch(missing, subject, files, HARDWARE, descriptors, incoming=False)
    assert open_numbers() == before
    await launching.end_all(files, who="it")
    assert not [path for path in files.sockets if path.exists()]


async def test_a_missing_image_is_named_and_everything_is_closed(subject: Machine, tmp_path: Path) -> None:
    files = Files.of(subject)
    before = open_numbers()
    found = images(tmp_path)
    (tmp_path / "secrets.img").unlink()
    with (
        pytest.raises(Unavailable, match=r"the image of drive secrets cannot be opened: .*secrets\.img"),
        launching.opened(hardware(tmp_path), files, found, ram(files), os.open(os.devnull, os.O_RDWR)),
    ):
        pass
    assert open_numbers() == before


def test_a_run_directory_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    deep = machine(tmp_path / ("d" * 60) / ("e" * 60))
    with pytest.raises(InvalidInput, match="the kernel takes 107"):
        Files.of(deep).check_lengths()


def test_the_data_drive_is_opened_for_both_and_the_others_for_reading(subject: Machine, tmp_path: Path) -> None:
    files = Files.of(subject)
    with launching.opened(hardware(tmp_path), files, images(tmp_path), ram(files), None) as descriptors:
        modes = {name: [_mode(number) for number in numbers] for name, numbers in descriptors.drives.items()}
    assert modes == {
        "rootfs": [os.O_RDONLY],
        "data": [os.O_RDONLY, os.O_RDWR],
        "secrets": [os.O_RDONLY],
        "config": [os.O_RDONLY],
    }


async def test_a_data_drive_in_use_is_refused_as_long_as_its_process_lives(subject: Machine, tmp_path: Path) -> None:
    files, found = Files.of(subject), images(tmp_path)
    qemu = program(tmp_path / "qemu", "exec sleep 600")
    with launching.opened(hardware(tmp_path), files, found, ram(files), None) as descriptors:
        launching.launch(qemu, subject, files, HARDWARE, descriptors, incoming=False)
    other = Files.of(machine(subject.run_dir.parent / "o"))
    with pytest.raises(Conflict, match="another machine uses"), opened_for(other, found, tmp_path):
        pass
    await launching.end_all(files, who="it")
    with opened_for(other, found, tmp_path):
        pass


def opened_for(files: Files, found: dict[Drive, Path], base: Path) -> AbstractContextManager[Descriptors]:
    return launching.opened(hardware(base), files, found, ram(files), None)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user is taken on")
async def test_it_runs_as_its_own_user_without_any_privilege(subject: Machine, tmp_path: Path) -> None:
    other = machine(subject.run_dir.parent, uid=61_018)
    files = Files.of(other)
    qemu = program(other.run_dir.parent / "qemu", "grep -E '^(Uid|Gid|Groups|CapEff|NoNewPrivs)' /proc/self/status")
    other.run_dir.parent.chmod(0o755)
    with launching.opened(hardware(tmp_path), files, images(tmp_path), ram(files), None) as descriptors:
        identity = launching.launch(qemu, other, files, HARDWARE, descriptors, incoming=False)
    await spawning.wait_for_end(identity)
    await launching.end_all(files, who="it")
    said = dict(line.split(":", 1) for line in files.output.read_text().splitlines())
    assert said["Uid"].split() == said["Gid"].split() == ["61018"] * 4
    assert said["Groups"].strip() == ""
    assert int(said["CapEff"], 16) == 0
    assert said["NoNewPrivs"].strip() == "1"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user is taken on")
@pytest.mark.parametrize(("mode", "groups"), [(0o660, [str(DEVICE_GID)]), (0o666, [])])
async def test_it_opens_the_device_of_its_accelerator_by_that_group_and_by_no_more(
    subject: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, groups: list[str]
) -> None:
    other = machine(subject.run_dir.parent, uid=61_018)
    files, base = Files.of(other), other.run_dir.parent
    device = base / "kvm"
    device.touch()
    os.chown(device, 0, DEVICE_GID)
    device.chmod(mode)
    monkeypatch.setattr(accelerator, "KVM_DEVICE", device)
    qemu = program(base / "qemu", f"exec 3<>{device}; grep -E '^(Uid|Groups|CapEff)' /proc/self/status")
    base.chmod(0o755)
    with_kvm = replace(HARDWARE, accelerator=Accelerator.KVM)
    with launching.opened(hardware(tmp_path), files, images(tmp_path), ram(files), None) as descriptors:
        identity = launching.launch(qemu, other, files, with_kvm, descriptors, incoming=False)
    await spawning.wait_for_end(identity)
    await launching.end_all(files, who="it")
    said = dict(line.split(":", 1) for line in files.output.read_text().splitlines())
    assert said["Uid"].split() == ["61018"] * 4
    assert said["Groups"].split() == groups
    assert int(said["CapEff"], 16) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files of other groups")
@pytest.mark.parametrize(("mode", "gid"), [(0o600, DEVICE_GID), (0o640, DEVICE_GID), (0o660, 0)])
def test_a_device_that_a_machine_may_not_open_is_told_before_anything_runs(tmp_path: Path, mode: int, gid: int) -> None:
    device = tmp_path / "kvm"
    device.touch()
    os.chown(device, 0, gid)
    device.chmod(mode)
    with pytest.raises(Unavailable, match="closed to the users that machines run as") as refusal:
        own_user.words(61_018, device=device)
    assert refusal.value.hint == f"chgrp kvm {device} && chmod 0660 {device}"
    assert own_user.words(None, device=device) == []
    with pytest.raises(Unavailable, match="No such file"):
        own_user.words(61_018, device=tmp_path / "none")


def test_memory_is_bounded_at_the_machines_and_qemus_own() -> None:
    assert launching.memory_bytes(1024) == (1024 + 128 + 192) << 20


def _mode(number: int) -> int:
    flags = next(line for line in Path(f"/proc/self/fdinfo/{number}").read_text().splitlines() if "flags" in line)
    return int(flags.split()[1], 8) & os.O_ACCMODE
