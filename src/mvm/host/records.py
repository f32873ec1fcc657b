"""Records of transitions: the intent before, where it ended after. Nothing else changes an instance's state."""

from __future__ import annotations

from mvm.host.catalog import Catalog
from mvm.host.clock import Clock
from mvm.model.entities import Instance, Timeline, Transition, TransitionKind
from mvm.model.errors import MvmError, Refused
from mvm.model.states import State


class Records:
    """Writes intents and outcomes; the caller holds the instance's lock."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock

    async def begin(self, instance: Instance, kind: TransitionKind, to: State, *, actor: str) -> Instance:
        """Record that a transition is about to begin."""
        intent = Transition(kind=kind, to=to, began_at=self._clock.now(), actor=actor)
        return await self._catalog.save_instance(instance.model_copy(update={"transition": intent}))

    async def settle(
        self,
        instance: Instance,
        state: State,
        *,
        error: Exception | None = None,
        by_policy: bool = False,
        held: bool = False,
        keep_since: bool = False,
        last_sleep: Timeline | None = None,
    ) -> Instance:
        """Record where a transition ended."""
        now = self._clock.now()
        changes: dict[str, object] = {
            "state": state,
            "transition": None,
            "rested_by_policy": by_policy,
            "held": held,
            "last_error": describe(error) if error else None,
        }
        if not state.has_process:
            changes["process"] = None
        if state is State.WARM:
            changes["entered_warm_at"] = now
        if state is State.SLEEPING:
            changes["slept_at"] = now
        if state is State.RUNNING and not keep_since:
            changes["entered_running_at"] = now
        if last_sleep is not None:
            changes["last_sleep"] = last_sleep
        return await self._catalog.save_instance(instance.model_copy(update=changes))


def refuse_held(instance: Instance) -> None:
    """Raise `Refused` for one that a person stopped: only a person starts it again."""
    if instance.held:
        ref = instance.ref
        raise Refused(f"{ref} was stopped by its operator", hint=f"`mvm instance start {ref}` lets it run again")


def describe(error: BaseException) -> str:
    """One line about an error, for `last_error` and the audit: bounded, no traceback, no secret."""
    return (error.message if isinstance(error, MvmError) else f"{type(error).__name__}: {error}")[:500]
