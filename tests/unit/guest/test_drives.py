"""Drives of a machine of its own: which device is which, and what is taken from one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mvm.drives import table
from mvm.guest import drives
from mvm.guest.drives import CONFIG, DATA, SECRETS, DriveError, Drives, find, read_tree, replace_tree
from mvm.guest.paths import GuestPaths
from mvm.guest.users import Access, User

ME = Access(mode=0o640, owner=User(name="me", number=os.getuid()), group=User(name="me", number=os.getgid()))
DIRECTORY = Access(mode=0o750, owner=ME.owner, group=ME.group)


def devices(directory: Path, **serials: str | None) -> Path:
    """What the kernel would say of block devices; None for one that tells no serial."""
    for name, serial in serials.items():
        (directory / name).mkdir()
        if serial is not None:
            (directory / name / "serial").write_text(serial)
    return directory


def put(target: Path, files: dict[str, bytes]) -> None:
    replace_tree(target, files, lambda _: ME, lambda _: DIRECTORY)


def test_the_guests_table_is_the_hosts() -> None:
    for own, hosts in ((DATA, table.DATA), (SECRETS, table.SECRETS), (CONFIG, table.CONFIG)):
        assert (own.serial, own.device) == (hosts.serial, hosts.device)


def test_a_drive_is_known_by_its_serial_wherever_it_is(tmp_path: Path) -> None:
    there = devices(tmp_path, vda="rootfs", vdb="config", vdc="secrets", vdd="data")
    assert find(DATA, devices=there) == Path("/dev/vdd")


def test_a_device_without_a_serial_is_known_by_its_name(tmp_path: Path) -> None:
    assert find(DATA, devices=devices(tmp_path, vda=None, vdb=None)) == Path("/dev/vdb")


def test_a_device_that_says_a_number_is_known_by_its_name(tmp_path: Path) -> None:
    there = devices(tmp_path, vda="65024013371", vdb="65024013372", vdc="2600000041", vdd="65024013373")
    assert [find(drive, devices=there) for drive in (DATA, SECRETS, CONFIG)] == [
        Path("/dev/vdb"),
        Path("/dev/vdc"),
        Path("/dev/vdd"),
    ]


def test_a_device_that_says_it_is_another_is_not_taken_for_it(tmp_path: Path) -> None:
    assert find(DATA, devices=devices(tmp_path, vda="rootfs", vdb="secrets")) is None


def test_without_devices_there_is_no_drive(tmp_path: Path) -> None:
    assert find(DATA, devices=tmp_path / "nothing") is None


def test_files_are_read_by_their_paths(tmp_path: Path) -> None:
    (tmp_path / "openclaw").mkdir()
    (tmp_path / "openclaw/TOKEN").write_bytes(b"t")
    (tmp_path / "config.json").write_bytes(b"{}")
    assert read_tree(tmp_path) == {"config.json": b"{}", "openclaw/TOKEN": b"t"}


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_nothing_but_plain_files_is_read(tmp_path: Path, kind: str) -> None:
    if kind == "link":
        (tmp_path / "it").symlink_to("/etc/passwd")
    else:
        os.mkfifo(tmp_path / "it")
    with pytest.raises(OSError, match=r"it|symbolic"):
        read_tree(tmp_path)


def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drives, "MAX_FILES", 2)
    monkeypatch.setattr(drives, "MAX_TOTAL_BYTES", 10)
    monkeypatch.setattr(drives, "MAX_DEPTH", 2)
    big, many, deep = tmp_path / "big", tmp_path / "many", tmp_path / "deep"
    for directory in (big, many, deep / "a/b"):
        directory.mkdir(parents=True)
    (big / "file").write_bytes(b"x" * 11)
    for name in "abc":
        (many / name).touch()
    for top, why in ((big, "bytes"), (many, "files"), (deep, "deep")):
        with pytest.raises(DriveError, match=why):
            read_tree(top)


def test_a_tree_becomes_what_it_is_to_be(tmp_path: Path) -> None:
    put(tmp_path, {"a": b"1", "gone/b": b"2", "turned": b"3"})
    put(tmp_path, {"a": b"1", "fresh/b": b"2", "turned/c": b"4"})
    assert read_tree(tmp_path) == {"a": b"1", "fresh/b": b"2", "turned/c": b"4"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "fresh", "turned"]
    assert ((tmp_path / "a").stat().st_mode & 0o777, (tmp_path / "fresh").stat().st_mode & 0o777) == (0o640, 0o750)


def test_a_file_that_is_the_same_is_not_touched(tmp_path: Path) -> None:
    put(tmp_path, {"same": b"1", "other": b"2"})
    before = {name: (tmp_path / name).stat().st_ino for name in ("same", "other")}
    put(tmp_path, {"same": b"1", "other": b"3"})
    assert (tmp_path / "same").stat().st_ino == before["same"]
    assert (tmp_path / "other").stat().st_ino != before["other"]


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    (target / "scope").symlink_to(outside)
    put(target, {"scope/KEY": b"s"})
    assert list(outside.iterdir()) == []
    assert (target / "scope/KEY").read_bytes() == b"s"


def test_under_the_process_runtime_directories_stay_as_they_are(tmp_path: Path) -> None:
    paths = GuestPaths(tmp_path)
    paths.secrets.mkdir(parents=True)
    (paths.secrets / "KEY").write_text("s")
    (tmp_path / "block").mkdir()
    there = Drives(paths, devices=devices(tmp_path / "block", vdc="secrets", vdd="config"))
    there.take_in()
    there.wipe()
    assert (paths.secrets / "KEY").read_text() == "s"
    assert not there.wiped


class _Machines(GuestPaths):
    """Paths as in a machine of its own, below a directory."""

    owns_machine = True  # type: ignore[assignment]


def orders(tmp_path: Path, text: str, *serials: str) -> GuestPaths:
    """A guest whose data drive says `text` to a builder; it has the drives of these serials."""
    paths = _Machines(tmp_path)
    paths.builder_config.parent.mkdir(parents=True)
    paths.builder_config.write_text(text)
    for directory in (paths.config_dir, paths.mvm_run, tmp_path / "block"):
        directory.mkdir(parents=True)
    given = {f"vd{letter}": serial for letter, serial in zip("abcd", serials, strict=False)}
    Drives(paths, devices=devices(tmp_path / "block", **given)).take_in()
    return paths


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to root")
def test_a_builder_is_told_by_its_data_drive(tmp_path: Path) -> None:
    text = '{"role": "builder", "allow_exec": true}'
    assert orders(tmp_path, text, "rootfs", "data").config.read_text() == text


@pytest.mark.parametrize("text", ['{"role": "worker", "allow_exec": true}', "{", '"builder"', "{}"])
def test_nobody_else_is_told_by_it_what_it_may_do(text: str, tmp_path: Path) -> None:
    assert not orders(tmp_path, text, "rootfs", "data").config.exists()


def test_who_has_a_drive_of_configuration_is_told_by_that_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("it cannot be mounted")

    monkeypatch.setattr(drives, "mount", refuse)
    with pytest.raises(DriveError, match="'config' cannot be read"):
        orders(tmp_path, '{"role": "builder"}', "rootfs", "data", "secrets", "config")
