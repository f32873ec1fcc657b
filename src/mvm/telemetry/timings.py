"""Named stages of a wake, start or sleep, timed on a monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from mvm.model.entities import StageTiming, Timeline, TransitionKind

OTHER = "other"
"""What no stage covers: the agent's own work in between, such as recording the new state."""
_LEAST_OTHER_MS = 0.05


class Stopwatch:
    """Milliseconds since it was made, on a clock in seconds of which only differences mean something."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()

    @property
    def elapsed_ms(self) -> float:
        return (self._clock() - self._began) * 1000


class Stages:
    """Collects what a transition spends its time on: `with stages("restore"): ...`.

    A stage that is entered again adds to its time, one that raises counts too. Stages do not overlap.
    """

    def __init__(self, kind: TransitionKind, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._kind = kind
        self._clock = clock
        self._total = Stopwatch(clock)
        self._spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a block as that stage."""
        watch = Stopwatch(self._clock)
        self._spent.setdefault(stage, 0.0)
        try:
            yield
        finally:
            self._spent[stage] += watch.elapsed_ms

    @property
    def elapsed_ms(self) -> float:
        """Since the beginning, stages or not."""
        return self._total.elapsed_ms

    def timeline(self, now: datetime, actor: str = "") -> Timeline:
        """The stages so far, in the order in which they were first entered, and `other` for what none covers.

        `now` is the wall-clock time at which it is asked; the beginning follows from it.
        """
        elapsed = self.elapsed_ms
        other = elapsed - sum(self._spent.values())
        spent = self._spent | ({OTHER: other} if other >= _LEAST_OTHER_MS else {})
        return Timeline(
            kind=self._kind,
            began_at=now - timedelta(milliseconds=elapsed),
            stages=tuple(StageTiming(stage=stage, milliseconds=round(ms, 3)) for stage, ms in spent.items()),
            actor=actor,
        )
