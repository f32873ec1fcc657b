"""Tell OpenClaw that its Discord channel is the official package.

OpenClaw gives a plugin that does not come with it the storage that Discord needs only when its own records say that it
was installed from npm as an official package. mvm did install it so, verified by the lock's integrity hashes, but once
for all deployments and not into this state directory. The record is written in the form that OpenClaw takes over at its
start (`plugins/installs.json`, which it then renames); it names a link, which follows the package through updates.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PACKAGE = "@openclaw/discord"
LINK = "discord"
RECORD = "installs.json"

log = logging.getLogger(__name__)


def record_discord(config: dict[str, Any], state: Path, *, owner: tuple[int, int] | None = None) -> None:
    """Keep link and record in the state directory of an OpenClaw whose configuration loads the Discord channel.

    They become `owner`'s. The directory is OpenClaw's: nothing is followed in it that could lead out of it.
    """
    package = _package(config)
    if package is None:
        return
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _opened(state) as top:
        with suppress(FileExistsError):
            os.mkdir("plugins", 0o700, dir_fd=top)
            _give("plugins", top, owner)
        with _opened("plugins", top) as plugins:
            _keep_link(str(package), plugins, owner)
            _keep_record(str(state / "plugins" / LINK), plugins, owner)


@contextmanager
def _opened(directory: Path | str, above: int | None = None) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _keep_link(package: str, plugins: int, owner: tuple[int, int] | None) -> None:
    with suppress(OSError):
        if os.readlink(LINK, dir_fd=plugins) == package:
            return
    fresh = f".{LINK}.new"
    with suppress(FileNotFoundError):
        os.unlink(fresh, dir_fd=plugins)
    os.symlink(package, fresh, dir_fd=plugins)
    _give(fresh, plugins, owner)
    os.rename(fresh, LINK, src_dir_fd=plugins, dst_dir_fd=plugins)


def _keep_record(link: str, plugins: int, owner: tuple[int, int] | None) -> None:
    if _exists(RECORD, plugins) or _exists(f"{RECORD}.migrated", plugins):
        return
    record = {"source": "npm", "spec": PACKAGE, "installPath": link, "resolvedName": PACKAGE}
    fresh = f".{RECORD}.new"
    with suppress(FileNotFoundError):
        os.unlink(fresh, dir_fd=plugins)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=plugins)
    with open(descriptor, "w") as file:
        json.dump({"installRecords": {"discord": record}}, file)
    _give(fresh, plugins, owner)
    os.rename(fresh, RECORD, src_dir_fd=plugins, dst_dir_fd=plugins)


def _give(name: str, directory: int, owner: tuple[int, int] | None) -> None:
    if owner is not None:
        os.chown(name, *owner, dir_fd=directory, follow_symlinks=False)


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _package(config: dict[str, Any]) -> Path | None:
    """Directory of the Discord package among those that the configuration loads plugins from."""
    for directory in config.get("plugins", {}).get("load", {}).get("paths", []):
        try:
            if json.loads((Path(directory) / "package.json").read_bytes())["name"] == PACKAGE:
                return Path(directory)
        except (OSError, ValueError, KeyError) as problem:
            log.warning("a plugin of OpenClaw cannot be read in %s: %s", directory, problem)
    return None
