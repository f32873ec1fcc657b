"""Which builder is taken."""

from __future__ import annotations

import pytest
from tests.unit.image.samples import QuickBuilder

from mvm.image.builders import choose
from mvm.model.errors import Unavailable

DEBIAN, NIX, NO_NIX = QuickBuilder("debian"), QuickBuilder("nix"), QuickBuilder("nix", usable=False)
NO_DEBIAN = QuickBuilder("debian", usable=False)
FLAKE = "github:openclaw/nix-openclaw"


def test_a_pool_can_insist_on_debian() -> None:
    assert choose("debian:", [DEBIAN, NIX]).builder is DEBIAN


def test_nix_builds_flakes_where_it_can() -> None:
    choice = choose(FLAKE, [DEBIAN, NIX])
    assert choice.builder is NIX
    assert choice.reason == f"the pool names the flake '{FLAKE}', and it works"


def test_without_nix_a_flake_is_made_of_debian_and_the_reason_is_said() -> None:
    choice = choose(FLAKE, [DEBIAN, NO_NIX])
    assert choice.builder is DEBIAN
    assert choice.reason == f"the flake '{FLAKE}' cannot be built, it is not installed; Debian's packages instead"


def test_a_pool_without_a_flake_is_made_of_debian_whether_there_is_a_nix_or_not() -> None:
    for nix in (NIX, NO_NIX):
        choice = choose("", [DEBIAN, nix])
        assert choice.builder is DEBIAN
        assert choice.reason == "the pool names no flake"


def test_where_debian_cannot_be_built_nix_makes_it() -> None:
    choice = choose("", [NO_DEBIAN, NIX])
    assert choice.builder is NIX
    assert "of Debian: it is not installed" in choice.reason
    assert choose("", [NO_DEBIAN, NO_NIX]).builder is NO_DEBIAN


def test_a_pool_can_insist_on_nix() -> None:
    assert choose("nix:", [DEBIAN, NIX]).builder is NIX
    for builders in ([DEBIAN, NO_NIX], [DEBIAN]):
        with pytest.raises(Unavailable, match="the pool says 'nix:'"):
            choose("nix:", builders)


def test_an_agent_that_knows_no_nix_says_so() -> None:
    assert "instead of the flake 'github:a/b'" in choose("github:a/b", [DEBIAN]).reason


def test_an_agent_without_builders_says_so() -> None:
    with pytest.raises(Unavailable, match="no builder"):
        choose("", [])
