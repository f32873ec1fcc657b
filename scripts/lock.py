"""Make the lock files anew from what pyproject.toml and package.json ask for (`make lock`).

The locks hold hashes and no address of any registry, so they serve any mirror. Each Python lock begins with the digest
of the tables of pyproject.toml that it was made from: tests compare it, so a stale lock is found without a network.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements"
NPM = ROOT / "src/mvm/openclaw/npm"
BOOTSTRAP_UV = "uv==0.13.9"
"""The one program that `make setup` gets through pip; everything else comes through it."""


def inputs_digest(pyproject: Path = ROOT / "pyproject.toml") -> str:
    """Digest of everything in pyproject.toml that decides the locks."""
    document = tomllib.loads(pyproject.read_text())
    inputs = {
        "requires-python": document["project"]["requires-python"],
        "dependencies": sorted(document["project"]["dependencies"]),
        "dependency-groups": {name: sorted(group) for name, group in document.get("dependency-groups", {}).items()},
        "bootstrap": BOOTSTRAP_UV,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def strip_addresses(lock: dict[str, Any]) -> dict[str, Any]:
    """The npm lock without what names a host: where packages came from and who may be given money."""
    for package in lock["packages"].values():
        for key in ("funding", "resolved", "deprecated"):
            package.pop(key, None)
    return lock


def compile_python(uv: Path, name: str, arguments: list[str], *, stdin: str | None = None) -> None:
    """Write requirements/<name>.txt. A lock that exists is the starting point: only what must change does."""
    target = REQUIREMENTS / f"{name}.txt"
    # fmt: off
    command = [
        str(uv), "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes",
        "--no-emit-index-url", "--no-header", "--no-annotate", "--output-file", str(target), *arguments,
        "-" if stdin else "pyproject.toml",
    ]
    # fmt: on
    subprocess.run(command, cwd=ROOT, check=True, input=stdin, text=True)
    header = f"# Made by `make lock`; do not edit.\n# inputs: sha256:{inputs_digest()}\n"
    lines = [line for line in target.read_text().splitlines() if not line.startswith("#")]
    target.write_text(header + "\n".join(lines) + "\n")
    print(f"requirements/{name}.txt: {sum('==' in line for line in lines)} packages")


def lock_npm(node: Path, npm: Path) -> None:
    """Write the npm lock of OpenClaw for every platform it supports."""
    with tempfile.TemporaryDirectory() as directory:
        for name in ("package.json", "package-lock.json"):
            if (NPM / name).exists():
                shutil.copy(NPM / name, directory)
        # fmt: off
        command = [
            str(node), str(npm), "install", "--package-lock-only", "--omit-lockfile-registry-resolved",
            "--legacy-peer-deps", "--ignore-scripts", "--no-audit", "--no-fund",
        ]
        # fmt: on
        environment = {**os.environ, "PATH": f"{node.parent}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run(command, cwd=directory, check=True, env=environment)
        lock = strip_addresses(json.loads(Path(directory, "package-lock.json").read_text()))
    (NPM / "package-lock.json").write_text(json.dumps(lock, indent=1) + "\n")
    print(f"{(NPM / 'package-lock.json').relative_to(ROOT)}: {len(lock['packages']) - 1} packages")


def main() -> int:
    """Make every lock; `--upgrade` lets newer versions in."""
    uv = ROOT / ".mvm/bootstrap/bin/uv"
    if not uv.exists():
        print("error: .mvm/bootstrap has no uv\nhint: run `make setup` first", file=sys.stderr)
        return 1
    upgrade = ["--upgrade"] if "--upgrade" in sys.argv[1:] else []
    REQUIREMENTS.mkdir(exist_ok=True)
    compile_python(uv, "runtime", upgrade)
    compile_python(uv, "dev", [*upgrade, "--group", "dev", "--constraint", "requirements/runtime.txt"])
    compile_python(uv, "bootstrap", upgrade, stdin=BOOTSTRAP_UV)
    sys.path.insert(0, str(ROOT / "src"))
    from mvm.openclaw.programs import find_programs

    programs = find_programs()
    lock_npm(programs.node, programs.npm)
    return 0


if __name__ == "__main__":
    sys.exit(main())
