"""Make `node_modules` of an npm lock and the packages that it names, or leave out of one what no guest needs.

  unpack_npm.py unpack LOCK TARBALLS TARGET   TARBALLS is a JSON object: path of a package in the lock -> its tarball
  unpack_npm.py prune PRUNE SOURCE TARGET     PRUNE is `mvm/image/prune.py`, which says what is kept

Nix has checked the digest of every tarball. The lock says where each package lies, so nothing is left to be decided by
npm, and no script of a package is run. The result is what `mvm.openclaw.install` makes with npm (`--omit=optional`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

PREFIX = "node_modules/"
EXECUTABLE = 0o111


class UnusableLock(Exception):
    """The lock and the tarballs do not fit; the text says how."""


def main(arguments: list[str]) -> int:
    """Do it; returns the exit status."""
    try:
        match arguments:
            case ["unpack", lock, tarballs, target]:
                unpack(json.loads(Path(lock).read_text()), json.loads(Path(tarballs).read_text()), Path(target))
            case ["prune", rules, source, target]:
                prune(load_prune(Path(rules)), Path(source), Path(target))
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except UnusableLock as error:
        print(f"unpack_npm: {error}", file=sys.stderr)
        return 1
    return 0


def load_prune(path: Path) -> Callable[[str, bool], bool]:
    """The function `keeps` of that file, which imports nothing of mvm."""
    spec = importlib.util.spec_from_file_location("prune", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    keeps: Callable[[str, bool], bool] = module.keeps
    return keeps


def unpack(lock: dict[str, dict[str, dict[str, object]]], tarballs: dict[str, str], target: Path) -> None:
    """Unpack every package into its place below `target`, which becomes `node_modules`. Raises `UnusableLock`."""
    packages = lock["packages"]
    wanted = {path for path, package in packages.items() if "integrity" in package and not package.get("optional")}
    if different := sorted(wanted ^ set(tarballs)):
        raise UnusableLock(f"lock and tarballs differ: {different[0]}")
    for path in sorted(tarballs):  # what lies in a package comes after it
        if not path.startswith(PREFIX):
            raise UnusableLock(f"{path} is not in {PREFIX}")
        _unpack_one(Path(tarballs[path]), target / path.removeprefix(PREFIX))
    # A plugin's peer, which npm leaves out of a plugin that brings its own `node_modules` along.
    if (plugin := target / "@openclaw/discord").is_dir():
        (plugin / PREFIX).mkdir(exist_ok=True)
        (plugin / PREFIX / "openclaw").symlink_to("../../../openclaw")


def _unpack_one(tarball: Path, place: Path) -> None:
    with tarfile.open(tarball) as archive:
        for member in archive:
            inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])  # the first part is the tarball's own
            if ".." in inside.parts or inside.is_absolute():
                raise UnusableLock(f"{tarball.name} reaches out of itself: {member.name}")
            if not member.isfile() or not inside.parts:
                continue  # npm takes no links either
            content = archive.extractfile(member)
            assert content is not None
            file = place / inside
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as out:
                shutil.copyfileobj(content, out)
            file.chmod(0o755 if member.mode & EXECUTABLE else 0o644)


def prune(keeps: Callable[[str, bool], bool], source: Path, target: Path) -> None:
    """Copy what is kept of a `node_modules`, links as links."""
    for directory, names, others in os.walk(source):
        here = Path(directory).relative_to(source)
        links = [name for name in names if (source / here / name).is_symlink()]
        names[:] = [name for name in names if name not in links and keeps(str(here / name), True)]
        for name in (*others, *links):
            if keeps(str(here / name), False):
                (target / here).mkdir(parents=True, exist_ok=True)
                shutil.copy2(source / here / name, target / here / name, follow_symlinks=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
