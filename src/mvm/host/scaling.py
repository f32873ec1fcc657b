"""From the counts that a pool should have to the steps that bring them about (CONTRACT 12). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from mvm.model.entities import DesiredCounts, Instance
from mvm.model.states import State


class Do(StrEnum):
    """What is done to an instance."""

    CREATE = "create"
    START = "start"
    WARM = "warm"
    SLEEP = "sleep"
    STOP = "stop"


@dataclass(frozen=True)
class Step:
    """What is done to one instance, in order; None is an instance that the first action, CREATE, makes."""

    instance: Instance | None
    actions: tuple[Do, ...]


def counts_as_up(instance: Instance) -> bool:
    """True for a running instance, and for one that only rests: policy or a person put it to sleep, a message wakes it.

    A bound instance at rest is never woken for the sake of a count: its person wakes it.
    """
    if instance.state is State.RUNNING:
        return True
    resting = instance.state in (State.WARM, State.SLEEPING)
    return resting and (instance.rested_by_policy or instance.user is not None)


def plan_counts(desired: DesiredCounts, instances: Iterable[Instance], *, users: int) -> list[Step]:
    """Steps in the order of CONTRACT 12: wake or start what there is, create, then bring down what is too much.

    `users`: how many users have their worker in the pool; its size is that or the sum of the counts, whichever is more.
    A bound instance is never surplus, and one that a person stopped is left alone.
    """
    present = [i for i in instances if i.state is not State.DESTROYED]
    up = [i for i in present if counts_as_up(i)]
    spare = sorted((i for i in present if not counts_as_up(i) and not i.held), key=_nearest_to_running)
    steps = []
    room = max(desired.total, users) - len(present)

    def bring(actions: tuple[Do, ...]) -> bool:
        """Take a spare instance through `actions` from its being up, else a new one; False when there is neither."""
        nonlocal room
        if spare:
            steps.append(Step(spare.pop(0), (Do.START, *actions)))
        elif room > 0:
            room -= 1
            steps.append(Step(None, (Do.CREATE, Do.START, *actions)))
        else:
            return False
        return True

    for _ in range(desired.running - len(up)):
        if not bring(()):
            break
    surplus = [i for i in reversed(up) if i.user is None and i.state is State.RUNNING]
    surplus = surplus[: max(len(up) - desired.running, 0)]
    for state, action, wanted in ((State.WARM, Do.WARM, desired.warm), (State.SLEEPING, Do.SLEEP, desired.sleeping)):
        resting = [i for i in spare if i.state is state][:wanted]
        for instance in resting:
            spare.remove(instance)
        for _ in range(wanted - len(resting)):
            if surplus:
                steps.append(Step(surplus.pop(0), (action,)))
            elif not bring((action,)):
                break
    steps += [Step(instance, (Do.STOP,)) for instance in surplus]
    steps += [Step(None, (Do.CREATE,)) for _ in range(room)]
    return steps


def _nearest_to_running(instance: Instance) -> tuple[int, bool, str]:
    order = (State.SLEEPING, State.WARM, State.READY, State.CREATED, State.STOPPED)
    place = order.index(instance.state) if instance.state in order else len(order)
    return place, instance.user is None, instance.instance_id
