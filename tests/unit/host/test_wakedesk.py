"""The wake desk: what guests may ask of the host, and what they cannot do to it."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.host.services import ALICE, WORKERS, Services

from mvm.host import wakedesk
from mvm.host.budgets import OverBudget
from mvm.host.runtimes import NotIsolated
from mvm.host.wakedesk import REFUSED, WakeDesk
from mvm.host.wakes import Wakes
from mvm.model.entities import Instance, Transition, TransitionKind
from mvm.model.errors import QuotaExceeded, Refused
from mvm.model.ids import TenantId, UserId
from mvm.model.states import State
from mvm.wire import messages, rpc

ALARM = datetime(2026, 2, 1, 7, 0, tzinfo=UTC)


class ScriptedWakes:
    """Wakes that end as the test says."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def wake(self, ref: object, *, actor: str, trace: str | None = None, for_user: bool = False) -> Instance:
        assert for_user, "what a gateway asks for is within its user's budget"
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return await self._services.operations.start(ref, actor=actor)  # type: ignore[arg-type]


@pytest.fixture
def wakes(services: Services) -> ScriptedWakes:
    return ScriptedWakes(services)


@pytest.fixture
def desk(services: Services, wakes: ScriptedWakes) -> WakeDesk:
    stand_in: Wakes = wakes  # type: ignore[assignment]
    return WakeDesk(
        catalog=services.catalog,
        wakes=stand_in,
        gateways=services.gateways,
        pairing=services.pairing,
        reports=services.reports,
        chronicle=services.chronicle,
        clock=services.time.clock(),
    )


async def a_worker(services: Services) -> Instance:
    """A worker of alice's that runs."""
    await services.tenant(workers=1)
    (worker,) = services.catalog.instances_of(ALICE, WORKERS)
    return worker


def busy_until(alarm: datetime) -> messages.ReportStatus:
    return messages.ReportStatus(status=messages.WorkStatus.BUSY, in_flight=1, next_alarm_at=alarm)


async def served(desk: WakeDesk, instance: Instance) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A guest's end of a connection to its host port."""
    ours, theirs = socket.socketpair()
    handler = desk.handler_for(instance.ref)
    reader, writer = await asyncio.open_connection(sock=theirs)
    task = asyncio.ensure_future(handler(reader, writer))
    task.add_done_callback(lambda done: done.exception())
    return await asyncio.open_connection(sock=ours)


async def shared_gateway(services: Services) -> tuple[Instance, Instance]:
    """The gateway of `hub`, and bob's worker, which it serves."""
    hub, bob = TenantId("hub"), TenantId("bob")
    await services.tenant("hub")
    await services.tenant("bob", gateway=False)
    for tenant_id, changes in ((hub, {"accepts": (bob,)}), (bob, {"gateway_tenant": hub})):
        tenant = services.catalog.tenant(tenant_id)
        await services.catalog.save_tenant(tenant.model_copy(update=changes))
    user = await services.users.add(bob, UserId("bob"), telegram=["222"], actor="test")
    assert user.instance_id is not None
    return services.gateway(hub), services.catalog.instances[user.instance_id]


def wake_of(target: Instance) -> messages.WakeInstance:
    return messages.WakeInstance(tenant_id=target.tenant_id, pool_id=target.pool_id, instance_id=target.instance_id)


def status_of(target: Instance) -> messages.QueryInstanceStatus:
    return messages.QueryInstanceStatus(
        tenant_id=target.tenant_id, pool_id=target.pool_id, instance_id=target.instance_id
    )


async def test_a_gateway_wakes_whom_it_serves(services: Services, desk: WakeDesk) -> None:
    gateway, worker = await shared_gateway(services)
    answer = await desk.answer(gateway.ref, wake_of(worker))
    assert isinstance(answer, messages.WakeResult)
    assert (answer.success, answer.guest_ip) == (True, worker.network.guest_ip)


async def test_what_is_not_granted_and_what_is_not_there_are_refused_alike(services: Services, desk: WakeDesk) -> None:
    gateway, worker = await shared_gateway(services)
    stranger = await a_worker(services)
    absent = stranger.model_copy(update={"instance_id": "i-ffffffff"})
    for caller, target in ((gateway, stranger), (gateway, absent), (worker, worker), (worker, absent)):
        for request in (wake_of(target), status_of(target)):
            with pytest.raises(Refused) as caught:
                await desk.answer(caller.ref, request)
            assert caught.value.message == REFUSED
    assert services.kinds(TenantId("bob")).count("WakeRefused") == 4


async def test_why_a_wake_failed_is_told_to_its_own_tenant_only(
    services: Services, desk: WakeDesk, wakes: ScriptedWakes
) -> None:
    gateway, worker = await shared_gateway(services)
    wakes.error = QuotaExceeded("tenant 'bob' may run 8 instances and runs 8")
    answer = await desk.answer(gateway.ref, wake_of(worker))
    assert isinstance(answer, messages.WakeResult)
    assert not answer.success
    assert "8" not in (answer.detail or "")
    (failed,) = [e for e in services.chronicle.events.recent(tenant_id=TenantId("bob")) if e.kind == "WakeFailed"]
    assert "runs 8" in (failed.detail or "")


