"""New configuration and secrets for instances that are running.

A change of users, grants or secrets is recorded first and then told to the running instances that it concerns. One
that does not answer now is told again until it does, or until it runs no more; at its next start or wake it gets
everything anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.contracts import InstanceOperations
from mvm.host.gateways import Gateways
from mvm.model.entities import Instance
from mvm.model.errors import MvmError, NotFound
from mvm.model.ids import InstanceId, InstanceRef, TenantId
from mvm.model.states import State

RETRY_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Pauses between attempts; the last one repeats."""


class Refreshes:
    """Has running instances take in what changed."""

    def __init__(
        self, catalog: Catalog, operations: InstanceOperations, gateways: Gateways, chronicle: Chronicle
    ) -> None:
        self._catalog = catalog
        self._operations = operations
        self._gateways = gateways
        self._chronicle = chronicle
        self._retries: dict[InstanceId, asyncio.Task[None]] = {}
        self._moves: set[asyncio.Task[None]] = set()

    async def tell(self, instances: Iterable[Instance | None], *, actor: str) -> None:
        """Refresh each of them now; returns when all were tried. Those that failed are retried in the background."""
        refs = {instance.ref for instance in instances if instance is not None}
        await asyncio.gather(*(self._tell(ref, actor=actor) for ref in sorted(refs)))

    async def tell_tenant(self, tenant_id: TenantId, *, actor: str) -> None:
        """Refresh every instance of a tenant and the gateway that serves it."""
        await self.tell([*self._catalog.instances_of(tenant_id), self._gateways.gateway_of(tenant_id)], actor=actor)

    async def tell_all(self, *, actor: str) -> None:
        """Refresh every instance that runs: a restart of the agent may have cut short an earlier change."""
        await self.tell((i for i in self._catalog.instances.values() if i.state is State.RUNNING), actor=actor)

    def gateway_moved(self, gateway: Instance) -> None:
        """A gateway that is just coming up has a new address: its workers hear of it as soon as it is up."""
        task = asyncio.create_task(self._follow_gateway(gateway), name=f"tell workers of {gateway.ref}")
        self._moves.add(task)
        task.add_done_callback(self._moves.discard)

    async def _follow_gateway(self, gateway: Instance) -> None:
        await self.tell([gateway], actor="gateway moved")  # waits for the start that is under way
        served = self._gateways.tenants_served_by(gateway.tenant_id)
        workers = [i for tenant in served for i in self._catalog.instances_of(tenant.tenant_id)]
        await self.tell((i for i in workers if i.ref != gateway.ref), actor="gateway moved")

    async def _tell(self, ref: InstanceRef, *, actor: str) -> None:
        try:
            await self._operations.refresh(ref, actor=actor)
        except NotFound:
            return
        except MvmError as error:
            self._report(ref, actor, error)
            if ref.instance_id not in self._retries:
                task = asyncio.create_task(self._retry(ref, actor=actor), name=f"refresh {ref}")
                self._retries[ref.instance_id] = task
                task.add_done_callback(lambda _: self._retries.pop(ref.instance_id, None))

    async def _retry(self, ref: InstanceRef, *, actor: str) -> None:
        attempt = 0
        while self._is_running(ref):
            await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
            attempt += 1
            try:
                return await self._operations.refresh(ref, actor=actor)
            except NotFound:
                return
            except MvmError as error:
                self._report(ref, actor, error)

    def _is_running(self, ref: InstanceRef) -> bool:
        instance = self._catalog.instances.get(ref.instance_id)
        return instance is not None and instance.state is State.RUNNING

    def _report(self, ref: InstanceRef, actor: str, error: MvmError) -> None:
        if (instance := self._catalog.instances.get(ref.instance_id)) is not None:
            detail = f"{error.message}; {error.hint}" if error.hint else error.message
            self._chronicle.event(instance, "RefreshFailed", actor=actor, detail=detail)

    async def close(self) -> None:
        """Give up what is still to be told; `tell_all` makes up for it."""
        tasks = [*self._retries.values(), *self._moves]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
