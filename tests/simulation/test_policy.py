"""Policy over time: alarms, short memory, budgets, and nobody who is put to sleep only to be woken at once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.simulation.world import ALICE, WORKERS, World
from tests.standins.waiting import until

from mvm.host.budgets import OverBudget
from mvm.host.chronicle import REASONS_TOLD
from mvm.host.policy_loop import RELIEF_SECONDS, TICK_SECONDS
from mvm.host.reports import Activity
from mvm.model.entities import Budget, Instance, Integration, Quotas, RuntimePolicy, User
from mvm.model.errors import Refused, Unavailable
from mvm.model.ids import InstanceRef, UserId
from mvm.model.policy import ALARM_GRACE_SECONDS, ALARM_LEAD_SECONDS, ALARM_SPREAD_SECONDS, MemoryState
from mvm.model.states import State
from mvm.wire import messages

BOB = UserId("bob")
AT_ONCE = RuntimePolicy(
    min_running_seconds=0, min_warm_seconds=0, warm_after_idle_seconds=0, sleep_after_idle_seconds=0
)
GIB = 2**30


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World(tmp_path).open()
    await world.tenant()
    yield world
    await world.close()


async def live(world: World, seconds: float) -> None:
    """Let time pass, tick by tick."""
    for _ in range(int(seconds / TICK_SECONDS)):
        world.time.pass_seconds(TICK_SECONDS)
        await world.policy.tick_and_wait()


# Alarms


async def sleeper_with_alarm(world: World, in_seconds: float) -> InstanceRef:
    ref = await world.worker()
    world.guest(ref).next_alarm_at = world.time.wall + timedelta(seconds=in_seconds)
    await world.lifecycle.sleep(ref, actor="test")
    return ref


async def test_an_alarm_wakes_in_time_also_after_the_agent_was_restarted(world: World) -> None:
    ref = await sleeper_with_alarm(world, 3600)
    await world.restart_agent()
    await live(world, 3600 - ALARM_LEAD_SECONDS - ALARM_SPREAD_SECONDS - 2 * TICK_SECONDS)
    assert world.state(ref) is State.SLEEPING
    await live(world, ALARM_SPREAD_SECONDS + 2 * TICK_SECONDS)
    assert world.state(ref) is State.RUNNING


async def test_an_alarm_that_came_while_no_agent_ran_is_made_up_for(world: World) -> None:
    ref = await sleeper_with_alarm(world, 60)
    world.time.pass_seconds(7200)
    await world.restart_agent()
    await world.policy.tick_and_wait()
    assert world.state(ref) is State.RUNNING


@pytest.mark.parametrize(("jump", "wakes"), [(timedelta(hours=2), True), (timedelta(hours=-2), False)])
async def test_an_alarm_is_a_time_of_the_wall_clock_whatever_that_does(
    world: World, jump: timedelta, wakes: bool
) -> None:
    ref = await sleeper_with_alarm(world, 3600)
    world.time.wall += jump
    await live(world, TICK_SECONDS)
    assert (world.state(ref) is State.RUNNING) is wakes
    if not wakes:
        await live(world, 3 * 3600)
        assert world.guest(ref).wakes == 1


async def test_popular_moments_are_spread_and_each_wake_is_in_time(world: World) -> None:
    await world.tenant(quotas=Quotas(max_running=50, max_instances_per_pool=50, max_vcpus=200, max_mem_mib=10**6))
    refs = [await sleeper_with_alarm(world, 600) for _ in range(12)]
    alarm = world.time.wall + timedelta(seconds=600)
    woken_at = {}
    while len(woken_at) < len(refs):
        await live(world, TICK_SECONDS)
        woken_at |= {ref: world.time.wall for ref in refs if ref not in woken_at and world.state(ref) is State.RUNNING}
    assert max(woken_at.values()) < alarm
    assert len(set(woken_at.values())) > 2


async def test_an_alarm_that_the_guest_never_clears_wakes_it_once_and_not_for_ever(world: World) -> None:
    await world.tenant(policy=AT_ONCE)
    ref = await sleeper_with_alarm(world, 120)
    states = []
    for _ in range(120):
        await live(world, TICK_SECONDS)
        states.append(world.state(ref))
    assert world.guest(ref).wakes == 1
    awake = states.count(State.RUNNING) * TICK_SECONDS
    assert ALARM_GRACE_SECONDS <= awake <= 2 * ALARM_GRACE_SECONDS + ALARM_LEAD_SECONDS + ALARM_SPREAD_SECONDS
    assert states[-1] is State.SLEEPING


async def test_a_woken_instance_has_its_chance_before_it_is_slept_again(world: World) -> None:
    await world.tenant(policy=AT_ONCE)
    ref = await world.worker(state=State.SLEEPING)
    await world.wakes.wake(ref, actor="message")
    world.says(ref, Activity.IDLE)
    await live(world, TICK_SECONDS)
    assert world.state(ref) is State.RUNNING, "its message is on its way"
    await live(world, 3 * TICK_SECONDS)
    assert world.state(ref) is State.SLEEPING


async def test_nobody_who_is_asleep_wakes_without_a_reason(world: World) -> None:
    ref = await world.worker(state=State.SLEEPING)
    await live(world, 3600)
    assert (world.state(ref), world.guest(ref).wakes) == (State.SLEEPING, 0)


# Memory


async def test_while_memory_is_short_the_coldest_go_to_sleep_before_they_are_due(world: World) -> None:
    cold, warm, hot, busy = [await world.worker() for _ in range(4)]
    world.guest(busy).refuse_sleep = "busy: a turn is under way"
    await world.lifecycle.warm(warm, actor="test")
    for ref in (cold, hot):
        world.says(ref, Activity.IDLE)
    world.time.pass_seconds(20)
    world.says(hot, Activity.BUSY)
    world.says(hot, Activity.IDLE)
    world.time.pass_seconds(5)
    world.memory = MemoryState(total_bytes=100 * GIB, available_bytes=4 * GIB)
    order: list[InstanceRef] = []
    for _ in range(4):
        world.says(busy, Activity.BUSY, in_flight=1)
        await world.policy.tick_and_wait()
        order += [ref for ref in (cold, warm, hot, busy) if world.state(ref) is State.SLEEPING and ref not in order]
        world.time.pass_seconds(RELIEF_SECONDS)
    assert set(order[:2]) == {cold, warm}
    assert order[2:] == [hot]
    assert world.state(busy) is State.RUNNING


async def test_one_goes_at_a_time_and_nobody_once_there_is_memory_again(world: World) -> None:
    refs = [await world.worker() for _ in range(3)]
    for ref in refs:
        world.says(ref, Activity.IDLE)
    world.memory = MemoryState(total_bytes=100 * GIB, available_bytes=50 * GIB, stalled_percent=40.0)
    for _ in range(3):
        await world.policy.tick_and_wait()
    assert sum(world.state(ref) is State.SLEEPING for ref in refs) == 1
    world.memory = MemoryState(total_bytes=100 * GIB, available_bytes=50 * GIB)
    world.time.pass_seconds(RELIEF_SECONDS)
    await world.policy.tick_and_wait()
    assert sum(world.state(ref) is State.SLEEPING for ref in refs) == 1


@pytest.mark.parametrize("protection", ["none", "pinned", "by hand", "just wanted"])
async def test_short_memory_is_no_reason_to_touch_who_is_protected(world: World, protection: str) -> None:
    ref = await world.worker()
    world.says(ref, Activity.IDLE)
    world.time.pass_seconds(30)
    if protection == "pinned":
        await world.catalog.save_pool(world.catalog.pool(ALICE, WORKERS).model_copy(update={"pinned": True}))
    elif protection == "by hand":
        await world.lifecycle.leave_alone(ref)
    elif protection == "just wanted":
        world.observer.wanted(ref.instance_id)
    world.memory = MemoryState(total_bytes=100 * GIB, available_bytes=GIB)
    await world.policy.tick_and_wait()
    assert world.state(ref) is (State.SLEEPING if protection == "none" else State.RUNNING)


# Refusals


def told(world: World) -> list[str]:
    """Details of the audit's lines about rests that did not come about."""
    return [line["detail"] for line in world.audit.recent(ALICE, 10_000) if line["action"] == "TransitionDeferred"]


