"""One evaluation for all tests that look at it: it costs a moment, and nothing changes in between."""

from __future__ import annotations

import os
from typing import Any

import pytest
from tests.nix.nix import REPOSITORY, Nix

NIXPKGS = os.environ.get("NIXPKGS")


@pytest.fixture(scope="session")
def nix(tmp_path_factory: pytest.TempPathFactory) -> Nix:
    return Nix(tmp_path_factory.mktemp("nix"))


@pytest.fixture(scope="session", params=["stand-in", *(["nixpkgs"] if NIXPKGS else [])])
def world(request: pytest.FixtureRequest, nix: Nix) -> dict[str, Any]:
    """`world.nix`, with the stand-in for nixpkgs, and with a real one where `NIXPKGS` names its directory."""
    given = f"nixpkgs = {NIXPKGS};" if request.param == "nixpkgs" else ""
    found: dict[str, Any] = nix.evaluate(
        f"import {REPOSITORY}/tests/nix/world.nix {{ repository = {REPOSITORY}; {given} }}"
    )
    return found
