"""Why an instance is awake or asleep, and what keeps it from sleep, in words for an operator. Pure."""

from __future__ import annotations

from datetime import datetime

from mvm.model.entities import Instance
from mvm.model.policy import Action, Decision
from mvm.model.states import State


def why(instance: Instance, decision: Decision, *, last_actor: str | None) -> str:
    """One sentence about the state an instance is in. `last_actor` is who asked for the last transition."""
    if instance.transition is not None:
        return f"{instance.transition.kind} is under way, asked for by {instance.transition.actor}"
    by = f" by {last_actor}" if last_actor else ""
    match instance.state:
        case State.RUNNING:
            return _awake(decision)
        case State.WARM:
            rest = "its vCPUs are paused and its memory is kept"
            return f"idle, {rest}" if instance.rested_by_policy else f"warmed{by}: {rest}"
        case State.SLEEPING:
            return "policy put it to sleep: it was idle" if instance.rested_by_policy else f"put to sleep{by}"
        case State.STOPPED if instance.held:
            return f"stopped{by}: only a person starts it again"
        case State.STOPPED if instance.last_error:
            return f"stopped: {instance.last_error}"
        case State.STOPPED:
            return f"stopped{by}: a message or an alarm starts it"
        case _:
            return "it was never started"


def _awake(decision: Decision) -> str:
    match decision.action:
        case Action.STAY:
            return f"awake: {decision.reason}"
        case Action.DEFER:
            return f"awake although it is idle: {decision.reason}"
        case Action.WARM | Action.SLEEP:
            return f"{decision.reason}: policy puts it to rest at its next look"


def blocks_sleep(instance: Instance, decision: Decision, *, now: datetime) -> str | None:
    """What keeps an instance that is up from its rest at this moment; None when nothing does, or it rests already."""
    if not instance.state.has_process:
        return None
    if instance.transition is None and instance.manual_until is not None and now < instance.manual_until:
        return f"a person dealt with it: policy leaves it alone until {instance.manual_until:%H:%M:%S} UTC"
    return decision.reason if decision.action in (Action.STAY, Action.DEFER) else None
