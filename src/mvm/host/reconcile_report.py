"""What one reconcile pass did, put off and failed at (CONTRACT 5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mvm.host.reconcile_actions import Action, Deferral
from mvm.model.errors import MvmError


@dataclass(frozen=True)
class Failure:
    """Something that was tried and did not work."""

    object: str
    error: MvmError

    def to_json(self) -> dict[str, Any]:
        error = self.error
        return {"object": self.object, "code": error.code, "message": error.message, "hint": error.hint}


_GROUPS: dict[str, tuple[str, ...]] = {
    "tenants": ("created", "updated", "pruned"),
    "pools": ("created", "updated", "pruned", "built"),
    "users": ("added", "updated", "removed"),
    "secrets": ("set",),
    "instances": ("created", "started", "resumed", "woken", "warmed", "slept", "stopped", "restarted", "discarded",
                  "destroyed"),
}  # fmt: skip


@dataclass
class Report:
    """Lists of names, each in the order in which it happened."""

    dry_run: bool = False
    actions: list[Action] = field(default_factory=list)
    """What was planned; without a dry run, all of it was tried."""
    done: dict[str, dict[str, list[str]]] = field(
        default_factory=lambda: {group: {what: [] for what in whats} for group, whats in _GROUPS.items()}
    )
    deferrals: list[Deferral] = field(default_factory=list)
    unknown: list[Deferral] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    refusals: list[MvmError] = field(default_factory=list)
    """Why something was put off only when it was tried: each is among the deferrals as well."""

    def note(self, group: str, what: str, name: str) -> None:
        """Something was done: `("instances", "started", "alice/workers/i-0123abcd")`."""
        self.done[group][what].append(name)

    @property
    def changed(self) -> bool:
        """True when anything at all was done."""
        return any(names for group in self.done.values() for names in group.values())

    @property
    def came_down(self) -> int:
        """How many instances came down, so that others may fit."""
        instances = self.done["instances"]
        return sum(len(instances[what]) for what in ("warmed", "slept", "stopped", "destroyed"))

    def to_json(self) -> dict[str, Any]:
        return {
            "changed": self.changed,
            "dry_run": self.dry_run,
            "actions": [action.to_json() for action in self.actions],
            **self.done,
            "deferred": [deferral.to_json() for deferral in self.deferrals],
            "left_alone": [deferral.to_json() for deferral in self.unknown],
            "errors": [failure.to_json() for failure in self.failures],
        }
