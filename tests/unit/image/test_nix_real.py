"""The nix of this machine, in a store of its own: flakes without nixpkgs, so that nothing comes from the network.

`apt-get install nix-bin` is enough for these; they are left out where there is none.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.standins.nix.world import DESCRIBED, SYSTEM

from mvm.image.base import FILES, INITRD, KERNEL, MANIFEST, ROOTFS, BuildRequest, Inputs
from mvm.image.nix import NixBuilder, own, program
from mvm.image.nix.own import own_flake
from mvm.image.revisions import Revisions
from mvm.model.errors import InvalidInput, MvmError, Unavailable
from mvm.openclaw.install import Progress

pytestmark = pytest.mark.skipif(program.find() is None, reason="there is no nix: apt-get install nix-bin")

IMAGE = "tenant-worker-minimal"
PROFILES = """
[meta]
version = 1
[profiles.minimal]
module = "minimal.nix"
[roles.worker]
module = "worker.nix"
[roles.gateway]
module = "gateway.nix"
"""
SCRIPT = r"""
set -e
export PATH=/usr/bin:/bin
echo making "$text"
mkdir "$out"
printf '\177ELF%s' "$text" > "$out/real"
ln -s "$out/real" "$out/vmlinux"
echo initrd > "$out/initrd"
head -c 1024 /dev/zero > "$out/rootfs.erofs"
printf '\342\341\365\340' >> "$out/rootfs.erofs"
cp "$manifestPath" "$out/manifest.json"
"""
FLAKE = """
{{
  {inputs}
  outputs = {{ self{arguments}, ... }}: let
    image = text: script: derivation {{
      name = "tenant";
      system = "{system}";
      builder = "/bin/sh";
      args = [ "-c" script ];
      inherit text;
      manifestPath = ./described.json;
    }};
  in {{
    packages.{system} = {{ {packages} }};
  }};
}}
"""


def write_flake(
    directory: Path, packages: str, *, inputs: str = "", arguments: str = "", profiles: str | None = PROFILES
) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    text = FLAKE.format(system=SYSTEM, packages=packages, inputs=inputs, arguments=arguments)
    (directory / "flake.nix").write_text(textwrap.dedent(text))
    (directory / "described.json").write_text(json.dumps(DESCRIBED))
    (directory / "image.sh").write_text(SCRIPT)
    if profiles is not None:
        (directory / "mvm-profiles.toml").write_text(profiles)
    return f"path:{directory}"


def package(name: str, text: str = "1", script: str = "(builtins.readFile ./image.sh)") -> str:
    return f'{name} = image "{text}" {script};'


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store of nix's that is this test's alone; no feature is enabled in its configuration."""
    root = tmp_path / "nix"
    configuration = root / "etc/nix.conf"
    configuration.parent.mkdir(parents=True)
    configuration.write_text("sandbox = false\nbuild-users-group =\nsubstituters =\n")
    for name, place in {
        "NIX_STORE_DIR": "store",
        "NIX_STATE_DIR": "var",
        "NIX_LOG_DIR": "log",
        "NIX_CONF_DIR": "etc",
        "XDG_CACHE_HOME": "cache",
        "XDG_CONFIG_HOME": "config",
        "HOME": "home",
    }.items():
        (root / place).mkdir(exist_ok=True)
        monkeypatch.setenv(name, str(root / place))
    monkeypatch.delenv("NIX_REMOTE", raising=False)
    yield root / "store"
    for path in (root / "store").rglob("*"):  # nix takes away the right to write from what it has built
        if path.is_dir() and not path.is_symlink():
            path.chmod(stat.S_IRWXU)
    shutil.rmtree(root)


@pytest.fixture
def nix(tmp_path: Path, store: Path) -> NixBuilder:
    return NixBuilder(tmp_path / "cache")


def quiet(_step: Progress) -> None:
    pass


def ask(flake: str, *, role: str = "worker") -> BuildRequest:
    return BuildRequest(role=role, profile="minimal", flake=flake)


def build(nix: NixBuilder, flake: str, tmp_path: Path) -> tuple[Inputs, Path]:
    inputs = nix.resolve(ask(flake), quiet)
    return inputs, Revisions(tmp_path / "images").build(nix, inputs, quiet)


