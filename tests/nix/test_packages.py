"""What the flake's derivations run: OpenClaw laid out from npm's packages, and the files of an image."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from nix.packages import lay_out, make_image, unpack_npm
from tests.nix.nix import REPOSITORY

from mvm.image.base import FILES, INITRD, MANIFEST, Manifest
from mvm.image.debian import initrd

PRUNE = REPOSITORY / "src/mvm/image/prune.py"


def tarball(path: Path, files: dict[str, bytes], *, executable: str = "") -> str:
    """An npm package; its files are in `package/`."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            entry.mode = 0o775 if name == executable else 0o666
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return str(path)


LOCK = {
    "packages": {
        "": {"name": "all"},
        "node_modules/openclaw": {"integrity": "sha512-a"},
        "node_modules/@openclaw/discord": {"integrity": "sha512-b"},
        "node_modules/@openclaw/discord/node_modules/inside": {"inBundle": True},
        "node_modules/openclaw/node_modules/dep": {"integrity": "sha512-c"},
        "node_modules/only-elsewhere": {"integrity": "sha512-d", "optional": True},
    }
}


@pytest.fixture
def tarballs(tmp_path: Path) -> dict[str, str]:
    openclaw = {"openclaw.mjs": b"run", "dist/a.js.map": b"map", "bin/tool": b"#!"}
    return {
        "node_modules/openclaw": tarball(tmp_path / "a.tgz", openclaw, executable="bin/tool"),
        "node_modules/@openclaw/discord": tarball(
            tmp_path / "b.tgz", {"index.js": b"d", "node_modules/inside/i.js": b"i"}
        ),
        "node_modules/openclaw/node_modules/dep": tarball(tmp_path / "c.tgz", {"index.js": b"dep"}),
    }


def test_packages_lie_where_the_lock_says(tmp_path: Path, tarballs: dict[str, str]) -> None:
    modules = tmp_path / "node_modules"
    unpack_npm.unpack(LOCK, tarballs, modules)
    assert (modules / "openclaw/openclaw.mjs").read_bytes() == b"run"
    assert (modules / "openclaw/node_modules/dep/index.js").read_bytes() == b"dep"
    assert (modules / "@openclaw/discord/node_modules/inside/i.js").read_bytes() == b"i"
    assert (modules / "openclaw/bin/tool").stat().st_mode & 0o777 == 0o755
    assert (modules / "openclaw/openclaw.mjs").stat().st_mode & 0o777 == 0o644
    assert not (modules / "openclaw/link").is_symlink(), "links of packages are not taken"
    assert (modules / "@openclaw/discord/node_modules/openclaw/openclaw.mjs").is_file(), "its peer"


@pytest.mark.parametrize("change", ["missing", "strange"])
def test_a_lock_that_does_not_fit_is_refused(tmp_path: Path, tarballs: dict[str, str], change: str) -> None:
    if change == "missing":
        del tarballs["node_modules/openclaw/node_modules/dep"]
    else:
        tarballs["node_modules/strange"] = tarballs["node_modules/openclaw"]
    (tmp_path / "lock.json").write_text(json.dumps(LOCK))
    (tmp_path / "tarballs.json").write_text(json.dumps(tarballs))
    arguments = ["unpack", str(tmp_path / "lock.json"), str(tmp_path / "tarballs.json"), str(tmp_path / "out")]
    assert unpack_npm.main(arguments) == 1


def test_a_package_that_reaches_out_of_itself_is_refused(tmp_path: Path) -> None:
    lock = {"packages": {"node_modules/evil": {"integrity": "sha512-a"}}}
    evil = {"node_modules/evil": tarball(tmp_path / "evil.tgz", {"../../out": b"x"})}
    with pytest.raises(unpack_npm.UnusableLock, match="reaches out"):
        unpack_npm.unpack(lock, evil, tmp_path / "node_modules")
    assert not (tmp_path / "out").exists()


def test_what_no_guest_reads_is_left_out_by_the_rule_of_the_debian_image(
    tmp_path: Path, tarballs: dict[str, str]
) -> None:
    unpack_npm.unpack(LOCK, tarballs, tmp_path / "all")
    assert unpack_npm.main(["prune", str(PRUNE), str(tmp_path / "all"), str(tmp_path / "kept")]) == 0
    assert not (tmp_path / "kept/openclaw/dist/a.js.map").exists()
    assert (tmp_path / "kept/openclaw/bin/tool").stat().st_mode & 0o111
    assert (tmp_path / "kept/@openclaw/discord/node_modules/openclaw").is_symlink()


@pytest.mark.parametrize("place", lay_out.PLACES)
def test_an_applications_openclaw_is_laid_out_with_npms_discord(
    tmp_path: Path, tarballs: dict[str, str], place: str
) -> None:
    (tmp_path / "app" / place).mkdir(parents=True)
    (tmp_path / "app" / place / "openclaw.mjs").write_text("theirs")
    unpack_npm.unpack(LOCK, tarballs, tmp_path / "npm/lib/node_modules")
    assert lay_out.main([str(tmp_path / name) for name in ("app", "npm", "out")]) == 0
    modules = tmp_path / "out/lib/node_modules"
    assert (modules / "openclaw/openclaw.mjs").read_text() == "theirs"
    assert (modules / "@openclaw/discord/node_modules/openclaw/openclaw.mjs").read_text() == "theirs"


