"""Showing how long work goes, on stderr: one living line on a terminal, a line per step elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from mvm.telemetry.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


class Step(Protocol):
    """What is being done or waited for; `done` of `total` where that can be counted."""

    @property
    def text(self) -> str: ...

    @property
    def done(self) -> float | None: ...

    @property
    def total(self) -> float | None: ...


class Show(Protocol):
    """Takes each step as it comes."""

    def __call__(self, step: Step) -> None: ...


@contextlib.contextmanager
def shown() -> Iterator[Show]:
    """Show steps until the block ends; nothing is left on a terminal, and nothing appears when there are no steps."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _Living() as living:
            yield living
    else:
        yield _Lines()


class _Lines:
    """A line when the step changes, and at every tenth of what can be counted."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None

    def __call__(self, step: Step) -> None:
        tenth = int(10 * (step.done or 0) / step.total) if step.total else 0
        if (step.text, tenth) == self._last:
            return
        self._last = (step.text, tenth)
        count = f": {step.done or 0:g} of {step.total:g}" if step.total else ""
        print(f"{printable(step.text)}{count}", file=sys.stderr, flush=True)


class _Living:
    """One line that shows the present step and how long all has taken; made when the first step comes."""

    def __init__(self) -> None:
        self._progress: RichProgress | None = None

    def __enter__(self) -> _Living:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, step: Step) -> None:
        if self._progress is None:
            self._progress = self._start()
        count = f"{step.done or 0:g} of {step.total:g}" if step.total else ""
        self._progress.update(self._progress.task_ids[0], description=printable(step.text), count=count)

    def _start(self) -> RichProgress:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        progress.add_task("", total=None, count="")
        progress.start()
        return progress
