"""Roles: what an instance is for, and what follows from it (CONTRACT 3)."""

from __future__ import annotations

from enum import StrEnum

from mvm.model.errors import InvalidInput


class Role(StrEnum):
    """Role of a pool's instances; it never changes after the pool was created."""

    GATEWAY = "gateway"
    BUILDER = "builder"
    WORKER = "worker"
    CAPABILITY_OPENCLAW = "capability-openclaw"
    CAPABILITY_IMESSAGE = "capability-imessage"

    @property
    def reconcile_priority(self) -> int:
        """Lower comes up first and is put to sleep last."""
        return {Role.GATEWAY: 0, Role.BUILDER: 1, Role.WORKER: 2}.get(self, 3)

    @property
    def has_config_drive(self) -> bool:
        """True when its instances get `/etc/mvm-config`."""
        return self in (Role.GATEWAY, Role.WORKER, Role.CAPABILITY_OPENCLAW)

    @property
    def has_secrets_drive(self) -> bool:
        """True when its instances get `/run/secrets`."""
        return self in (Role.GATEWAY, Role.WORKER, Role.CAPABILITY_OPENCLAW)

    @property
    def runs_openclaw(self) -> bool:
        """True when an OpenClaw runs in its instances."""
        return self in (Role.GATEWAY, Role.CAPABILITY_OPENCLAW)

    @property
    def least_mem_mib(self) -> int:
        """Memory without which its instances cannot work.

        OpenClaw takes 0.8 GB before anybody has written to it, and was killed where there was less (OPENCLAW.md,
        section 1); a gateway's runs no turns, and a machine has compressed swap beside its memory.
        """
        return {Role.GATEWAY: 768, Role.CAPABILITY_OPENCLAW: 1024}.get(self, 64)

    def size_problem(self, mem_mib: int) -> tuple[str, str] | None:
        """What is wrong with that much memory, and what to do; None when its instances can work in it."""
        if mem_mib >= self.least_mem_mib:
            return None
        return f"mem_mib = {mem_mib} is too small for role {self}", f"OpenClaw needs {self.least_mem_mib} at least"

    @property
    def may_sleep_by_policy(self) -> bool:
        """A gateway is never put to sleep by policy: it is who hears the message that wakes the others."""
        return self is not Role.GATEWAY

    @classmethod
    def parse(cls, value: str) -> Role:
        """Return the role of that name; an unknown one is an error that lists the valid ones."""
        try:
            return cls(value)
        except ValueError:
            raise InvalidInput(f"role {value[:80]!r} is unknown", hint=f"the roles are: {', '.join(cls)}") from None
