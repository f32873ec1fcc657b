"""The wake desk: what guests may ask of the host, on host port 53 (CONTRACT 9).

Who asks is known from the connection (each instance has a socket of its own), never from a field of the message. A
gateway may wake and query instances that its table grants; everybody may ask the time and report on themselves; the
rest is refused in the same words and the same time whether the target exists or not, and the refusal is audited.

A guest may be hostile: it is served no faster than it could have anything to say, and what it says of its own accord is
recorded up to a measure, so that it can push nobody else's events, nor its tenant's audit, out of the logs.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import structlog

from mvm.host.allowance import Allowance
from mvm.host.audit import AuditAction
from mvm.host.budgets import OverBudget
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.gateways import Gateways
from mvm.host.pairing import Pairing
from mvm.host.reports import Activity, Reports
from mvm.host.runtimes import NotIsolated
from mvm.host.wakes import Wakes
from mvm.model.entities import Instance
from mvm.model.errors import MvmError, QuotaExceeded, Refused
from mvm.model.ids import InstanceId, InstanceRef, PoolId, TenantId, UserId
from mvm.model.roles import Role
from mvm.runtime.base import Handler
from mvm.telemetry.logs import bound
from mvm.wire import messages, rpc
from mvm.wire.tagged import Answer

log = structlog.get_logger(__name__)

MAX_CONNECTIONS_PER_INSTANCE = 64
IDLE_TIMEOUT_SECONDS = 30.0
MAX_EVENT_DETAIL = 500
WAKE_SECONDS = 150.0
"""How long one connection waits for a wake, longer than a router does; the wake itself goes on."""
REQUESTS = (200, 50.0)
"""Requests of one guest: so many at once, then so many a second; the rest waits."""
EVENTS = (60, 1 / 60)
"""Events of one guest that are recorded: so many at once, then so many a second; the rest is counted."""
GATEWAY_EVENTS = (1000, 20.0)
"""The same for a gateway, which tells of everybody's messages."""
REFUSALS = (60, 1 / 60)
"""Refusals of one guest that are audited, likewise."""
HELD = "refused: it was stopped by its operator"
REFUSED = "refused: not an instance that you may wake or query"


