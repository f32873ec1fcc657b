"""The programs on this host that instances run: Node, OpenClaw, Python, the guest's zipapp, mvm's plugin."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import mvm.openclaw
from mvm.host.builder_image import BuilderImage
from mvm.host.locations import Locations
from mvm.image.base import Builder, Contents, GuestContents
from mvm.image.debian import DebianBuilder
from mvm.image.guest_zipapp import build_zipapp
from mvm.image.nix import NixBuilder, NixMachineBuilder
from mvm.image.nix.place import Machines
from mvm.openclaw.install import (
    Installation,
    OnProgress,
    committed_lock,
    install,
    installed,
    mark_used,
)
from mvm.openclaw.programs import find_programs
from mvm.runtime.process import HostPrograms

DIGEST_LENGTH = 12


def expected_installation(locations: Locations) -> Installation:
    """Where the pinned OpenClaw is, or will be once it is installed."""
    lock = committed_lock()
    return Installation(version=lock.version, root=locations.programs_dir / "openclaw" / lock.name)


def host_programs(locations: Locations) -> HostPrograms:
    """Find and make what instances run. Raises `Unavailable` when there is no Node; OpenClaw may be installed later."""
    installation = installed(locations.programs_dir)
    if installation is not None:
        mark_used(installation)
    return HostPrograms(
        node=find_programs(os.environ.get("MVM_NODE")).node,
        openclaw_dir=Path(os.environ.get("MVM_OPENCLAW_DIR") or expected_installation(locations).openclaw_dir),
        python=Path(sys.executable).resolve(),
        zipapp=_zipapp(locations.state_dir / "guest"),
        plugin_dir=_plugin_dir(),
    )


def image_cache(locations: Locations) -> Path:
    """Where builds of images keep what the next one can use; MVM_IMAGE_CACHE lets several deployments share one."""
    named = os.environ.get("MVM_IMAGE_CACHE")
    return Path(named).absolute() if named else locations.state_dir / "images/.cache"


def image_builders(locations: Locations, machines: Machines) -> tuple[Builder, ...]:
    """All that can build images on a host; which one makes a pool's is `mvm.image.builders`."""
    cache = image_cache(locations)
    nix = NixMachineBuilder(cache, machines) if locations.nix_build == "machine" else NixBuilder(cache)
    return DebianBuilder(cache), nix


def builder_image(locations: Locations) -> BuilderImage:
    """The image of the machines that images are built in."""

    def contents() -> GuestContents:
        return GuestContents(zipapp=_zipapp(locations.state_dir / "guest"), plugin_dir=_plugin_dir())

    cache = image_cache(locations)
    return BuilderImage(DebianBuilder(cache), contents, cache)


def image_contents(locations: Locations, on_progress: OnProgress) -> Contents:
    """What goes into an image: the programs of this host, OpenClaw installed first where it is not."""
    if not os.environ.get("MVM_OPENCLAW_DIR"):
        install(locations.programs_dir, on_progress=on_progress)
    programs = host_programs(locations)
    return Contents(
        node=programs.node,
        openclaw_dir=programs.openclaw_dir,
        zipapp=programs.zipapp,
        plugin_dir=programs.plugin_dir,
    )


def _plugin_dir() -> Path:
    return Path(mvm.openclaw.__path__[0]) / "plugin"


def _zipapp(directory: Path) -> Path:
    """The guest's zipapp under its digest: an upgrade never changes the file that a running instance imports from."""
    draft = directory / "guest.pyz"
    digest = build_zipapp(draft).removeprefix("sha256:")
    final = directory / f"guest-{digest[:DIGEST_LENGTH]}.pyz"
    if final.exists():
        draft.unlink()
    else:
        draft.replace(final)
    return final
