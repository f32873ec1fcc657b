"""Firecracker is installed whole, verified and running, or not at all."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mvm.model.errors import Conflict, InvalidInput, MvmError, NotFound, Unavailable
from mvm.runtime import firecracker_install as module
from mvm.runtime.firecracker_install import Installer, Progress, Wanted

VERSION = "1.16.1"
WANTED = Wanted(version=VERSION, machine="x86_64")
NAME = f"firecracker-v{VERSION}-x86_64.tgz"


def program(says: str) -> bytes:
    return f"#!/bin/sh\n[ \"$1\" = --version ] && echo '{says}'\n".encode()


def release(**programs: bytes) -> bytes:
    """A tarball as Firecracker publishes it, with more in it than is wanted."""
    content = {
        "firecracker": program(f"Firecracker v{VERSION}"),
        "jailer": program(f"Jailer v{VERSION}"),
        "seccompiler-bin": b"not wanted",
    } | programs
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(f"release-v{VERSION}-x86_64/{name}-v{VERSION}-x86_64")
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Releases(ThreadingHTTPServer):
    """A server of releases on this machine's loopback."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.redirect: str | None = None
        self.asked: list[str] = []
        self.publish(release())

    def publish(self, content: bytes, said: str | None = None) -> None:
        path = f"/download/v{VERSION}/{NAME}"
        self.files[path] = content
        self.files[f"{path}.sha256.txt"] = f"{said or digest(content)}  {NAME}\n".encode()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/download"


class Handler(BaseHTTPRequestHandler):
    server: Releases

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.redirect is not None and self.path.endswith(".tgz"):
            target, self.server.redirect = self.server.redirect, None
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
            return
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        cut = self.server.cut if self.path.endswith(".tgz") else None
        self.wfile.write(content if cut is None else content[:cut])

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def releases() -> Iterator[Releases]:
    with Releases() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class World:
    def __init__(self, directory: Path, releases: Releases) -> None:
        self.home = directory / "firecracker"
        self.seen: list[Progress] = []
        self.installer = Installer(directory, on_progress=self.seen.append, releases=releases.address)

    def left(self) -> list[str]:
        return sorted(p.name for p in self.home.iterdir() if p.name != ".lock") if self.home.exists() else []


@pytest.fixture
def world(tmp_path: Path, releases: Releases) -> World:
    return World(tmp_path, releases)


def test_a_release_is_downloaded_verified_and_installed(world: World, releases: Releases) -> None:
    made = world.installer.install(WANTED)
    assert made.new
    assert made.directory == world.home / VERSION
    assert sorted(path.name for path in made.directory.iterdir()) == ["firecracker", "installation.json", "jailer"]
    assert all(os.access(made.directory / name, os.X_OK) for name in ("firecracker", "jailer"))
    assert made.sha256 == digest(releases.files[f"/download/v{VERSION}/{NAME}"])
    assert made.source == f"{releases.address}/v{VERSION}/{NAME}"
    counted = [step for step in world.seen if step.total is not None]
    assert counted
    assert counted[-1].done == counted[-1].total


def test_a_second_time_nothing_is_asked_for(world: World, releases: Releases) -> None:
    world.installer.install(WANTED)
    releases.asked.clear()
    again = world.installer.install(WANTED)
    assert not again.new
    assert releases.asked == []


def test_what_was_damaged_is_installed_again(world: World) -> None:
    made = world.installer.install(WANTED)
    (made.directory / "jailer").unlink()
    assert world.installer.install(WANTED).new
    assert (made.directory / "jailer").exists()
    assert world.left() == [VERSION]


def test_versions_are_beside_each_other(world: World) -> None:
    other = world.home / "1.15.0"
    other.mkdir(parents=True)
    world.installer.install(WANTED)
    assert world.left() == ["1.15.0", VERSION]


def test_a_release_that_is_not_what_its_digest_says_is_not_installed(world: World, releases: Releases) -> None:
    releases.publish(release(), said="0" * 64)
    with pytest.raises(MvmError, match="is not what was expected") as refused:
        world.installer.install(WANTED)
    assert "nothing was installed" in str(refused.value.hint)
    assert world.left() == []


def test_a_digest_of_the_operators_own_is_what_counts(world: World, releases: Releases) -> None:
    mine = digest(release())
    releases.publish(release(firecracker=program("Firecracker v1.16.1 (changed)")))
    with pytest.raises(MvmError, match=mine):
        world.installer.install(Wanted(version=VERSION, machine="x86_64", sha256=mine))
    assert not any(path.endswith(".sha256.txt") for path in releases.asked), "nobody else was asked"
    releases.publish(release())
    assert world.installer.install(Wanted(version=VERSION, machine="x86_64", sha256=mine)).new


def test_an_installation_of_another_digest_is_replaced(world: World, releases: Releases) -> None:
    world.installer.install(WANTED)
    other = release(jailer=program(f"Jailer v{VERSION}") + b"# rebuilt\n")
    releases.publish(other)
    made = world.installer.install(Wanted(version=VERSION, machine="x86_64", sha256=digest(other)))
    assert made.new
    assert (made.directory / "jailer").read_bytes().endswith(b"# rebuilt\n")


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        ({"firecracker": program("Firecracker v1.15.0")}, "should say 1.16.1"),
        ({"jailer": b"\x7fELF of another machine"}, "does not run on this machine"),
        ({"jailer": program("Jailer v1.16.10")}, "should say 1.16.1"),
    ],
)
def test_programs_that_do_not_say_the_version_are_not_installed(
    world: World, releases: Releases, programs: dict[str, bytes], message: str
) -> None:
    releases.publish(release(**programs))
    with pytest.raises(MvmError, match=message):
        world.installer.install(WANTED)
    assert world.left() == []


