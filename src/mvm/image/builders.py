"""Which builder makes a pool's image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mvm.image.base import Builder
from mvm.model.errors import Unavailable

DEBIAN_FLAKE = "debian:"
"""What a pool names as its flake to have its image made of Debian's packages in any case."""
NIX_FLAKE = "nix:"
"""What a pool names as its flake to have its image built by Nix from mvm's own modules in any case."""
_NIX = "nix"
_DEBIAN = "debian"


@dataclass(frozen=True)
class Choice:
    """A builder, and why it is the one."""

    builder: Builder
    reason: str


def choose(flake: str, builders: Sequence[Builder]) -> Choice:
    """Nix builds flakes where it can be used; everything else is built of Debian's packages.

    A pool that names no flake gets Debian's packages wherever they can be had, whether there is a nix or not: what is
    built by default is the same on every host.
    """
    known = {builder.name: builder for builder in builders}
    debian, nix = known.get(_DEBIAN), known.get(_NIX)
    if debian is None:
        raise Unavailable("this agent has no builder of images")
    if flake.startswith(DEBIAN_FLAKE):
        return Choice(debian, f"the pool says '{DEBIAN_FLAKE}'")
    if flake == NIX_FLAKE:
        return _by_nix(nix)
    if nix is None:
        about = f"instead of the flake '{flake}'" if flake else "the pool names no flake"
        return Choice(debian, f"this agent builds with Debian's packages only; {about}")
    readiness = nix.probe()
    if flake and readiness.usable:
        return Choice(nix, f"the pool names the flake '{flake}', and {readiness.reason}")
    if flake and not readiness.replaceable:
        raise Unavailable(f"the flake '{flake}' cannot be built: {readiness.reason}", hint=readiness.remedy)
    if flake:
        return Choice(debian, f"the flake '{flake}' cannot be built, {readiness.reason}; Debian's packages instead")
    if readiness.usable and not (without := debian.probe()).usable:
        return Choice(nix, f"the pool names no flake, {readiness.reason}, and of Debian: {without.reason}")
    return Choice(debian, "the pool names no flake")


def _by_nix(nix: Builder | None) -> Choice:
    if nix is None:
        raise Unavailable(f"the pool says '{NIX_FLAKE}', and this agent does not build with Nix")
    readiness = nix.probe()
    if not readiness.usable:
        raise Unavailable(f"the pool says '{NIX_FLAKE}', but {readiness.reason}", hint=readiness.remedy)
    return Choice(nix, f"the pool says '{NIX_FLAKE}', and {readiness.reason}")
