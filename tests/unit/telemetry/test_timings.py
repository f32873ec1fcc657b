"""Stages on a clock that the test owns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from mvm.model.entities import TransitionKind
from mvm.telemetry.timings import Stages, Stopwatch

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class Ticks:
    """A monotonic clock that moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def spend(self, milliseconds: float) -> None:
        self.seconds += milliseconds / 1000


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


def test_a_stopwatch_tells_milliseconds(ticks: Ticks) -> None:
    watch = Stopwatch(ticks)
    ticks.spend(12.5)
    assert watch.elapsed_ms == pytest.approx(12.5)


def test_stages_are_told_in_the_order_they_ran(ticks: Ticks) -> None:
    stages = Stages(TransitionKind.WAKE, clock=ticks)
    for stage, spent in (("queue", 1.0), ("drives", 2.5), ("restore", 80.0)):
        with stages(stage):
            ticks.spend(spent)
    timeline = stages.timeline(NOW, "router")
    assert [(s.stage, s.milliseconds) for s in timeline.stages] == [("queue", 1.0), ("drives", 2.5), ("restore", 80.0)]
    assert (timeline.kind, timeline.actor) == (TransitionKind.WAKE, "router")
    assert timeline.total_ms == pytest.approx(83.5)
    assert timeline.began_at == NOW - timedelta(milliseconds=83.5)


def test_a_stage_that_is_entered_again_adds_up(ticks: Ticks) -> None:
    stages = Stages(TransitionKind.WAKE, clock=ticks)
    for _ in range(3):
        with stages("queue"):
            ticks.spend(2)
    assert [(s.stage, s.milliseconds) for s in stages.timeline(NOW).stages] == [("queue", 6.0)]


def test_what_no_stage_covers_is_told_too(ticks: Ticks) -> None:
    stages = Stages(TransitionKind.SLEEP, clock=ticks)
    ticks.spend(3)
    with stages("drain"):
        ticks.spend(4)
    ticks.spend(1)
    timeline = stages.timeline(NOW)
    assert [(s.stage, s.milliseconds) for s in timeline.stages] == [("drain", 4.0), ("other", 4.0)]
    assert timeline.total_ms == pytest.approx(stages.elapsed_ms) == pytest.approx(8)


def test_a_stage_that_fails_counts(ticks: Ticks) -> None:
    stages = Stages(TransitionKind.WAKE, clock=ticks)

    def fail() -> None:
        with stages("restore"):
            ticks.spend(7)
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        fail()
    assert [(s.stage, s.milliseconds) for s in stages.timeline(NOW).stages] == [("restore", 7.0)]


def test_a_timeline_may_be_taken_before_anything_happened(ticks: Ticks) -> None:
    assert Stages(TransitionKind.STOP, clock=ticks).timeline(NOW).stages == ()
