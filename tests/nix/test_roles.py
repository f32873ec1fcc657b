"""Adding a role means one member of the enum, one module, one entry in the manifest; a missing one is named."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.nix.nix import FLAKE, needs_nix
from tests.nix.roles import drive_problems, problems

from mvm.guest import services
from mvm.image import nix_settings
from mvm.image.debian.rootfs import PACKAGES, PROFILES
from mvm.image.debian.rootfs import ROLES as ROLE_PACKAGES
from mvm.model.roles import Role

MANIFEST = tomllib.loads((FLAKE / "mvm-profiles.toml").read_text())
ROLES = [role.value for role in Role]


def test_every_role_is_whole() -> None:
    assert problems(ROLES, MANIFEST, FLAKE) == []
    assert drive_problems(MANIFEST) == []
    assert {role.value for role in services.Role} == set(ROLES), "mvm.guest.services.Role lacks one"


def test_profiles_are_those_of_the_debian_builder_and_have_modules() -> None:
    assert set(MANIFEST["profiles"]) == set(PROFILES)
    for name, profile in MANIFEST["profiles"].items():
        assert (FLAKE / profile["module"]).is_file(), f"profile '{name}' has no module"
    assert MANIFEST["meta"] == {"version": 1}


@needs_nix
def test_every_module_is_of_the_role_that_it_is_the_module_of(world: dict[str, Any]) -> None:
    assert {name: guest["role"] for name, guest in world["guests"].items()} == {name: name for name in ROLES}


@pytest.fixture
def flake(tmp_path: Path) -> Path:
    """A flake with one role that is whole."""
    (tmp_path / "roles").mkdir()
    (tmp_path / "roles/one.nix").touch()
    return tmp_path


ONE = {"roles": {"one": {"module": "roles/one.nix"}}}


def test_a_whole_role_has_no_problems(flake: Path) -> None:
    assert problems(["one"], ONE, flake) == []


def test_a_role_without_an_entry_is_named(flake: Path) -> None:
    assert problems(["one", "two"], ONE, flake) == ["role 'two' has no [roles.two] in nix/mvm-profiles.toml"]


def test_an_entry_without_a_member_of_the_enum_is_named(flake: Path) -> None:
    assert problems([], ONE, flake) == ["[roles.one] in nix/mvm-profiles.toml is no member of mvm.model.roles.Role"]


def test_a_missing_module_is_named(flake: Path) -> None:
    (flake / "roles/one.nix").unlink()
    assert problems(["one"], ONE, flake) == ["the module nix/roles/one.nix of role 'one' is missing"]


def test_a_module_that_nothing_names_is_named(flake: Path) -> None:
    (flake / "roles/two.nix").touch()
    assert problems(["one"], ONE, flake) == ["nix/roles/two.nix is the module of no role in nix/mvm-profiles.toml"]


def test_drives_that_differ_from_the_enums_are_named() -> None:
    entry = {"module": "roles/builder.nix", "requires_config_drive": True, "requires_secrets_drive": False}
    said = drive_problems({"roles": {"builder": entry}})
    assert said == ["[roles.builder] requires_config_drive is True, and Role says False"]


@needs_nix
def test_the_builders_nix_is_told_what_that_of_debians_image_is_told(world: dict[str, Any]) -> None:
    assert {role for role, guest in world["guests"].items() if guest["nix"]["enable"]} == {Role.BUILDER}
    settings = world["guests"][Role.BUILDER]["nix"]["settings"]
    assert {name: settings[name] for name in nix_settings.EVERYWHERE} == dict(nix_settings.EVERYWHERE)
    # What only one of them is told, and why, is written down: nothing comes to one alone by accident.
    assert settings.keys() - nix_settings.EVERYWHERE.keys() == {"build-dir"}
    assert set(nix_settings.DEBIANS) == {"build-users-group", "sandbox-paths"}
    debian = nix_settings.configuration()
    assert "experimental-features = nix-command flakes\nsandbox = true\nsandbox-fallback = false\n" in debian


@needs_nix
def test_the_builders_programs_are_those_of_debians_image(world: dict[str, Any]) -> None:
    assert any(name.startswith("git") for name in world["guests"][Role.BUILDER]["packages"])
    assert {"git", "nix-bin"} <= {*PACKAGES, *ROLE_PACKAGES[Role.BUILDER]}
    assert set(ROLE_PACKAGES) == {Role.BUILDER}, "other roles with images of their own need modules that say the same"
