"""When an instance goes to rest: idle ones only, whatever the clocks do."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.model import addresses
from mvm.model.entities import Instance, Pool, RuntimePolicy, Transition, TransitionKind
from mvm.model.policy import Action, Candidate, Decision, Observation, alarm_wake_at, choose_eviction, decide
from mvm.model.roles import Role
from mvm.model.states import State

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
POLICY = RuntimePolicy(
    min_running_seconds=60, min_warm_seconds=30, warm_after_idle_seconds=300, sleep_after_idle_seconds=900
)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def pool(**more: Any) -> Pool:
    settings = {"role": Role.CAPABILITY_OPENCLAW, "runtime_policy": POLICY} | more
    return Pool(tenant_id="a", pool_id="w", created_at=NOW, **settings)


def instance(number: int = 1, state: State = State.RUNNING, **more: Any) -> Instance:
    settings: dict[str, Any] = {"role": Role.CAPABILITY_OPENCLAW, "entered_running_at": ago(7200)}
    if state is State.WARM:
        settings["entered_warm_at"] = ago(3600)
    return Instance(
        tenant_id="a",
        pool_id="w",
        instance_id=f"i-{number:08x}",
        state=state,
        network=addresses.instance_network(addresses.tenant_network(1), 3),
        created_at=ago(9999),
        **(settings | more),
    )


def idle(seconds: float | None, **more: Any) -> Observation:
    return Observation(status="idle", idle_for_seconds=seconds, **more)


def decision(
    of: Instance, seen: Observation, *, now: datetime = NOW, in_pool: Pool | None = None, **more: Any
) -> Decision:
    return decide(of, in_pool or pool(), seen, now=now, **more)


def test_a_running_instance_is_warmed_once_it_is_idle_for_long_enough() -> None:
    assert decision(instance(), idle(299)).action is Action.STAY
    assert decision(instance(), idle(300)).action is Action.WARM


def test_a_warm_instance_goes_to_sleep_once_it_is_idle_for_long_enough() -> None:
    assert decision(instance(state=State.WARM), idle(899)).action is Action.STAY
    assert decision(instance(state=State.WARM), idle(900)).action is Action.SLEEP


def test_a_warm_instance_is_judged_by_how_long_it_is_warm_where_its_idle_time_is_not_known() -> None:
    unknown = Observation(status="unknown")
    assert decision(instance(state=State.WARM, entered_warm_at=ago(899)), unknown).action is Action.STAY
    assert decision(instance(state=State.WARM, entered_warm_at=ago(900)), unknown).action is Action.SLEEP
    assert decision(instance(state=State.WARM, entered_warm_at=None), unknown).action is Action.SLEEP


@pytest.mark.parametrize(
    "seen",
    [
        Observation(),
        Observation(status="unknown", idle_for_seconds=9999),
        Observation(status="busy", idle_for_seconds=9999),
        Observation(status="something else", idle_for_seconds=9999),
        idle(9999, in_flight=1),
        idle(9999, host_sees_activity=True),
        idle(None),
    ],
)
def test_busy_and_unknown_instances_stay_awake(seen: Observation) -> None:
    found = decision(instance(), seen)
    assert found.action is Action.STAY
    assert found.reason


@pytest.mark.parametrize(
    ("of", "in_pool"),
    [
        (instance(role=Role.GATEWAY), pool(role=Role.GATEWAY)),
        (instance(), pool(pinned=True)),
        (instance(), pool(critical=True)),
        (instance(state=State.WARM), pool(pinned=True)),
        (instance(transition=Transition(kind=TransitionKind.WAKE, to=State.RUNNING, began_at=NOW, actor="x")), pool()),
        (instance(state=State.SLEEPING), pool()),
        (instance(state=State.STOPPED), pool()),
    ],
)
def test_policy_has_no_say_over_gateways_pinned_pools_and_transitions(of: Instance, in_pool: Pool) -> None:
    assert decision(of, idle(10**9), in_pool=in_pool).action is Action.STAY


def test_a_guard_defers_with_its_name_and_passes_when_its_time_is_over() -> None:
    early = decision(instance(entered_running_at=ago(59)), idle(300))
    assert (early.action, "min_running_seconds" in early.reason) == (Action.DEFER, True)
    assert decision(instance(entered_running_at=ago(60)), idle(300)).action is Action.WARM
    early = decision(instance(state=State.WARM, entered_warm_at=ago(29)), idle(900))
    assert (early.action, "min_warm_seconds" in early.reason) == (Action.DEFER, True)


def test_a_guard_of_zero_guards_nothing_and_a_missing_timestamp_is_eligible() -> None:
    free = pool(runtime_policy=POLICY.model_copy(update={"min_running_seconds": 0}))
    assert decision(instance(entered_running_at=NOW), idle(300), in_pool=free).action is Action.WARM
    assert decision(instance(entered_running_at=None), idle(300)).action is Action.WARM


def test_an_idle_time_of_zero_means_at_once() -> None:
    at_once = pool(runtime_policy=RuntimePolicy(min_running_seconds=0, warm_after_idle_seconds=0))
    assert decision(instance(), idle(0), in_pool=at_once).action is Action.WARM


jumps = st.integers(0, 10**9).map(lambda seconds: timedelta(seconds=seconds))
rests = {Action.WARM: 1, Action.SLEEP: 1, Action.DEFER: 0, Action.STAY: 0}


@given(
    st.sampled_from([State.RUNNING, State.WARM]),
    st.none() | st.floats(0, 2000),
    st.none() | st.floats(0, 2000),
    st.none() | st.integers(0, 2000),
    jumps,
)
def test_the_wall_clock_going_backwards_never_makes_anything_eligible(state, idle_for, in_state, entered, jump) -> None:
    entered_at = None if entered is None else ago(entered)
    of = instance(state=state, entered_running_at=entered_at, entered_warm_at=entered_at)
    seen = idle(idle_for, in_state_for_seconds=in_state)
    assert rests[decision(of, seen, now=NOW - jump).action] <= rests[decision(of, seen).action]


@given(st.floats(0, 299), jumps)
def test_the_wall_clock_going_forwards_makes_nobody_idle_for_longer(idle_for: float, jump: timedelta) -> None:
    assert decision(instance(), idle(idle_for), now=NOW + jump).action is Action.STAY


@given(jumps)
def test_a_guard_that_the_host_measured_is_not_passed_by_a_jump_of_the_wall_clock(jump: timedelta) -> None:
    seen = idle(300, in_state_for_seconds=59)
    assert decision(instance(), seen, now=NOW + jump).action is Action.DEFER
    assert decision(instance(), idle(300, in_state_for_seconds=60), now=NOW - jump).action is Action.WARM


def test_somebody_who_just_asked_for_it_keeps_it_awake() -> None:
    assert decision(instance(), idle(300, wanted_seconds_ago=1)).action is Action.DEFER
    assert decision(instance(state=State.WARM), idle(900, wanted_seconds_ago=1)).action is Action.DEFER
    assert decision(instance(), idle(300, wanted_seconds_ago=3600)).action is Action.WARM


@pytest.mark.parametrize(
    ("alarm_in", "action"), [(30, Action.DEFER), (3600, Action.SLEEP), (-5, Action.DEFER), (-61, Action.SLEEP)]
)
def test_an_alarm_that_is_due_keeps_it_from_sleep(alarm_in: int, action: Action) -> None:
    of = instance(state=State.WARM, next_alarm_at=ago(-alarm_in))
    assert decision(of, idle(900)).action is action


def test_without_room_for_warm_ones_it_goes_to_sleep_directly_but_not_sooner() -> None:
    assert decision(instance(), idle(300), warm_allowed=False).action is Action.DEFER
    assert decision(instance(), idle(900), warm_allowed=False).action is Action.SLEEP


def test_one_that_is_not_to_be_paused_runs_until_it_sleeps() -> None:
    assert decision(instance(), idle(899), keeps_warm=False).action is Action.STAY
    assert decision(instance(), idle(900), keeps_warm=False).action is Action.SLEEP


# Eviction


def candidate(number: int, seen: Observation, **more: Any) -> Candidate:
    return Candidate(instance=instance(number, **more), pool=pool(), observation=seen)


def numbers(chosen: list[Candidate]) -> list[int]:
    return [int(c.instance.instance_id[2:], 16) for c in chosen]


def test_the_coldest_goes_first_also_below_the_idle_threshold() -> None:
    chosen = choose_eviction([candidate(1, idle(5)), candidate(2, idle(50)), candidate(3, idle(20))], now=NOW)
    assert numbers(chosen) == [2, 3, 1]


def test_who_is_needed_is_never_evicted() -> None:
    needed = [
        candidate(1, Observation(status="busy")),
        candidate(2, Observation()),
        candidate(3, idle(999, in_flight=1)),
        candidate(4, idle(999), entered_running_at=ago(1)),
        candidate(5, idle(999, wanted_seconds_ago=2)),
        candidate(6, idle(999), next_alarm_at=ago(-10)),
        candidate(7, idle(999), state=State.SLEEPING),
        Candidate(instance=instance(8), pool=pool(pinned=True), observation=idle(999)),
        Candidate(instance=instance(9, role=Role.GATEWAY), pool=pool(role=Role.GATEWAY), observation=idle(999)),
    ]
    assert choose_eviction(needed, now=NOW) == []


def test_warm_ones_free_memory_but_no_running_place() -> None:
    crowd = [candidate(1, idle(50)), candidate(2, Observation(), state=State.WARM)]
    assert numbers(choose_eviction(crowd, now=NOW)) == [1]
    everybody = frozenset({State.RUNNING, State.WARM})
    assert numbers(choose_eviction(crowd, now=NOW, states=everybody)) == [2, 1]


@given(st.lists(st.floats(0, 10_000), max_size=8))
def test_the_order_of_eviction_is_by_idle_time_and_always_the_same(times: list[float]) -> None:
    crowd = [candidate(number, idle(seconds)) for number, seconds in enumerate(times)]
    chosen = choose_eviction(crowd, now=NOW)
    assert [c.observation.idle_for_seconds for c in chosen] == sorted(times, reverse=True)
    assert choose_eviction(reversed(crowd), now=NOW) == chosen


# Alarms


@given(st.randoms(use_true_random=False))
def test_a_wake_for_an_alarm_begins_in_time_and_not_much_too_early(chance: random.Random) -> None:
    begins = alarm_wake_at(NOW, chance, lead_seconds=20, spread_seconds=30)
    assert ago(50) <= begins <= ago(20)


def test_wakes_for_one_popular_moment_are_spread() -> None:
    chance = random.Random(1)
    begins = {alarm_wake_at(NOW, chance) for _ in range(100)}
    assert max(begins) - min(begins) > timedelta(seconds=20)


@pytest.mark.parametrize("alarm", [datetime.min, datetime.max])
def test_an_alarm_at_either_end_of_time_is_an_alarm_like_any_other(alarm: datetime) -> None:
    alarm = alarm.replace(tzinfo=UTC)
    begins = alarm_wake_at(alarm, random.Random(1))
    assert begins <= alarm
    assert (begins <= NOW) == (alarm < NOW)
