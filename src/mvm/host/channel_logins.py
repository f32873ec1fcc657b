"""Whether a channel lets a gateway's OpenClaw in. A wrong token keeps OpenClaw from ever being ready, or leaves it
ready and deaf, as it happens to come: its log says so within a second.
"""

from __future__ import annotations

import re
from datetime import datetime

from mvm.model.errors import Unavailable
from mvm.model.ids import InstanceRef
from mvm.telemetry.redaction import redact

LINES = 100
"""Of OpenClaw's log that are looked at."""
LOOK_SECONDS = 2.0
"""Between two looks while its start is waited for."""
LOOK_AFTER_SECONDS = 15.0
"""Before the first of them: with one channel refused and another one let in, it still becomes ready."""
SETTLE_SECONDS = 2.0
"""After its start: OpenClaw is ready before a channel has answered, which took 0.3 s (2026.9.6, a local stand-in)."""
_EXITED = re.compile(r"(\S+) \[(telegram|discord)\] \[[^\]]*\] channel exited: (.*)")
_STARTED = re.compile(r"mvm \S+ openclaw started ")
"""A note of the guest's supervisor. New secrets start OpenClaw again, not its machine."""
_NOT_LET_IN = re.compile(r"unauthori[sz]ed|\b401\b|invalid token|incorrect login", re.IGNORECASE)
_NAMES = {"telegram": "Telegram", "discord": "Discord"}


class ChannelRefused(Unavailable):
    """A channel does not know the token of a gateway's bot."""


def refusal_in(log: str, *, ref: InstanceRef, since: datetime) -> ChannelRefused | None:
    """The newest refusal since OpenClaw was last started, and `since`: what was before may be of another token."""
    for line in reversed(log.splitlines()):
        if _STARTED.match(line):
            return None
        found = _EXITED.match(line)
        if found is None or not _NOT_LET_IN.search(found[3]) or not _is_after(found[1], since):
            continue
        return ChannelRefused(
            f"{_NAMES[found[2]]} does not let the gateway {ref} in: {redact(found[3])[:200]}",
            hint=f"correct the token that the file names, or `mvm tenant secrets set {ref.tenant_id}"
            f" --file {found[2]}_token=FILE` where the deployment is there",
        )
    return None


def _is_after(stamp: str, since: datetime) -> bool:
    try:
        return datetime.fromisoformat(stamp) >= since
    except (ValueError, TypeError):  # no time, or one that does not say where on earth
        return False
