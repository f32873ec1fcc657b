"""Metrics as Prometheus reads them."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from mvm.model.entities import StageTiming, Timeline, TransitionKind
from mvm.model.states import State
from mvm.telemetry.metrics import Metrics

NAMES = {
    "mvm_requests_total",
    "mvm_reconcile_runs_total",
    "mvm_reconcile_errors_total",
    "mvm_reconcile_duration_seconds_count",
    "mvm_instances",
    "mvm_instance_transitions_total",
    "mvm_instances_deferred_total",
    "mvm_wake_duration_seconds_count",
    "mvm_sleep_duration_seconds_count",
    "mvm_snapshot_bytes_count",
}
"""Of CONTRACT 16; a histogram shows as its count."""


def scrape(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if "le" not in sample.labels
    }


def timeline(**stages: float) -> Timeline:
    return Timeline(
        kind=TransitionKind.WAKE,
        began_at=datetime(2026, 11, 22, tzinfo=UTC),
        stages=tuple(StageTiming(stage=stage, milliseconds=ms) for stage, ms in stages.items()),
    )


def test_every_metric_of_the_contract_is_there() -> None:
    metrics = Metrics(lambda: {State.SLEEPING: 1000, State.RUNNING: 2})
    metrics.request("InstanceWake", result="ok")
    metrics.request("InstanceWake", result="ok")
    metrics.reconciled(0.2, errors=3)
    metrics.transition(State.RUNNING)
    metrics.deferred()
    metrics.woken(timeline(queue=1.0, restore=99.0))
    metrics.slept(timeline(drain=20.0))
    metrics.snapshot(1 << 30)
    found = scrape(metrics)
    assert {name for name, _ in found} >= NAMES
    assert found["mvm_requests_total", ("InstanceWake", "ok")] == 2
    assert found["mvm_reconcile_errors_total", ()] == 3
    assert found["mvm_instance_transitions_total", ("running",)] == 1
    assert found["mvm_instances", ("sleeping",)] == 1000
    assert found["mvm_instances", ("warm",)] == 0
    assert found["mvm_wake_duration_seconds_sum", ("restore",)] == 0.099
    assert found["mvm_wake_duration_seconds_sum", ("total",)] == 0.1
    assert found["mvm_snapshot_bytes_sum", ()] == 1 << 30


def test_two_agents_in_one_process_do_not_share_metrics() -> None:
    first, second = Metrics(dict), Metrics(dict)
    first.deferred()
    assert scrape(second)["mvm_instances_deferred_total", ()] == 0


def test_instances_are_counted_at_each_scrape() -> None:
    counts = {State.RUNNING: 1}
    metrics = Metrics(lambda: counts)
    assert scrape(metrics)["mvm_instances", ("running",)] == 1
    counts[State.RUNNING] = 5
    assert scrape(metrics)["mvm_instances", ("running",)] == 5


def test_the_library_is_loaded_only_when_metrics_are_made() -> None:
    check = "import sys, mvm.telemetry.metrics; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=60).returncode == 0
