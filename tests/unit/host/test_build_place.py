"""Flakes that are built in a machine: told, shown, limited and explained as on the host, and copied out of it."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tests.standins.nix.world import PROFILES, SYSTEM, NixWorld
from tests.unit.host.nix_machines import OneMachine

from mvm.host import build_place, in_loop
from mvm.host.build_place import NIX, ROOM, SOURCES, MachinePlace
from mvm.host.in_loop import InLoop
from mvm.image.base import FILES, MANIFEST, ROOTFS, BuildRequest, Inputs, OnProgress
from mvm.image.nix import NixMachineBuilder, own
from mvm.image.revisions import Revisions
from mvm.model.errors import InvalidInput, MvmError, TimedOut, Unavailable
from mvm.openclaw.install import Progress
from mvm.wire.messages import ExecResult

FLAKE = "github:somebody/images"
IMAGE = "tenant-worker-minimal"
OWN = "github:somebody/mvm?dir=nix"


class Enough(Exception):
    """What somebody who watches gives up with."""


def quiet(_step: Progress) -> None:
    pass


@dataclass
class Subject:
    """A builder whose machines are this host."""

    world: NixWorld
    machines: OneMachine
    builder: NixMachineBuilder
    revisions: Revisions

    @property
    def package(self) -> dict[str, Any]:
        return self.world.flakes[FLAKE]["packages"][SYSTEM][IMAGE]  # type: ignore[no-any-return]

    async def build(self, on_progress: OnProgress = quiet, flake: str = FLAKE, profile: str = "minimal") -> Path:
        """The revision, as the agent has it built."""

        def work() -> Path:
            request = BuildRequest(role="worker", profile=profile, flake=flake, tenant="alice")
            with self.builder.at_work() as work:
                return self.revisions.build(work, work.resolve(request, on_progress), on_progress)

        return await asyncio.to_thread(work)


@pytest.fixture
def short_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mvm-") as name:
        yield Path(name)


@pytest.fixture
async def subject(tmp_path: Path, short_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(in_loop, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(build_place, "POLL_SECONDS", 0.05)
    monkeypatch.setenv(own.VARIABLE, OWN)
    world = NixWorld(tmp_path / "nix-world")
    world.install()
    world.flake(FLAKE, IMAGE, profiles=PROFILES)
    machines = OneMachine(InLoop(), short_directory, world)
    return Subject(world, machines, NixMachineBuilder(tmp_path / "cache", machines), Revisions(tmp_path / "images"))


def nothing_is_left(subject: Subject, tmp_path: Path) -> None:
    assert (subject.machines.there, subject.machines.guest.running) == (0, 0)
    assert subject.revisions.all() == []
    assert list((tmp_path / "cache").rglob("build-*")) == []
    assert list((tmp_path / "images").glob(".staging-*")) == []


async def test_what_a_machine_builds_becomes_a_revision(subject: Subject) -> None:
    directory = await subject.build()
    assert sorted(path.name for path in directory.iterdir()) == sorted([*FILES, MANIFEST])
    assert (directory / ROOTFS).read_bytes() == (Path(subject.package["output"]) / ROOTFS).read_bytes()
    manifest = subject.revisions.manifest(directory.name)
    assert manifest.source is not None
    assert manifest.source.url == f"{FLAKE}?narHash=sha256-1"
    assert (subject.machines.made, subject.machines.there) == (1, 0)
    assert subject.machines.for_whom == ["alice"]


async def test_nix_is_told_the_same_as_on_the_host(subject: Subject) -> None:
    await subject.build()
    assert subject.world.commands() == ["flake", "path-info", "build"]
    nix = [command for command in subject.machines.guest.asked if NIX in command]
    assert all(command[0] == "/bin/sh" and command[3:5] == (ROOM, "/usr/bin/env") for command in nix)
    assert all("NIX_CONFIG=substituters =" in command for command in nix)
    options = ("--extra-experimental-features", "nix-command flakes", "--log-format", "internal-json")
    assert all(command[command.index(NIX) + 1 :][:4] == options for command in nix)


async def test_looking_what_would_be_built_is_all_that_a_machine_may_be_made_for(subject: Subject) -> None:
    def look() -> Inputs:
        with subject.builder.at_work() as work:
            return work.resolve(BuildRequest(role="worker", flake=FLAKE, tenant="alice"), quiet)

    first, again = await asyncio.to_thread(look), await asyncio.to_thread(look)
    assert first.digest == again.digest
    assert subject.world.commands() == ["flake", "path-info"] * 2
    assert (subject.machines.made, subject.machines.there) == (2, 0)


async def test_a_flake_of_this_host_comes_along_and_keeps_its_name(subject: Subject, tmp_path: Path) -> None:
    here, there = f"path:{tmp_path}/flake", f"path:{SOURCES}/flake"
    (tmp_path / "flake").mkdir()
    (tmp_path / "flake/flake.nix").touch()
    subject.world.flake(there.replace(ROOM, str(subject.machines.guest.room)), IMAGE, profiles=PROFILES)
    directory = await subject.build(flake=here)
    assert subject.machines.guest.asked[0][-1] == there
    assert subject.machines.place.original(f"{there}?narHash=x") == f"{here}?narHash=x"
    source = subject.revisions.manifest(directory.name).source
    assert source is not None
    assert source.flake == here


async def test_a_directory_that_is_no_flake_needs_no_machine(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"there is no flake\.nix in"):
        await subject.build(flake=f"path:{tmp_path}")
    with pytest.raises(InvalidInput, match="there is no '/nowhere/at/all'"):
        await subject.build(flake="git+file:///nowhere/at/all")
    assert subject.machines.made == 0


async def test_a_build_shows_what_nix_tells_and_who_gives_up_ends_it(subject: Subject, tmp_path: Path) -> None:
    subject.package["hangs"] = "building"
    subject.world.save()
    steps: list[Progress] = []

    def until_building(step: Progress) -> None:
        steps.append(step)
        if step.text.startswith("building derivations"):
            raise Enough

    with pytest.raises(Enough):
        await subject.build(until_building)
    assert steps[-1] == Progress(text="building derivations with Nix", done=1, total=2)
    nothing_is_left(subject, tmp_path)


async def test_who_gives_up_while_it_is_copied_leaves_nothing(subject: Subject, tmp_path: Path) -> None:
    (Path(subject.package["output"]) / ROOTFS).write_bytes(bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(2**24))

    def until_copied(step: Progress) -> None:
        if step.text.startswith("copying the image out"):
            raise Enough

    with pytest.raises(Enough):
        await subject.build(until_copied)
    nothing_is_left(subject, tmp_path)


async def test_a_build_that_fails_tells_its_last_lines_and_where_the_rest_is(subject: Subject, tmp_path: Path) -> None:
    subject.package.update(status=2, log=[f"line {number}" for number in range(40)])
    subject.world.save()
    with pytest.raises(MvmError, match=r"failed with exit code 2; its last lines: line 34 / .* / line 39$") as failed:
        await subject.build()
    log = Path((failed.value.hint or "").removeprefix("the whole log is "))
    assert f"{IMAGE}-1> line 0\n" in log.read_text()
    nothing_is_left(subject, tmp_path)


async def test_an_image_that_is_not_there_is_told_with_those_that_are(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=f"has no package 'tenant-worker-python' for {SYSTEM}") as refused:
        await subject.build(profile="python")
    assert refused.value.hint == f"what it offers for {SYSTEM}: {IMAGE}"
    nothing_is_left(subject, tmp_path)


async def test_a_build_that_takes_too_long_is_given_up(subject: Subject, tmp_path: Path) -> None:
    subject.package["hangs"] = "building"
    subject.world.save()
    subject.builder = NixMachineBuilder(tmp_path / "cache", subject.machines, limit=1)
    with pytest.raises(TimedOut, match="was given up after 1 s") as failed:
        await subject.build()
    assert ".log" in (failed.value.hint or "")
    nothing_is_left(subject, tmp_path)


async def test_a_machine_that_ends_is_told(subject: Subject, tmp_path: Path) -> None:
    subject.machines.guest.fails["--out-link"] = Unavailable("Exec to alice/builder/i-1 failed: it has ended")
    with pytest.raises(Unavailable, match=r"building .* failed: Exec to .*: it has ended") as failed:
        await subject.build()
    assert "memory" in (failed.value.hint or "")
    nothing_is_left(subject, tmp_path)


async def test_a_machine_that_is_busy_is_asked_again(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    piece, failures = subject.machines.guest.execute, iter(range(3))

    async def busy(argv: Any, *, seconds: int) -> Any:
        if argv[0] == "dd" and next(failures, None) is not None and subject.machines.guest.running:
            raise TimedOut("it was not answered")
        return await piece(argv, seconds=seconds)

    monkeypatch.setattr(subject.machines.guest, "execute", busy)
    assert (await subject.build()).is_dir()


async def test_nix_may_not_tell_without_end(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_place, "MOST_TOLD", 1000)
    subject.package["log"] = ["x" * 100] * 20
    subject.world.save()
    with pytest.raises(InvalidInput, match="nix told more than"):
        await subject.build()
    nothing_is_left(subject, tmp_path)


async def test_nix_may_not_print_without_end(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_place, "MOST_PRINTED", 100)
    with pytest.raises(InvalidInput, match=r"reading the flake .*: nix printed more than"):
        await subject.build()
    nothing_is_left(subject, tmp_path)


async def test_what_nix_tells_arrives_whole_however_much_it_is(subject: Subject, tmp_path: Path) -> None:
    lines = [hashlib.sha256(str(number).encode()).hexdigest() * 8 for number in range(600)]
    subject.package["log"] = lines
    subject.world.save()
    await subject.build()
    (log,) = (tmp_path / "cache/nix").glob("*.log")
    assert [line.partition("> ")[2] for line in log.read_text().splitlines() if f"{IMAGE}-1> " in line] == lines


async def test_an_image_that_would_fit_only_once_is_not_fetched(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(2**20)
    (Path(subject.package["output"]) / ROOTFS).write_bytes(content)
    usage = shutil.disk_usage("/")._replace(free=build_place.LEAST_LEFT + len(content) * 3 // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(Unavailable, match="are left for it"):
        await subject.build()
    nothing_is_left(subject, tmp_path)


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        (b"", "is not offered by the machine"),
        (b'{"name": "vmlinux"', "could not be copied out of the machine: it ended"),
        (b'{"name": "vmlinux", "size": 99999999999999999}\n', "are left for it"),
        (b'{"name": "../vmlinux", "size": 1}\n', "something else came"),
    ],
)
async def test_what_a_machine_sends_is_not_believed(
    spoiled: bytes, words: str, subject: Subject, tmp_path: Path
) -> None:
    subject.machines.guest.spoiled = spoiled
    with pytest.raises(Unavailable, match=words):
        await subject.build()
    nothing_is_left(subject, tmp_path)


async def test_what_is_not_offered_is_told(subject: Subject, tmp_path: Path) -> None:
    rootfs = Path(subject.package["output"]) / ROOTFS
    rootfs.unlink()
    rootfs.mkdir()
    with pytest.raises(Unavailable, match=r"copied out of the machine|is not offered by the machine"):
        await subject.build()
    nothing_is_left(subject, tmp_path)


async def test_an_image_that_lacks_a_file_is_told_as_on_the_host(subject: Subject, tmp_path: Path) -> None:
    (Path(subject.package["output"]) / "initrd").unlink()
    with pytest.raises(InvalidInput, match="what was built has no initrd"):
        await subject.build()
    nothing_is_left(subject, tmp_path)


@dataclass
class Obedient:
    """A guest that only answers: with `status` to commands that begin with `fails`."""

    fails: str = ""
    asked: list[tuple[str, ...]] = field(default_factory=list)

    async def execute(self, argv: Sequence[str], *, seconds: int) -> ExecResult:
        self.asked.append(tuple(argv))
        return ExecResult(status=int(argv[0] == self.fails), stderr=b"first\nit is not allowed\n")

    async def connect(self, port: int) -> NoReturn:
        raise Unavailable("nobody listens")


async def test_the_store_is_put_in_its_place_on_the_data_drive() -> None:
    guest = Obedient()
    await MachinePlace(guest, InLoop(), sources={}, environment={}).settle()
    assert guest.asked[-1] == ("mount", "--bind", "/data/nix", "/nix")
    assert all(word.startswith("/data/") for word in guest.asked[0][2:])


async def test_a_store_that_cannot_be_put_in_its_place_is_told() -> None:
    place = MachinePlace(Obedient("mount"), InLoop(), sources={}, environment={})
    with pytest.raises(Unavailable, match=r"'mount --bind /data/nix /nix' failed .*: it is not allowed"):
        await place.settle()
