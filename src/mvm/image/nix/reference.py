"""Which flake a pool means, and which of its outputs (CONTRACT 18): pure decisions."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from urllib.parse import parse_qs

from mvm.model.errors import InvalidInput, Unavailable

SYSTEMS = {"x86_64": "x86_64-linux", "aarch64": "aarch64-linux"}
"""What Nix calls this machine, by what its kernel calls it."""
LONGEST = 1000

_PROFILE = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")
_RELATIVE = re.compile(r"[.~]|(?:path|git\+file):(?!/)")
_DIRECTORY = re.compile(r"(?:path:)?(/[^?]*)(?:\?(.*))?")
_LOCAL = re.compile(r"(?:path:|(?:(?:git|tarball)\+)?file://)?(/[^?]*)(?:\?.*)?")
_FORMS = "'github:OWNER/REPOSITORY', 'git+https://...' or 'path:/absolute/directory'"


def check_flake(flake: str) -> str:
    """The flake as it is given to nix; refused are options, outputs and what only means something elsewhere."""
    if not flake.isprintable() or " " in flake or len(flake) > LONGEST:
        raise InvalidInput(f"the flake {flake[:80]!r} is no flake's address", hint=f"flakes are named like {_FORMS}")
    if flake.startswith("-"):
        raise InvalidInput(f"the flake '{flake}' begins with a hyphen", hint=f"flakes are named like {_FORMS}")
    if "#" in flake:
        raise InvalidInput(
            f"the flake '{flake}' names an output",
            hint="leave out what begins with '#': role and profile of the pool decide the output",
        )
    if _RELATIVE.match(flake):
        raise InvalidInput(
            f"the flake '{flake}' is relative, and the agent does not run where it was written",
            hint="name it like 'path:/absolute/directory'",
        )
    return flake


def directory_of(flake: str) -> Path | None:
    """Where `flake.nix` must be, of a flake that is a directory of this host."""
    found = _DIRECTORY.fullmatch(flake)
    return Path(found[1], *parse_qs(found[2] or "").get("dir", [])) if found else None


def require_flake(flake: str) -> None:
    """Raise `InvalidInput` where `flake` is a directory of this host without a `flake.nix`.

    Looked for here, because nix would first copy whatever the directory holds to where everybody reads it.
    """
    if (directory := directory_of(flake)) and not (directory / "flake.nix").is_file():
        raise InvalidInput(f"there is no flake.nix in '{directory}'", hint="is the flake where the pool says it is?")


def local(flake: str) -> Path | None:
    """The directory or file of this host that a flake is in; None when it is fetched from elsewhere."""
    found = _LOCAL.fullmatch(flake)
    return Path(found[1]) if found else None


def check_profile(profile: str) -> str:
    """The profile as a part of an output's name."""
    if not _PROFILE.fullmatch(profile):
        raise InvalidInput(
            f"the profile {profile[:80]!r} cannot be in a flake",
            hint="profiles have lowercase letters, digits, '_' and '-'",
        )
    return profile


def system(machine: str) -> str:
    """What Nix calls this machine."""
    if machine not in SYSTEMS:
        raise Unavailable(f"there are no images for {machine}", hint=f"mvm has them for {', '.join(SYSTEMS)}")
    return SYSTEMS[machine]


def output(role: str, profile: str) -> str:
    """Name of the package that is the image of a role and a profile."""
    return f"tenant-{role}-{profile}"


def legacy_output(profile: str) -> str:
    """The same in a flake without `mvm-profiles.toml`."""
    return f"tenant-{profile}"


def offers_images(packages: Collection[str]) -> bool:
    """Whether a flake without `mvm-profiles.toml` has images of its own; else it is an application."""
    return any(name.startswith("tenant-") for name in packages)


def no_such_output(flake: str, wanted: str, system: str, packages: Collection[str]) -> InvalidInput:
    """The error of a flake that does not have the image of a pool."""
    images = sorted(name for name in packages if name.startswith("tenant-")) or sorted(packages)
    offered = ", ".join(images[:30]) or "nothing"
    return InvalidInput(
        f"{flake} has no package '{wanted}' for {system}", hint=f"what it offers for {system}: {offered}"
    )
