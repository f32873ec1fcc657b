"""What every virtual machine is made of, by the manifest of its image."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.image.samples import inputs, manifest_of
from tests.unit.runtime.qemu_machines import machine

from mvm.drives.content import write_tree
from mvm.drives.table import ROOTFS
from mvm.image.base import FILES, ImageFile
from mvm.model.errors import Conflict, Unavailable
from mvm.model.roles import Role
from mvm.runtime import makeup
from mvm.runtime.base import Machine, Snapshot
from mvm.runtime.qemu import own_user
from mvm.runtime.qemu.accelerator import LASTING_SECONDS, Accelerator, Found
from mvm.runtime.qemu.files import Files
from mvm.runtime.qemu.makeup import hardware, require_what_it_ran_on


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A revision whose root is of ext4."""
    for name in FILES:
        (tmp_path / name).write_bytes(b"x")
    manifest = manifest_of(inputs(), tmp_path)
    (tmp_path / "rootfs.erofs").rename(tmp_path / "rootfs.ext4")
    files = {name.replace("erofs", "ext4"): ImageFile(sha256="0" * 64, size=1) for name in FILES}
    manifest.model_copy(update={"files": files, "kernel_arguments": ("rootfstype=ext4",)}).write(tmp_path)
    return tmp_path


def test_the_root_is_the_file_that_the_manifest_has(image: Path) -> None:
    makeup.require_files(image)
    of = replace(machine(image), image=image)
    assert makeup.drive_images(of, Files.of(of))[ROOTFS] == image / "rootfs.ext4"
    assert makeup.kernel_arguments(image) == "rootfstype=ext4"


def test_a_root_of_another_kind_does_not_stand_for_the_one_that_is_missing(image: Path) -> None:
    (image / "rootfs.ext4").rename(image / "rootfs.erofs")
    with pytest.raises(Unavailable, match=r"has no rootfs\.ext4"):
        makeup.require_files(image)


@pytest.fixture
def with_drives(image: Path, tmp_path: Path) -> Machine:
    """A machine with configuration and one secret."""
    made = replace(machine(tmp_path / "instance"), image=image, role=Role.GATEWAY)
    write_tree(made.config, {"config.json": b"{}"}, file_mode=0o600)
    write_tree(made.secrets, {"telegram/TELEGRAM_BOT_TOKEN": b"a token"}, file_mode=0o400)
    return made


def give_tokens(to: Machine, people: int) -> None:
    tokens = {f"workers/alice.person-{number}": b"a token" for number in range(people)}
    write_tree(to.secrets, tokens, file_mode=0o400)


def test_a_gateways_drives_have_room_for_four_thousand_people(with_drives: Machine) -> None:
    files = Files.of(with_drives)
    before = makeup.sizes(with_drives, files)
    makeup.write_images(with_drives, files)
    assert makeup.sizes(with_drives, files) == before
    give_tokens(with_drives, 4000)
    makeup.write_images(with_drives, files, running={makeup.SIZES: before})
    assert makeup.sizes(with_drives, files) == before


def test_what_does_not_fit_on_the_drives_of_a_running_machine_is_refused_before_anything_is_written(
    with_drives: Machine,
) -> None:
    files = Files.of(with_drives)
    small = {makeup.SIZES: f"secrets={256 << 10},config={1 << 20}"}  # as an earlier mvm started gateways
    makeup.write_images(with_drives, files, running=small)
    before = (files.config_image.read_bytes(), files.secrets_image.read_bytes())
    write_tree(with_drives.config, {"config.json": b'{"changed": true}'}, file_mode=0o600)
    give_tokens(with_drives, 100)
    with pytest.raises(Conflict, match=r"'secrets' takes \d+ bytes, and it runs with a drive of 262144") as refused:
        makeup.write_images(with_drives, files, running=small)
    assert f"mvm instance stop {with_drives.ref}" in (refused.value.hint or "")
    assert (files.config_image.read_bytes(), files.secrets_image.read_bytes()) == before
    makeup.write_images(with_drives, files)
    assert b'{"changed": true}' in files.config_image.read_bytes()


def test_an_image_without_a_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="has no manifest"):
        makeup.require_files(tmp_path)


def test_an_image_that_was_closed_by_a_umask_is_opened_to_machines_of_their_own_users(image: Path) -> None:
    closed = ("vmlinux", "initrd")
    for name in closed:
        (image / name).chmod(0o600)
    found = Found(binary="qemu", version="7.2.22", accelerator=Accelerator.TCG, reason="")
    hardware(replace(machine(image), image=image), found)
    assert [(image / name).stat().st_mode & 0o777 for name in closed] == [0o600] * 2  # its own user needs no more
    made_of = hardware(replace(machine(image), image=image, uid=61_018), found)
    assert [path.stat().st_mode & 0o777 for path in (made_of.kernel, made_of.initrd)] == [0o444] * 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user is taken on")
def test_another_user_opens_what_was_opened_to_all(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"code")
    path.chmod(0o600)

    def reopened() -> int:
        with path.open("rb") as held:
            command = ["cat", f"/proc/self/fd/{held.fileno()}"]
            return subprocess.run(
                [*own_user.words(61_018), *command], pass_fds=[held.fileno()], capture_output=True, timeout=60
            ).returncode

    assert reopened() == 1
    makeup.let_all_read(path)
    assert reopened() == 0


def test_a_sleeper_keeps_its_memory_while_what_it_ran_on_fails_only_for_now() -> None:
    of_kvm, of_tcg = (Snapshot(directory=Path("/s"), metadata={"accelerator": name}) for name in ("kvm", "tcg"))
    for_now = Found(
        binary="qemu", version="7.2.22", accelerator=Accelerator.TCG, reason="kvm is busy", until=120.0, since=0.0
    )
    with pytest.raises(Unavailable, match="goes on only with kvm, which fails for the moment: kvm is busy"):
        require_what_it_ran_on(of_kvm, for_now, now=LASTING_SECONDS - 1)
    require_what_it_ran_on(of_tcg, for_now, now=1.0)
    for_good = replace(for_now, until=None, since=None)
    for snapshot in (of_kvm, of_tcg):  # what does not fit is found out as such
        require_what_it_ran_on(snapshot, for_good, now=1.0)
        require_what_it_ran_on(snapshot, for_now, now=LASTING_SECONDS)
