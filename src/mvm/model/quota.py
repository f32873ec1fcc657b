"""Whether a request fits a tenant's quotas (CONTRACT 2). Pure: use and request are passed in.

Whoever counts the use counts what is about to happen as happened (an instance that is starting is running), and checks
and records under one lock, so that two requests at once cannot both take the last place.
"""

from __future__ import annotations

from dataclasses import dataclass

from mvm.model.entities import Quotas
from mvm.model.errors import QuotaExceeded

MIB_PER_GIB = 1024


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a tenant uses, starts in flight included."""

    vcpus: int = 0
    """Of running and warm instances."""
    mem_mib: int = 0
    """Of running and warm instances."""
    running: int = 0
    warm: int = 0
    pools: int = 0
    instances_in_pool: int = 0
    """Instances of the one pool that the request is about, in any state."""
    disk_mib: int = 0
    """Data drives of all instances, in any state."""
    in_flight: int = 0
    """How many of `running` have not come up yet; told in the error."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an action would add; 0 asks for nothing and is never refused."""

    vcpus: int = 0
    mem_mib: int = 0
    running: int = 0
    warm: int = 0
    pools: int = 0
    instances_in_pool: int = 0
    disk_mib: int = 0


def check(quotas: Quotas, use: Use, request: Request, *, who: str) -> None:
    """Raise `QuotaExceeded` when the request does not fit; `who` names what the request is for.

    Only what the request adds to is looked at: a tenant whose quota was lowered below its use can still do everything
    that does not add to it. The error names the quota, the limit, the use and the request.
    """
    for error in exceeded(quotas, use, request, who=who):
        raise error


def exceeded(quotas: Quotas, use: Use, request: Request, *, who: str) -> list[QuotaExceeded]:
    """Every quota that the request would exceed, each as the error that `check` would raise."""
    errors = []
    for name, limit, used, wanted, unit in _lines(quotas, use, request):
        if wanted <= 0 or used + wanted <= limit:
            continue
        starting = f" ({use.in_flight} of them starting)" if name == "max_running" and use.in_flight else ""
        error = QuotaExceeded(
            f"quota {name} would be exceeded by {who}: limit {_amount(limit, unit)}, "
            f"in use {_amount(used, unit)}{starting}, requested {_amount(wanted, unit)}",
            hint=_HINTS[name],
        )
        errors.append(error)
    return errors


_HINTS = {
    "max_vcpus": "stop or put to sleep an instance of the tenant, or raise max_vcpus with `mvm tenant update`",
    "max_mem_mib": "put an instance of the tenant to sleep (a warm one keeps its memory), or raise max_mem_mib",
    "max_running": "put an instance of the tenant to sleep, or raise max_running with `mvm tenant update`",
    "max_warm": "put a warm instance of the tenant to sleep, or raise max_warm with `mvm tenant update`",
    "max_pools": "destroy a pool that is not needed, or raise max_pools with `mvm tenant update`",
    "max_instances_per_pool": "destroy an instance that is not needed, or raise max_instances_per_pool",
    "max_disk_gib": "destroy an instance that is not needed, or raise max_disk_gib with `mvm tenant update`",
}

_Line = tuple[str, int, int, int, str]


def _lines(quotas: Quotas, use: Use, request: Request) -> list[_Line]:
    """Name, limit, use, request and unit of every quota; disk in MiB, because a drive need not be whole GiB."""
    return [
        ("max_vcpus", quotas.max_vcpus, use.vcpus, request.vcpus, ""),
        ("max_mem_mib", quotas.max_mem_mib, use.mem_mib, request.mem_mib, "MiB"),
        ("max_running", quotas.max_running, use.running, request.running, ""),
        ("max_warm", quotas.max_warm, use.warm, request.warm, ""),
        ("max_pools", quotas.max_pools, use.pools, request.pools, ""),
        (
            "max_instances_per_pool",
            quotas.max_instances_per_pool,
            use.instances_in_pool,
            request.instances_in_pool,
            "",
        ),
        ("max_disk_gib", quotas.max_disk_gib * MIB_PER_GIB, use.disk_mib, request.disk_mib, "GiB"),
    ]


def _amount(value: int, unit: str) -> str:
    if unit == "GiB":
        return f"{value / MIB_PER_GIB:g} GiB"
    return f"{value} {unit}".rstrip()
