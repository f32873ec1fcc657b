"""A nix for tests of images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.standins.nix.world import NixWorld


@pytest.fixture
def nix_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NixWorld:
    """A stand-in for nix, first on the search path."""
    world = NixWorld(tmp_path / "nix-world")
    world.install()
    monkeypatch.setenv("PATH", f"{world.program.parent}{os.pathsep}{os.environ['PATH']}")
    return world
