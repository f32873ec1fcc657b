"""Which builder is taken."""

from __future__ import annotations

import pytest
from tests.unit.image.samples import QuickBuilder

from mvm.image.builders import choose
from mvm.model.errors import Unavailable

DEBIAN, NIX, NO_NIX = QuickBuilder("debian"), QuickBuilder("nix"), QuickBuilder("nix", usable=False)


def test_a_pool_can_insist_on_debian() -> None:
    assert choose("debian:", [DEBIAN, NIX]).builder is DEBIAN


@pytest.mark.parametrize("flake", ["", "github:openclaw/nix-openclaw"])
def test_nix_builds_where_it_can(flake: str) -> None:
    assert choose(flake, [DEBIAN, NIX]).builder is NIX


def test_without_nix_it_is_debian_and_the_reason_is_said() -> None:
    assert choose("", [DEBIAN, NO_NIX]).reason == "Nix cannot be used: it is not installed"
    choice = choose("github:a/b", [DEBIAN])
    assert choice.builder is DEBIAN
    assert "instead of the flake 'github:a/b'" in choice.reason


def test_an_agent_without_builders_says_so() -> None:
    with pytest.raises(Unavailable, match="no builder"):
        choose("", [])