def drains(world: World, ref: InstanceRef) -> int:
    return world.guest(ref).requests.count("SleepPrep")


@pytest.mark.parametrize("refusal", ["the guest", "a critical integration"])
async def test_a_rest_that_is_refused_is_tried_with_growing_pauses_and_told_once(world: World, refusal: str) -> None:
    if refusal == "a critical integration":
        pool = world.catalog.pool(ALICE, WORKERS)
        integrations = (Integration(name="notes", critical=True),)
        await world.catalog.save_pool(pool.model_copy(update={"integrations": integrations}))
    ref = await world.worker()
    world.says(ref, Activity.IDLE)
    world.guest(ref).refuse_sleep = "busy: a turn is under way"
    world.guest(ref).failed_integrations = ("notes",)
    await live(world, 3600)
    tried = [request for request in world.guest(ref).requests if request in ("SleepPrep", "CheckpointIntegrations")]
    assert 30 <= len(tried) <= 70, "about once a minute"
    assert len(told(world)) == 1
    world.guest(ref).refuse_sleep, world.guest(ref).failed_integrations = None, ()
    await live(world, 300)
    assert world.state(ref) is State.SLEEPING


async def test_a_guest_that_thinks_up_reasons_fills_no_log(world: World) -> None:
    ref, reasons = await world.worker(), itertools.count()
    guest = world.guest(ref)

    async def refuse_anew(request: messages.HostToGuest) -> None:
        guest.refuse_sleep = f"reason {next(reasons)}"

    guest.before = refuse_anew
    world.says(ref, Activity.IDLE)
    await live(world, 3600)
    assert drains(world, ref) > REASONS_TOLD
    assert len(told(world)) == REASONS_TOLD
    await world.lifecycle.stop(ref, actor="test", force=True)
    await world.lifecycle.start(ref, actor="test")
    with pytest.raises(Refused):
        await world.lifecycle.sleep(ref, actor="test")
    assert len(told(world)) == REASONS_TOLD + 1, "awake anew"