def test_an_image_is_built_and_copied_out_of_the_store(nix: NixBuilder, store: Path, tmp_path: Path) -> None:
    flake = write_flake(tmp_path / "flake", package(IMAGE))
    inputs, directory = build(nix, flake, tmp_path)
    assert sorted(path.name for path in directory.iterdir()) == sorted([*FILES, MANIFEST])
    assert (directory / KERNEL).read_bytes() == b"\x7fELF1"
    assert (directory / INITRD).read_text() == "initrd\n"
    assert not (directory / KERNEL).is_symlink()
    assert stat.S_IMODE((directory / ROOTFS).stat().st_mode) == 0o644
    source = Revisions(tmp_path / "images").manifest(inputs.digest).source
    assert source is not None
    assert "narHash=" in source.url
    assert (store / source.derivation).is_file()
    assert not (tmp_path / "flake/flake.lock").exists()


def test_no_link_keeps_the_store_from_being_cleaned(nix: NixBuilder, store: Path, tmp_path: Path) -> None:
    build(nix, write_flake(tmp_path / "flake", package(IMAGE)), tmp_path)
    roots = [path for path in (store.parent / "var/gcroots/auto").iterdir() if path.resolve().exists()]
    assert roots == []


def test_the_digest_follows_what_is_built_and_not_what_else_is_in_the_flake(nix: NixBuilder, tmp_path: Path) -> None:
    flake = write_flake(tmp_path / "flake", package(IMAGE))
    first = nix.resolve(ask(flake), quiet)
    (tmp_path / "flake/README").write_text("hello")
    same = nix.resolve(ask(flake), quiet)
    write_flake(tmp_path / "flake", package(IMAGE, text="2"))
    other = nix.resolve(ask(flake), quiet)
    assert first.digest == same.digest != other.digest
    assert first.document != other.document


def test_a_flake_by_profiles_alone_is_built(nix: NixBuilder, tmp_path: Path) -> None:
    flake = write_flake(tmp_path / "flake", package("tenant-minimal"), profiles=None)
    _, directory = build(nix, flake, tmp_path)
    assert directory.is_dir()


