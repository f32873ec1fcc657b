"""One evaluation for all tests that look at it: it costs a moment, and nothing changes in between."""

from __future__ import annotations

import os
from typing import Any

import pytest
from tests.nix.nix import REPOSITORY, Nix


@pytest.fixture(scope="session")
def nix(tmp_path_factory: pytest.TempPathFactory) -> Nix:
    return Nix(tmp_path_factory.mktemp("nix"))


@pytest.fixture(scope="session", params=["stand-in", "nixpkgs"])
def world(request: pytest.FixtureRequest, nix: Nix) -> dict[str, Any]:
    """`world.nix`, with the stand-in for nixpkgs, and with a real one where `NIXPKGS` names its directory."""
    given = ""
    if request.param == "nixpkgs":
        directory = os.environ.get("NIXPKGS")
        if not directory:
            pytest.skip("NIXPKGS names no directory of nixpkgs")
        given = f"nixpkgs = {directory};"
    found: dict[str, Any] = nix.evaluate(
        f"import {REPOSITORY}/tests/nix/world.nix {{ repository = {REPOSITORY}; {given} }}"
    )
    return found
