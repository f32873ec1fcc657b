"""Lay an application flake's OpenClaw out as guests expect it: `lay_out.py PACKAGE FROM-NPM TARGET`.

The result has `lib/node_modules/openclaw` and `lib/node_modules/@openclaw/discord`, the latter of npm's package unless
PACKAGE has it, with OpenClaw as its peer.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

PLACES = ("lib/node_modules/openclaw", "lib/openclaw")
"""Where packages have OpenClaw; nix-openclaw has it in the second."""
ENTRY = "openclaw.mjs"
DISCORD = "@openclaw/discord"


def main(arguments: list[str]) -> int:
    """Do it; returns the exit status."""
    package, from_npm, target = (Path(argument) for argument in arguments)
    found = next((package / place for place in PLACES if (package / place / ENTRY).is_file()), None)
    if found is None:
        print(f"{package} has no {ENTRY} in {' or '.join(PLACES)}: it is no OpenClaw that mvm knows", file=sys.stderr)
        return 1
    modules = target / "lib/node_modules"
    shutil.copytree(found, modules / "openclaw", symlinks=True)
    channel = package / "lib/node_modules" / DISCORD
    if not channel.is_dir():
        channel = from_npm / "lib/node_modules" / DISCORD
    shutil.copytree(channel, modules / DISCORD, symlinks=True)
    make_writable(modules / DISCORD)
    peer = modules / DISCORD / "node_modules/openclaw"
    peer.parent.mkdir(exist_ok=True)
    if not peer.is_symlink():
        peer.symlink_to("../../../openclaw")
    return 0


def make_writable(directory: Path) -> None:
    """What comes out of the store is read-only, its directories too."""
    for path in (directory, *directory.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
