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
_LET_IN = re.compile(r"\S+ \[(telegram|discord)\] \[[^\]]*\] starting provider \(@")
"""The channel has told it the name of its bot. New tokens are taken over without a start of OpenClaw."""
_STARTED = re.compile(r"mvm \S+ openclaw started ")
"""A note of the guest's supervisor."""
_READY = re.compile(r"\S+ \[gateway\] ready$")
_NOT_LET_IN = re.compile(
    r"unauthori[sz]ed|\b401\b|invalid token|incorrect login|authentication failed|\b4004\b", re.IGNORECASE
)
_NAMES = {"telegram": "Telegram", "discord": "Discord"}
_DOES_NOT_LET = "does not let the gateway"


class ChannelRefused(Unavailable):
    """A channel does not know the token of a gateway's bot."""


def refusal_in(log: str, *, ref: InstanceRef, since: datetime) -> ChannelRefused | None:
    """The newest refusal that holds: of OpenClaw's last start, not before `since`, of a channel not let in since then.

    What was before may be of another token.
    """
    refused: dict[str, str] = {}
    for line in log.splitlines():
        if _STARTED.match(line):
            refused.clear()
        elif found := _LET_IN.match(line):
            refused.pop(found[1], None)
        elif (found := _EXITED.match(line)) and _NOT_LET_IN.search(found[3]) and _is_after(found[1], since):
            refused[found[2]] = found[3]
    if not refused:
        return None
    channel, words = refused.popitem()
    return ChannelRefused(
        f"{_NAMES[channel]} {_DOES_NOT_LET} {ref} in: {redact(words)[:200]}",
        hint=f"correct the token that the file names, or `mvm tenant secrets set {ref.tenant_id}"
        f" --file {channel}_token=FILE` where the deployment is there",
    )


def is_over(error: str, log: str) -> bool:
    """Whether the refusal of this message is over by what is in the log: its channel let OpenClaw in since, or OpenClaw
    was started anew and became ready.
    """
    over = started = False
    for line in log.splitlines():
        if _STARTED.match(line):
            started, over = True, False
        elif (started and _READY.match(line)) or (
            (found := _LET_IN.match(line)) and error.startswith(f"{_NAMES[found[1]]} ")
        ):
            over = True
    return over


def tells_of_refusal(error: str) -> bool:
    """Whether an instance's last error is the message of a `ChannelRefused`."""
    return f" {_DOES_NOT_LET} " in error


def _is_after(stamp: str, since: datetime) -> bool:
    try:
        return datetime.fromisoformat(stamp) >= since
    except (ValueError, TypeError):  # no time, or one that does not say where on earth
        return False
