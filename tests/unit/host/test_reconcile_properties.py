"""What holds for every plan, whatever there is and whatever is wanted."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.host.reconcile_world import (
    ALICE,
    GATEWAYS,
    NOW,
    WORKERS,
    instance,
    plan,
    pool_spec,
    present,
    user,
    wanted,
)

from mvm.host.quotas import use_of
from mvm.host.reconcile_actions import Action, Kind, Prune, Wanted
from mvm.host.reconcile_plan import plan_upkeep
from mvm.host.reconcile_records import Present
from mvm.model import quota
from mvm.model.entities import DesiredCounts, Instance, Pool, Quotas, UserSpec
from mvm.model.ids import PoolId, UserId
from mvm.model.states import State

counts = st.builds(DesiredCounts, running=st.integers(0, 4), warm=st.integers(0, 3), sleeping=st.integers(0, 3))
quotas = st.builds(
    Quotas,
    max_running=st.integers(0, 8),
    max_warm=st.integers(0, 4),
    max_vcpus=st.integers(0, 20),
    max_mem_mib=st.integers(0, 20_000),
    max_pools=st.just(4),
    max_instances_per_pool=st.integers(0, 10),
    max_disk_gib=st.integers(0, 20),
)
guards = st.sampled_from([{}, {}, {"pinned": True}, {"critical": True}])
AT_REST = (State.READY, State.STOPPED, State.SLEEPING, State.WARM, State.RUNNING)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Wanted, Present]:
    """A tenant in any state, and what somebody wants of it."""
    limits = draw(quotas)
    specs, changed = [], []
    for pool_id in (GATEWAYS, WORKERS, PoolId("others")):
        spec = pool_spec(pool_id, desired=draw(counts), data_disk_mib=draw(st.sampled_from([0, 1024])), **draw(guards))
        if draw(st.booleans()):
            specs.append(spec)
        if draw(st.booleans()):
            changed.append(
                spec.model_copy(update={"desired": draw(counts), "mem_mib": draw(st.sampled_from([1024, 2048]))})
            )
    instances, users, number = [], [], 0
    for spec in specs:
        for _ in range(draw(st.integers(0, 4))):
            number += 1
            state = draw(st.sampled_from(AT_REST))
            bound = spec.pool_id == WORKERS and draw(st.booleans())
            made = instance(
                number,
                state,
                spec.pool_id,
                user=UserId(f"u{number}") if bound else None,
                held=draw(st.booleans()) and state is State.STOPPED,
                rested_by_policy=state in (State.WARM, State.SLEEPING) and draw(st.booleans()),
                manual_until=draw(st.sampled_from([None, None, NOW + timedelta(seconds=9)])),
            )
            instances.append(made)
            if bound:
                users.append(user(f"u{number}", made))
    new_users = [UserSpec(user_id=UserId(f"n{n}"), pool_id=WORKERS) for n in range(draw(st.integers(0, 3)))]
    idle = {i.instance_id for i in instances if draw(st.booleans())}
    there = present(*specs, instances=tuple(instances), users=tuple(users), quotas=limits, idle=idle)
    asked_for = tuple(u.spec for u in users if draw(st.booleans()))
    wanted_users = (*asked_for, *new_users) if any(spec.pool_id == WORKERS for spec in changed) else ()
    return wanted(*changed, users=wanted_users, quotas=limits), there


def applied(to: Present, actions: list[Action]) -> Present:
    """What there is when everything planned was done and went well."""
    pools, users = dict(to.pools), dict(to.users)
    instances = {i.instance_id: i for i in to.instances}
    number = 0x1000

    def make(pool_id: PoolId, state: State, owner: UserId | None = None) -> Instance:
        nonlocal number
        number = max([number, *(int(i[2:], 16) for i in instances)]) + 1
        made = instance(number, state, pool_id, user=owner)
        instances[made.instance_id] = made
        return made

    def bind(pool_id: PoolId, name: UserId) -> Instance:
        free = [
            i for i in sorted(instances.values(), key=lambda i: i.created_at) if i.pool_id == pool_id and not i.user
        ]
        if not free:
            return make(pool_id, State.READY, name)
        instances[free[0].instance_id] = free[0].model_copy(update={"user": name})
        return instances[free[0].instance_id]

    for action in actions:
        pool = action.pool_id
        match action.kind:
            case Kind.CREATE_POOL | Kind.UPDATE_POOL:
                pools[pool] = Pool.from_spec(action.subject, tenant_id=ALICE, created_at=NOW)
            case Kind.DESTROY_POOL:
                del pools[pool]
                instances = {key: i for key, i in instances.items() if i.pool_id != pool}
            case Kind.REMOVE_USER:
                gone = users.pop(action.subject.user_id)
                instances.pop(gone.instance_id, None)
            case Kind.ADD_USER | Kind.BIND_USER:
                worker = bind(pool, action.subject.user_id)
                users[action.subject.user_id] = user(action.subject.user_id, worker)
            case Kind.CREATE:
                made = make(pool, action.to)
                instances[made.instance_id] = fitted(made, pools[pool])
            case Kind.START_WORKER if action.instance is None:
                worker = instances[users[UserId(action.object.rpartition("/")[2])].instance_id]
                instances[worker.instance_id] = fitted(worker.model_copy(update={"state": action.to}), pools[pool])
            case kind if action.instance is not None:
                before = instances[action.instance.instance_id]
                after = before.model_copy(update={"state": action.to, "rested_by_policy": False})
                if kind is Kind.DISCARD:
                    after = after.model_copy(
                        update={"vcpus": 0, "mem_mib": 0, "rested_by_policy": before.rested_by_policy}
                    )
                elif kind is Kind.RENEW or (
                    kind.brings_up and kind is not Kind.RESUME
                ):  # memory that is kept keeps its size
                    after = fitted(after, pools[pool])
                instances[before.instance_id] = after
    ordered = tuple(sorted(instances.values(), key=lambda i: i.created_at))
    return dataclasses.replace(to, pools=pools, users=users, instances=ordered)


def fitted(one: Instance, to: Pool) -> Instance:
    return one.model_copy(update={"vcpus": to.vcpus, "mem_mib": to.mem_mib} if one.state is not State.READY else {})


@given(worlds(), st.builds(Prune, pools=st.booleans(), users=st.booleans()))
def test_passes_come_to_rest_and_then_do_nothing(world: tuple[Wanted, Present], prune: Prune) -> None:
    want, there = world
    # A small quota may let each pass do no more than one thing.
    for _ in range(len(there.instances) + len(want.users) + sum(spec.desired.total for spec in want.pools) + 4):
        step = plan(want, there, prune=prune)
        there = applied(there, step.actions)
        upkeep = plan_upkeep(ALICE, there, now=NOW)
        there = applied(there, upkeep.actions)
        if not step.actions and not upkeep.actions:
            break
    assert plan(want, there, prune=prune).actions == []
    assert plan_upkeep(ALICE, there, now=NOW).actions == []


@given(worlds())
def test_one_pass_is_enough_where_nothing_waits(world: tuple[Wanted, Present]) -> None:
    want, there = world
    first = plan(want, there)
    if not first.deferrals:
        assert plan(want, applied(there, first.actions)).actions == []


@given(worlds())
def test_no_quota_is_exceeded_by_what_comes_up(world: tuple[Wanted, Present]) -> None:
    want, there = world
    before = use_of(there.instances, there.pools)
    ups = [a for a in plan(want, there).actions if a.kind not in (Kind.STOP, Kind.WARM, Kind.SLEEP)]
    after = applied(there, ups)
    use = use_of(after.instances, after.pools)
    grown = quota.Request(
        vcpus=use.vcpus - before.vcpus, mem_mib=use.mem_mib - before.mem_mib, running=use.running - before.running
    )
    assert quota.exceeded(want.quotas, before, grown, who="the pass") == []
    for pool_id in after.pools:
        had = sum(i.pool_id == pool_id for i in there.instances)
        has = sum(i.pool_id == pool_id for i in after.instances)
        bound = sum(a.kind in (Kind.ADD_USER, Kind.BIND_USER) and a.pool_id == pool_id for a in ups)
        assert has <= max(had + bound, want.quotas.max_instances_per_pool)


@given(worlds())
def test_what_is_pinned_critical_bound_or_in_a_persons_hands_is_left_up(
    world: tuple[Wanted, Present],
) -> None:
    want, there = world
    by_id = {i.instance_id: i for i in there.instances}
    for action in plan(want, there).actions:
        if action.instance is None:
            continue
        concerned = by_id[action.instance.instance_id]
        spec = next((s for s in want.pools if s.pool_id == concerned.pool_id), there.pools[concerned.pool_id])
        assert concerned.manual_until is None
        assert not concerned.held
        assert not (there.pools[concerned.pool_id].critical and spec.critical) or concerned.state is State.READY
        if action.kind in (Kind.STOP, Kind.WARM, Kind.SLEEP):
            assert concerned.user is None
            assert not spec.pinned
        if action.kind in (Kind.RENEW, Kind.DISCARD):
            assert not spec.pinned
        if action.kind is Kind.RENEW:
            assert concerned.instance_id in there.idle
        if action.kind is Kind.WAKE:
            assert not concerned.rested_by_policy
            assert concerned.user is None
