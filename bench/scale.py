#!/usr/bin/env python3
"""What thousands of sleeping instances cost the agent: memory, listing, restart, a hundred wakes at once.

    python bench/scale.py [--instances 1000,10000] [--json]

The runtime is an instant stand-in (tests/standins), so what is measured is mvm's own share: the store, the catalog, the
lifecycle and the wake queue, with a real SQLite file and real frames. Ratios are against the bare part in the same run:
the listing against reading the same documents from SQLite, the wakes against two durable writes per instance.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.simulation.world import ALICE, WORKERS, World

from mvm.model.entities import Instance, Quotas
from mvm.model.ids import InstanceId
from mvm.model.roles import Role
from mvm.model.states import State
from mvm.runtime.base import Snapshot

WAKES_AT_ONCE = 100
UNLIMITED = Quotas(
    max_vcpus=10**6, max_mem_mib=10**9, max_running=10**6, max_instances_per_pool=10**6, max_disk_gib=10**6
)


def memory_bytes() -> int:
    """Unique set size of this process."""
    return int(psutil.Process().memory_full_info().uss)


async def populate(world: World, count: int) -> None:
    """Sleeping instances, as they would be after a night."""
    now = world.time.wall
    instances = [
        Instance(
            tenant_id=ALICE,
            pool_id=WORKERS,
            instance_id=InstanceId(f"i-{number:08x}"),
            role=Role.CAPABILITY_OPENCLAW,
            state=State.SLEEPING,
            runtime="instant",
            network=world.network(number),
            created_at=now,
            slept_at=now,
        )
        for number in range(count)
    ]
    await world.catalog.add_instances(instances)
    for instance in instances:
        world.runtime.snapshots[instance.instance_id] = Snapshot(directory=Path("/nowhere"), metadata={})


async def measure(count: int) -> dict[str, float]:
    """One population: returns figures in the units that their names say."""
    with tempfile.TemporaryDirectory(prefix="mvm-bench-") as directory:
        world = await World(Path(directory)).open()
        await world.tenant(quotas=UNLIMITED)
        before = memory_bytes()
        await populate(world, count)
        figures: dict[str, float] = {"instances": count, "memory_per_instance_bytes": (memory_bytes() - before) / count}

        began = time.perf_counter()
        documents = await world.store.list("instances/")
        figures["bare_sqlite_list_ms"] = (time.perf_counter() - began) * 1000
        assert len(documents) == count
        began = time.perf_counter()
        listing = [(str(i.ref), i.state.value) for i in world.catalog.instances_of(ALICE)]
        figures["status_listing_ms"] = (time.perf_counter() - began) * 1000
        assert len(listing) == count
        figures["listing_ratio_to_bare"] = figures["status_listing_ms"] / figures["bare_sqlite_list_ms"]

        began = time.perf_counter()
        await world.restart_agent()
        figures["agent_restart_ms"] = (time.perf_counter() - began) * 1000

        bare = []
        for number in range(WAKES_AT_ONCE):
            began = time.perf_counter()
            await world.store.put(f"host/bench-{number}", {"x": 1})
            await world.store.put(f"host/bench-{number}", {"x": 2})
            bare.append((time.perf_counter() - began) * 1000)
        figures["bare_two_durable_writes_ms_p50"] = statistics.median(bare)

        one = await timed_wakes(world, 0, 1)
        figures["one_wake_ms"] = one[0]
        began = time.perf_counter()
        latencies = await timed_wakes(world, 1, min(WAKES_AT_ONCE, count - 1))
        figures["hundred_wakes_total_ms"] = (time.perf_counter() - began) * 1000
        figures["hundred_wakes_ms_p50"] = statistics.median(latencies)
        figures["hundred_wakes_ms_max"] = max(latencies)
        figures["wake_ratio_to_bare_writes"] = figures["one_wake_ms"] / figures["bare_two_durable_writes_ms_p50"]
        await world.close()
        return figures


async def timed_wakes(world: World, first: int, count: int) -> list[float]:
    """Wake `count` instances at once; milliseconds that each caller waited."""

    async def one(number: int) -> float:
        ref = world.catalog.instances[InstanceId(f"i-{number:08x}")].ref
        began = time.perf_counter()
        await world.wakes.wake(ref, actor="bench")
        return (time.perf_counter() - began) * 1000

    return list(await asyncio.gather(*(one(first + number) for number in range(count))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", default="1000,10000", help="populations, separated by commas")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    results = [asyncio.run(measure(int(count))) for count in arguments.instances.split(",")]
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for name in results[0]:
        print(f"{name:34}" + "".join(f"{result[name]:>14,.2f}" for result in results))


if __name__ == "__main__":
    main()
