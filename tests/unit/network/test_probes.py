"""What a guest says of its tries is believed only where it is an answer to them."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from mvm.model.errors import Unavailable
from mvm.network.probes import Found, Probe, outcomes

PROBES = [
    Probe(address=IPv4Address("10.240.1.1"), port=port, what="a port of the host", reachable=False) for port in (22, 80)
]


def test_an_answer_is_one_outcome_for_each_try() -> None:
    assert outcomes('["closed", "refused"]', PROBES) == [Found.CLOSED, Found.REFUSED]
    assert [probe.passed(found) for probe, found in zip(PROBES, [Found.CLOSED, Found.REFUSED], strict=True)] == [
        True,
        False,
    ], "a refusal came from somebody"


@pytest.mark.parametrize(
    "said",
    [
        "",
        "closed",
        "{}",
        "null",
        "7",
        '["closed"]',
        '["closed", "closed", "closed"]',
        '["closed", "ok"]',
        "[" * 100_000,
    ],
    ids=["nothing", "no json", "no list", "null", "number", "too few", "too many", "another word", "deep"],
)
def test_anything_else_is_no_answer(said: str) -> None:
    with pytest.raises(Unavailable):
        outcomes(said, PROBES)
