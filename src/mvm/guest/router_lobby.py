"""Strangers: an honest short answer with a pairing code, bounded so that nobody can be made to talk for ever.

A stranger costs one question to the host at most, never a wake and never a model call.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

from mvm.guest.router_host import Events, Host, HostRefused, HostUnreachable
from mvm.wire import messages

NOTICE_EVERY_SECONDS = 20.0
"""One person hears the notice at most this often."""
NOTICES_PER_MINUTE = 20
"""All strangers together hear at most this many."""
MAX_REMEMBERED = 4096

UNKNOWN = "This assistant does not know you yet, so your message was not passed on to anyone."


def pairing_notice(code: messages.PairingCode | None) -> str:
    """What a stranger reads; without a code (too many were asked for, or the host is away) no way in is named."""
    if code is None or code.code is None:
        return UNKNOWN
    until = f" The code is good until {code.expires_at:%H:%M} UTC." if code.expires_at is not None else ""
    return (
        f"{UNKNOWN}\n\nTo be let in, give this line to whoever runs it:\n\n"
        f"mvm user pair {code.tenant_id} {code.code}\n\n"
        f"Then write again.{until}"
    )


class Lobby:
    """Answers strangers, at most as often as is decent."""

    def __init__(self, host: Host, events: Events, *, now: Callable[[], float] = time.monotonic) -> None:
        self._host = host
        self._events = events
        self._now = now
        self._told: OrderedDict[str, float] = OrderedDict()
        self._recent: deque[float] = deque()

    async def notice(self, peer: str, display_name: str | None = None) -> str | None:
        """The answer for this stranger, None to stay silent."""
        now = self._now()
        told = self._told.get(peer)
        if told is not None and now - told < NOTICE_EVERY_SECONDS:
            return None
        while self._recent and now - self._recent[0] >= 60:
            self._recent.popleft()
        if len(self._recent) >= NOTICES_PER_MINUTE:
            return None
        self._recent.append(now)
        self._told[peer] = now
        self._told.move_to_end(peer)
        while len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)
        code: messages.PairingCode | None
        try:
            code = await self._host.ask(messages.RequestPairing(peer=peer, display_name=display_name))
        except (HostUnreachable, HostRefused):
            code = None
        self._events.report("StrangerRefused", f"{peer} is nobody's user and was answered with a notice")
        return pairing_notice(code)
