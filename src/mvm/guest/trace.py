"""The id by which one message is followed from the gateway to its answer, in the logs of all who deal with it.

It is the id of the message's turn at the worker's OpenClaw (`runIdOf` in the plugin), made from the upstream id: the
same at every attempt and after every restart, and nobody has to keep it.
"""

from __future__ import annotations

import re

from mvm.wire.schema import TRACE, MessageError

_PREFIX = "mvm-"


def trace_of(key: str) -> str:
    """Trace of the delivery with that key."""
    return _PREFIX + re.sub(r"[^A-Za-z0-9._:%-]", "-", key)


def valid_trace(value: object) -> str | None:
    """A trace as somebody gave it; None when it is none."""
    try:
        return TRACE.parse(value, "trace") if isinstance(value, str) else None
    except MessageError:
        return None
