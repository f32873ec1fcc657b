"""When something that failed may be tried again: growing pauses, forgotten after a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mvm.host.clock import Clock
from mvm.model.errors import MvmError
from mvm.model.ids import InstanceRef

BACKOFF_SECONDS = (0.0, 2.0, 5.0, 15.0, 60.0)
"""Pauses after so many recent attempts; the last one repeats."""
FORGET_SECONDS = 600.0
WAITS = "it failed lately and is tried again after a pause"


def sleep_of(ref: InstanceRef) -> str:
    """Name of the attempt to put an instance to sleep, whoever wants it but a person."""
    return f"sleep {ref}"


def warming_of(ref: InstanceRef) -> str:
    """Name of the attempt to pause an instance."""
    return f"warm {ref}"


class Retries:
    """Attempts at things that may fail, by the name of each."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tried: dict[str, list[float]] = {}

    def tried(self, what: str) -> None:
        """It is tried now, or was just tried in vain."""
        self._tried.setdefault(what, []).append(self._clock.monotonic())

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Do it within this: what fails is noted, what succeeds begins anew."""
        try:
            yield
        except MvmError:
            self.tried(what)
            raise
        self._tried.pop(what, None)

    def may_try(self, what: str) -> bool:
        """True when the pause after the last attempt is over."""
        return self.pause_left(what) <= 0

    def pause_left(self, what: str) -> float:
        """Seconds until it may be tried again; 0 when it may be now."""
        if what not in self._tried:
            return 0.0
        now = self._clock.monotonic()
        recent = [at for at in self._tried[what] if now - at < FORGET_SECONDS]
        if not recent:
            del self._tried[what]
            return 0.0
        self._tried[what] = recent
        pause = BACKOFF_SECONDS[min(len(recent), len(BACKOFF_SECONDS) - 1)]
        return max(0.0, recent[-1] + pause - now)

    def waiting(self) -> dict[str, str]:
        """Everything that may not be tried yet, each with why, in words."""
        return {what: WAITS for what in list(self._tried) if not self.may_try(what)}
