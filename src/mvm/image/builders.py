"""Which builder makes a pool's image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mvm.image.base import Builder
from mvm.model.errors import Unavailable

DEBIAN_FLAKE = "debian:"
"""What a pool names as its flake to have its image made of Debian's packages in any case."""
_NIX = "nix"
_DEBIAN = "debian"


@dataclass(frozen=True)
class Choice:
    """A builder, and why it is the one."""

    builder: Builder
    reason: str


def choose(flake: str, builders: Sequence[Builder]) -> Choice:
    """Nix builds flakes where it can be used; everything else is built of Debian's packages."""
    known = {builder.name: builder for builder in builders}
    debian = known.get(_DEBIAN)
    if debian is None:
        raise Unavailable("this agent has no builder of images")
    if flake.startswith(DEBIAN_FLAKE):
        return Choice(debian, f"the pool says '{DEBIAN_FLAKE}'")
    nix = known.get(_NIX)
    if nix is None:
        about = f"instead of the flake '{flake}'" if flake else "the pool names no flake"
        return Choice(debian, f"this agent builds with Debian's packages only; {about}")
    readiness = nix.probe()
    if readiness.usable:
        return Choice(nix, readiness.reason)
    return Choice(debian, f"Nix cannot be used: {readiness.reason}")
