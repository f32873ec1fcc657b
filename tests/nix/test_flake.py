"""What the flake offers, asked of the real nix with nixpkgs stood in for."""

from __future__ import annotations

import base64
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.nix.nix import FLAKE, REPOSITORY, STAND_IN, Nix, NixFailed, needs_nix

from mvm.image.debian import initrd
from mvm.image.nix import reference
from mvm.image.nix.own import INPUT
from mvm.image.nix.profiles import NAME, Profiles
from mvm.model.roles import Role
from mvm.openclaw.programs import MINIMUM_NODE

pytestmark = needs_nix

PROFILES = tomllib.loads((FLAKE / "mvm-profiles.toml").read_text())["profiles"]
BUILT = [role for role in Role if role is not Role.CAPABILITY_IMESSAGE]
IMAGES = {f"tenant-{role}-{profile}" for role in BUILT for profile in PROFILES}
SYSTEMS = ("x86_64-linux", "aarch64-linux")
LOCK = json.loads((REPOSITORY / "src/mvm/openclaw/npm/package-lock.json").read_text())["packages"]

NAMES = "builtins.mapAttrs (_: builtins.attrNames)"


def test_it_has_an_image_for_every_role_and_profile(nix: Nix) -> None:
    found = nix.flake("packages", NAMES)
    assert set(found) == set(SYSTEMS)
    for system in SYSTEMS:
        images = {name for name in found[system] if name.startswith("tenant-")}
        assert images == IMAGES, "roles of the enum and images of the flake differ"


def test_its_outputs_are_what_nix_expects_under_their_names(nix: Nix) -> None:
    nix.check_flake()


def test_every_image_is_where_the_builder_looks_for_it(nix: Nix) -> None:
    profiles = Profiles.parse((REPOSITORY / "nix" / NAME).read_bytes(), "mvm's own flake")
    for role in BUILT:
        for profile in PROFILES:
            profiles.check("mvm's own flake", role, profile)
            assert reference.output(role, profile) in IMAGES
    inputs = nix.evaluate(f"builtins.attrNames (import {FLAKE}/flake.nix).inputs")
    assert set(inputs) == {"nixpkgs", INPUT}


def test_its_lock_pins_nixpkgs_and_needs_nothing_new(nix: Nix, tmp_path: Path) -> None:
    asked = ("nix", "flake", "metadata", "--json", "--no-update-lock-file")
    root = json.loads(nix.run(*asked, f"path:{FLAKE}"))["locks"]["nodes"]
    assert root["root"]["inputs"] == {"nixpkgs": "nixpkgs", INPUT: ["nixpkgs"]}
    assert root["nixpkgs"]["locked"]["narHash"].startswith("sha256-")

    for name in ("flake.nix", "flake.lock"):
        text = (FLAKE / name).read_text()
        (tmp_path / name).write_text(text.replace("nixpkgs/nixos-", "nixpkgs/another-"))
    with pytest.raises(NixFailed):  # a branch that is not the lock's is asked for
        nix.run(*asked, "--offline", f"path:{tmp_path}")


def test_it_has_the_modules_of_the_contract_and_the_hosts(nix: Nix) -> None:
    roles = {"mvm-role-gateway", "mvm-role-worker", "mvm-role-builder", "mvm-role-openclaw"}
    assert set(nix.flake("nixosModules", "builtins.attrNames")) == {"mvm-baseline", "mvm-host", *roles}


def test_it_has_checks_for_whoever_has_nixpkgs(nix: Nix) -> None:
    found = nix.flake("checks", "builtins.mapAttrs (_: builtins.mapAttrs (_: check: check.name))")
    assert found["x86_64-linux"] == {"guests": "vm-test-mvm-guests", "host": "vm-test-mvm-host"}


def evaluated_nodes(nix: Nix, check: str, look: str) -> Any:
    """Something of the configuration of each machine of a check."""
    system = f'(import {STAND_IN}/lib.nix).nixosSystem {{ system = "x86_64-linux"; modules = [ node ]; }}'
    apply = f"check: builtins.mapAttrs (_: node: let inherit ({system}) config; in {look}) check.test.nodes"
    return nix.flake(f"checks.x86_64-linux.{check}", apply, "--impure")


def test_machines_of_the_checks_are_guests_with_their_drives(nix: Nix) -> None:
    look = "[ config.services.mvm.guest.role (builtins.length config.virtualisation.qemu.options) ]"
    assert evaluated_nodes(nix, "guests", look) == {
        "bare": ["worker", 0],
        "worker": ["worker", 6],
        "person": ["capability-openclaw", 6],
    }


