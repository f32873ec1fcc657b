"""An npm package in which gateways run the real OpenClaw and workers the stand-in for it.

For what asks for many workers and one real gateway: twenty workers of the real one would need 25 GB.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.vm.images import STANDIN

ENTRY = "openclaw.mjs"
REAL = "openclaw-of-npm.mjs"
CHOICE = f"""// Put here by mvm's tests: who this is decides which OpenClaw runs.
import {{ readFileSync }} from "node:fs";
const {{ role }} = JSON.parse(readFileSync("/etc/mvm-config/config.json", "utf8"));
await import(role === "gateway" ? "./{REAL}" : "./standin/{ENTRY}");
"""


def mixed_openclaw(installed: Path, directory: Path) -> Path:
    """Make that package below an empty directory, of an installed OpenClaw; returns the directory of the package."""
    modules = directory / "node_modules"
    shutil.copytree(installed.parent, modules, symlinks=True, copy_function=_link)
    package = modules / installed.name
    (package / ENTRY).rename(package / REAL)
    (package / ENTRY).write_text(CHOICE)
    shutil.copytree(STANDIN, package / "standin")
    return package


def _link(source: str, target: str) -> None:
    """The same file once more; nobody writes into it. Between file systems it is copied."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
