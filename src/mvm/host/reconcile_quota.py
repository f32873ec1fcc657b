"""What a tenant would use of its quotas if everything that is planned so far were done. Pure."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

from mvm.host.quotas import use_of
from mvm.model import quota
from mvm.model.entities import Instance, Pool, Quotas
from mvm.model.ids import PoolId


class Ledger:
    """Adds up; what is not granted is not counted.

    What comes down within the same plan is not given back: it is done after what comes up.
    """

    def __init__(self, quotas: Quotas, pools: Mapping[PoolId, Pool], instances: Iterable[Instance]) -> None:
        instances = list(instances)
        self._quotas = quotas
        self._in_pool = Counter(i.pool_id for i in instances)
        disk = sum(pools[pool_id].data_disk_mib * count for pool_id, count in self._in_pool.items())
        self._use = dataclasses.replace(use_of(instances, pools), pools=len(pools), disk_mib=disk)

    def take(self, request: quota.Request, who: str, *, in_pool: PoolId | None = None) -> str | None:
        """Count a request and return None, or return why it does not fit."""
        use = self._use
        if in_pool is not None:
            use = dataclasses.replace(use, instances_in_pool=self._in_pool[in_pool])
        for error in quota.exceeded(self._quotas, use, request, who=who):
            return error.message
        if in_pool is not None:
            self._in_pool[in_pool] += request.instances_in_pool
        self._add(request, 1)
        return None

    def give(self, request: quota.Request) -> None:
        """Take back what a request counted."""
        self._add(request, -1)

    def _add(self, request: quota.Request, sign: int) -> None:
        counted = ("vcpus", "mem_mib", "running", "warm", "pools", "disk_mib")
        changes = {name: getattr(self._use, name) + sign * getattr(request, name) for name in counted}
        self._use = dataclasses.replace(self._use, **changes)
