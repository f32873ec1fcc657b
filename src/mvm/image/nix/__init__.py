"""Images built by Nix from flakes."""

from mvm.image.nix.builder import NixBuilder, NixMachineBuilder

__all__ = ["NixBuilder", "NixMachineBuilder"]
