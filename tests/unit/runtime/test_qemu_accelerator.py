"""What runs a guest's instructions: found by trying, remembered as long as nothing changed."""

from __future__ import annotations

import math
import os
import struct
import time
from pathlib import Path

import pytest

from mvm.model.errors import Unavailable
from mvm.runtime import payload
from mvm.runtime.qemu import accelerator
from mvm.runtime.qemu.accelerator import Accelerator, Failure, candidates, find, parse_version, why_not
from mvm.runtime.qemu.tsc import host_tsc_khz

VERSION = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user is taken on")
MACHINES_UID = 61_019
"""A user that nobody else is."""
DEVICE_GID = 61_020
"""A group in which nobody is."""


@pytest.fixture
def device(short_directory: Path) -> Path:
    """What stands for /dev/kvm: a file of a group of its own, on a way that everybody can go."""
    path = short_directory / "kvm"
    path.touch()
    os.chown(path, 0, DEVICE_GID)
    return path


def fake_qemu(path: Path, *, version: str = VERSION, kvm: str = "exit 33", tcg: str = "exit 33") -> str:
    """A program that answers as a QEMU would, and counts how often it was asked to run a guest."""
    path.write_text(
        f"""#!/bin/sh
case "$*" in
--version) echo "{version}";;
*"-accel kvm"*) echo kvm >> {path}.runs; {kvm};;
*"-accel tcg"*) echo tcg >> {path}.runs; {tcg};;
esac
"""
    )
    path.chmod(0o755)
    return str(path)


def runs(path: Path) -> list[str]:
    return path.with_name(f"{path.name}.runs").read_text().split()


async def test_the_fastest_that_works_is_taken(tmp_path: Path) -> None:
    found = await find(binary=fake_qemu(tmp_path / "qemu"))
    assert (found.accelerator, found.version, found.reason) == (Accelerator.KVM, "7.2.22", "")


async def test_one_that_stumbles_is_passed_over_at_once_with_its_reason(tmp_path: Path) -> None:
    stuck = "echo 'KVM internal error. Suberror: 1'; exec sleep 60"
    began = time.monotonic()
    found = await find(binary=fake_qemu(tmp_path / "qemu", kvm=stuck))
    assert found.accelerator is Accelerator.TCG
    assert "cannot run ordinary kernels" in found.reason
    assert time.monotonic() - began < accelerator.TRY_SECONDS


async def test_one_that_is_too_slow_is_none(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path / "qemu", kvm="exec sleep 60")
    assert await accelerator.attempt(qemu, Accelerator.KVM, seconds=0.2) == Failure(
        why="a tiny guest did not get through in 0.2 s", certain=False
    )


SLOW = "exec sleep 60"
BUSY = "echo 'ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy'; exit 1"
SHORT_OF_MEMORY = "echo 'qemu: cannot set up guest memory: Cannot allocate memory'; exit 1"
KILLED = "kill -9 $$"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time for programs that answer at once, and no more."""
    monkeypatch.setattr(accelerator, "TRY_SECONDS", 0.5)
    monkeypatch.setattr(accelerator, "PATIENT_SECONDS", 1.0)


@pytest.mark.parametrize("moment", [SLOW, BUSY, SHORT_OF_MEMORY, KILLED])
async def test_one_bad_moment_does_not_make_a_host_emulate(tmp_path: Path, moment: str, impatient: None) -> None:
    qemu = tmp_path / "qemu"
    fake_qemu(qemu, kvm=f"if mkdir {tmp_path}/tried; then {moment}; fi; exit 33")
    found = await find(tmp_path, binary=str(qemu))
    assert (found.accelerator, found.until) == (Accelerator.KVM, None)
    assert runs(qemu) == ["kvm", "kvm"]


@pytest.mark.parametrize("moment", [SLOW, BUSY, SHORT_OF_MEMORY, KILLED])
async def test_what_fails_for_no_lasting_reason_is_tried_again_in_a_while(
    tmp_path: Path, moment: str, impatient: None
) -> None:
    qemu, now = tmp_path / "qemu", 1000.0

    async def found_at(moment: float) -> Accelerator:
        found = await find(tmp_path, binary=str(qemu), clock=lambda: moment)
        assert found.since == (None if found.accelerator is Accelerator.KVM else 1000.0)
        return found.accelerator

    fake_qemu(qemu, kvm=moment)
    assert await found_at(now) is Accelerator.TCG
    assert runs(qemu) == ["kvm", "kvm", "tcg"]
    assert await found_at(now + accelerator.RETRY_SECONDS - 1) is Accelerator.TCG
    assert runs(qemu) == ["kvm", "kvm", "tcg"]
    now += accelerator.RETRY_SECONDS
    assert await found_at(now) is Accelerator.TCG
    assert runs(qemu) == ["kvm", "kvm", "tcg", "kvm", "tcg"]  # patience is for the first time after a boot
    fake_qemu(qemu)
    assert await found_at(now + accelerator.RETRY_SECONDS) is Accelerator.KVM
    assert await found_at(now + 1_000_000) is Accelerator.KVM
    assert runs(qemu).count("kvm") == 4


@pytest.mark.parametrize(
    ("kvm", "said"),
    [
        ("echo 'KVM internal error. Suberror: 1'; exec sleep 60", "cannot run ordinary kernels"),
        ("echo 'qemu: Could not access KVM kernel module: No such file or directory'; exit 1", "No such file"),
        ("exit 0", "the guest ended early"),
    ],
)
async def test_what_fails_for_good_is_tried_once_and_remembered(tmp_path: Path, kvm: str, said: str) -> None:
    qemu = tmp_path / "qemu"
    fake_qemu(qemu, kvm=kvm)
    found = await find(tmp_path, binary=str(qemu))
    assert (found.accelerator, found.until) == (Accelerator.TCG, None)
    assert said in found.reason
    assert await find(tmp_path, binary=str(qemu), clock=lambda: math.inf) == found
    assert runs(qemu) == ["kvm", "tcg"]


async def test_what_was_found_out_is_remembered_until_qemu_changes(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    fake_qemu(qemu, kvm="exit 1")
    assert await find(tmp_path, binary=str(qemu)) == await find(tmp_path, binary=str(qemu))
    assert runs(qemu) == ["kvm", "tcg"]
    fake_qemu(qemu, version="QEMU emulator version 8.0.0")
    assert (await find(tmp_path, binary=str(qemu))).accelerator is Accelerator.KVM


@ROOT
async def test_the_trial_has_the_rights_of_a_machine_and_no_more(
    short_directory: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KVM that only root may open is none for machines, whatever root finds out about it."""
    short_directory.chmod(0o755)
    qemu = fake_qemu(short_directory / "qemu", kvm=f"exec 3<>{device} && exit 33", tcg="exit 33")
    Path(f"{qemu}.runs").touch()
    Path(f"{qemu}.runs").chmod(0o666)
    monkeypatch.setattr(accelerator, "KVM_DEVICE", device)

    async def tried() -> tuple[Accelerator, str]:
        found = await find(short_directory, binary=qemu, uid=MACHINES_UID)
        return found.accelerator, found.reason

    device.chmod(0o600)
    assert (await find(binary=qemu)).accelerator is Accelerator.KVM
    used, reason = await tried()
    assert used is Accelerator.TCG
    assert "is closed to the users that machines run as" in reason
    assert "chmod 0660" in reason
    device.chmod(0o660)  # also what was remembered is void
    assert await tried() == (Accelerator.KVM, "")
    device.chmod(0o666)
    assert await tried() == (Accelerator.KVM, "")