async def test_an_alarm_that_comes_and_goes_fills_no_log(world: World) -> None:
    ref = await world.worker()
    world.guest(ref).refuse_sleep = "busy: a turn is under way"
    for look in range(200):
        alarm = world.time.wall + timedelta(seconds=30) if look % 2 else None
        world.reports.record(ref.instance_id, Activity.IDLE, next_alarm_at=alarm)
        await live(world, TICK_SECONDS)
    assert len(told(world)) == 2


async def test_a_saving_that_fails_does_not_pause_and_resume_at_every_look(world: World) -> None:
    ref = await world.worker()
    world.says(ref, Activity.IDLE)
    for _ in range(720):
        world.runtime.fail["snapshot"] = Unavailable("the disk is full")
        await live(world, TICK_SECONDS)
    assert drains(world, ref) <= 70
    assert len(told(world)) == 1


async def test_while_memory_is_short_one_that_refuses_is_not_in_the_way_of_the_next(world: World) -> None:
    stubborn, other = await world.worker(), await world.worker()
    world.guest(stubborn).refuse_sleep = "busy: a turn is under way"
    world.says(stubborn, Activity.IDLE)
    world.time.pass_seconds(5)
    world.says(other, Activity.IDLE)
    world.time.pass_seconds(20)
    world.memory = MemoryState(total_bytes=100 * GIB, available_bytes=GIB)
    for _ in range(5):
        await world.policy.tick_and_wait()
        world.time.pass_seconds(RELIEF_SECONDS)
    assert (world.state(stubborn), world.state(other)) == (State.RUNNING, State.SLEEPING)


