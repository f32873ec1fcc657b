"""Images of Debian's packages, really built."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.vm.images import ROOT, builder, cache

from mvm.image.base import FILES, BuildRequest, Contents, Manifest, sha256
from mvm.openclaw.install import Progress

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def content(small_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root file system, unpacked."""
    target = tmp_path_factory.mktemp("root") / "root"
    command = ["fsck.erofs", f"--extract={target}", "--preserve", str(small_image / "rootfs.erofs")]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    return target


def test_a_revision_is_what_its_manifest_says(small_image: Path) -> None:
    manifest = Manifest.read(small_image)
    assert manifest.digest == small_image.name
    assert {name: sha256(small_image / name) for name in FILES} == {
        name: file.sha256 for name, file in manifest.files.items()
    }
    assert manifest.packages["python3"]
    assert manifest.modules.index("virtio_ring") < manifest.modules.index("virtio") < manifest.modules.index("erofs")


def test_the_kernel_is_one_that_a_machine_starts_at_once(small_image: Path) -> None:
    assert (small_image / "vmlinux").read_bytes()[:4] == b"\x7fELF"


def test_the_root_has_what_a_guest_needs_and_belongs_to_root(content: Path) -> None:
    for path in ("usr/bin/python3", "usr/local/bin/node", "usr/bin/git", "usr/bin/jq", "usr/sbin/e2fsck"):
        assert (content / path).exists(), path
    for path in ("opt/mvm/guest.pyz", "opt/mvm/openclaw-plugin", "opt/openclaw/node_modules/openclaw/openclaw.mjs"):
        status = (content / path).stat()
        assert (status.st_uid, status.st_mode & 0o022, status.st_mode & 0o004) == (0, 0, 0o004), path
    assert (content / "data").is_dir()
    assert (content / "etc/mvm-config").is_dir()


def test_the_root_has_the_users_of_services(content: Path) -> None:
    users = [line.split(":") for line in (content / "etc/passwd").read_text().splitlines()]
    ids = {fields[0]: (int(fields[2]), int(fields[3])) for fields in users}
    assert ids["openclaw"] == (1000, 1000)
    assert ids["router"] == (990, 990)
    assert (content / "etc/shadow").stat().st_mode & 0o077 == 0


def test_nothing_of_the_building_host_is_in_the_root(content: Path) -> None:
    for path in ("etc/machine-id", "etc/resolv.conf"):
        assert (content / path).read_text() == "", path
    for path in ("etc/apt", "var/lib/apt/lists", "usr/share/doc/git", "dev/null"):
        assert not (content / path).exists(), path
    assert not list((content / "usr/share/locale").glob("*"))


def test_no_program_of_the_root_gives_more_rights(content: Path) -> None:
    assert [path for path in content.rglob("*") if path.is_file() and path.lstat().st_mode & 0o6000] == []


def test_python_finds_its_library_compiled(content: Path) -> None:
    (compiled,) = (content / "usr/lib/python3.11/asyncio/__pycache__").glob("base_events.*.pyc")
    assert compiled.read_bytes()[4:8] == b"\x01\0\0\0"  # unchecked


def test_the_same_inputs_give_the_same_bytes(small_image: Path, tmp_path: Path) -> None:
    debian = builder()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        request = BuildRequest(contents=small_contents(tmp_path))
        debian.build(debian.resolve(request, quiet), tmp_path / name, quiet)
    one, two = Manifest.read(tmp_path / "one"), Manifest.read(tmp_path / "two")
    assert one == two


def test_a_build_that_is_ended_leaves_nothing_behind(small_image: Path, tmp_path: Path) -> None:
    class Ended(Exception):
        pass

    def end(progress: Progress) -> None:
        if progress.text.startswith("packing"):
            raise Ended

    debian = builder()
    (tmp_path / "target").mkdir()
    inputs = debian.resolve(BuildRequest(contents=small_contents(tmp_path)), quiet)
    with pytest.raises(Ended):
        debian.build(inputs, tmp_path / "target", end)
    assert list((cache() / "work").iterdir()) == []


def small_contents(directory: Path) -> Contents:
    """Contents of next to nothing."""
    package, plugin = directory / "openclaw", directory / "plugin"
    for path in (package, plugin):
        path.mkdir(exist_ok=True)
    shutil.copyfile(ROOT / "tests/contract/runtime/service.py", package / "openclaw.mjs")
    (directory / "node").write_text("#!/bin/sh\n")
    (directory / "guest.pyz").write_bytes(b"program")
    return Contents(node=directory / "node", openclaw_dir=package, zipapp=directory / "guest.pyz", plugin_dir=plugin)


def quiet(_progress: Progress) -> None:
    pass
