"""What the host knows of an instance at this moment, for decisions of `mvm.model.policy`."""

from __future__ import annotations

from collections.abc import Callable, Container

from mvm.host.clock import Clock
from mvm.host.reports import Reports
from mvm.model.entities import Instance
from mvm.model.ids import InstanceId
from mvm.model.policy import Observation
from mvm.model.states import State


class Observer:
    """Puts together a guest's own word, the host's clocks and who asked for the instance last."""

    def __init__(
        self, reports: Reports, clock: Clock, host_sees: Callable[[InstanceId], bool] = lambda _: False
    ) -> None:
        """`host_sees` says whether the host itself sees an instance work."""
        self._host_sees = host_sees
        self._reports = reports
        self._clock = clock
        self._wanted_at: dict[InstanceId, float] = {}
        self._seen: dict[InstanceId, tuple[State, float, bool]] = {}
        """State, when it was first seen in it, and whether it was seen to enter it."""

    def wanted(self, instance: InstanceId) -> None:
        """Somebody asked for it to be awake."""
        self._wanted_at[instance] = self._clock.monotonic()

    def keep_only(self, instances: Container[InstanceId]) -> None:
        """Forget those that do not exist any more."""
        for remembered in (self._wanted_at, self._seen):
            for instance in [i for i in remembered if i not in instances]:
                del remembered[instance]

    def observe(self, instance: Instance) -> Observation:
        """What is known of it now."""
        now = self._clock.monotonic()
        report = self._reports.latest(instance.instance_id)
        wanted_at = self._wanted_at.get(instance.instance_id)
        return Observation(
            status=report.activity.value,
            in_flight=report.in_flight,
            idle_for_seconds=None if report.idle_since is None else now - report.idle_since,
            in_state_for_seconds=self._in_state_for(instance, now),
            wanted_seconds_ago=None if wanted_at is None else now - wanted_at,
            next_alarm_at=report.next_alarm_at or instance.next_alarm_at,
            host_sees_activity=self._host_sees(instance.instance_id),
        )

    def _in_state_for(self, instance: Instance, now: float) -> float | None:
        """Seconds in its present state: measured when it was seen to enter it.

        Otherwise (the agent was restarted) by its record and the wall clock, but never less than it has been seen in
        it: a wall clock that went backwards must not hold it back for as long as it went.
        """
        before = self._seen.get(instance.instance_id)
        if before is None:
            self._seen[instance.instance_id] = (instance.state, now, False)
        elif before[0] is not instance.state:
            self._seen[instance.instance_id] = (instance.state, now, True)
        _, since, entered = self._seen[instance.instance_id]
        recorded = instance.entered_warm_at if instance.state is State.WARM else instance.entered_running_at
        if entered:
            return now - since
        return None if recorded is None else max(now - since, (self._clock.now() - recorded).total_seconds())
