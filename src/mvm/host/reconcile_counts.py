"""From the counts that a pool should have to the steps that bring them about (CONTRACT 12). Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from mvm.host.reconcile_actions import Kind
from mvm.model.entities import DesiredCounts, Instance
from mvm.model.ids import InstanceId
from mvm.model.states import State


@dataclass(frozen=True)
class Step:
    """What is done to one instance (None: one that is made), and the state that it ends in."""

    instance: Instance | None
    to: State

    @property
    def kind(self) -> Kind:
        """Its first action, which is where it has its place in the order."""
        if self.instance is None:
            return Kind.CREATE
        if self.to is State.STOPPED:
            return Kind.STOP
        if self.instance.state is State.RUNNING:
            return Kind.WARM if self.to is State.WARM else Kind.SLEEP
        if self.instance.state is State.WARM:
            return Kind.SLEEP if self.to is State.SLEEPING else Kind.RESUME
        return Kind.WAKE if self.instance.state is State.SLEEPING else Kind.START


def counts_as_up(instance: Instance) -> bool:
    """True for a running instance, and for one that only rests: policy or a person put it to sleep, a message wakes it.

    A bound instance at rest is never woken for the sake of a count: its person wakes it.
    """
    if instance.state is State.RUNNING:
        return True
    resting = instance.state is State.WARM or instance.state is State.SLEEPING
    return resting and (instance.rested_by_policy or instance.user is not None)


def plan_counts(
    desired: DesiredCounts,
    instances: Iterable[Instance],
    *,
    users: int,
    fixed: Collection[InstanceId] = (),
    idle: Collection[InstanceId] = (),
) -> list[Step]:
    """Steps in the order of CONTRACT 12: wake, resume, start, create, then stop, warm, put to sleep.

    `users`: how many users have their worker in the pool; its size is that or the sum of the counts, whichever is more.
    `fixed` are left alone and count as what is wanted of them, as does one that a person stopped; they never make
    another one surplus. A bound instance is never surplus. Of those that are, `idle` ones go first, then the newest.
    """
    present, left_alone = 0, 0
    up: list[Instance] = []
    spare: list[Instance] = []
    for instance in instances:
        if instance.state is State.DESTROYED:
            continue
        present += 1
        if instance.held or instance.instance_id in fixed:
            left_alone += 1
        elif counts_as_up(instance):
            up.append(instance)
        else:
            spare.append(instance)
    spare.sort(key=_nearest_to_running)
    room = max(desired.total, users) - present
    steps: list[Step] = []

    def bring(to: State) -> bool:
        """Bring a spare instance, else a new one, into a state; False when there is neither."""
        nonlocal room
        if spare:
            steps.append(Step(spare.pop(0), to))
        elif room > 0:
            room -= 1
            steps.append(Step(None, to))
        else:
            return False
        return True

    for _ in range(desired.running - len(up) - left_alone):
        if not bring(State.RUNNING):
            break
    surplus = [i for i in reversed(up) if i.user is None and i.state is State.RUNNING]
    surplus.sort(key=lambda instance: instance.instance_id not in idle)
    surplus = surplus[: max(len(up) - desired.running, 0)]
    missing = {}
    for state, wanted in ((State.WARM, desired.warm), (State.SLEEPING, desired.sleeping)):
        resting = [i for i in spare if i.state is state][:wanted]
        spare = [i for i in spare if all(i is not other for other in resting)]
        missing[state] = wanted - len(resting)
    for state, count in missing.items():
        for _ in range(count):
            if surplus:
                steps.append(Step(surplus.pop(0), state))
            elif not bring(state):
                break
    surplus += [i for i in spare if i.state is State.WARM]
    steps += [Step(instance, State.STOPPED) for instance in surplus]
    steps += [Step(None, State.READY) for _ in range(room)]
    return sorted(steps, key=lambda step: _ORDER.index(step.kind))


_ORDER = (Kind.WAKE, Kind.RESUME, Kind.START, Kind.CREATE, Kind.STOP, Kind.WARM, Kind.SLEEP)


def _nearest_to_running(instance: Instance) -> tuple[int, bool, str]:
    order = (State.SLEEPING, State.WARM, State.READY, State.CREATED, State.STOPPED)
    return order.index(instance.state), instance.user is None, instance.instance_id