def test_a_package_that_is_no_openclaw_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "app").mkdir()
    assert lay_out.main([str(tmp_path / name) for name in ("app", "npm", "out")]) == 1
    assert "no openclaw.mjs" in capsys.readouterr().err


def test_the_initial_ram_disk_goes_on_with_nixos_and_is_otherwise_the_debian_images() -> None:
    theirs = initrd.script().decode().splitlines()
    ours = make_image.first_program("/nix/store/x-nixos").decode().splitlines()
    assert ours[: len(theirs) - 1] == theirs[:-1]
    assert "system=/nix/store/x-nixos" in ours
    assert ours[-1] == 'exec /bin/busybox switch_root /root "$system/init"'
    assert "guest.pyz" not in "\n".join(ours)


@pytest.mark.skipif(not initrd.BUSYBOX.exists(), reason="busybox is not installed (make setup-vm)")
def test_its_shell_can_read_it(tmp_path: Path) -> None:
    script = tmp_path / "init"
    script.write_bytes(make_image.first_program("/nix/store/x-nixos"))
    subprocess.run([initrd.BUSYBOX, "sh", "-n", script], check=True)


@pytest.mark.parametrize(
    ("path", "name", "version"),
    [
        ("/nix/store/abc-bash-interactive-5.3p3", "bash-interactive", "5.3p3"),
        ("/nix/store/abc-python3-3.13.9-env", "python3", "3.13.9-env"),
        ("/nix/store/abc-etc", "etc", ""),
    ],
)
def test_store_paths_are_told_by_name_and_version(path: str, name: str, version: str) -> None:
    assert make_image.named(Path(path)) == (name, version)


def describe(directory: Path) -> Path:
    """A description of a system of two files."""
    store = directory / "store/abc-nixos-26.05"
    store.mkdir(parents=True)
    (store / "init").write_text("#!/bin/sh\n")
    (store / "current").symlink_to("init")
    (directory / "closure").write_text(f"{store}\n")
    (directory / "guest.pyz").write_bytes(b"guest")
    (directory / "busybox").write_bytes(b"busybox")
    (directory / "vmlinux").write_bytes(b"\x7fELF kernel")
    modules = directory / "lib/modules/6.18.1"
    (modules / "kernel").mkdir(parents=True)
    (modules / "kernel/erofs.ko").write_bytes(b"\x7fELF\0depends=\0")
    (modules / "modules.builtin").write_text("kernel/overlay.ko\n")
    path = directory / "description.json"
    path.write_text(
        json.dumps(
            {
                "role": "worker",
                "profile": "minimal",
                "architecture": "x86_64",
                "toplevel": str(store),
                "closure": str(directory / "closure"),
                "layout": {
                    "/opt/mvm/guest.pyz": str(directory / "guest.pyz"),
                    "/usr/bin/python3": "link:/nix/store/p/bin/python3",
                },
                "kernel": str(directory / "vmlinux"),
                "kernel_release": "6.18.1",
                "modules": str(directory),
                "wanted_modules": ["erofs", "overlay"],
                "busybox": str(directory / "busybox"),
                "strip": "",
                "kernel_arguments": ["rootfstype=erofs"],
                "node": "",
                "openclaw": "",
                "zipapp": str(directory / "guest.pyz"),
            }
        )
    )
    return path


@pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="mkfs.erofs is not installed (make setup-vm)")
def test_an_image_holds_just_the_files_of_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, target = describe(tmp_path), tmp_path / "image"
    monkeypatch.chdir(tmp_path)
    assert make_image.main([str(given), str(target)]) == 0
    assert {path.name for path in target.iterdir()} == {*FILES, MANIFEST}
    said = json.loads((target / MANIFEST).read_text())
    assert (said["role"], said["profile"], said["modules"]) == ("worker", "minimal", ["erofs"])
    manifest = Manifest.model_validate({name: said[name] for name in Manifest.model_fields if name in said})
    assert manifest.packages == {"nixos": "26.05"}
    assert {name: file.size for name, file in manifest.files.items()} == {
        name: (target / name).stat().st_size for name in FILES
    }
    assert b"abc-nixos-26.05" in (target / INITRD).read_bytes()
    listed = subprocess.run(
        ["dump.erofs", "--ls", "--path=/opt/mvm", target / "rootfs.erofs"], capture_output=True, text=True, check=True
    ).stdout
    assert "guest.pyz" in listed


def test_a_kernel_without_a_module_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = describe(tmp_path)
    given.write_text(given.read_text().replace('"overlay"', '"vsock"'))
    monkeypatch.chdir(tmp_path)
    assert make_image.main([str(given), str(tmp_path / "image")]) == 1
    assert "no module 'vsock'" in capsys.readouterr().err
