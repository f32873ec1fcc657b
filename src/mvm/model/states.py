"""Instance states and the transitions between them (CONTRACT 4)."""

from __future__ import annotations

from enum import StrEnum

from mvm.model.errors import Conflict


class State(StrEnum):
    """State of an instance. Only what is true of the machine; a transition under way is an intent, not a state."""

    CREATED = "created"
    READY = "ready"
    RUNNING = "running"
    WARM = "warm"
    SLEEPING = "sleeping"
    STOPPED = "stopped"
    DESTROYED = "destroyed"

    @property
    def has_process(self) -> bool:
        """True when a machine in this state has a process on the host."""
        return self in (State.RUNNING, State.WARM)

    def may_become(self, to: State) -> bool:
        """True when CONTRACT 4 allows the transition from this state to `to`."""
        return to in _ALLOWED[self]

    def require(self, to: State, *, who: str) -> None:
        """Raise `Conflict` unless this state may become `to`; `who` names the instance."""
        if not self.may_become(to):
            raise Conflict(
                f"Invalid state transition: {self} -> {to} ({who})",
                hint=f"from {self} an instance may become: {', '.join(sorted(_ALLOWED[self])) or 'nothing'}",
            )


_ALLOWED: dict[State, frozenset[State]] = {
    State.CREATED: frozenset({State.READY, State.DESTROYED}),
    State.READY: frozenset({State.RUNNING, State.READY, State.DESTROYED}),
    State.RUNNING: frozenset({State.WARM, State.STOPPED, State.DESTROYED}),
    State.WARM: frozenset({State.RUNNING, State.SLEEPING, State.STOPPED, State.DESTROYED}),
    State.SLEEPING: frozenset({State.RUNNING, State.STOPPED, State.DESTROYED}),
    State.STOPPED: frozenset({State.RUNNING, State.DESTROYED}),
    State.DESTROYED: frozenset(),
}
