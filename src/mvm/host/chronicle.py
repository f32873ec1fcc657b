"""What happened, told once: to the tenant's audit and to the event stream that operators follow.

Everything audited is an event too. An event beyond the audit (a wake that failed, a message that could not be
delivered) is for whoever watches, and may be lost with the power; a line of the audit may not be changed afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from mvm.host.audit import AuditAction, AuditLog
from mvm.host.events import Event, EventLog
from mvm.model.entities import Instance
from mvm.model.ids import InstanceId, PoolId, TenantId, UserId

_log = logging.getLogger(__name__)

_AUDITED = frozenset(action.value for action in AuditAction)
_BEGIN_ANEW = frozenset(
    {
        AuditAction.INSTANCE_STARTED,
        AuditAction.INSTANCE_WOKEN,
        AuditAction.INSTANCE_RESUMED,
        AuditAction.INSTANCE_DESTROYED,
    }
)

REASONS_TOLD = 10
"""Reasons of one instance not to rest that are told for as long as it is awake: a guest can think up any number."""


class Chronicle:
    """The one place that records what happens on this host. Never waits for the disk.

    What happened has happened: a line that the disk does not take fails nothing. It is an error of the log, and the
    audit itself says how many are missing as soon as it can be written again.
    """

    def __init__(self, audit: AuditLog, events: EventLog) -> None:
        self.audit = audit
        self.events = events
        self.recorded: Callable[[AuditAction], None] = lambda action: None
        """Told what was audited; neither waits nor raises."""
        self.snapshot_saved: Callable[[int], None] = lambda size: None
        """Told how many bytes a snapshot takes; likewise."""
        self._deferrals: dict[InstanceId, set[str]] = {}
        """Reasons that were told of those that are awake."""

    def record(self, instance: Instance, action: AuditAction, *, actor: str, detail: str | None = None) -> None:
        """Audit something that was done to (or tried by) an instance."""
        if action in _BEGIN_ANEW:
            self._deferrals.pop(instance.instance_id, None)
        self.recorded(action)
        self._audit(
            instance.tenant_id, action, actor, detail, pool_id=instance.pool_id, instance_id=instance.instance_id
        )
        self.event(instance, action.value, actor=actor, detail=detail)

    def deferred(self, instance: Instance, reason: str, *, actor: str) -> None:
        """Audit why an instance does not rest although it should: once per reason, not at every try."""
        told = self._deferrals.setdefault(instance.instance_id, set())
        if reason not in told and len(told) < REASONS_TOLD:
            told.add(reason)
            self.record(instance, AuditAction.TRANSITION_DEFERRED, actor=actor, detail=reason)

    def snapshot(self, instance: Instance, size: int, *, actor: str) -> None:
        """A snapshot of that many bytes was saved and verified."""
        self.record(instance, AuditAction.SNAPSHOT_CREATED, actor=actor, detail=f"{size} bytes")
        self.snapshot_saved(size)

    def record_tenant(
        self,
        tenant_id: TenantId,
        action: AuditAction,
        *,
        actor: str,
        pool_id: PoolId | None = None,
        detail: str | None = None,
    ) -> None:
        """Audit something that was done to a tenant or one of its pools."""
        self.recorded(action)
        self._audit(tenant_id, action, actor, detail, pool_id=pool_id)
        self.events.record(action.value, tenant_id=tenant_id, pool_id=pool_id, actor=actor, detail=detail)

    def record_on_host(self, about: TenantId, action: AuditAction, *, audit: TenantId, actor: str, detail: str) -> None:
        """Audit something about a tenant in an audit that outlives its own."""
        self._audit(audit, action, actor, detail)
        self.events.record(action.value, tenant_id=about, actor=actor)

    def event(self, instance: Instance, kind: str, *, actor: str, detail: str | None = None) -> Event:
        """Tell whoever watches of something about an instance."""
        return self.events.record(
            kind,
            tenant_id=instance.tenant_id,
            pool_id=instance.pool_id,
            instance_id=instance.instance_id,
            user_id=instance.user,
            actor=actor,
            detail=detail,
        )

    def tenant_event(
        self,
        tenant_id: TenantId,
        kind: str,
        *,
        actor: str,
        detail: str | None = None,
        user: UserId | None = None,
    ) -> None:
        """Something about a tenant or one of its users; audited as well when it is of a kind that is."""
        if kind in _AUDITED:
            self._audit(tenant_id, AuditAction(kind), actor, detail)
        self.events.record(kind, tenant_id=tenant_id, user_id=user, actor=actor, detail=detail)

    def guest_event(
        self, instance: Instance, kind: str, *, user: str | None, detail: str, about: Instance | None = None
    ) -> None:
        """The word of a guest, which may be a lie: an event in the guest's own name, never a line of the audit.

        `about` is the worker that a gateway tells of, when it is one that it serves: then the event is that one's.
        """
        told = f"{user}: {detail}" if user else detail
        self.event(
            about or instance, f"Guest{kind}" if kind in _AUDITED else kind, actor=str(instance.ref), detail=told
        )

    def _audit(
        self,
        tenant_id: TenantId,
        action: AuditAction,
        actor: str,
        detail: str | None,
        *,
        pool_id: PoolId | None = None,
        instance_id: InstanceId | None = None,
    ) -> None:
        try:
            self.audit.record(tenant_id, action, actor, pool_id=pool_id, instance_id=instance_id, detail=detail)
        except OSError:
            _log.exception("%s cannot be written to the audit of %s", action, tenant_id)

    async def flush(self) -> None:
        """Everything told so far is on the disk when this returns."""
        await self.audit.flush()
        await self.events.flush()

    async def close(self) -> None:
        """Flush and end. Idempotent."""
        await self.audit.close()
        await self.events.close()
