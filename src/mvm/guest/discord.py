"""Tell OpenClaw that its Discord channel is the official package.

OpenClaw gives a plugin that does not come with it the storage that Discord needs only when its own records say that it
was installed from npm as an official package. mvm did install it so, verified by the lock's integrity hashes, but once
for all deployments and not into this state directory. The record is written in the form that OpenClaw takes over at its
start (`plugins/installs.json`, which it then renames); it names a link, which follows the package through updates.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from mvm.guest.paths import write_atomically

PACKAGE = "@openclaw/discord"

log = logging.getLogger(__name__)


def record_discord(config: dict[str, Any], state: Path) -> None:
    """Keep link and record in the state directory of an OpenClaw whose configuration loads the Discord channel."""
    package = _package(config)
    if package is None:
        return
    plugins = state / "plugins"
    plugins.mkdir(parents=True, exist_ok=True)
    link = plugins / "discord"
    if not link.is_symlink() or link.readlink() != package:
        fresh = plugins / ".discord.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(package)
        fresh.replace(link)
    record = plugins / "installs.json"
    if not record.exists() and not record.with_name("installs.json.migrated").exists():
        content = {"source": "npm", "spec": PACKAGE, "installPath": str(link), "resolvedName": PACKAGE}
        write_atomically(record, json.dumps({"installRecords": {"discord": content}}).encode())


def _package(config: dict[str, Any]) -> Path | None:
    """Directory of the Discord package among those that the configuration loads plugins from."""
    for directory in config.get("plugins", {}).get("load", {}).get("paths", []):
        try:
            if json.loads((Path(directory) / "package.json").read_bytes())["name"] == PACKAGE:
                return Path(directory)
        except (OSError, ValueError, KeyError) as problem:
            log.warning("a plugin of OpenClaw cannot be read in %s: %s", directory, problem)
    return None
