"""What the QEMU runtime does around its QEMU, up to the moment where it would begin."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.image.samples import inputs, manifest_of
from tests.unit.runtime.qemu_machines import machine
from tests.unit.runtime.test_qemu_snapshots import MADE_BY as SNAPSHOT_MADE_BY
from tests.unit.runtime.test_qemu_snapshots import fill

from mvm.drives.table import drives_of
from mvm.guest.processes import Identity
from mvm.model.errors import Unavailable
from mvm.model.roles import Role
from mvm.runtime import makeup
from mvm.runtime.qemu import QemuRuntime, accelerator, launching
from mvm.runtime.qemu.accelerator import Accelerator, Found
from mvm.runtime.qemu.command import Hardware
from mvm.runtime.qemu.files import Files
from mvm.runtime.qemu.snapshots import SNAPSHOTS

MADE_BY = {"image": "the new one"}
EMULATED = Found(binary="qemu", version="7.2.22", accelerator=Accelerator.TCG, reason="")


async def test_what_a_machine_is_made_of_is_on_record_before_there_is_a_machine(
    short_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = short_directory / "image"
    image.mkdir()
    for name in ("vmlinux", "initrd", "rootfs.erofs"):
        (image / name).write_bytes(bytes(512))
    manifest_of(inputs(), image).write(image)
    subject = replace(machine(short_directory), image=image, data_mib=1)
    files = Files.of(subject)
    files.data.write_bytes(bytes(1 << 20))
    files.make_memory()
    makeup.remember(files.memory, {"image": "that of the machine before"})
    hardware = Hardware(
        accelerator=Accelerator.TCG,
        vcpus=1,
        mem_mib=64,
        drives=drives_of(Role.WORKER),
        kernel=image / "vmlinux",
        initrd=image / "initrd",
    )
    runtime = QemuRuntime()
    on_record: list[dict[str, str]] = []

    async def host() -> Found:
        return EMULATED

    async def made_of(_: object) -> tuple[Hardware, dict[str, str]]:
        return hardware, MADE_BY

    def launch(*_: object, **__: object) -> Identity:
        on_record.append(makeup.remembered(files.memory, who="it"))
        raise Unavailable("it ends here")

    monkeypatch.setattr(runtime, "_host", host)
    monkeypatch.setattr(runtime, "_made_of", made_of)
    monkeypatch.setattr(launching, "launch", launch)
    await runtime.publish_drives(subject)
    with pytest.raises(Unavailable, match="it ends here"):
        await runtime.start(subject)
    assert on_record == [MADE_BY]
    assert not [path for path in (*files.sockets, files.record) if path.exists()]


async def test_a_sleeper_of_a_kvm_that_is_busy_just_now_stays_asleep_with_its_memory(
    short_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files.of(subject := machine(short_directory))
    fill(files)
    snapshot = SNAPSHOTS.finish(files, {**SNAPSHOT_MADE_BY, "accelerator": "kvm"})
    runtime = QemuRuntime()

    async def host() -> Found:
        return replace(EMULATED, reason="kvm is busy", until=math.inf, since=time.time())

    async def made_of(_: object) -> tuple[None, dict[str, str]]:
        return None, SNAPSHOT_MADE_BY

    monkeypatch.setattr(runtime, "_host", host)
    monkeypatch.setattr(runtime, "_made_of", made_of)
    with pytest.raises(Unavailable, match="fails for the moment: kvm is busy"):
        await runtime.restore(subject, snapshot)
    assert await runtime.saved_snapshot(subject) == snapshot


async def test_what_the_host_can_do_is_asked_again_until_it_is_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([replace(EMULATED, until=0.0), replace(EMULATED, accelerator=Accelerator.KVM)])

    async def find(*_: object, **__: object) -> Found:
        return next(answers)

    monkeypatch.setattr(accelerator, "find", find)
    runtime = QemuRuntime()
    said = [(await runtime.probe()).reason for _ in range(3)]
    assert "without hardware virtualisation" in said[0]
    assert said[1:] == ["QEMU 7.2.22 with kvm"] * 2