def test_the_machine_of_the_hosts_check_runs_the_agent_of_this_flake(nix: Nix) -> None:
    found = evaluated_nodes(nix, "host", "config.systemd.services.mvm-agent.serviceConfig.ExecStart")
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert found["host"].endswith(f"-mvm-fleet-{version}/bin/mvm agent serve")


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_image_is_a_derivation_made_of_its_own_system(nix: Nix, system: str) -> None:
    found = nix.flake(f"packages.{system}", "builtins.mapAttrs (name: package: [ package.name package.type ])")
    for name in IMAGES:
        assert found[name] == [name, "derivation"]


def test_an_image_says_what_it_is_made_of(nix: Nix) -> None:
    text = nix.flake("packages.x86_64-linux.tenant-capability-openclaw-python", "image: image.description")
    said = json.loads(text)
    assert (said["role"], said["profile"], said["architecture"]) == ("capability-openclaw", "python", "x86_64")
    assert said["wanted_modules"] == list(initrd.MODULES)
    assert "rootfstype=erofs" in said["kernel_arguments"]
    assert said["layout"]["/usr/bin/python3"].startswith("link:")
    assert not said["layout"]["/opt/openclaw/node_modules"].startswith("link:")
    assert said["openclaw"] == LOCK["node_modules/openclaw"]["version"]
    assert said["kernel"].endswith("/vmlinux")


def test_another_processor_starts_another_form_of_kernel(nix: Nix) -> None:
    said = json.loads(nix.flake("packages.aarch64-linux.tenant-worker-minimal", "image: image.description"))
    assert (said["architecture"], said["strip"], said["openclaw"]) == ("aarch64", "", "")
    assert said["kernel"].endswith("/Image")


def test_openclaw_is_what_mvms_lock_names_by_its_digests(nix: Nix) -> None:
    """No digest is written into the flake: Nix checks what npm fetches against those of the lock."""
    found = nix.flake(
        "packages.x86_64-linux.openclaw",
        "package: builtins.mapAttrs (_: tarball: { inherit (tarball) outputHash name drvPath; }) package.tarballs",
    )
    wanted = {path for path, package in LOCK.items() if "integrity" in package and not package.get("optional")}
    assert set(found) == wanted
    for path, tarball in found.items():
        assert tarball["outputHash"] == LOCK[path]["integrity"]
        assert len(base64.b64decode(tarball["outputHash"].removeprefix("sha512-"), validate=True)) == 64
        assert tarball["drvPath"].endswith(".tgz.drv"), "nix takes the digest for one"
        assert tarball["name"].endswith(f"-{LOCK[path]['version']}.tgz")


def application(directory: Path, outputs: str) -> tuple[str, ...]:
    """An application flake, as the option that has the flake take it in."""
    directory.mkdir()
    (directory / "flake.nix").write_text(f"{{ outputs = _: {outputs}; }}")
    return ("--override-input", "application", f"path:{directory}")


def test_an_application_flake_supplies_openclaw(nix: Nix, tmp_path: Path) -> None:
    gateway = (
        'derivation { name = "openclaw-gateway-1"; system = "x86_64-linux"; builder = "/bin/sh"; }'
        ' // { version = "2099.1.1"; }'
    )
    options = application(tmp_path / "app", f"{{ packages.x86_64-linux.openclaw-gateway = {gateway}; }}")
    said = json.loads(nix.flake("packages.x86_64-linux.tenant-gateway-minimal", "image: image.description", *options))
    assert said["openclaw"] == "2099.1.1"
    assert "openclaw-of-openclaw-gateway-1" in said["layout"]["/opt/openclaw/node_modules"]


def test_an_application_flake_without_one_leaves_npms(nix: Nix, tmp_path: Path) -> None:
    options = application(tmp_path / "app", "{ packages.x86_64-linux = { }; }")
    text = nix.flake("packages.x86_64-linux.tenant-gateway-minimal", "image: image.description", *options)
    assert json.loads(text)["openclaw"] == LOCK["node_modules/openclaw"]["version"]


def test_node_is_new_enough_for_openclaw() -> None:
    assert f'least = "{".".join(map(str, MINIMUM_NODE))}"' in (FLAKE / "packages/nodejs.nix").read_text()


def test_mvm_itself_is_a_package_with_all_that_it_depends_on(nix: Nix) -> None:
    found: dict[str, Any] = nix.flake(
        "packages.x86_64-linux.mvm",
        "mvm: { inherit (mvm) version pythonRemoveDeps; names = map (d: d.name) mvm.dependencies; }",
    )
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = {dependency.split(">")[0].lower().replace(".", "-") for dependency in project["dependencies"]}
    assert found["version"] == project["version"]
    assert set(found["names"]) | set(found["pythonRemoveDeps"]) == wanted
