"""What OpenClaw is started with: its secrets, its configuration, and what it is told without secrets.

The agent keeps them up to date at each wake. Where systemd supervises, `guest.pyz environment` makes them at boot,
before anything runs that needs them (unit `mvm-openclaw-env`).
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mvm.guest import config as config_files
from mvm.guest import secrets, users
from mvm.guest.config import ConfigError, GuestConfig
from mvm.guest.discord import record_discord
from mvm.guest.paths import GuestPaths, real, write_atomically
from mvm.guest.services import OPENCLAW, Programs, fixed_environment, render_environment_file

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class News:
    """What new drives mean for an OpenClaw that runs."""

    restart: bool
    """A secret changed that it reads from its environment only."""
    reload: bool
    """A secret changed that it can re-read."""


def take_in_secrets(paths: GuestPaths, config: GuestConfig, on_problem: Callable[[str], None]) -> News:
    """Install what the secrets drive holds; `on_problem` hears what of it cannot be used. Raises `OSError`."""
    collected = secrets.collect(paths.secrets)
    for problem in collected.problems:
        log.error("a secret cannot be used: %s", problem)
        on_problem(problem)
    before = secrets.installed(paths)
    changed = secrets.changed_keys(before or {}, collected.values)
    live = frozenset(config.openclaw.live_secrets) if config.openclaw is not None else frozenset[str]()
    bound = {key for key in changed - live if secrets.is_variable(key)}
    if before is None or bound:
        # Kept over a crash of whoever does this: from here on OpenClaw's environment is an old one.
        paths.restart_pending.touch(mode=0o600)
    if before is None or changed:
        apart = secrets.referenced(paths.openclaw_config_source) & live
        for key in secrets.install(paths, collected.values, apart=apart):
            log.warning("the secret %s holds a line break and is not in the environment", key)
    return News(restart=paths.restart_pending.exists(), reload=bool(changed - bound))


def install_openclaw_config(paths: GuestPaths) -> bool:
    """Put OpenClaw's configuration where it watches it; an unchanged file is not touched. True when it changed.

    Raises `ConfigError` when the config drive has none, `OSError`.
    """
    try:
        content = paths.openclaw_config_source.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{paths.openclaw_config_source} is missing") from None
    try:
        same = paths.openclaw_config.read_bytes() == content
    except FileNotFoundError:
        same = False
    owner = users.OPENCLAW_OWNS.numbers if paths.owns_machine else None
    record_discord(json.loads(content), Path(real(paths.openclaw_state)), owner=owner)
    if not same:
        users.write(paths, paths.openclaw_config, content, users.OPENCLAW_READS)
    return not same


def write_fixed(paths: GuestPaths, environment: Mapping[str, str], mem_mib: int | None) -> None:
    """Write what OpenClaw needs to run, beside its secrets, for who starts it by reading files. Raises `OSError`."""
    programs = Programs.from_environment(environment)
    variables = fixed_environment(OPENCLAW, paths, programs, environment, mem_mib=mem_mib)
    write_atomically(paths.fixed_environment_file, render_environment_file(variables).encode())


def main(environment: Mapping[str, str]) -> int:
    """Make all of it from the drives as they are; returns the exit status. What went wrong is said on stderr."""
    try:
        paths = GuestPaths.from_environment(environment)
        config = config_files.read(paths.config).config
        write_fixed(paths, environment, config.mem_mib)
        take_in_secrets(paths, config, lambda _: None)  # the agent looks again, and tells the host
        if config.role.runs_openclaw:
            install_openclaw_config(paths)
    except (OSError, ValueError) as error:
        print(f"environment: {error}", file=sys.stderr)
        return 1
    return 0
