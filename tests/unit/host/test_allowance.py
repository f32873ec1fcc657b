"""An allowance is a burst that refills evenly."""

from __future__ import annotations

from mvm.host.allowance import Allowance


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 5.0

    def __call__(self) -> float:
        return self.seconds


def test_what_is_used_up_comes_back_with_time_and_no_more_than_the_burst() -> None:
    clock = Hand()
    allowance = Allowance(clock, burst=3, per_second=0.5)
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]
    clock.seconds += 2
    assert [allowance.take() for _ in range(2)] == [True, False]
    clock.seconds += 3600
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]


def test_debts_are_paid_for_by_waiting() -> None:
    allowance = Allowance(Hand(), burst=2, per_second=4)
    assert [allowance.owe() for _ in range(4)] == [0, 0, 0.25, 0.5]
