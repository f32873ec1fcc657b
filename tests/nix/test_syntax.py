"""Every Nix file can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.nix.nix import FLAKE, REPOSITORY, STAND_IN, Nix, NixFailed, needs_nix

FILES = sorted(file for place in (FLAKE, STAND_IN.parent) for file in place.rglob("*.nix"))


@needs_nix
@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_it_is_a_nix_expression(nix: Nix, file: Path) -> None:
    nix.parse(file)


@needs_nix
def test_one_that_is_none_is_found(nix: Nix, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.nix"
    wrong.write_text("{ a = notDefined; }")
    with pytest.raises(NixFailed, match="undefined variable 'notDefined'"):
        nix.parse(wrong)
