"""What the QEMU runtime does around its QEMU, up to the moment where it would begin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.image.samples import inputs, manifest_of
from tests.unit.runtime.qemu_machines import machine

from mvm.drives.table import drives_of
from mvm.guest.processes import Identity
from mvm.model.errors import Unavailable
from mvm.model.roles import Role
from mvm.runtime import makeup
from mvm.runtime.qemu import QemuRuntime, launching
from mvm.runtime.qemu.accelerator import Accelerator, Found
from mvm.runtime.qemu.command import Hardware
from mvm.runtime.qemu.files import Files

MADE_BY = {"image": "the new one"}


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
        return Found(binary="qemu", version="7.2.22", accelerator=Accelerator.TCG, reason="")

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