async def test_a_wake_that_waits_for_room_does_not_ask_one_that_refuses_every_second(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvm.host.wakes.ROOM_RETRY_SECONDS", 0.001)
    await world.tenant(quotas=Quotas(max_running=1))
    stubborn = await world.worker()
    wanted = await world.worker(state=State.READY)
    world.guest(stubborn).refuse_sleep = "busy: a turn is under way"
    world.says(stubborn, Activity.IDLE)
    looks, make_room = 0, world.wakes._make_room

    async def look(instance: Instance, *, actor: str) -> None:
        nonlocal looks
        looks += 1
        world.time.pass_seconds(1)
        await make_room(instance, actor=actor)

    world.wakes._make_room = look  # type: ignore[method-assign]
    waiting = asyncio.create_task(world.wakes.wake(wanted, actor="message"))
    await until(lambda: looks > 120, what="two minutes of waiting")
    assert 3 <= drains(world, stubborn) <= 6
    assert len(told(world)) == 1
    world.guest(stubborn).refuse_sleep = None
    assert (await waiting).state is State.RUNNING
    assert world.state(stubborn) is State.SLEEPING


# Budgets


async def worker_of_bob(world: World, **budget: int) -> InstanceRef:
    ref = (await world.lifecycle.create_instance(ALICE, WORKERS, user=BOB, actor="test")).ref
    await world.lifecycle.start(ref, actor="test")
    await world.lifecycle.sleep(ref, actor="test")
    user = User(
        tenant_id=ALICE,
        user_id=BOB,
        pool_id=WORKERS,
        instance_id=ref.instance_id,
        budget=Budget(**budget),
        created_at=world.time.wall,
    )
    await world.catalog.save_user(user)
    return ref


async def wake_and_sleep(world: World, ref: InstanceRef) -> None:
    await world.wakes.wake(ref, actor="message", for_user=True)
    await world.lifecycle.sleep(ref, actor="test", force=True)


async def test_wakes_beyond_the_budget_are_refused_until_the_hour_is_over(world: World) -> None:
    ref = await worker_of_bob(world, wakes_per_hour=2)
    await wake_and_sleep(world, ref)
    world.time.pass_seconds(600)
    await wake_and_sleep(world, ref)
    with pytest.raises(OverBudget, match="woken 2 times an hour; it can be woken again at 13:00 UTC"):
        await world.wakes.wake(ref, actor="message", for_user=True)
    assert world.state(ref) is State.SLEEPING
    world.time.pass_seconds(3001)
    await wake_and_sleep(world, ref)
    with pytest.raises(OverBudget, match="13:10"):
        await world.wakes.wake(ref, actor="message", for_user=True)


async def test_many_messages_at_once_are_one_wake_of_the_budget(world: World) -> None:
    ref = await worker_of_bob(world, wakes_per_hour=2)
    await asyncio.gather(*(world.wakes.wake(ref, actor=f"message {n}", for_user=True) for n in range(10)))
    await world.wakes.wake(ref, actor="message to one who is awake", for_user=True)
    await world.lifecycle.sleep(ref, actor="test", force=True)
    await wake_and_sleep(world, ref)
    with pytest.raises(OverBudget):
        await world.wakes.wake(ref, actor="message", for_user=True)


async def test_a_budget_is_kept_over_a_restart_and_a_clock_that_goes_back_does_not_refill_it(world: World) -> None:
    ref = await worker_of_bob(world, wakes_per_hour=1)
    await wake_and_sleep(world, ref)
    await world.restart_agent()
    world.time.wall -= timedelta(days=1)
    with pytest.raises(OverBudget):
        await world.wakes.wake(ref, actor="message", for_user=True)


async def test_a_day_that_is_used_up_refuses_the_next_wake_and_never_ends_a_turn(world: World) -> None:
    ref = await worker_of_bob(world, running_minutes_per_day=30)
    await world.wakes.wake(ref, actor="message", for_user=True)
    world.ran_today[BOB] = 1800
    assert (await world.wakes.wake(ref, actor="message", for_user=True)).state is State.RUNNING
    await world.lifecycle.warm(ref, actor="policy")
    with pytest.raises(OverBudget, match="30 minutes a day"):
        await world.wakes.wake(ref, actor="message", for_user=True)
    world.ran_today[BOB] = 0
    assert (await world.wakes.wake(ref, actor="message", for_user=True)).state is State.RUNNING


async def test_an_operator_is_not_held_back_by_a_budget_and_does_not_use_it_up(world: World) -> None:
    ref = await worker_of_bob(world, wakes_per_hour=0)
    assert (await world.wakes.wake(ref, actor="operator")).state is State.RUNNING
    await world.lifecycle.sleep(ref, actor="test", force=True)
    with pytest.raises(Refused):
        await world.wakes.wake(ref, actor="message", for_user=True)


async def test_an_alarm_beyond_the_budget_waits_and_is_not_tried_at_every_look(world: World) -> None:
    ref = await worker_of_bob(world, wakes_per_hour=0)
    instance = world.catalog.instance(ref)
    await world.catalog.save_instance(instance.model_copy(update={"next_alarm_at": world.time.wall}))
    await live(world, 300)
    assert world.state(ref) is State.SLEEPING
    refused = [event for event in world.events.recent(1000) if event.kind == "WakeRefused"]
    assert 2 <= len(refused) <= 10
