"""`mvm-profiles.toml` of a flake."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from tests.standins.nix.world import PROFILES

from mvm.image.nix.profiles import LONGEST, NAME, Profiles
from mvm.image.nix.program import HostPlace
from mvm.model.errors import InvalidInput, MvmError
from mvm.model.roles import Role


def read(text: str | bytes) -> Profiles:
    return Profiles.parse(text.encode() if isinstance(text, str) else text, "the flake")


def on_this_host(sources: Path) -> bytes | None:
    return HostPlace(Path("nix")).read(PurePosixPath(sources), NAME, longest=LONGEST)


def test_a_flake_without_one_has_none(tmp_path: Path) -> None:
    assert on_this_host(tmp_path / "nix") is None


def test_no_more_is_read_of_one_than_shows_that_it_is_too_large(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"#" * (2 * LONGEST))
    assert on_this_host(tmp_path) == b"#" * (LONGEST + 1)


def test_what_is_listed_may_be_built() -> None:
    profiles = read(PROFILES)
    for role in (Role.GATEWAY, Role.WORKER):
        for profile in ("minimal", "python"):
            profiles.check("the flake", role, profile)


def test_later_keys_are_no_matter() -> None:
    profiles = read(PROFILES + '[roles.builder]\nmodule = "x"\ncolour = "green"\n[more]\nx = 1\n')
    profiles.check("the flake", Role.BUILDER, "minimal")


def test_a_role_that_requires_a_drive_it_does_not_get_is_refused() -> None:
    profiles = read(PROFILES + '[roles.builder]\nmodule = "x"\nrequires_secrets_drive = true\n')
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
def test_one_that_is_wrong_says_how(text: str | bytes, words: str) -> None:
    with pytest.raises(MvmError, match=words):
        read(text)


def test_a_link_out_of_the_flake_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "flake").mkdir()
    (tmp_path / "secret").write_text(PROFILES)
    (tmp_path / "flake" / NAME).symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInput, match="is a link out of its flake"):
        on_this_host(tmp_path / "flake")