@ROOT
async def test_the_trials_guest_is_read_by_a_user_who_has_no_way_to_it(
    short_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_directory.chmod(0o755)
    qemu = short_directory / "qemu"
    qemu.write_text(
        """#!/bin/sh
while [ "$1" != -kernel ]; do shift; done
read -r _ <"$2" || [ $? = 1 ] && exit 33
"""
    )
    qemu.chmod(0o755)
    tmp_path.chmod(0o700)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert await accelerator.attempt(str(qemu), Accelerator.TCG, uid=MACHINES_UID) is None


async def test_a_damaged_memory_of_it_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / accelerator.CACHE).write_text("{")
    assert (await find(tmp_path, binary=fake_qemu(tmp_path / "qemu"))).accelerator is Accelerator.KVM


async def test_no_qemu_an_old_one_and_one_that_runs_nothing_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="is not installed"):
        await find(binary=str(tmp_path / "none"))
    with pytest.raises(Unavailable, match=r"QEMU 5\.2\.0 is too old"):
        await find(binary=fake_qemu(tmp_path / "old", version="QEMU emulator version 5.2.0"))
    with pytest.raises(Unavailable, match="runs no guest here"):
        await find(binary=fake_qemu(tmp_path / "broken", kvm="exit 1", tcg="exit 1"))
    with pytest.raises(Unavailable, match="does not say which QEMU"):
        await find(binary=fake_qemu(tmp_path / "mute", version="what?"))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (VERSION, "7.2.22"),
        ("QEMU emulator version 8.0.50", "8.0.50"),
        ("QEMU emulator version 10.1", "10.1"),
        ("", None),
    ],
)
def test_versions_are_read(text: str, version: str | None) -> None:
    assert parse_version(text) == version


def test_each_system_has_its_own_hardware_and_all_can_emulate() -> None:
    assert candidates("Linux") == (Accelerator.KVM, Accelerator.TCG)
    assert candidates("Darwin") == (Accelerator.HVF, Accelerator.TCG)
    assert candidates("Plan9") == (Accelerator.TCG,)


def test_qemus_own_words_are_the_reason() -> None:
    output = "qemu-system-x86_64: warning: host doesn't support something\nqemu-system-x86_64: -accel kvm: no access\n"
    assert why_not(output, in_time=True, seconds=3) == "kvm: no access"
    assert why_not("", in_time=True, seconds=3) == "the guest ended early"


def test_the_payload_is_an_image_that_enters_where_its_note_says() -> None:
    image = payload.elf()
    entry = struct.unpack_from("<Q", image, 24)[0]
    offset, _, address, size = struct.unpack_from("<QQQQ", image, 64 + 8)
    assert address == entry
    assert len(image) > offset + size
    assert struct.unpack("<Q", image[-8:])[0] == entry


def test_the_time_stamp_counter_runs_at_a_plausible_rate() -> None:
    khz = host_tsc_khz()
    assert khz is None or 100_000 < khz < 20_000_000
