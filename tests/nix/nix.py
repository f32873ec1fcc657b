"""Runs the real `nix`, offline, with a store of its own that is thrown away."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mvm.image.nix.own import own_flake

REPOSITORY = Path(__file__).resolve().parents[2]
FLAKE = REPOSITORY / "nix"
STAND_IN = Path(__file__).parent / "nixpkgs"
STOOD_IN = ("--offline", "--no-write-lock-file", "--override-input", "nixpkgs", f"path:{STAND_IN}")
LIMIT_SECONDS = 90

needs_nix = pytest.mark.skipif(
    shutil.which("nix-instantiate") is None or shutil.which("nix") is None,
    reason="nix is not installed (Debian: apt-get install nix-bin)",
)


class NixFailed(Exception):
    """What nix says instead of an answer."""


class Nix:
    """One nix with its store in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._environment = {
            **os.environ,
            "HOME": str(directory / "home"),
            "XDG_CACHE_HOME": str(directory / "cache"),
            "NIX_STORE_DIR": str(directory / "store"),
            "NIX_STATE_DIR": str(directory / "state"),
            "NIX_LOG_DIR": str(directory / "log"),
            "NIX_CONF_DIR": str(directory / "etc"),
            "NIX_CONFIG": "experimental-features = nix-command flakes\nbuild-users-group =\nsandbox = false\n",
            "NIX_PATH": "",
            "NIX_REMOTE": "",
        }
        self._directory = directory
        (directory / "home").mkdir()

    def run(self, *command: str) -> str:
        """What a command of nix prints. Raises `NixFailed` with what it says."""
        result = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
        if result.returncode:
            raise NixFailed(result.stderr)
        return result.stdout

    def parse(self, file: Path) -> None:
        """Raise `NixFailed` for a file that is no Nix expression."""
        self.run("nix-instantiate", "--parse", str(file))

    def evaluate(self, expression: str) -> Any:
        """The value of an expression."""
        return json.loads(self.run("nix-instantiate", "--eval", "--strict", "--json", "--expr", expression))

    def flake(self, output: str, apply: str, *options: str) -> Any:
        """An output of the flake, as mvm packs it for nix, with nixpkgs stood in for and `apply` applied to it."""
        address = f"{self._own_flake()}#{output}"
        return json.loads(self.run("nix", "eval", *STOOD_IN, "--json", *options, address, "--apply", apply))

    def check_flake(self) -> None:
        """Raise `NixFailed` for a flake whose outputs are not what nix expects under their names; builds nothing."""
        self.run("nix", "flake", "check", *STOOD_IN, "--no-build", self._own_flake())

    def _own_flake(self) -> str:
        return own_flake(self._directory / "flake", REPOSITORY)