@dataclass
class _Guest:
    """What the desk keeps of one guest, for as long as there is an instance."""

    requests: Allowance
    events: Allowance
    refusals: Allowance
    connections: int = 0
    unrecorded: int = 0
    """Events that were not recorded since the last one that was."""


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
        self._guests: dict[InstanceId, _Guest] = {}

    def handler_for(self, ref: InstanceRef) -> Handler:
        """The connection handler of one instance's host port: its identity is bound here."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            instance = self._catalog.instances.get(ref.instance_id)
            guest = None if instance is None else self._guest(instance)
            if guest is None or guest.connections >= MAX_CONNECTIONS_PER_INSTANCE:
                writer.close()
                return
            guest.connections += 1
            try:
                await rpc.serve_connection(
                    reader,
                    writer,
                    lambda request: self._answer(ref, request),
                    parse=messages.parse_host_request,
                    timeout=IDLE_TIMEOUT_SECONDS,
                )
            finally:
                guest.connections -= 1

        return handle

    def _guest(self, instance: Instance) -> _Guest:
        guest = self._guests.get(instance.instance_id)
        if guest is None:
            for gone in self._guests.keys() - self._catalog.instances.keys():
                del self._guests[gone]
            guest = self._guests[instance.instance_id] = _Guest(
                requests=self._allowance(REQUESTS),
                events=self._allowance(GATEWAY_EVENTS if instance.role is Role.GATEWAY else EVENTS),
                refusals=self._allowance(REFUSALS),
            )
        return guest

    def _allowance(self, measure: tuple[int, float]) -> Allowance:
        burst, per_second = measure
        return Allowance(self._clock.monotonic, burst=burst, per_second=per_second)

    async def _answer(self, ref: InstanceRef, request: messages.GuestToHost) -> Answer:
        try:
            return await self.answer(ref, request)
        except MvmError as error:
            raise rpc.Refusal(error.message) from error

    async def answer(self, ref: InstanceRef, request: messages.GuestToHost) -> Answer:
        """Answer one request of the instance `ref`."""
        caller = self._catalog.instance(ref)
        if wait := self._guest(caller).requests.owe():
            await asyncio.sleep(wait)
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
                self._record(caller, request)
                return messages.Ok()

    def _record(self, caller: Instance, event: messages.ReportEvent) -> None:
        guest = self._guest(caller)
        if not guest.events.take():
            guest.unrecorded += 1
            return
        if guest.unrecorded:
            self._chronicle.event(
                caller,
                "EventsNotRecorded",
                actor="mvm",
                detail=f"{guest.unrecorded} events that it reported: too many in too short a time",
            )
            guest.unrecorded = 0
        detail = (event.detail or "")[:MAX_EVENT_DETAIL]
        about = self._told_about(caller, event.worker)
        self._chronicle.guest_event(caller, event.kind, user=event.user, detail=detail, about=about)
        log.info("a guest tells", kind=event.kind, instance=str(caller.ref), trace=event.trace)

    def _told_about(self, caller: Instance, worker: str | None) -> Instance | None:
        """The worker that a gateway tells of, as `<tenant>.<user>`, when it serves that one."""
        tenant_id, _, user_id = (worker or "").partition(".")
        user = self._catalog.users.get((TenantId(tenant_id), UserId(user_id)))
        target = self._catalog.instances.get(user.instance_id) if user is not None and user.instance_id else None
        return target if target is not None and self._gateways.granted(caller, target) else None

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
            if self._guest(caller).refusals.take():
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
            async with asyncio.timeout(WAKE_SECONDS):
                with bound(tenant=target.tenant_id, instance=str(target.ref), trace=request.trace):
                    log.info("wake requested", gateway=str(caller.ref))
                    actor = f"message by {caller.instance_id}"
                    awake = await self._wakes.wake(target.ref, actor=actor, trace=request.trace, for_user=True)
                    log.info("wake answered", state=awake.state.value)
        except TimeoutError:
            return self._not_awake(caller, target, "it is not awake yet; the wake goes on")
        except OverBudget as error:
            # For the person, in words that their gateway passes on.
            raise Refused(f"{messages.OVER_BUDGET}{error.message}") from error
        except MvmError as error:
            self._chronicle.event(target, "WakeFailed", actor=str(caller.ref), detail=error.message)
            if isinstance(error, Refused) and not isinstance(error, QuotaExceeded | NotIsolated):
                # Final until a person does something about it: the gateway tells its writer at once and asks no more.
                raise Refused(HELD) from error
            return self._not_awake(caller, target, error.message)
        return messages.WakeResult(success=True, detail=None, guest_ip=awake.network.guest_ip, state=awake.state.value)

    def _not_awake(self, caller: Instance, target: Instance, reason: str) -> Answer:
        latest = self._catalog.instances.get(target.instance_id, target)
        # Why it failed (a quota, a path, a guest's words) is for the target's tenant alone.
        detail = reason if caller.tenant_id == target.tenant_id else "it could not be woken; its own events say why"
        return messages.WakeResult(
            success=False, detail=detail, guest_ip=latest.network.guest_ip, state=latest.state.value
        )

    async def _pairing_code(self, caller: Instance, request: messages.RequestPairing) -> Answer:
        if caller.role is not Role.GATEWAY:
            raise Refused(REFUSED)
        offer = await self._pairing.request(caller.tenant_id, request.peer, display_name=request.display_name)
        return messages.PairingCode(
            code=offer.code if offer else None,
            expires_at=offer.expires_at if offer else None,
            tenant_id=caller.tenant_id,
        )
