#!/usr/bin/env python3
"""How long reconcile passes take over thousands of instances: with nothing to do, and with one change.

    python bench/reconcile.py [--instances 10000] [--json]

The machines take no time (tests/standins), so what is measured is mvm's own share: the comparison of the whole host
with what should be, and for the change its records in a real SQLite file, made durable. Medians; the ratio is against
one walk over all instances that looks at their states, in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.simulation.engine import engine
from tests.simulation.world import World

from mvm.host.reconcile import Ask, Reconciler
from mvm.model.addresses import tenant_network
from mvm.model.desired import DesiredTenant, validate_desired
from mvm.model.entities import (
    DesiredCounts,
    Instance,
    Pool,
    PoolSpec,
    Quotas,
    Tenant,
    User,
    UserSpec,
    default_policy,
)
from mvm.model.ids import InstanceId, PoolId, TenantId, TenantNetId, UserId
from mvm.model.roles import Role
from mvm.model.states import State

USERS = 99
"""Of each tenant, each with a sleeping worker; with its gateway a tenant has 100 instances."""
ROUNDS = 5
QUOTAS = Quotas(max_running=200, max_instances_per_pool=200, max_vcpus=1000, max_mem_mib=10**6)
GATEWAYS, WORKERS, BATCH = PoolId("gateways"), PoolId("workers"), PoolId("batch")


async def populate(world: World, tenants: int) -> None:
    """Tenants with a gateway that runs, and people whose workers sleep, as after a night."""
    now = world.time.wall
    number = 0
    for index in range(tenants):
        tenant_id = TenantId(f"tenant-{index}")
        network = tenant_network(TenantNetId(index + 1))
        await world.catalog.save_tenant(Tenant(tenant_id=tenant_id, network=network, quotas=QUOTAS, created_at=now))
        for pool_id, role, running in (
            (GATEWAYS, Role.GATEWAY, 1),
            (WORKERS, Role.CAPABILITY_OPENCLAW, 0),
            (BATCH, Role.WORKER, 0),
        ):
            spec = PoolSpec(
                pool_id=pool_id, role=role, desired=DesiredCounts(running=running), runtime_policy=default_policy(role)
            )
            await world.catalog.save_pool(Pool.from_spec(spec, tenant_id=tenant_id, created_at=now))
        instances = []
        for position in range(USERS + 1):
            number += 1
            instances.append(
                Instance(
                    tenant_id=tenant_id,
                    pool_id=WORKERS if position else GATEWAYS,
                    instance_id=InstanceId(f"i-{number:08x}"),
                    role=Role.CAPABILITY_OPENCLAW if position else Role.GATEWAY,
                    state=State.SLEEPING if position else State.RUNNING,
                    runtime="instant",
                    network=world.network(number),
                    user=UserId(f"user-{position}") if position else None,
                    vcpus=2,
                    mem_mib=1024,
                    created_at=now,
                )
            )
        await world.catalog.add_instances(instances)
        for one in instances[1:]:
            assert one.user is not None
            sender = str(int(one.instance_id[2:], 16))
            spec_of_user = UserSpec(user_id=one.user, pool_id=WORKERS, telegram=(sender,))
            user = User.from_spec(spec_of_user, tenant_id=tenant_id, created_at=now)
            await world.catalog.save_user(user.model_copy(update={"instance_id": one.instance_id}))


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1000


async def measure(count: int) -> dict[str, float]:
    """Figures in the units that their names say."""
    with tempfile.TemporaryDirectory(prefix="mvm-bench-") as directory:
        world = await World(Path(directory)).open()
        await populate(world, count // (USERS + 1))
        reconciler = engine(world)
        document = (await reconciler.desired("local")).to_json()
        figures: dict[str, float] = {"instances": len(world.catalog.instances)}

        async def nothing() -> None:
            assert (await reconciler.keep_up()).actions == []

        async def whole_state() -> None:
            assert (await reconciler.apply_state(validate_desired(document), actor="bench")).actions == []

        async def walk() -> None:
            assert sum(i.state is State.RUNNING for i in list(world.catalog.instances.values())) > 0

        figures["bare_walk_ms"] = statistics.median([await timed(walk) for _ in range(ROUNDS)])
        figures["nothing_to_do_ms"] = statistics.median([await timed(nothing) for _ in range(ROUNDS)])
        figures["whole_desired_state_nothing_to_do_ms"] = statistics.median(
            [await timed(whole_state) for _ in range(ROUNDS)]
        )
        figures["ratio_to_bare_walk"] = figures["nothing_to_do_ms"] / figures["bare_walk_ms"]

        tenants = {tenant.tenant_id: tenant for tenant in (await reconciler.desired("local")).tenants}
        changes = [await one_change(reconciler, tenants[TenantId(f"tenant-{n}")]) for n in range(1, ROUNDS + 1)]
        figures["one_change_ms"] = statistics.median(changes)
        by_agent = []
        for n in range(ROUNDS + 1, 2 * ROUNDS + 1):
            tenant_id = TenantId(f"tenant-{n}")
            pool = world.catalog.pool(tenant_id, BATCH)
            await world.catalog.save_pool(pool.model_copy(update={"desired": DesiredCounts(running=1)}))
            by_agent.append(await timed(reconciler.keep_up))
            assert len(world.catalog.instances_of(tenant_id, BATCH)) == 1
        figures["one_change_found_by_a_pass_over_all_ms"] = statistics.median(by_agent)
        await world.close()
        return figures


async def one_change(reconciler: Reconciler, tenant: DesiredTenant) -> float:
    """What `mvm deploy` asks for when one count of one tenant of many has changed: an instance is made and started."""
    pools = tuple(
        pool.model_copy(update={"desired_counts": DesiredCounts(running=1)}) if pool.pool_id == BATCH else pool
        for pool in tenant.pools
    )
    ask = Ask(tenant=tenant.model_copy(update={"pools": pools}))
    began = time.perf_counter()
    report = await reconciler.apply(ask, actor="bench")
    assert len(report.done["instances"]["started"]) == 1
    return (time.perf_counter() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.instances))
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:42}{value:>14,.2f}")


if __name__ == "__main__":
    main()
