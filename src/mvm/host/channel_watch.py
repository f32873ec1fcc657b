"""Gateways whose channel was closed to them while they run: a token that was revoked, a bot that was deleted.

OpenClaw says so once in its log, gives that channel up for good ("channel exited: Unauthorized", "auto-restart skipped,
terminal disconnect"; 2026.9.6) and calls itself ready all the same: its people would write into silence, and its
operator would hear of it from them.
"""

from __future__ import annotations

import asyncio

import structlog

from mvm.host.catalog import Catalog
from mvm.host.channel_logins import is_over, refusal_in, tells_of_refusal
from mvm.host.chronicle import Chronicle
from mvm.host.guests import Guests
from mvm.host.lifecycle import Lifecycle
from mvm.host.runtimes import Runtimes
from mvm.model.entities import Instance
from mvm.model.errors import MvmError
from mvm.model.roles import Role
from mvm.model.states import State

log = structlog.get_logger(__name__)

LOOK_SECONDS = 60.0
"""Between two looks at the log of a gateway."""
AT_ONCE = 8
"""Gateways whose logs are read at the same time."""
ACTOR = "channels"


class ChannelWatch:
    """Reads the logs of the gateways that run; a refusal is an event, a warning, and the gateway's last error."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        lifecycle: Lifecycle,
        runtimes: Runtimes,
        guests: Guests,
        chronicle: Chronicle,
    ) -> None:
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._runtimes = runtimes
        self._guests = guests
        self._chronicle = chronicle
        self._places = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Look once at every gateway that runs."""
        gateways = [each for each in self._catalog.instances.values() if each.role is Role.GATEWAY and _runs(each)]
        await asyncio.gather(*(self._look_at(gateway) for gateway in gateways))

    async def _look_at(self, gateway: Instance) -> None:
        async with self._places:
            try:
                await self._compare(gateway)
            except MvmError as error:
                log.debug("what its channels say is not known", instance=str(gateway.ref), reason=error.message)
            except Exception:  # whatever a guest has written: the others are looked at all the same
                log.exception("channels cannot be looked at", instance=str(gateway.ref))

    async def _compare(self, gateway: Instance) -> None:
        """Compare what its log says with what is known of it."""
        if gateway.last_wake is None:
            return
        text = await self._guests.newest_log(self._runtimes.of(gateway), self._lifecycle.machine(gateway))
        refusal = refusal_in(text, ref=gateway.ref, since=gateway.last_wake.began_at)
        if refusal is not None:
            if await self._note(gateway, refusal.message):
                log.warning("a channel is closed", instance=str(gateway.ref), why=refusal.message, hint=refusal.hint)
                told = f"{refusal.message}; {refusal.hint}"
                self._chronicle.event(gateway, "ChannelRefused", actor=ACTOR, detail=told)
            return
        known = gateway.last_error
        # A log without a refusal says nothing: the line that told of it is followed by others, and gone some day.
        if known is not None and tells_of_refusal(known) and is_over(known, text) and await self._note(gateway, None):
            self._chronicle.event(gateway, "ChannelOpen", actor=ACTOR)

    async def _note(self, seen: Instance, error: str | None) -> bool:
        """Keep it as the gateway's last error; whether that is news, and it still runs as it was seen."""
        async with self._lifecycle.locked(seen.ref):
            known = self._catalog.instances.get(seen.instance_id)
            if known is None or not _runs(known) or known.last_wake != seen.last_wake or known.last_error == error:
                return False
            await self._catalog.save_instance(known.model_copy(update={"last_error": error}))
            return True


def _runs(instance: Instance) -> bool:
    return instance.state is State.RUNNING and instance.transition is None
