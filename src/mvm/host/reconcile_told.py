"""What is told of reconcile passes: each new deferral in the audit, each new failure as an event, neither twice."""

from __future__ import annotations

from mvm.host.audit import AuditAction
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.reconcile_actions import Deferral
from mvm.host.reconcile_report import Report
from mvm.model.ids import TenantId


class Teller:
    """Remembers what was told, so that what goes on is not told again at every pass."""

    def __init__(self, catalog: Catalog, chronicle: Chronicle) -> None:
        self._catalog = catalog
        self._chronicle = chronicle
        self._said: dict[str, str] = {}

    def tell(self, report: Report, *, actor: str, whole_host: bool) -> None:
        """Tell what is new in a report; one about the `whole_host` also says what is over."""
        now = {deferral.object: deferral.reason for deferral in report.deferrals}
        for deferral in report.deferrals:
            if self._said.get(deferral.object) != deferral.reason:
                self._defer(deferral, actor)
        for failure in report.failures:
            now[failure.object] = failure.error.message
            # Whoever asked for the pass finds its failures in the events, also one that was told before.
            if self._said.get(failure.object) != failure.error.message or not whole_host:
                tenant_id = TenantId(failure.object.partition("/")[0])
                detail = f"{failure.object}: {failure.error.message}"
                self._chronicle.tenant_event(tenant_id, "ReconcileFailed", actor=actor, detail=detail)
        self._said = now if whole_host else self._said | now

    def _defer(self, deferral: Deferral, actor: str) -> None:
        instance = self._catalog.instances.get(deferral.instance.instance_id) if deferral.instance else None
        if instance is not None:
            self._chronicle.record(instance, AuditAction.TRANSITION_DEFERRED, actor=actor, detail=deferral.reason)
        elif deferral.tenant_id in self._catalog.tenants:
            self._chronicle.record_tenant(
                deferral.tenant_id,
                AuditAction.TRANSITION_DEFERRED,
                actor=actor,
                pool_id=deferral.pool_id,
                detail=f"{deferral.object}: {deferral.reason}",
            )
