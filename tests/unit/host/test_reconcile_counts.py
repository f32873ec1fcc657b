"""Which steps bring a pool to its counts."""

from datetime import UTC, datetime

import pytest

from mvm.host.reconcile_actions import Kind
from mvm.host.reconcile_counts import Step, plan_counts
from mvm.model.entities import DesiredCounts, Instance, InstanceNetwork
from mvm.model.ids import InstanceId, PoolId, TenantId, UserId
from mvm.model.roles import Role
from mvm.model.states import State


def instance(
    number: int, state: State, *, user: str | None = None, by_policy: bool = False, held: bool = False
) -> Instance:
    return Instance(
        tenant_id=TenantId("t"),
        pool_id=PoolId("p"),
        instance_id=InstanceId(f"i-{number:08x}"),
        role=Role.CAPABILITY_OPENCLAW,
        state=state,
        network=InstanceNetwork(guest_ip="10.240.1.3", gateway_ip="10.240.1.1"),
        user=None if user is None else UserId(user),
        rested_by_policy=by_policy,
        held=held,
        created_at=datetime(2026, 1, 31, tzinfo=UTC),
    )


def plan(instances: list[Instance], *, users: int = 0, **counts: int) -> list[Step]:
    return plan_counts(DesiredCounts(**counts), instances, users=users)


def test_what_is_so_already_needs_no_step() -> None:
    assert plan([instance(1, State.RUNNING)], running=1) == []


def test_what_is_missing_is_made_and_started() -> None:
    assert plan([], running=2) == [Step(None, State.RUNNING)] * 2


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (State.SLEEPING, Kind.WAKE),
        (State.WARM, Kind.RESUME),
        (State.READY, Kind.START),
        (State.STOPPED, Kind.START),
    ],
)
def test_what_is_there_is_brought_up_before_anything_is_made(state: State, kind: Kind) -> None:
    there = instance(1, state)
    assert plan([there], running=1) == [Step(there, State.RUNNING)]
    assert Step(there, State.RUNNING).kind is kind


def test_a_sleeper_is_woken_before_a_stopped_one_is_started() -> None:
    stopped, asleep = instance(1, State.STOPPED), instance(2, State.SLEEPING)
    assert plan([stopped, asleep], running=1) == [Step(asleep, State.RUNNING)]


def test_steps_come_in_the_order_wake_resume_start_create_stop_warm_sleep() -> None:
    spare = [instance(1, State.STOPPED), instance(2, State.WARM), instance(3, State.SLEEPING)]
    steps = plan(spare, running=4)
    assert [step.kind for step in steps] == [Kind.WAKE, Kind.RESUME, Kind.START, Kind.CREATE]
    up = [instance(number, State.RUNNING) for number in range(1, 5)]
    assert [step.kind for step in plan(up, running=1, warm=1, sleeping=1)] == [Kind.STOP, Kind.WARM, Kind.SLEEP]


@pytest.mark.parametrize("state", [State.SLEEPING, State.WARM])
def test_an_instance_that_policy_put_to_rest_counts_as_running(state: State) -> None:
    assert plan([instance(1, state, by_policy=True)], running=1) == []


def test_a_persons_worker_is_never_woken_for_a_count() -> None:
    assert plan([instance(1, State.SLEEPING, user="bob")], running=1, users=1) == []


def test_what_a_person_stopped_stays_stopped_and_is_not_replaced() -> None:
    assert plan([instance(1, State.STOPPED, held=True), instance(2, State.STOPPED)], running=1) == []


def test_what_is_to_be_left_alone_is_not_touched_and_makes_nobody_else_surplus() -> None:
    up, by_hand = instance(1, State.RUNNING), instance(2, State.RUNNING)
    assert plan_counts(DesiredCounts(running=1), [up, by_hand], users=0, fixed={by_hand.instance_id}) == []
    asleep = instance(3, State.SLEEPING)
    assert plan_counts(DesiredCounts(running=1), [asleep], users=0, fixed={asleep.instance_id}) == []


def test_a_pool_has_room_for_all_its_users() -> None:
    assert plan([], users=2) == [Step(None, State.READY)] * 2


def test_surplus_is_stopped_but_never_a_persons_worker() -> None:
    bound, free = instance(1, State.RUNNING, user="bob"), instance(2, State.RUNNING)
    assert plan([bound, free], users=1) == [Step(free, State.STOPPED)]


def test_of_what_is_surplus_the_idle_one_goes() -> None:
    idle, busy = instance(1, State.RUNNING), instance(2, State.RUNNING)
    steps = plan_counts(DesiredCounts(running=1), [idle, busy], users=0, idle={idle.instance_id})
    assert steps == [Step(idle, State.STOPPED)]


def test_surplus_becomes_warm_or_asleep_where_those_are_wanted() -> None:
    one, two, three = (instance(n, State.RUNNING) for n in (1, 2, 3))
    steps = plan([one, two, three], running=1, warm=1, sleeping=1)
    assert [step.to for step in steps] == [State.WARM, State.SLEEPING]
    assert one not in [step.instance for step in steps]


def test_one_that_is_warm_and_not_wanted_so_is_stopped() -> None:
    warm = instance(1, State.WARM)
    assert plan([warm]) == [Step(warm, State.STOPPED)]


def test_what_is_to_sleep_and_is_not_there_is_made_started_and_put_to_sleep() -> None:
    assert plan([], sleeping=1) == [Step(None, State.SLEEPING)]


def test_a_sleeper_that_is_wanted_asleep_is_left_alone() -> None:
    asleep, warm = instance(1, State.SLEEPING), instance(3, State.WARM)
    assert plan([asleep, instance(2, State.RUNNING), warm], running=1, warm=1, sleeping=1) == []
