"""`mvm-profiles.toml` of a flake."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.standins.nix.world import PROFILES

from mvm.image.nix.profiles import NAME, Profiles
from mvm.model.errors import InvalidInput, MvmError
from mvm.model.roles import Role


def read(sources: Path, text: str | bytes) -> Profiles:
    (sources / NAME).write_bytes(text.encode() if isinstance(text, str) else text)
    found = Profiles.read(sources, "", "the flake")
    assert found is not None
    return found


def test_a_flake_without_one_has_none(tmp_path: Path) -> None:
    assert Profiles.read(tmp_path, "nix", "the flake") is None


def test_what_is_listed_may_be_built(tmp_path: Path) -> None:
    profiles = read(tmp_path, PROFILES)
    for role in (Role.GATEWAY, Role.WORKER):
        for profile in ("minimal", "python"):
            profiles.check("the flake", role, profile)


def test_later_keys_are_no_matter(tmp_path: Path) -> None:
    profiles = read(tmp_path, PROFILES + '[roles.builder]\nmodule = "x"\ncolour = "green"\n[more]\nx = 1\n')
    profiles.check("the flake", Role.BUILDER, "minimal")


def test_a_role_that_requires_a_drive_it_does_not_get_is_refused(tmp_path: Path) -> None:
    profiles = read(tmp_path, PROFILES + '[roles.builder]\nmodule = "x"\nrequires_secrets_drive = true\n')
    with pytest.raises(InvalidInput, match="requires a secrets drive for role 'builder'"):
        profiles.check("the flake", Role.BUILDER, "minimal")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[meta]\nversion = 2\n", "is of version 2, and this mvm knows 1"),
        ("[meta]\nversion = '1'\n", "meta.version"),
        ("[profiles.minimal]\nmodule = 'x'\n", "meta"),
        ("[meta]\nversion = 1\n[roles.worker]\n", "module"),
        ("[meta\n", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        ("#" * (2**18 + 1), "larger than"),
    ],
)
def test_one_that_is_wrong_says_how(text: str | bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(MvmError, match=words):
        read(tmp_path, text)


def test_a_link_out_of_the_flake_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "flake").mkdir()
    (tmp_path / "secret").write_text(PROFILES)
    (tmp_path / "flake" / NAME).symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInput, match="is a link out of it"):
        Profiles.read(tmp_path / "flake", "", "the flake")
