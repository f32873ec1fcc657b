"""Prometheus metrics (CONTRACT 16). `prometheus_client` is imported when the agent makes its metrics, not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from mvm.model.entities import Timeline
from mvm.model.states import State

if TYPE_CHECKING:
    from prometheus_client import Histogram
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `Metrics.render` gives."""

TOTAL = "total"
"""Stage that stands for a whole wake or sleep."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_BYTES = tuple(2.0**exponent for exponent in range(20, 35))


class Metrics:
    """The metrics of one agent, in a registry of its own.

    `count_instances` gives the number of instances by state; it is asked at each scrape, so that nothing has to be kept
    in step.
    """

    def __init__(self, count_instances: Callable[[], Mapping[State, int]]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._registry = registry = CollectorRegistry(auto_describe=True)
        self._requests = Counter(
            "mvm_requests", "Requests to the agent, by kind and result.", ["kind", "result"], registry=registry
        )
        self._reconcile_runs = Counter("mvm_reconcile_runs", "Reconcile passes.", registry=registry)
        self._reconcile_errors = Counter("mvm_reconcile_errors", "Errors in reconcile passes.", registry=registry)
        self._reconcile_duration = Histogram(
            "mvm_reconcile_duration_seconds", "Length of reconcile passes.", buckets=_SECONDS, registry=registry
        )
        self._transitions = Counter(
            "mvm_instance_transitions", "Transitions of instances, by the state reached.", ["to"], registry=registry
        )
        self._deferred = Counter(
            "mvm_instances_deferred", "Transitions that policy wanted and something held up.", registry=registry
        )
        self._wakes = Histogram(
            "mvm_wake_duration_seconds", "Wakes, by stage.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._sleeps = Histogram(
            "mvm_sleep_duration_seconds", "Sleeps, by stage.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._snapshots = Histogram("mvm_snapshot_bytes", "Size of snapshots.", buckets=_BYTES, registry=registry)
        registry.register(_InstancesByState(count_instances))

    def request(self, kind: str, *, result: str) -> None:
        """A request to the agent was answered; `kind` is one of the protocol's names, never a caller's text."""
        self._requests.labels(kind, result).inc()

    def reconciled(self, seconds: float, *, errors: int) -> None:
        """A reconcile pass ended."""
        self._reconcile_runs.inc()
        self._reconcile_errors.inc(errors)
        self._reconcile_duration.observe(seconds)

    def transition(self, to: State) -> None:
        """An instance reached a state."""
        self._transitions.labels(str(to)).inc()

    def deferred(self) -> None:
        """A transition that policy wanted was put off."""
        self._deferred.inc()

    def woken(self, timeline: Timeline) -> None:
        """An instance woke; every stage is observed, and the whole as stage `total`."""
        _observe(self._wakes, timeline)

    def slept(self, timeline: Timeline) -> None:
        """An instance went to sleep; as `woken`."""
        _observe(self._sleeps, timeline)

    def snapshot(self, size: int) -> None:
        """A snapshot of that many bytes was taken."""
        self._snapshots.observe(size)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)


class _InstancesByState:
    """Collector of `mvm_instances{state}`: counted when it is asked for."""

    def __init__(self, count: Callable[[], Mapping[State, int]]) -> None:
        self._count = count

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        gauge = GaugeMetricFamily("mvm_instances", "Instances on this host, by state.", labels=["state"])
        counts = self._count()
        for state in State:
            if state is not State.DESTROYED:
                gauge.add_metric([str(state)], counts.get(state, 0))
        yield gauge


def _observe(histogram: Histogram, timeline: Timeline) -> None:
    for stage in timeline.stages:
        histogram.labels(stage.stage).observe(stage.milliseconds / 1000)
    histogram.labels(TOTAL).observe(timeline.total_ms / 1000)
