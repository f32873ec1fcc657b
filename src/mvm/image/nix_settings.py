"""What the nix of a builder's image is told by its configuration, whoever made the image: NixOS reads the same."""

from __future__ import annotations

from collections.abc import Mapping

Setting = bool | str | list[str]

EVERYWHERE: Mapping[str, Setting] = {
    "experimental-features": ["nix-command", "flakes"],
    "sandbox": True,
    # A sandbox that cannot be had is an error, not something that goes unnoticed.
    "sandbox-fallback": False,
}
"""Settings of every builder."""
DEBIANS: Mapping[str, Setting] = {
    # The machine is there for one build and everything in it is root's. In the sandbox nobody is.
    "build-users-group": "",
    # What nix of NixOS has in itself.
    "sandbox-paths": ["/bin/sh=/bin/busybox"],
}
"""What only an image of Debian's packages needs: what NixOS does about these is its own."""


def configuration() -> str:
    """`/etc/nix/nix.conf` of an image of Debian's packages."""
    return "".join(f"{name} = {_value(setting)}".rstrip() + "\n" for name, setting in {**EVERYWHERE, **DEBIANS}.items())


def _value(setting: Setting) -> str:
    if isinstance(setting, bool):
        return "true" if setting else "false"
    return setting if isinstance(setting, str) else " ".join(setting)
