"""An npm package in which gateways run the real OpenClaw and workers the stand-in for it.

For what asks for many workers and one real gateway: twenty workers of the real one would need 25 GB.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.standins.openclaw_process import STANDIN

from mvm.host.locations import locate
from mvm.openclaw.install import installed

ENTRY = "openclaw.mjs"
REAL = "openclaw-of-npm.mjs"
CHOICE = f"""// Put here by mvm's tests: whoever speaks Telegram is a gateway.
import {{ readFileSync }} from "node:fs";
const {{ channels }} = JSON.parse(readFileSync(process.env.OPENCLAW_CONFIG_PATH, "utf8"));
await import(channels?.telegram ? "./{REAL}" : "./standin/{ENTRY}");
"""


def mixed_openclaw(directory: Path) -> Path:
    """Make that package below an empty directory, of the OpenClaw that is installed; returns the package's directory.

    Skips the test where none is installed.
    """
    installation = installed(locate({}).programs_dir)
    if installation is None:
        pytest.skip("OpenClaw is not installed: run `make setup`")
    modules = directory / "node_modules"
    shutil.copytree(installation.openclaw_dir.parent, modules, symlinks=True, copy_function=_link)
    package = modules / installation.openclaw_dir.name
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
