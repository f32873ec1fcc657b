"""`openclaw-ctl checkpoint|restore <integration>`: what an integration's commands call for OpenClaw's own channels.

A channel is saved by holding OpenClaw, which keeps its state on disk itself, and restored by letting it go on. The
checkpoint (one JSON object) is printed; for an integration that does not run here it is empty.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any

from mvm.guest import config
from mvm.guest.control import ControlAbsent, ControlError, ControlSocket
from mvm.guest.paths import GuestPaths
from mvm.wire.clock import format_timestamp

OPENCLAW = "openclaw"
CHANNELS = ("telegram", "discord")
DEFAULT_DRAIN_SECONDS = 30
MARGIN_SECONDS = 3


def main(verb: str, integration: str, environment: Mapping[str, str]) -> int:
    """Do it; returns the exit status. What went wrong is said on stderr."""
    try:
        paths = GuestPaths.from_environment(environment)
        state = asyncio.run(_checkpoint(paths, integration) if verb == "checkpoint" else _restore(paths, integration))
    except (ControlError, OSError, ValueError) as error:
        print(f"openclaw-ctl: {error}", file=sys.stderr)
        return 1
    print(json.dumps(state))
    return 0


async def _checkpoint(paths: GuestPaths, integration: str) -> dict[str, Any]:
    if not runs_here(paths, integration):
        return {}
    try:
        alarm = await ControlSocket(paths.control_socket).checkpoint(_drain_seconds(paths))
    except ControlAbsent:
        return {}  # OpenClaw is not running: there is nothing to hold
    return {"integration": integration, "next_alarm_at": None if alarm is None else format_timestamp(alarm)}


async def _restore(paths: GuestPaths, integration: str) -> dict[str, Any]:
    if runs_here(paths, integration):
        try:
            await ControlSocket(paths.control_socket).restore()
        except ControlAbsent:
            return {}  # it starts afresh, held by nobody
    return {}


def runs_here(paths: GuestPaths, integration: str) -> bool:
    """True for OpenClaw itself and for channels that its configuration has."""
    if integration == OPENCLAW:
        return True
    if integration not in CHANNELS:
        return False
    try:
        channels = json.loads(paths.openclaw_config.read_bytes()).get("channels", {})
        channel = channels.get(integration)
    except (OSError, ValueError, AttributeError):
        return False
    return isinstance(channel, dict) and channel.get("enabled", True) is not False


def _drain_seconds(paths: GuestPaths) -> int:
    try:
        limit = config.read(paths.config).config.runtime_policy.drain_timeout_seconds
    except config.ConfigError:
        limit = DEFAULT_DRAIN_SECONDS
    return max(0, limit - MARGIN_SECONDS)