async def test_a_wake_that_waits_for_room_does_not_hold_a_connection_for_ever(
    services: Services, desk: WakeDesk, wakes: ScriptedWakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, worker = await shared_gateway(services)
    monkeypatch.setattr(wakedesk, "WAKE_SECONDS", 0.01)
    wakes.gate.clear()
    answer = await desk.answer(gateway.ref, wake_of(worker))
    assert isinstance(answer, messages.WakeResult)
    assert not answer.success


async def test_what_a_gateway_tells_of_a_worker_is_that_tenant_s_event(services: Services, desk: WakeDesk) -> None:
    gateway, worker = await shared_gateway(services)
    await a_worker(services)
    for told in ("bob.bob", "alice.alice", "nobody.nobody"):
        sent = messages.ReportEvent(kind="AnswerSent", user="x", detail="k", worker=told, trace="mvm-telegram:7")
        await desk.answer(gateway.ref, sent)
    about = [(e.tenant_id, e.instance_id) for e in services.chronicle.events.recent() if e.kind == "AnswerSent"]
    hub = (TenantId("hub"), gateway.instance_id)
    assert about == [(TenantId("bob"), worker.instance_id), hub, hub], "only of whom it serves"
    (event,) = [e for e in services.chronicle.events.recent(tenant_id=TenantId("bob")) if e.kind == "AnswerSent"]
    assert (event.user_id, event.actor) == ("bob", str(gateway.ref))


async def test_a_flood_of_events_and_refusals_is_not_recorded(services: Services, desk: WakeDesk) -> None:
    worker = await a_worker(services)
    event = messages.ReportEvent(kind="ServiceFailed", user=None, detail="again")
    for _ in range(150):
        services.time.passes(timedelta(milliseconds=30))
        await desk.answer(worker.ref, event)
        with pytest.raises(Refused):
            await desk.answer(worker.ref, wake_of(worker))
    kinds = services.kinds(ALICE)
    assert kinds.count("ServiceFailed") == 60
    assert kinds.count("WakeRefused") == 60
    services.time.passes(timedelta(minutes=2))
    await desk.answer(worker.ref, event)
    summary, last = services.chronicle.events.recent(2)
    assert (summary.kind, last.kind) == ("EventsNotRecorded", "ServiceFailed")
    assert (summary.detail or "").startswith("90 events")


async def test_one_guest_has_so_many_connections_and_no_more(services: Services, desk: WakeDesk) -> None:
    worker = await a_worker(services)
    connections = [await served(desk, worker) for _ in range(wakedesk.MAX_CONNECTIONS_PER_INSTANCE)]
    refused_reader, refused_writer = await served(desk, worker)
    assert await refused_reader.read() == b""
    refused_writer.close()
    reader, writer = connections[0]
    assert isinstance(await rpc.call(reader, writer, messages.QueryHostTime(), timeout=10), messages.HostTime)
    for _, open_writer in connections:
        open_writer.close()
        await open_writer.wait_closed()


async def test_the_alarm_that_a_guest_reports_is_kept(services: Services, desk: WakeDesk) -> None:
    worker = await a_worker(services)
    await desk.answer(worker.ref, busy_until(ALARM))
    assert services.catalog.instance(worker.ref).next_alarm_at == ALARM


async def test_a_report_does_not_undo_a_transition_that_is_being_written(
    services: Services, desk: WakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await a_worker(services)
    written = services.store.put
    writing, go_on = asyncio.Event(), asyncio.Event()

    async def slow_put(*args: object, **kwargs: object) -> int:
        if not writing.is_set():
            writing.set()
            await go_on.wait()
        return await written(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(services.store, "put", slow_put)
    intent = Transition(kind=TransitionKind.SLEEP, to=State.SLEEPING, began_at=services.time.wall, actor="test")
    begun = asyncio.create_task(services.catalog.save_instance(worker.model_copy(update={"transition": intent})))
    await writing.wait()
    told = asyncio.create_task(desk.answer(worker.ref, busy_until(ALARM)))
    while not services.reports.latest(worker.instance_id).in_flight:
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(begun, told)
    assert services.catalog.instance(worker.ref).transition == intent


async def test_a_report_of_one_that_is_being_destroyed_does_not_bring_it_back(
    services: Services, desk: WakeDesk
) -> None:
    worker = await a_worker(services)
    gone = asyncio.create_task(services.catalog.remove_instance(worker.ref))
    told = asyncio.create_task(desk.answer(worker.ref, busy_until(ALARM)))
    await asyncio.gather(gone, told)
    assert worker.instance_id not in services.catalog.instances
    assert await services.store.list("instances/alice/workers/") == []


async def test_one_that_its_operator_stopped_is_refused_for_good(
    services: Services, desk: WakeDesk, wakes: ScriptedWakes
) -> None:
    gateway, worker = await shared_gateway(services)
    wakes.error = Refused("bob/workers/i-00000001 was stopped by its operator")
    with pytest.raises(Refused, match="stopped by its operator"):
        await desk.answer(gateway.ref, wake_of(worker))
    assert services.kinds(TenantId("bob")).count("WakeFailed") == 1


async def test_one_that_may_not_run_on_this_host_now_is_asked_for_again(
    services: Services, desk: WakeDesk, wakes: ScriptedWakes
) -> None:
    gateway, worker = await shared_gateway(services)
    wakes.error = NotIsolated("runtime 'qemu' does not isolate tenants and production mode refuses it")
    answer = await desk.answer(gateway.ref, wake_of(worker))
    assert isinstance(answer, messages.WakeResult)
    assert not answer.success


async def test_a_budget_that_is_used_up_is_told_in_words_for_the_person(
    services: Services, desk: WakeDesk, wakes: ScriptedWakes
) -> None:
    worker = await a_worker(services)
    wakes.error = OverBudget("it may be woken 3 times an hour")
    request = messages.WakeInstance(tenant_id=worker.tenant_id, pool_id=worker.pool_id, instance_id=worker.instance_id)
    with pytest.raises(Refused) as refused:
        await desk.answer(services.gateway().ref, request)
    assert refused.value.message == f"{messages.OVER_BUDGET}it may be woken 3 times an hour"
    assert "WakeFailed" not in services.kinds()
