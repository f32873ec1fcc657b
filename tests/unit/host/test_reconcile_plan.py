"""The pure planner: what a pass would do, put off, and leave alone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.unit.host.reconcile_world import (
    ALICE,
    GATEWAYS,
    NOW,
    WORKERS,
    instance,
    kinds,
    plan,
    pool_spec,
    present,
    reasons,
    user,
    wanted,
)

from mvm.host.reconcile_actions import Kind, Plan, Prune
from mvm.host.reconcile_plan import plan_upkeep
from mvm.host.reconcile_records import Present
from mvm.model.entities import Budget, DesiredCounts, Quotas, Transition, TransitionKind, UserSpec
from mvm.model.ids import PoolId, UserId
from mvm.model.roles import Role
from mvm.model.states import State

# Records


def test_what_is_not_there_is_made_tenant_first_and_gateways_before_workers() -> None:
    specs = (
        pool_spec(WORKERS, desired=DesiredCounts(running=1)),
        pool_spec(GATEWAYS, desired=DesiredCounts(running=1)),
    )
    made = plan(wanted(*specs), Present(), differing_secrets=["telegram/TELEGRAM_BOT_TOKEN"])
    assert [(a.kind, a.object) for a in made.actions] == [
        (Kind.CREATE_TENANT, "alice"),
        (Kind.CREATE_POOL, "alice/gateways"),
        (Kind.CREATE_POOL, "alice/workers"),
        (Kind.SET_SECRETS, "alice"),
        (Kind.CREATE, "alice/gateways"),
        (Kind.CREATE, "alice/workers"),
    ]
    assert all(action.reason for action in made.actions)


def test_what_is_as_it_should_be_needs_nothing() -> None:
    worker = instance(1, user=UserId("bob"))
    spec = pool_spec(desired=DesiredCounts(running=1))
    bob = user("bob", worker)
    assert plan(wanted(spec, users=(bob.spec,)), present(spec, instances=(worker,), users=(bob,))) == Plan()


def test_what_nobody_asks_for_is_left_alone_and_told_unless_it_may_be_pruned() -> None:
    worker = instance(1, user=UserId("bob"))
    old, new = pool_spec(WORKERS), pool_spec(PoolId("others"))
    there = present(old, new, instances=(worker,), users=(user("bob", worker),))
    kept = plan(wanted(new), there)
    assert kept.actions == []
    assert [one.object for one in kept.unknown] == ["alice/workers", "alice/users/bob"]
    pruned = plan(wanted(new), there, prune=Prune(pools=True))
    assert [(a.kind, a.object) for a in pruned.actions] == [
        (Kind.REMOVE_USER, "bob"),
        (Kind.DESTROY_POOL, "alice/workers"),
    ]


def test_a_user_whom_nobody_asks_for_goes_only_with_leave() -> None:
    worker = instance(1, user=UserId("bob"))
    there = present(pool_spec(), instances=(worker,), users=(user("bob", worker),))
    assert plan(wanted(pool_spec()), there, prune=Prune(pools=True)).actions == []
    assert kinds(plan(wanted(pool_spec()), there, prune=Prune(pools=True, users=True))) == [Kind.REMOVE_USER]


@pytest.mark.parametrize("guard", ["pinned", "critical"])
def test_a_pinned_or_critical_pool_is_not_pruned(guard: str) -> None:
    kept = plan(wanted(), present(pool_spec(**{guard: True})), prune=Prune(pools=True))
    assert kept.actions == []
    assert f"it is {guard}" in reasons(kept)


def test_a_change_that_would_lose_something_is_a_contradiction_at_its_place() -> None:
    there = present(pool_spec(GATEWAYS), users=(user("bob"),))
    asked = wanted(
        pool_spec(GATEWAYS, role=Role.WORKER), users=(UserSpec(user_id=UserId("bob"), pool_id=GATEWAYS),), net_id=9
    )
    found = plan(asked, there)
    assert [c.location for c in found.contradictions] == [("network",), ("pools", 0, "role"), ("users", 0, "pool_id")]


def test_a_changed_budget_is_a_change_of_the_user() -> None:
    worker = instance(1, user=UserId("bob"))
    bob = user("bob", worker, telegram=("5",))
    asked = bob.spec.model_copy(update={"budget": Budget(wakes_per_hour=3), "telegram": ()})
    found = plan(wanted(pool_spec(), users=(asked,)), present(pool_spec(), instances=(worker,), users=(bob,)))
    assert kinds(found) == [Kind.UPDATE_USER]
    assert found.actions[0].subject.telegram == ("5",), "who is paired stays paired"


def test_a_critical_pool_is_changed_only_by_making_it_not_critical() -> None:
    there = present(pool_spec(critical=True))
    stays = plan(wanted(pool_spec(critical=True, mem_mib=4096)), there)
    assert stays.actions == []
    assert "critical = false" in reasons(stays)
    assert kinds(plan(wanted(pool_spec(mem_mib=4096)), there)) == [Kind.UPDATE_POOL]


# Instances


@pytest.mark.parametrize(
    "left_alone",
    [
        {"manual_until": NOW + timedelta(seconds=1)},
        {"transition": Transition(kind=TransitionKind.STOP, to=State.STOPPED, began_at=NOW, actor="x")},
        {"held": True},
    ],
)
def test_what_a_person_or_an_operation_has_in_hand_is_left_alone(left_alone: dict[str, Any]) -> None:
    spec = pool_spec(desired=DesiredCounts(running=1))
    there = present(spec, instances=(instance(1, State.STOPPED, **left_alone),))
    assert plan_upkeep(ALICE, there, now=NOW).actions == []


def test_the_manual_window_ends() -> None:
    spec = pool_spec(desired=DesiredCounts(running=1))
    there = present(spec, instances=(instance(1, State.STOPPED, manual_until=NOW),))
    assert kinds(plan_upkeep(ALICE, there, now=NOW)) == [Kind.START]


def test_what_failed_lately_is_not_tried_again_yet() -> None:
    spec = pool_spec(desired=DesiredCounts(running=1))
    stopped = instance(1, State.STOPPED)
    there = present(spec, instances=(stopped,), waiting={str(stopped.ref): "it failed lately"})
    assert plan_upkeep(ALICE, there, now=NOW).actions == []


def test_what_a_quota_has_no_room_for_is_put_off_once_and_names_it() -> None:
    spec = pool_spec(desired=DesiredCounts(running=4))
    found = plan(wanted(spec, quotas=Quotas(max_running=2)), present(spec, quotas=Quotas(max_running=2)))
    assert kinds(found) == [Kind.CREATE] * 2
    assert len(found.deferrals) == 1
    assert "2 instances wait: quota max_running" in reasons(found)
    assert found.deferrals[0].for_room


def test_a_worker_that_never_ran_is_started_once_whatever_the_counts_are() -> None:
    new = instance(1, State.READY, user=UserId("bob"))
    bob = user("bob", new)
    there = present(pool_spec(), instances=(new,), users=(bob,))
    assert kinds(plan(wanted(pool_spec(), users=(bob.spec,)), there)) == [Kind.START_WORKER]
    assert plan_upkeep(ALICE, there, now=NOW).actions == []


def test_a_user_whose_worker_is_gone_gets_another_one() -> None:
    found = plan_upkeep(ALICE, present(pool_spec(), users=(user("bob"),)), now=NOW)
    assert kinds(found) == [Kind.BIND_USER]


@pytest.mark.parametrize("guard", ["pinned", "critical"])
def test_surplus_of_a_pinned_or_critical_pool_stays_and_is_told(guard: str) -> None:
    spec = pool_spec(**{guard: True})
    found = plan_upkeep(ALICE, present(spec, instances=(instance(1),)), now=NOW)
    assert found.actions == []
    assert guard in reasons(found)


# Rolls


def test_a_new_size_restarts_one_idle_instance_at_a_time_and_the_others_follow() -> None:
    larger = pool_spec(mem_mib=4096, desired=DesiredCounts(running=2))
    found = plan_upkeep(ALICE, present(larger, instances=(instance(1), instance(2))), now=NOW)
    assert [(a.kind, a.instance) for a in found.actions] == [(Kind.RENEW, instance(1).ref)]
    assert "1 more follow" in reasons(found)


def test_nobody_is_restarted_in_the_middle_of_a_turn() -> None:
    larger = pool_spec(mem_mib=4096, desired=DesiredCounts(running=1))
    found = plan_upkeep(ALICE, present(larger, instances=(instance(1),), idle=()), now=NOW)
    assert found.actions == []
    assert "as soon as it is idle" in reasons(found)


@pytest.mark.parametrize("state", [State.SLEEPING, State.WARM])
def test_what_rests_loses_its_snapshot_and_is_not_woken_for_a_new_size(state: State) -> None:
    resting = instance(1, state, user=UserId("bob"), rested_by_policy=True)
    larger = pool_spec(mem_mib=4096, desired=DesiredCounts(running=1))
    found = plan_upkeep(ALICE, present(larger, instances=(resting,), users=(user("bob", resting),)), now=NOW)
    assert [(a.kind, a.to) for a in found.actions] == [(Kind.DISCARD, State.SLEEPING)]


def test_a_roll_stops_at_the_first_that_does_not_come_up() -> None:
    larger = pool_spec(mem_mib=4096)
    failed = instance(1, State.STOPPED, mem_mib=4096, last_error="no memory", user=UserId("bob"))
    old = instance(2, user=UserId("eve"))
    users = (user("bob", failed), user("eve", old))
    found = plan_upkeep(ALICE, present(larger, instances=(failed, old), users=users), now=NOW)
    assert found.actions == []
    assert "no memory" in reasons(found)


def test_a_new_image_is_tried_on_one_that_runs_before_sleepers_lose_theirs() -> None:
    spec = pool_spec()
    up = instance(1, image_revision="old", user=UserId("bob"))
    asleep = instance(2, State.SLEEPING, image_revision="old", user=UserId("eve"))
    users = (user("bob", up), user("eve", asleep))
    there = present(spec, instances=(up, asleep), users=users, images={WORKERS: "new"})
    assert kinds(plan_upkeep(ALICE, there, now=NOW)) == [Kind.RENEW]
    renewed = up.model_copy(update={"image_revision": "new"})
    there = present(spec, instances=(renewed, asleep), users=users, images={WORKERS: "new"})
    assert kinds(plan_upkeep(ALICE, there, now=NOW)) == [Kind.DISCARD]


@pytest.mark.parametrize("guard", ["pinned", "critical"])
def test_a_pinned_or_critical_pool_is_never_rolled(guard: str) -> None:
    spec = pool_spec(mem_mib=4096, **{guard: True})
    found = plan_upkeep(ALICE, present(spec, instances=(instance(1),)), now=NOW)
    assert Kind.RENEW not in kinds(found)
    assert guard in reasons(found)
