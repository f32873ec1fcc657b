"""What was used is counted once, whatever dies."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from tests.unit.host.services import ALICE, WORKERS, Services

from mvm.host.accounting import ANSWER_SENT, KEEP_DAYS, Accounting
from mvm.model.entities import Instance, StageTiming, Timeline, TransitionKind
from mvm.model.ids import UserId
from mvm.model.states import State
from mvm.model.usage import Usage

TODAY = date(2026, 1, 31)


@pytest.fixture
async def worker(services: Services) -> Instance:
    """Alice's worker, which runs."""
    await services.tenant(gateway=False, workers=1)
    await services.users.add(ALICE, UserId("alice"), telegram=["111"], actor="test")
    (worker,) = services.catalog.instances_of(ALICE, WORKERS)
    began = services.time.wall
    return await services.catalog.save_instance(worker.model_copy(update={"entered_running_at": began}))


async def counting(services: Services) -> Accounting:
    """The accounting of an agent that starts now."""
    services.catalog.watchers.clear()
    accounting = Accounting(services.catalog, services.chronicle.events, services.store, services.time.clock())
    await accounting.begin()
    return accounting


async def become(services: Services, worker: Instance, state: State, **changes: object) -> Instance:
    now = services.time.wall
    moment = {State.RUNNING: "entered_running_at", State.WARM: "entered_warm_at", State.SLEEPING: "slept_at"}
    known = services.catalog.instance(worker.ref)
    changes = {"state": state, **({moment[state]: now} if state in moment else {}), **changes}
    return await services.catalog.save_instance(known.model_copy(update=changes))


def wake(services: Services) -> Timeline:
    stages = (StageTiming(stage="restore", milliseconds=1.0),)
    return Timeline(kind=TransitionKind.WAKE, began_at=services.time.wall, stages=stages)


async def used(accounting: Accounting, since: date = TODAY) -> Usage:
    (row,) = await accounting.rows(ALICE, since=since)
    assert (row.user_id, row.pool_id) == ("alice", None)
    return row.usage


async def test_running_and_warm_time_wakes_and_answers_are_counted(services: Services, worker: Instance) -> None:
    accounting = await counting(services)
    services.time.passes(timedelta(seconds=100))
    await become(services, worker, State.WARM)
    services.time.passes(timedelta(seconds=50))
    await become(services, worker, State.SLEEPING)
    services.time.passes(timedelta(hours=5))
    await become(services, worker, State.RUNNING, last_wake=wake(services))
    services.time.passes(timedelta(seconds=10))
    services.chronicle.event(services.catalog.instance(worker.ref), ANSWER_SENT, actor="gateway")
    services.chronicle.event(services.catalog.instance(worker.ref), "DeliveryFailed", actor="gateway")
    expected = Usage(running_seconds=110, memory_mib_seconds=160 * 1024, wakes=1, messages=1)
    assert await used(accounting) == expected
    assert await used(accounting) == expected, "looking at it counts nothing twice"


async def test_an_agent_that_is_killed_costs_no_second_of_an_instance_that_runs_on(
    services: Services, worker: Instance
) -> None:
    accounting = await counting(services)
    services.time.passes(timedelta(seconds=100))
    await accounting.flush()
    services.time.passes(timedelta(seconds=20))
    services.chronicle.event(worker, ANSWER_SENT, actor="gateway")
    # The agent is killed here, and starts again a minute later; the instance ran all the time.
    services.time.passes(timedelta(seconds=60))
    accounting = await counting(services)
    services.time.passes(timedelta(seconds=5))
    assert await used(accounting) == Usage(running_seconds=185, memory_mib_seconds=185 * 1024, messages=1)


async def test_what_happened_just_before_a_crash_is_taken_from_the_record(services: Services, worker: Instance) -> None:
    accounting = await counting(services)
    await accounting.flush()
    services.catalog.watchers.clear()
    services.time.passes(timedelta(seconds=7))
    await become(services, worker, State.SLEEPING)
    services.time.passes(timedelta(seconds=2))
    await become(services, worker, State.RUNNING, last_wake=wake(services))
    services.time.passes(timedelta(seconds=5))
    await become(services, worker, State.WARM)
    services.time.passes(timedelta(seconds=3))
    accounting = await counting(services)
    assert await used(accounting) == Usage(running_seconds=5, memory_mib_seconds=8 * 1024, wakes=1)


async def test_one_that_died_with_its_host_is_not_charged_for_the_time_it_was_off(
    services: Services, worker: Instance
) -> None:
    accounting = await counting(services)
    services.time.passes(timedelta(seconds=100))
    await accounting.flush()
    services.catalog.watchers.clear()
    services.time.passes(timedelta(hours=9))
    await become(services, worker, State.STOPPED)
    assert (await used(await counting(services))).running_seconds == 100


async def test_a_wall_clock_that_jumps_changes_nothing(services: Services, worker: Instance) -> None:
    accounting = await counting(services)
    services.time.passes(timedelta(seconds=30))
    services.time.wall -= timedelta(hours=6)
    await accounting.flush()
    services.time.wall += timedelta(hours=6)
    services.time.passes(timedelta(seconds=30))
    assert (await used(accounting)).running_seconds == 60
    services.time.wall -= timedelta(hours=1)
    accounting = await counting(services)
    assert (await used(accounting)).running_seconds == 60


async def test_a_night_is_divided_between_its_days(services: Services, worker: Instance) -> None:
    accounting = await counting(services)
    services.time.passes(timedelta(hours=13))
    assert (await used(accounting)).running_seconds == 13 * 3600
    assert (await used(accounting, TODAY + timedelta(days=1))).running_seconds == 3600


async def test_a_writing_that_fails_is_made_up_for(
    services: Services, worker: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounting = await counting(services)
    services.time.passes(timedelta(seconds=10))

    async def full(*_: object, **__: object) -> list[int]:
        raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(services.store, "put_many", full)
        with pytest.raises(OSError, match="full"):
            await accounting.flush()
    services.time.passes(timedelta(seconds=10))
    assert (await used(accounting)).running_seconds == 20


async def test_figures_that_are_too_old_are_forgotten(services: Services, worker: Instance) -> None:
    accounting = await counting(services)
    services.time.passes(timedelta(seconds=10))
    await become(services, worker, State.SLEEPING)
    await accounting.flush()
    services.time.passes(timedelta(days=KEEP_DAYS))
    await accounting.forget_old()
    assert (await used(accounting)).running_seconds == 10
    services.time.passes(timedelta(days=1))
    await accounting.forget_old()
    assert await accounting.rows(ALICE, since=TODAY) == []
