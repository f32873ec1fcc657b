"""Images built by Nix from flakes."""

from mvm.image.nix.builder import NixBuilder

__all__ = ["NixBuilder"]
