"""How much somebody may do: a burst at once, refilled evenly (a token bucket)."""

from __future__ import annotations

from collections.abc import Callable


class Allowance:
    """One allowance, full at first. `clock` counts seconds monotonically."""

    def __init__(self, clock: Callable[[], float], *, burst: int, per_second: float) -> None:
        self._clock = clock
        self._burst = burst
        self._per_second = per_second
        self._left = float(burst)
        self._counted_at = clock()

    def take(self) -> bool:
        """Use one of it up; False when nothing is left."""
        self._refill()
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def owe(self) -> float:
        """Use one up even when nothing is left; returns the seconds to wait until it is paid for."""
        self._refill()
        self._left -= 1
        return max(0.0, -self._left / self._per_second)

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(float(self._burst), self._left + (now - self._counted_at) * self._per_second)
        self._counted_at = now
