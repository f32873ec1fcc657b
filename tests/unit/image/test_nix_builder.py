"""Images from flakes, by a stand-in for nix that takes just what nix 2.8 takes and answers as it does."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from tests.standins.nix.world import PROFILES, SYSTEM, NixWorld

from mvm.image.base import FILES, MANIFEST, BuildRequest, Inputs
from mvm.image.nix import NixBuilder, builder, own, program
from mvm.image.revisions import Revisions
from mvm.model.errors import InvalidInput, MvmError, TimedOut, Unavailable
from mvm.openclaw.install import Progress

FLAKE = "github:somebody/images"
APPLICATION = "github:openclaw/nix-openclaw"
OWN = "path:/mvm/nix"
IMAGE = "tenant-worker-minimal"


class Watcher:
    """Remembers what was shown."""

    def __init__(self) -> None:
        self.steps: list[Progress] = []

    def __call__(self, step: Progress) -> None:
        self.steps.append(step)

    @property
    def texts(self) -> list[str]:
        return list(dict.fromkeys(step.text for step in self.steps))


class Enough(Exception):
    """What somebody who watches gives up with."""


def quiet(_step: Progress) -> None:
    pass


@pytest.fixture
def nix(tmp_path: Path, nix_world: NixWorld) -> NixBuilder:
    return NixBuilder(tmp_path / "cache")


def ask(flake: str = FLAKE, *, role: str = "worker", profile: str = "minimal") -> BuildRequest:
    return BuildRequest(role=role, profile=profile, flake=flake)


def build(nix: NixBuilder, request: BuildRequest, tmp_path: Path) -> tuple[Inputs, Path]:
    inputs = nix.resolve(request, quiet)
    return inputs, Revisions(tmp_path / "images").build(nix, inputs, quiet)


def test_the_package_of_role_and_profile_becomes_a_revision(
    nix: NixBuilder, nix_world: NixWorld, tmp_path: Path
) -> None:
    nix_world.flake(FLAKE, IMAGE, "tenant-gateway-minimal", profiles=PROFILES)
    inputs, directory = build(nix, ask(), tmp_path)
    assert sorted(path.name for path in directory.iterdir()) == sorted([*FILES, MANIFEST])
    assert not any(path.is_symlink() for path in directory.iterdir())
    manifest = Revisions(tmp_path / "images").manifest(inputs.digest)
    assert (manifest.builder, manifest.role, manifest.profile) == ("nix", "worker", "minimal")
    assert (manifest.kernel_arguments, manifest.openclaw) == (
        ("init=/nix/store/x/init", "rootfstype=erofs"),
        "2026.9.6",
    )
    assert manifest.source is not None
    assert manifest.source.flake == FLAKE
    assert manifest.source.url == f"{FLAKE}?narHash=sha256-1"
    assert manifest.source.attribute == f"packages.{SYSTEM}.{IMAGE}"
    assert len(manifest.source.lock_hash) == 64
    assert nix_world.commands() == ["flake", "path-info", "build"]


def test_what_is_built_is_what_was_looked_at(nix: NixBuilder, nix_world: NixWorld, tmp_path: Path) -> None:
    nix_world.flake(FLAKE, IMAGE, profiles=PROFILES)
    build(nix, ask(), tmp_path)
    locked = f"{FLAKE}?narHash=sha256-1#packages.{SYSTEM}.{IMAGE}"
    assert [locked in call for call in nix_world.calls()] == [False, True, True]


def test_nothing_of_a_build_keeps_nix_from_collecting_its_garbage(
    nix: NixBuilder, nix_world: NixWorld, tmp_path: Path
) -> None:
    nix_world.flake(FLAKE, IMAGE, profiles=PROFILES)
    build(nix, ask(), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_symlink()] == []


def test_each_role_has_an_image_of_its_own(nix: NixBuilder, nix_world: NixWorld) -> None:
    nix_world.flake(FLAKE, IMAGE, "tenant-gateway-minimal", profiles=PROFILES)
    assert nix.serves("gateway") == "gateway"
    assert nix.resolve(ask(), quiet).digest != nix.resolve(ask(role="gateway"), quiet).digest


def test_the_digest_follows_what_nix_would_build(nix: NixBuilder, nix_world: NixWorld) -> None:
    flake = nix_world.flake(FLAKE, IMAGE, profiles=PROFILES)
    first = nix.resolve(ask(), quiet)
    flake["narHash"] = "sha256-2"  # a change of the flake that nothing is built from, such as its README
    nix_world.save()
    same = nix.resolve(ask(), quiet)
    flake["packages"][SYSTEM][IMAGE] = nix_world.package(IMAGE, content="2")
    nix_world.save()
    other = nix.resolve(ask(), quiet)
    assert first.digest == same.digest != other.digest


def test_a_flake_that_changes_between_look_and_build_is_not_taken_for_what_it_was(
    nix: NixBuilder, nix_world: NixWorld, tmp_path: Path
) -> None:
    flake = nix_world.flake(FLAKE, IMAGE, profiles=PROFILES)
    flake["packages"][SYSTEM][IMAGE]["built"] = str(nix_world.store / "another.drv")
    nix_world.save()
    with pytest.raises(Unavailable, match=r"something else than was found at first: another\.drv"):
        build(nix, ask(), tmp_path)
    assert Revisions(tmp_path / "images").all() == []


def test_a_flake_without_a_list_of_roles_has_images_by_profile(
    nix: NixBuilder, nix_world: NixWorld, tmp_path: Path
) -> None:
    nix_world.flake(FLAKE, "tenant-minimal", "tenant-python", "default")
    _, directory = build(nix, ask(), tmp_path)
    assert f"packages.{SYSTEM}.tenant-minimal" in nix_world.calls()[-1][2]
    assert directory.is_dir()
    with pytest.raises(InvalidInput, match="no package 'tenant-huge'") as refused:
        nix.resolve(ask(profile="huge"), quiet)
    assert refused.value.hint == f"what it offers for {SYSTEM}: tenant-minimal, tenant-python"


def test_an_application_is_put_together_with_mvms_own_modules(
    nix: NixBuilder, nix_world: NixWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(own.VARIABLE, OWN)
    nix_world.flake(APPLICATION, "default", "openclaw", content="app")
    mine = nix_world.flake(OWN, IMAGE, profiles=PROFILES)
    mine["inputs"] = ["application"]
    mine["with"] = {APPLICATION: {"packages": {SYSTEM: {IMAGE: nix_world.package(IMAGE, content="with-app")}}}}
    nix_world.save()
    watcher = Watcher()
    inputs = nix.resolve(ask(APPLICATION), watcher)
    Revisions(tmp_path / "images").build(nix, inputs, watcher)
    manifest = Revisions(tmp_path / "images").manifest(inputs.digest)
    assert manifest.source is not None
    assert manifest.source.application == f"{APPLICATION}?narHash=sha256-app"
    assert manifest.source.derivation.endswith(f"{IMAGE}-with-app.drv")
    assert any("is an application" in text for text in watcher.texts)
    assert inputs.digest != nix.resolve(ask("nix:"), quiet).digest


@pytest.mark.parametrize("flake", ["", "nix:"])
def test_without_a_flake_mvms_own_is_built(
    flake: str, nix: NixBuilder, nix_world: NixWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(own.VARIABLE, OWN)
    nix_world.flake(OWN, IMAGE, profiles=PROFILES)
    nix.resolve(ask(flake), quiet)
    assert nix_world.calls()[0][-1] == OWN


def test_a_flake_in_a_subdirectory_has_its_list_there(nix: NixBuilder, nix_world: NixWorld) -> None:
    nix_world.flake(FLAKE, IMAGE, profiles=PROFILES, subdirectory="nix")
    nix.resolve(ask(), quiet)
    assert nix_world.commands() == ["flake", "path-info"]


def test_a_nix_that_is_slow_to_copy_sources_is_asked_for_them(nix: NixBuilder, nix_world: NixWorld) -> None:
    nix_world.flake(FLAKE, IMAGE, profiles=PROFILES)
    nix_world.copies = False
    nix_world.save()
    nix.resolve(ask(), quiet)
    assert [call[:2] for call in nix_world.calls()][:2] == [["flake", "metadata"], ["flake", "prefetch"]]


@pytest.mark.parametrize("flake", ["path:{here}", "{here}", "path:{here}?narHash=x", "{here}?dir=nix"])
def test_a_directory_that_is_no_flake_is_not_copied_to_where_everybody_reads_it(
    flake: str, nix: NixBuilder, nix_world: NixWorld, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=r"there is no flake\.nix in"):
        nix.resolve(ask(flake.format(here=tmp_path)), quiet)
    assert nix_world.calls() == []


def test_a_role_or_profile_that_the_flake_does_not_list_is_refused_with_those_it_does(
    nix: NixBuilder, nix_world: NixWorld
) -> None:
    nix_world.flake(FLAKE, IMAGE, profiles=PROFILES)
    with pytest.raises(InvalidInput, match="has no role 'builder'") as refused:
        nix.resolve(ask(role="builder"), quiet)
    assert refused.value.hint == "its roles are: gateway, worker"
    with pytest.raises(InvalidInput, match="has no profile 'huge'") as refused:
        nix.resolve(ask(profile="huge"), quiet)
    assert refused.value.hint == "its profiles are: minimal, python"


def test_a_listed_image_that_is_not_there_is_told_with_what_is(nix: NixBuilder, nix_world: NixWorld) -> None:
    nix_world.flake(FLAKE, IMAGE, "tenant-worker-big", "default", profiles=PROFILES)
    with pytest.raises(InvalidInput, match=f"has no package 'tenant-worker-python' for {SYSTEM}") as refused:
        nix.resolve(ask(profile="python"), quiet)
    assert refused.value.hint == f"what it offers for {SYSTEM}: tenant-worker-big, {IMAGE}"


def test_a_build_shows_what_it_copies_and_builds(nix: NixBuilder, nix_world: NixWorld, tmp_path: Path) -> None:
    flake = nix_world.flake(FLAKE, IMAGE, profiles=PROFILES)
    flake["packages"][SYSTEM][IMAGE]["hangs"] = "copying"
    nix_world.save()
    inputs = nix.resolve(ask(), quiet)
    watcher = Watcher()

    def until_copying(step: Progress) -> None:
        watcher(step)
        if step.text.startswith("copying into"):
            raise Enough

    with pytest.raises(Enough):
        Revisions(tmp_path / "images").build(nix, inputs, until_copying)
    assert watcher.steps[0].text == f"building packages.{SYSTEM}.{IMAGE} of the flake '{FLAKE}'"
    assert watcher.steps[-1] == Progress(text="copying into Nix's store (MiB)", done=16, total=64)
    flake["packages"][SYSTEM][IMAGE]["hangs"] = "building"
    nix_world.save()

    def until_building(step: Progress) -> None:
        watcher(step)
        if step.text.startswith("building derivations"):
            raise Enough

    with pytest.raises(Enough):
        Revisions(tmp_path / "images").build(nix, inputs, until_building)
    assert watcher.steps[-1] == Progress(text="building derivations with Nix", done=1, total=2)


def test_who_gives_up_ends_nix_and_nothing_is_left(nix: NixBuilder, nix_world: NixWorld, tmp_path: Path) -> None:
    flake = nix_world.flake(FLAKE, IMAGE, profiles=PROFILES)
    flake["packages"][SYSTEM][IMAGE]["hangs"] = "building"
    nix_world.save()
    inputs = nix.resolve(ask(), quiet)

    def give_up(_step: Progress) -> None:
        if (nix_world.home / "pid").exists():
            raise Enough

    with pytest.raises(Enough):
        Revisions(tmp_path / "images").build(nix, inputs, give_up)
    with pytest.raises(ProcessLookupError):
        os.kill(int((nix_world.home / "pid").read_text()), signal.SIGCONT)
    assert Revisions(tmp_path / "images").all() == []
    assert list((tmp_path / "cache").rglob("build-*")) == []


def test_a_build_that_takes_too_long_is_given_up(nix_world: NixWorld, tmp_path: Path) -> None:
    flake = nix_world.flake(FLAKE, IMAGE, profiles=PROFILES)
    flake["packages"][SYSTEM][IMAGE]["hangs"] = "building"
    nix_world.save()
    hasty = NixBuilder(tmp_path / "cache", limit=0.5)
    with pytest.raises(TimedOut, match="was given up after") as failed:
        build(hasty, ask(), tmp_path)
    assert ".log" in (failed.value.hint or "")


def test_a_build_that_fails_tells_its_last_lines_and_where_the_rest_is(
    nix: NixBuilder, nix_world: NixWorld, tmp_path: Path
) -> None:
    flake = nix_world.flake(FLAKE, IMAGE, profiles=PROFILES)
    package = flake["packages"][SYSTEM][IMAGE]
    package.update(status=2, log=[f"line {number}" for number in range(40)])
    nix_world.save()
    with pytest.raises(MvmError, match=r"failed with exit code 2; its last lines: line 34 / .* / line 39$") as failed:
        build(nix, ask(), tmp_path)
    assert failed.value.hint is not None
    log = Path(failed.value.hint.removeprefix("the whole log is "))
    text = log.read_text()
    assert f"{IMAGE}-1> line 0\n" in text
    assert "\x1b" not in text
    assert "@nix" not in text
    assert log.stat().st_mode & 0o077 == 0
    assert nix.resolve(ask(), quiet)
    assert "line 0" not in log.read_text()


@pytest.mark.parametrize(
    ("command", "message", "kind", "hint"),
    [
        (
            "flake metadata",
            "unable to download 'https://api.github.com/x': Couldn't resolve host name (6)",
            Unavailable,
            "reach",
        ),
        ("flake metadata", "unable to download 'https://x': HTTP error 404", InvalidInput, "no such repository"),
        ("flake metadata", "unable to download 'https://x': HTTP error 403", Unavailable, "access-tokens"),
        (
            "flake metadata",
            "cannot connect to socket at '/nix/var/nix/daemon-socket/socket': Permission denied",
            Unavailable,
            "nix-daemon",
        ),
        ("flake metadata", "getting status of '/nowhere': No such file or directory", InvalidInput, "where the pool"),
        ("build", "hash mismatch in fixed-output derivation '/nix/store/x-openssl.tar'", MvmError, "pins"),
        ("path-info", "opening lock file '/nix/var/nix/db/big-lock': Permission denied", Unavailable, "allows"),
        ("build", "the group 'nixbld' specified in 'build-users-group' does not exist", Unavailable, "daemon"),
        ("build", "writing to file: No space left on device", Unavailable, "nix-collect-garbage"),
        ("build", "a 'riscv64-linux' with features {} is required to build '/nix/store/x.drv'", Unavailable, "system"),
        ("build", "something that nobody has thought of", MvmError, "the whole log is"),
    ],
)
def test_what_goes_wrong_is_told_with_what_to_do(
    command: str, message: str, kind: type[MvmError], hint: str, nix: NixBuilder, nix_world: NixWorld, tmp_path: Path
) -> None:
    nix_world.flake(FLAKE, IMAGE, profiles=PROFILES)
    nix_world.failing[command] = message
    nix_world.warnings = ["Git tree '/x' is dirty"]
    nix_world.save()
    with pytest.raises(MvmError, match="failed: ") as failed:
        build(nix, ask(), tmp_path)
    assert type(failed.value) is kind
    assert message in failed.value.message
    assert "dirty" not in failed.value.message
    assert hint in (failed.value.hint or "")
    assert ".log" in (failed.value.hint or "")


def test_an_unknown_flake_is_no_application(nix: NixBuilder, nix_world: NixWorld) -> None:
    with pytest.raises(Unavailable, match="reading the flake 'github:no/where' failed"):
        nix.resolve(ask("github:no/where"), quiet)
    assert nix_world.commands() == ["flake"]


@pytest.mark.parametrize("flake", ["-h", "--help", "a b", "x#y", "./here", "path:../x", "~/x", "a\nb", "x" * 2000])
def test_what_is_no_address_never_reaches_nix(flake: str, nix: NixBuilder, nix_world: NixWorld) -> None:
    with pytest.raises(InvalidInput, match="the flake "):
        nix.resolve(ask(flake), quiet)
    with pytest.raises(InvalidInput, match="profile"):
        nix.resolve(ask(profile="a.b"), quiet)
    assert nix_world.calls() == []


def test_without_nix_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "search_path", lambda: str(tmp_path))
    nix = NixBuilder(tmp_path)
    assert not nix.probe().usable
    with pytest.raises(Unavailable, match="there is no nix on this host") as refused:
        nix.resolve(ask(), quiet)
    assert "apt-get install nix-bin" in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("said", "usable", "reason"),
    [
        ("nix (Nix) 2.8.0", True, "nix 2.8 is there"),
        ("nix (Nix) 2.34.8", True, "nix 2.34 is there"),
        ("nix (Determinate Nix 3.11.2) 2.31.1", True, "nix 2.31 is there"),
        ("nix (Lix, like Nix) 2.93.3", True, "nix 2.93 is there"),
        ("nix (Nix) 2.3.16", False, "nix 2.3 is older than 2.8"),
        ("I am a shell", False, "says 'I am a shell'"),
    ],
)
def test_a_nix_must_be_new_enough(said: str, usable: bool, reason: str, nix_world: NixWorld, tmp_path: Path) -> None:
    nix_world.version = said
    nix_world.save()
    found = NixBuilder(tmp_path).probe()
    assert found.usable is usable
    assert reason in found.reason


def test_a_nix_that_is_replaced_is_asked_again(nix: NixBuilder, nix_world: NixWorld) -> None:
    assert nix.probe().usable
    nix_world.version = "nix (Nix) 2.3.16"
    nix_world.save()
    os.utime(nix_world.program, (1, 1))
    assert not nix.probe().usable


def test_logs_and_packed_flakes_are_garbage_once_nobody_needs_them(
    nix: NixBuilder, nix_world: NixWorld, tmp_path: Path
) -> None:
    nix_world.flake(FLAKE, IMAGE, profiles=PROFILES)
    nix.resolve(ask(), quiet)
    (log,) = (tmp_path / "cache/nix").glob("*.log")
    packed = tmp_path / "cache/nix/mvm-0123.tar"
    packed.write_bytes(b"")
    assert nix.stale() == []
    for path in (log, packed):
        long_ago = path.stat().st_mtime - builder.STALE_SECONDS - 1
        os.utime(path, (long_ago, long_ago))
    assert nix.stale() == sorted([log, packed])


def test_inputs_of_another_builder_are_a_mistake(nix: NixBuilder, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="were given to 'nix'"):
        nix.build(Inputs(builder="debian", request=ask(), document={}), tmp_path, quiet)


def test_a_request_needs_nothing_of_this_host(nix: NixBuilder, nix_world: NixWorld) -> None:
    nix_world.flake(FLAKE, IMAGE, profiles=PROFILES)
    assert not nix.needs_contents
    assert nix.resolve(replace(ask(), contents=None), quiet).digest


def test_json_that_is_nested_without_end_is_none() -> None:
    with pytest.raises(Unavailable, match="asking gave no JSON"):
        program.as_json("[" * 100_000, "asking")


@pytest.mark.parametrize("name", ["url", "derivation"])
def test_a_name_that_nobody_would_give_is_refused(name: str, nix: NixBuilder, nix_world: NixWorld) -> None:
    nix_world.flake(FLAKE, IMAGE, profiles=PROFILES)
    flake = nix_world.flakes[FLAKE]
    if name == "url":
        flake["narHash"] = "x" * 2000
    else:
        flake["packages"][SYSTEM][IMAGE]["derivation"] = "/nix/store/" + "x" * 2000
    nix_world.save()
    with pytest.raises(InvalidInput, match="nix gave a name of more than 1024 characters"):
        nix.resolve(ask(), quiet)


def test_an_answer_without_end_is_not_read(
    nix: NixBuilder, nix_world: NixWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "MOST_PRINTED", 100)
    nix_world.flake(FLAKE, IMAGE, profiles=PROFILES)
    with pytest.raises(InvalidInput, match="nix printed more than 100 bytes"):
        nix.resolve(ask(), quiet)
