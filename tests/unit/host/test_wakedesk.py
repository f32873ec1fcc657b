"""The wake desk: what guests may ask of the host, and what they cannot do to it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from tests.unit.host.services import ALICE, WORKERS, Services

from mvm.host.wakedesk import WakeDesk
from mvm.host.wakes import Wakes
from mvm.model.entities import Instance, Transition, TransitionKind
from mvm.model.states import State
from mvm.wire import messages

ALARM = datetime(2026, 2, 1, 7, 0, tzinfo=UTC)


class ScriptedWakes:
    """Wakes that end as the test says."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def wake(self, ref: object, *, actor: str) -> Instance:
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
