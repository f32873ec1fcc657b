"""What the stand-in nix finds: flakes with packages, and what is to go wrong."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvm.image.base import INITRD, KERNEL, MANIFEST, ROOTFS

SYSTEM = f"{os.uname().machine}-linux"
STANDIN = Path(__file__).with_name("standin.py")
VERSION = "nix (Nix) 2.8.0"
DIGEST = "0" * 32

PROFILES = """
[meta]
version = 1
[profiles.minimal]
module = "guests/profiles/minimal.nix"
[profiles.python]
module = "guests/profiles/python.nix"
[roles.gateway]
module = "roles/gateway.nix"
requires_config_drive = true
requires_secrets_drive = true
[roles.worker]
module = "roles/worker.nix"
"""
DESCRIBED: dict[str, Any] = {
    "format": 1,
    "kernel_release": "6.12.1",
    "kernel_arguments": ["init=/nix/store/x/init"],
    "modules": ["virtio_blk", "erofs"],
    "node": "24.16.0",
    "openclaw": "2026.9.6",
    "zipapp": "f" * 64,
    "packages": {"curl": "8.9"},
}


def write_image(directory: Path, described: dict[str, Any] | None = None) -> Path:
    """The least that is an image."""
    directory.mkdir(parents=True)
    (directory / KERNEL).write_bytes(b"\x7fELF" + b"kernel")
    (directory / INITRD).write_bytes(b"initrd")
    (directory / ROOTFS).write_bytes(b"\0" * 1024 + b"\xe2\xe1\xf5\xe0" + b"root")
    (directory / MANIFEST).write_text(json.dumps(DESCRIBED if described is None else described))
    return directory


@dataclass
class NixWorld:
    """A directory with a program `nix` in it, and what that finds."""

    home: Path
    version: str = VERSION
    flakes: dict[str, dict[str, Any]] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)
    """Command -> what it fails with."""
    warnings: list[str] = field(default_factory=list)
    copies: bool = True
    """Whether the sources of a flake are in the store as soon as it was looked at."""

    @property
    def program(self) -> Path:
        return self.home / "bin/nix"

    @property
    def store(self) -> Path:
        return self.home / "store"

    def install(self) -> None:
        self.program.parent.mkdir(parents=True)
        self.program.write_text(f'#!/bin/sh\nMVM_STANDIN_NIX="{self.home}" exec "{sys.executable}" "{STANDIN}" "$@"\n')
        self.program.chmod(0o755)
        self.save()

    def save(self) -> None:
        """Let the program see what is here now."""
        known = {name: getattr(self, name) for name in ("version", "flakes", "failing", "warnings", "copies")}
        (self.home / "world.json").write_text(json.dumps(known))

    def flake(
        self, address: str, *packages: str, profiles: str | None = None, subdirectory: str = "", content: str = "1"
    ) -> dict[str, Any]:
        """Add a flake."""
        sources = self.store / f"{DIGEST}-{len(self.flakes)}-source"
        (sources / subdirectory).mkdir(parents=True)
        if profiles is not None:
            (sources / subdirectory / "mvm-profiles.toml").write_text(profiles)
        self.flakes[address] = {
            "narHash": f"sha256-{content}",
            "path": str(sources),
            "dir": subdirectory,
            "inputs": [],
            "with": {},
            "packages": {SYSTEM: {name: self.package(name) for name in packages}},
        }
        self.save()
        return self.flakes[address]

    def package(self, name: str, content: str = "1") -> dict[str, Any]:
        """A package that is an image."""
        output = self.store / f"{DIGEST}-{name}-{content}"
        if not output.exists():
            write_image(output)
        derivation = str(self.store / f"{DIGEST}-{name}-{content}.drv")
        return {
            "derivation": derivation,
            "built": derivation,
            "output": str(output),
            "log": [],
            "status": 0,
            "hangs": "",
        }

    def calls(self) -> list[list[str]]:
        """Arguments of every run, without those that all have."""
        lines = (self.home / "calls").read_text().splitlines() if (self.home / "calls").exists() else []
        return [json.loads(line)[4:] for line in lines]

    def commands(self) -> Sequence[str]:
        """What was asked, in a word each."""
        return [call[0] for call in self.calls()]
