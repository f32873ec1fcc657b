"""Whether a request fits a tenant's quotas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.model.entities import Quotas
from mvm.model.errors import QuotaExceeded
from mvm.model.quota import Request, Use, check, exceeded

NAMES = {
    "max_vcpus": "vcpus",
    "max_mem_mib": "mem_mib",
    "max_running": "running",
    "max_warm": "warm",
    "max_pools": "pools",
    "max_instances_per_pool": "instances_in_pool",
    "max_disk_gib": "disk_mib",
}


def unit(quota: str) -> int:
    """How much of the use one of the quota's unit is."""
    return 1024 if quota == "max_disk_gib" else 1


def test_there_is_a_case_for_every_quota() -> None:
    assert set(NAMES) == set(Quotas.model_fields)


@pytest.mark.parametrize(("quota", "field"), NAMES.items())
def test_the_last_place_is_given_and_the_next_is_refused(quota: str, field: str) -> None:
    quotas = Quotas(**{quota: 5})
    check(quotas, Use(**{field: 4 * unit(quota)}), Request(**{field: unit(quota)}), who="t/p")
    with pytest.raises(QuotaExceeded) as refused:
        check(quotas, Use(**{field: 5 * unit(quota)}), Request(**{field: unit(quota)}), who="t/p")
    message = refused.value.message
    assert quota in message
    assert "t/p" in message
    assert "limit 5" in message
    assert "in use 5" in message
    assert "requested 1" in message
    assert refused.value.hint


def test_starts_in_flight_are_counted_and_told() -> None:
    with pytest.raises(QuotaExceeded, match=r"in use 8 \(3 of them starting\)"):
        check(Quotas(max_running=8), Use(running=8, in_flight=3), Request(running=1), who="t/p")


def test_a_drive_of_part_of_a_gib_counts_as_what_it_is() -> None:
    check(Quotas(max_disk_gib=1), Use(disk_mib=512), Request(disk_mib=512), who="t/p")
    with pytest.raises(QuotaExceeded, match=r"limit 1 GiB, in use 0\.5 GiB, requested 0\.5009"):
        check(Quotas(max_disk_gib=1), Use(disk_mib=512), Request(disk_mib=513), who="t/p")


def test_a_quota_lowered_below_the_use_stops_only_what_adds_to_it() -> None:
    check(Quotas(max_running=1, max_vcpus=1), Use(running=5, vcpus=9), Request(warm=1), who="t/p")


def test_every_exceeded_quota_is_found() -> None:
    errors = exceeded(Quotas(max_vcpus=1, max_running=1), Use(), Request(vcpus=2, running=2), who="t")
    assert [name for error in errors for name in NAMES if name in error.message] == ["max_vcpus", "max_running"]


amounts = st.integers(0, 10_000)


@given(st.tuples(amounts, amounts, amounts))
def test_a_request_is_refused_exactly_when_it_would_exceed(numbers: tuple[int, int, int]) -> None:
    limit, used, wanted = numbers
    refused = exceeded(Quotas(max_mem_mib=limit), Use(mem_mib=used), Request(mem_mib=wanted), who="t")
    assert bool(refused) == (wanted > 0 and used + wanted > limit)
