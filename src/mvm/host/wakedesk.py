"""The wake desk: what guests may ask of the host, on host port 53 (CONTRACT 9).

Who asks is known from the connection (each instance has a socket of its own), never from a field of the message. A
gateway may wake and query instances that its table grants; everybody may ask the time and report on themselves; the
rest is refused in the same words and the same time whether the target exists or not, and the refusal is audited.
"""

from __future__ import annotations

import asyncio
import time

from mvm.host.audit import AuditAction
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.gateways import Gateways
from mvm.host.pairing import Pairing
from mvm.host.reports import Activity, Reports
from mvm.host.wakes import Wakes
from mvm.model.entities import Instance
from mvm.model.errors import MvmError, Refused
from mvm.model.ids import InstanceId, InstanceRef, PoolId, TenantId
from mvm.model.roles import Role
from mvm.runtime.base import Handler
from mvm.wire import messages, rpc
from mvm.wire.tagged import Answer

MAX_CONNECTIONS_PER_INSTANCE = 64
IDLE_TIMEOUT_SECONDS = 30.0
MAX_EVENT_DETAIL = 500
REFUSED = "refused: not an instance that you may wake or query"


class WakeDesk:
    """Answers the requests of guests."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        wakes: Wakes,
        gateways: Gateways,
        pairing: Pairing,
        reports: Reports,
        chronicle: Chronicle,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._wakes = wakes
        self._gateways = gateways
        self._pairing = pairing
        self._reports = reports
        self._chronicle = chronicle
        self._clock = clock
        self._connections: dict[InstanceId, int] = {}

    def handler_for(self, ref: InstanceRef) -> Handler:
        """The connection handler of one instance's host port: its identity is bound here."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            open_now = self._connections.get(ref.instance_id, 0)
            if open_now >= MAX_CONNECTIONS_PER_INSTANCE:
                writer.close()
                return
            self._connections[ref.instance_id] = open_now + 1
            try:
                await rpc.serve_connection(
                    reader,
                    writer,
                    lambda request: self._answer(ref, request),
                    parse=messages.parse_host_request,
                    timeout=IDLE_TIMEOUT_SECONDS,
                )
            finally:
                if self._connections[ref.instance_id] == 1:
                    del self._connections[ref.instance_id]
                else:
                    self._connections[ref.instance_id] -= 1

        return handle

    async def _answer(self, ref: InstanceRef, request: messages.GuestToHost) -> Answer:
        try:
            return await self.answer(ref, request)
        except MvmError as error:
            raise rpc.Refusal(error.message) from error

    async def answer(self, ref: InstanceRef, request: messages.GuestToHost) -> Answer:
        """Answer one request of the instance `ref`."""
        caller = self._catalog.instance(ref)
        match request:
            case messages.QueryHostTime():
                moment = time.time_ns()
                return messages.HostTime(unix_seconds=moment // 10**9, unix_nanos=moment % 10**9)
            case messages.ReportStatus():
                return await self._take_report(caller, request)
            case messages.WakeInstance():
                return await self._wake(caller, request)
            case messages.QueryInstanceStatus():
                target = await self._granted(caller, request)
                return messages.InstanceStatus(status=target.state.value, guest_ip=target.network.guest_ip)
            case messages.RequestPairing():
                return await self._pairing_code(caller, request)
            case messages.ReportEvent():
                detail = (request.detail or "")[:MAX_EVENT_DETAIL]
                self._chronicle.guest_event(caller, request.kind, user=request.user, detail=detail)
                return messages.Ok()

    async def _take_report(self, caller: Instance, report: messages.ReportStatus) -> Answer:
        self._reports.record(
            caller.instance_id,
            Activity(report.status.value),
            in_flight=report.in_flight,
            next_alarm_at=report.next_alarm_at,
        )

        def note(instance: Instance) -> Instance | None:
            if not instance.state.has_process or instance.transition is not None:
                return None
            if instance.next_alarm_at == report.next_alarm_at:
                return None
            return instance.model_copy(update={"next_alarm_at": report.next_alarm_at})

        if note(caller) is not None:
            await self._catalog.amend_instance(caller.ref, note)
        return messages.Ok()

    async def _granted(
        self, caller: Instance, request: messages.WakeInstance | messages.QueryInstanceStatus
    ) -> Instance:
        """The target when the caller may know of it; the same refusal for a missing one and a forbidden one."""
        target = self._catalog.instances.get(InstanceId(request.instance_id))
        named = (TenantId(request.tenant_id), PoolId(request.pool_id))
        if (
            caller.role is not Role.GATEWAY
            or target is None
            or (target.tenant_id, target.pool_id) != named
            or not self._gateways.granted(caller, target)
        ):
            self._chronicle.record(
                caller,
                AuditAction.WAKE_REFUSED,
                actor=str(caller.ref),
                detail=f"{request.tenant_id}/{request.pool_id}/{request.instance_id}"[:200],
            )
            raise Refused(REFUSED)
        return target

    async def _wake(self, caller: Instance, request: messages.WakeInstance) -> Answer:
        target = await self._granted(caller, request)
        try:
            awake = await self._wakes.wake(target.ref, actor=f"message by {caller.instance_id}")
        except MvmError as error:
            self._chronicle.event(target, "WakeFailed", actor=str(caller.ref), detail=error.message)
            latest = self._catalog.instances.get(target.instance_id, target)
            return messages.WakeResult(
                success=False, detail=error.message, guest_ip=latest.network.guest_ip, state=latest.state.value
            )
        return messages.WakeResult(success=True, detail=None, guest_ip=awake.network.guest_ip, state=awake.state.value)

    async def _pairing_code(self, caller: Instance, request: messages.RequestPairing) -> Answer:
        if caller.role is not Role.GATEWAY:
            raise Refused(REFUSED)
        offer = await self._pairing.request(caller.tenant_id, request.peer, display_name=request.display_name)
        return messages.PairingCode(
            code=offer.code if offer else None,
            expires_at=offer.expires_at if offer else None,
            tenant_id=caller.tenant_id,
        )
