"""The checks of `mvm doctor` about images of virtual machines."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mvm.cli.checks import Finding, Verdict, nearest
from mvm.cli.output import mib
from mvm.model.errors import MvmError

if TYPE_CHECKING:
    from mvm.host.locations import Locations
    from mvm.image.base import Readiness
    from mvm.image.nix import NixBuilder

_MATTERS = "virtual machines boot from images that are built here; the process runtime needs none"


def image_checks(locations: Locations) -> Iterator[Finding]:
    """Whether an image can be built: its programs, its packages, its room."""
    from mvm.host.programs import image_cache
    from mvm.image.debian import DebianBuilder
    from mvm.image.nix import NixBuilder

    cache = image_cache(locations)
    readiness = DebianBuilder(cache).probe()
    yield image_builder(readiness)
    yield nix_machine(locations, readiness) if locations.nix_build == "machine" else nix_builder(NixBuilder(cache))
    if readiness.usable:
        with tempfile.TemporaryDirectory(prefix="mvm-doctor-") as directory:
            yield kernel_package(Path(directory))
    yield image_space(cache)


def image_builder(readiness: Readiness) -> Finding:
    return Finding(
        name="image builder",
        verdict=Verdict.OK if readiness.usable else Verdict.WARNING,
        found=f"debian: {readiness.reason}",
        matters=_MATTERS,
        remedy=readiness.remedy,
    )


def nix_builder(builder: NixBuilder) -> Finding:
    """Whether flakes can be built, found out by having nix open its store."""
    name, matters = (
        "nix",
        "with it a pool's `flake` is what its image is built from; else it is made of Debian's packages",
    )
    readiness = builder.probe()
    if not readiness.usable:
        found = f"not used: {readiness.reason}"
        return Finding(name=name, verdict=Verdict.OK, found=found, matters=matters)
    try:
        builder.reach()
    except MvmError as error:
        return Finding(name=name, verdict=Verdict.WARNING, found=error.message, matters=matters, remedy=error.hint)
    return Finding(name=name, verdict=Verdict.OK, found=f"{readiness.reason}, and opens its store", matters=matters)


def nix_machine(locations: Locations, image: Readiness) -> Finding:
    """Whether flakes can be built in machines, as far as that is known without making one."""
    problem, remedy = (None if image.usable else f"no image for one can be made: {image.reason}"), image.remedy
    if locations.runtime == "process":
        problem, remedy = "the runtime process has no machines", "leave runtime out, or say qemu"
    return Finding(
        name="nix",
        verdict=Verdict.OK if problem is None else Verdict.WARNING,
        found="flakes are built in machines"
        if problem is None
        else f"flakes are to be built in machines, and {problem}",
        matters="nix_build is 'machine': a pool that names a flake is refused where that cannot be done",
        remedy=remedy if problem else None,
    )


def kernel_package(directory: Path) -> Finding:
    """Whether Debian's mirror is there, found out by getting the smallest of the packages that an image needs."""
    from mvm.image.debian import DebianBuilder

    try:
        version = DebianBuilder(directory).reach()
    except MvmError as error:
        return Finding(
            name="image packages",
            verdict=Verdict.WARNING,
            found=error.message,
            matters=_MATTERS,
            remedy=error.hint or "apt-get update",
        )
    return Finding(name="image packages", verdict=Verdict.OK, found=f"Debian's kernel {version}", matters=_MATTERS)


def image_space(cache: Path) -> Finding:
    from mvm.image.debian.builder import NEEDED_DISK_MIB

    place = nearest(cache)
    free = shutil.disk_usage(place).free // 2**20
    enough = free >= NEEDED_DISK_MIB
    return Finding(
        name="image space",
        verdict=Verdict.OK if enough else Verdict.WARNING,
        found=f"{mib(free)} free at {place}",
        matters=_MATTERS,
        remedy=None if enough else f"free some space (`mvm pool gc`), or set MVM_IMAGE_CACHE ({mib(NEEDED_DISK_MIB)})",
    )
