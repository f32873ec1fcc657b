"""What a machine may do in a second, as Firecracker's token buckets.

A bucket holds what may pass in one second and is full again after one: a machine that was idle may do a second's worth
at once. At boot a bucket that is not given limits nothing. A snapshot keeps its buckets, and a change that does not
name one leaves it as it is: so a bucket of nothing, which Firecracker takes for none, is what lifts a limit.
"""

from __future__ import annotations

from mvm.drives.table import Drive
from mvm.runtime.base import Limits
from mvm.runtime.firecracker import api
from mvm.runtime.firecracker.api import Body, Command

SECOND_MS = 1000
NONE = api.TokenBucket(size=0, refill_time=0)
LIMITERS = frozenset({"rate_limiter", "rx_rate_limiter", "tx_rate_limiter"})
"""Names of the fields: no part of what a snapshot has to fit to."""


def of_drive(limits: Limits) -> api.RateLimiter | None:
    """What each drive is given at boot; None: no limit."""
    return _limiter(limits.disk_bytes, limits.disk_ops)


def of_network(limits: Limits) -> api.RateLimiter | None:
    """What each direction of the network device is given at boot; None: no limit."""
    return _limiter(limits.network_bytes, 0)


def _limiter(size: int, ops: int) -> api.RateLimiter | None:
    if not size and not ops:
        return None
    return api.RateLimiter(bandwidth=_bucket(size) if size else None, ops=_bucket(ops) if ops else None)


def _bucket(per_second: int) -> api.TokenBucket:
    return api.TokenBucket(size=per_second, refill_time=SECOND_MS)


def changes(drives: tuple[Drive, ...], interface: str, limits: Limits) -> list[tuple[Command, Body]]:
    """What gives a machine these limits that has others, or none."""
    disk = api.RateLimiter(bandwidth=_or_none(limits.disk_bytes), ops=_or_none(limits.disk_ops))
    network = api.RateLimiter(bandwidth=_or_none(limits.network_bytes), ops=NONE)
    change = api.NetworkChange(iface_id=interface, rx_rate_limiter=network, tx_rate_limiter=network)
    return [
        *((api.PATCH_DRIVE, api.DriveChange(drive_id=drive.serial, rate_limiter=disk)) for drive in drives),
        (api.PATCH_NETWORK, change),
    ]


def _or_none(per_second: int) -> api.TokenBucket:
    return _bucket(per_second) if per_second else NONE
