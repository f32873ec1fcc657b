"""Limits of a pool become token buckets that let through what was asked for, at boot and after a wake alike."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.drives.table import DRIVES
from mvm.runtime.base import NO_LIMITS, Limits
from mvm.runtime.firecracker import api, configuration, limiting
from mvm.runtime.firecracker.configuration import INTERFACE, Hardware

MIB = st.integers(0, 16_384)
LIMITS = st.builds(Limits, disk_mib=MIB, disk_ops=st.integers(0, 1_000_000), network_mib=MIB)
MOST_U64 = 2**64 - 1


def hardware(limits: Limits) -> Hardware:
    return Hardware(vcpus=2, mem_mib=2048, drives=DRIVES, mac="02:fc:00:01:00:03", limits=limits)


def limiters(steps: list[configuration.Step]) -> dict[str, Any]:
    """What each device is told of its limiters, by path and field."""
    return {
        f"{call.path_for(body)} {name}": value
        for call, body in steps
        for name, value in body
        if name in limiting.LIMITERS and value is not None
    }


def applied(steps: list[configuration.Step], before: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The buckets that limit something afterwards, by Firecracker's rules: what is not named stays."""
    after = dict(before)
    for where, limiter in limiters(steps).items():
        for kind in ("bandwidth", "ops"):
            if (bucket := getattr(limiter, kind)) is None:
                continue
            if bucket.size and bucket.refill_time:
                after[f"{where} {kind}"] = (bucket.size, bucket.refill_time)
            else:
                after.pop(f"{where} {kind}", None)
    return after


def at_boot(limits: Limits) -> dict[str, tuple[int, int]]:
    return applied(configuration.devices(hardware(limits), tap="t"), {})


@given(LIMITS)
def test_a_bucket_lets_through_in_a_second_what_was_asked_for(limits: Limits) -> None:
    expected = {}
    for drive in DRIVES:
        expected[f"/drives/{drive.serial} rate_limiter bandwidth"] = limits.disk_mib * 2**20
        expected[f"/drives/{drive.serial} rate_limiter ops"] = limits.disk_ops
    for way in ("rx", "tx"):
        expected[f"/network-interfaces/{INTERFACE} {way}_rate_limiter bandwidth"] = limits.network_mib * 2**20
    assert at_boot(limits) == {where: (rate, 1000) for where, rate in expected.items() if rate}


@given(LIMITS, LIMITS)
def test_a_machine_that_was_loaded_has_the_limits_that_a_boot_would_have_given_it(one: Limits, two: Limits) -> None:
    assert applied(configuration.limits(hardware(two)), at_boot(one)) == at_boot(two)


@given(LIMITS)
def test_no_bucket_overflows_or_is_empty_where_it_limits(limits: Limits) -> None:
    steps = [*configuration.devices(hardware(limits), tap="t"), *configuration.limits(hardware(limits))]
    for limiter in limiters(steps).values():
        for bucket in (limiter.bandwidth, limiter.ops):
            if bucket is not None:
                assert bucket.size * 10**9 <= MOST_U64
                assert bool(bucket.size) == bool(bucket.refill_time)


def test_without_limits_a_boot_says_nothing_of_them() -> None:
    told = b"".join(body.encode() for _, body in configuration.boot(hardware(NO_LIMITS), tap="t"))
    assert b"rate_limiter" not in told


@given(LIMITS)
def test_a_snapshot_fits_whatever_the_limits_are(limits: Limits) -> None:
    assert configuration.layout(hardware(limits)) == configuration.layout(hardware(NO_LIMITS))


@given(LIMITS, LIMITS)
def test_limits_are_remembered_by_what_they_are(one: Limits, two: Limits) -> None:
    assert (str(one) == str(two)) == (one == two)


def test_changes_are_possible_while_a_loaded_machine_is_paused() -> None:
    for call, _ in configuration.limits(hardware(NO_LIMITS)):
        assert call.phase is api.Phase.ONCE_STARTED


@pytest.mark.parametrize("value", [-1, 1.5, "many"])
def test_a_bucket_is_made_of_whole_numbers(value: object) -> None:
    with pytest.raises(ValueError, match="size"):
        api.TokenBucket(size=value, refill_time=1000)  # type: ignore[arg-type]