def test_an_application_goes_into_mvms_own_flake(
    nix: NixBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    application = write_flake(tmp_path / "application", package("default", text="openclaw"), profiles=None)
    none = write_flake(tmp_path / "none", "", profiles=None)
    taken_in = f'image "${{application.packages.{SYSTEM}.default.text or "nothing"}}" (builtins.readFile ./image.sh)'
    checkout = tmp_path / "mvm"
    write_flake(
        checkout / "nix",
        f"{IMAGE} = {taken_in};",
        inputs=f'inputs.default.url = "{none}"; inputs.application.follows = "default";',
        arguments=", application",
    )
    monkeypatch.setenv(own.VARIABLE, own_flake(tmp_path / "packed", checkout))
    _, directory = build(nix, application, tmp_path)
    assert (directory / KERNEL).read_bytes() == b"\x7fELFopenclaw"
    _, alone = build(nix, "nix:", tmp_path)
    assert (alone / KERNEL).read_bytes() == b"\x7fELFnothing"


def test_the_flake_in_mvms_archive_sees_what_is_beside_its_directory(
    nix: NixBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "mvm"
    (checkout / "src").mkdir(parents=True)
    (checkout / "src/image.sh").write_text(SCRIPT)
    write_flake(checkout / "nix", package(IMAGE, script="(builtins.readFile ../src/image.sh)"))
    (checkout / "nix/image.sh").unlink()
    monkeypatch.setenv(own.VARIABLE, own_flake(tmp_path / "packed", checkout))
    _, directory = build(nix, "nix:", tmp_path)
    assert (directory / KERNEL).is_file()


def test_an_image_that_is_not_there_is_told_with_those_that_are(nix: NixBuilder, tmp_path: Path) -> None:
    flake = write_flake(tmp_path / "flake", package(IMAGE) + package("other"))
    with pytest.raises(InvalidInput, match="has no package 'tenant-gateway-minimal'") as refused:
        nix.resolve(ask(flake, role="gateway"), quiet)
    assert refused.value.hint == f"what it offers for {SYSTEM}: {IMAGE}"


def test_a_build_that_fails_tells_its_last_lines(nix: NixBuilder, tmp_path: Path) -> None:
    script = '"echo one; echo two >&2; exit 3"'
    flake = write_flake(tmp_path / "flake", package(IMAGE, script=script))
    with pytest.raises(MvmError, match=r"failed.*one / two$") as failed:
        build(nix, flake, tmp_path)
    log = Path((failed.value.hint or "").removeprefix("the whole log is "))
    assert "tenant> one\n" in log.read_text()
    assert Revisions(tmp_path / "images").all() == []


def test_of_builds_that_fail_with_what_needs_them_the_first_is_told(nix: NixBuilder, tmp_path: Path) -> None:
    needs = '"echo ${derivation { name = "bad"; system = "%s"; builder = "/bin/sh"; args = [ "-c" "exit 7" ]; }}"'
    flake = write_flake(tmp_path / "flake", package(IMAGE, script=needs % SYSTEM))
    with pytest.raises(MvmError, match=r"-bad\.drv' failed with exit code 7"):
        build(nix, flake, tmp_path)


def test_an_evaluation_that_fails_says_why(nix: NixBuilder, tmp_path: Path) -> None:
    flake = write_flake(tmp_path / "flake", f'{IMAGE} = throw "the moon is not right";')
    with pytest.raises(MvmError, match=f"evaluating {IMAGE} of .* failed: .*the moon is not right"):
        nix.resolve(ask(flake), quiet)


def test_a_flakes_own_settings_are_not_accepted(nix: NixBuilder, tmp_path: Path) -> None:
    settings = 'nixConfig.post-build-hook = "/bin/false";'
    build(nix, write_flake(tmp_path / "flake", package(IMAGE), inputs=settings), tmp_path)
    (log,) = (tmp_path / "cache/nix").glob("*.log")
    assert "ignoring untrusted flake configuration setting 'post-build-hook'" in log.read_text()


def test_progress_comes_from_the_build_and_giving_up_ends_it(nix: NixBuilder, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    fifo, pid = tmp_path / "fifo", tmp_path / "pid"
    os.mkfifo(fifo)
    flake = write_flake(tmp_path / "flake", package(IMAGE, script=f'"echo $$ > {pid}; read line < {fifo}"'))
    inputs = nix.resolve(ask(flake), quiet)
    steps: list[Progress] = []

    def give_up(step: Progress) -> None:
        steps.append(step)
        if step.text == "building derivations with Nix" and pid.exists() and pid.read_text():
            raise Enough

    with pytest.raises(Enough):
        Revisions(tmp_path / "images").build(nix, inputs, give_up)
    assert steps[-1] == Progress(text="building derivations with Nix", done=0, total=1)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.parametrize(
    ("flake", "kind", "words"),
    [
        ("path:/nowhere/at/all", InvalidInput, "there is no flake.nix in '/nowhere/at/all'"),
        ("git+file:///nowhere/at/all", MvmError, "reading the flake"),
        ("no-such-flake-in-any-registry", MvmError, "reading the flake"),
        ("a+b://c", MvmError, "reading the flake"),
    ],
)
def test_a_flake_that_cannot_be_read_says_why(
    flake: str, kind: type[MvmError], words: str, nix: NixBuilder, store: Path
) -> None:
    (store.parent / "etc/nix.conf").write_text("flake-registry =\nbuild-users-group =\n")
    with pytest.raises(kind, match=words):
        nix.resolve(ask(flake), quiet)


def test_a_package_that_is_none_and_a_flake_that_is_wrong_say_so(nix: NixBuilder, tmp_path: Path) -> None:
    flake = write_flake(tmp_path / "flake", f'{IMAGE} = "text";')
    with pytest.raises(MvmError, match="not a derivation"):
        nix.resolve(ask(flake), quiet)
    flake = write_flake(tmp_path / "wrong", f"{IMAGE} = image")
    with pytest.raises(MvmError, match="syntax error"):
        nix.resolve(ask(flake), quiet)


def test_the_store_is_reached_and_a_daemon_that_is_not_there_is_told(
    nix: NixBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    nix.reach()
    monkeypatch.setenv("NIX_REMOTE", "daemon")
    with pytest.raises(Unavailable, match="opening Nix's store failed") as failed:
        nix.reach()
    assert "nix-daemon" in (failed.value.hint or "")
