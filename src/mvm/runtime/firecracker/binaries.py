"""Where Firecracker and its jailer are, and which version they have.

`MVM_FIRECRACKER` and `MVM_JAILER` name the executables; else they are those that `mvm setup firecracker` put into
`<programs_dir>/firecracker/<version>/`, the newest of them; else those on PATH.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mvm.model.errors import MvmError, Unavailable
from mvm.runtime.firecracker.versions import Version, features

FIRECRACKER = "firecracker"
JAILER = "jailer"
VARIABLES = {FIRECRACKER: "MVM_FIRECRACKER", JAILER: "MVM_JAILER"}
SETUP = "`mvm setup firecracker` installs it"
ASK_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Binaries:
    """A Firecracker that this runtime takes, and the jailer of the same version if there is one."""

    firecracker: Path
    """Without symbolic links: its last part names the directory of its jails."""
    version: Version
    jailer: Path | None
    no_jailer: str = ""
    """Why there is no jailer."""


def find(programs_dir: Path, *, environ: Mapping[str, str] = os.environ) -> Binaries:
    """The Firecracker to use. Raises `Unavailable` when there is none or it is too old."""
    firecracker = locate(FIRECRACKER, programs_dir, environ)
    if firecracker is None:
        raise Unavailable("firecracker is not installed", hint=SETUP)
    version = version_of(firecracker)
    features(version)
    if FIRECRACKER not in firecracker.name:
        raise Unavailable(
            f"'{firecracker}' cannot be jailed: the jailer wants 'firecracker' in its name", hint="rename it"
        )
    jailer, why = _jailer(programs_dir, environ, version)
    return Binaries(firecracker=firecracker, version=version, jailer=jailer, no_jailer=why)


def _jailer(programs_dir: Path, environ: Mapping[str, str], version: Version) -> tuple[Path | None, str]:
    try:
        jailer = locate(JAILER, programs_dir, environ)
        if jailer is None:
            return None, "the jailer is not installed"
        if (own := version_of(jailer)) != version:
            return None, f"'{jailer}' has version {own}, and Firecracker {version}: they must be the same"
    except MvmError as error:
        return None, error.message
    return jailer, ""


def locate(name: str, programs_dir: Path, environ: Mapping[str, str] = os.environ) -> Path | None:
    """One of the two executables; None when it is not there. Raises `Unavailable` when a variable names no program."""
    if chosen := environ.get(VARIABLES[name]):
        if not (Path(chosen).is_file() and os.access(chosen, os.X_OK)):
            raise Unavailable(f"{VARIABLES[name]} is '{chosen}', which is no program", hint="correct or unset it")
        return Path(os.path.realpath(chosen))
    for directory in installed(programs_dir):
        if os.access(directory / name, os.X_OK):
            return Path(os.path.realpath(directory / name))
    found = shutil.which(name, path=environ.get("PATH", os.defpath))
    return None if found is None else Path(os.path.realpath(found))


def installed(programs_dir: Path) -> list[Path]:
    """Directories of the installed versions, the newest first."""
    found = []
    for directory in (programs_dir / FIRECRACKER).glob("*"):
        try:
            found.append((Version.parse(directory.name), directory))
        except Unavailable:
            continue
    return [directory for _, directory in sorted(found, reverse=True)]


def version_of(program: Path) -> Version:
    """What a program says to `--version`. Raises `Unavailable` when it does not say it."""
    try:
        stamp = program.stat()
    except OSError as error:
        raise Unavailable(f"'{program}' cannot be read: {error.strerror}") from error
    return _ask(program, stamp.st_ino, stamp.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _ask(program: Path, _inode: int, _changed: int) -> Version:
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=ASK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"'{program} --version' fails: {error}", hint="is it built for this machine?") from error
    said = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise Unavailable(f"'{program} --version' ends with status {done.returncode}: {said.strip()[:200]}")
    return Version.parse(said)
