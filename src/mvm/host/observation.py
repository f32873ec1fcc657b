"""What the host knows of an instance at this moment, for decisions of `mvm.model.policy`."""

from __future__ import annotations

from mvm.host.clock import Clock
from mvm.host.reports import Reports
from mvm.model.entities import Instance
from mvm.model.ids import InstanceId
from mvm.model.policy import Observation
from mvm.model.states import State


class Observer:
    """Puts together a guest's own word, the host's clocks and who asked for the instance last."""

    def __init__(self, reports: Reports, clock: Clock) -> None:
        self._reports = reports
        self._clock = clock
        self._wanted_at: dict[InstanceId, float] = {}
        self._seen: dict[InstanceId, tuple[State, float | None]] = {}

    def wanted(self, instance: InstanceId) -> None:
        """Somebody asked for it to be awake."""
        self._wanted_at[instance] = self._clock.monotonic()

    def forget(self, instance: InstanceId) -> None:
        """It does not exist any more."""
        self._wanted_at.pop(instance, None)
        self._seen.pop(instance, None)

    def observe(self, instance: Instance) -> Observation:
        """What is known of it now. The time in its state is known only when a change of state was seen."""
        now = self._clock.monotonic()
        state, since = self._seen.get(instance.instance_id, (instance.state, None))
        if state is not instance.state:
            since = now
        self._seen[instance.instance_id] = (instance.state, since)
        report = self._reports.latest(instance.instance_id)
        wanted_at = self._wanted_at.get(instance.instance_id)
        return Observation(
            status=report.activity.value,
            in_flight=report.in_flight,
            idle_for_seconds=None if report.idle_since is None else now - report.idle_since,
            in_state_for_seconds=None if since is None else now - since,
            wanted_seconds_ago=None if wanted_at is None else now - wanted_at,
            next_alarm_at=report.next_alarm_at or instance.next_alarm_at,
        )