def test_a_release_without_a_jailer_is_not_one(world: World, releases: Releases) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo(f"release-v{VERSION}-x86_64/firecracker-v{VERSION}-x86_64"))
    releases.publish(buffer.getvalue())
    with pytest.raises(MvmError, match=r"there is no .*jailer"):
        world.installer.install(WANTED)
    assert world.left() == []


def test_a_link_in_a_release_is_not_followed(world: World, releases: Releases) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo(f"release-v{VERSION}-x86_64/firecracker-v{VERSION}-x86_64")
        member.type, member.linkname = tarfile.SYMTYPE, "/bin/true"
        archive.addfile(member)
    releases.publish(buffer.getvalue())
    with pytest.raises(MvmError, match="is no program"):
        world.installer.install(WANTED)


def test_what_is_no_tarball_is_said_so(world: World, releases: Releases) -> None:
    releases.publish(b"<html>")
    with pytest.raises(MvmError, match="cannot be unpacked"):
        world.installer.install(WANTED)
    assert world.left() == []


def test_a_download_that_breaks_off_leaves_nothing_and_the_next_one_works(world: World, releases: Releases) -> None:
    releases.cut = 100
    with pytest.raises(Unavailable, match="broke off after 100 of"):
        world.installer.install(WANTED)
    assert world.left() == []
    releases.cut = None
    assert world.installer.install(WANTED).new


def test_a_release_that_there_is_none_of_is_named(world: World) -> None:
    with pytest.raises(NotFound, match=r"there is no release 9\.9\.9 of Firecracker for x86_64") as missing:
        world.installer.install(Wanted(version="9.9.9", machine="x86_64"))
    assert missing.value.hint


def test_a_network_that_is_not_there_is_told_with_another_way(tmp_path: Path) -> None:
    nowhere = Installer(tmp_path, on_progress=lambda _: None, releases="http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="cannot be reached") as refused:
        nowhere.install(WANTED)
    assert "--from FILE" in str(refused.value.hint)


def test_a_redirection_is_followed(world: World, releases: Releases) -> None:
    releases.files["/elsewhere.tgz"] = release()
    releases.redirect = f"{releases.address.removesuffix('/download')}/elsewhere.tgz"
    assert world.installer.install(WANTED).new


def test_what_is_encrypted_does_not_lead_to_what_is_not() -> None:
    handler = module._NoDowngrade()
    request = module.urllib.request.Request("https://releases.test/x")
    with pytest.raises(OSError, match="not encrypted"):
        handler.redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://releases.test/x")


def test_a_tarball_that_is_here_is_installed_without_a_network(tmp_path: Path) -> None:
    content = release()
    tarball = tmp_path / NAME
    tarball.write_bytes(content)
    installer = Installer(tmp_path / "p", on_progress=lambda _: None, releases="http://127.0.0.1:1")
    here = Wanted(version=VERSION, machine="x86_64", tarball=tarball)
    with pytest.raises(Unavailable, match="nothing says what") as refused:
        installer.install(here)
    assert "--sha256" in str(refused.value.hint)
    tarball.with_name(f"{NAME}.sha256.txt").write_text(f"{digest(content)}  {NAME}\n")
    made = installer.install(here)
    assert (made.new, made.source) == (True, str(tarball))
    assert json.loads((made.directory / "installation.json").read_text())["sha256"] == digest(content)


def test_a_tarball_that_is_not_here_is_not_found(tmp_path: Path) -> None:
    installer = Installer(tmp_path, on_progress=lambda _: None)
    with pytest.raises(NotFound):
        installer.install(Wanted(version=VERSION, machine="x86_64", tarball=tmp_path / "none", sha256="0" * 64))


@pytest.mark.parametrize(
    "wanted", [Wanted(version="../../etc"), Wanted(version="1.16"), Wanted(sha256="abc"), Wanted(sha256="G" * 64)]
)
def test_what_can_be_neither_version_nor_digest_is_refused_at_once(world: World, wanted: Wanted) -> None:
    with pytest.raises(InvalidInput):
        world.installer.install(wanted)
    assert not world.home.exists()


def test_a_machine_without_releases_is_told_so(world: World) -> None:
    with pytest.raises(Unavailable, match="not released for riscv64"):
        world.installer.install(Wanted(machine="riscv64"))


def test_what_a_killed_installer_left_is_removed(world: World) -> None:
    (world.home / ".staging-killed").mkdir(parents=True)
    world.installer.install(WANTED)
    assert world.left() == [VERSION]


def test_one_installs_at_a_time(world: World) -> None:
    world.home.mkdir(parents=True)
    with (world.home / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="another process"):
            world.installer.install(WANTED)


def test_several_at_once_leave_one_installation(world: World) -> None:
    def one(_: int) -> bool | None:
        try:
            return world.installer.install(WANTED).new
        except Conflict:
            return None

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(one, range(4)))
    assert results.count(True) == 1
    assert world.left() == [VERSION]


def test_too_large_a_release_is_given_up(world: World, releases: Releases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RELEASE_BYTES", 100)
    with pytest.raises(MvmError, match="larger than any release"):
        world.installer.install(WANTED)
    assert world.left() == []
