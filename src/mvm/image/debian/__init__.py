"""Images made of Debian's packages."""

from mvm.image.debian.builder import DebianBuilder

__all__ = ["DebianBuilder"]
