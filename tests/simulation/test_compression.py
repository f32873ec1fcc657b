"""Memory of long sleepers: compressed once a sleep, and never in the way of a wake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.simulation.world import ALICE, WORKERS, World

from mvm.host.policy_loop import LONG_SLEEP_SECONDS
from mvm.model.entities import SnapshotCompression
from mvm.model.ids import InstanceRef
from mvm.model.states import State


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World(tmp_path).open()
    await world.tenant()
    yield world
    await world.close()


async def sleeper(world: World, compression: SnapshotCompression = SnapshotCompression.ZSTD) -> InstanceRef:
    pool = world.catalog.pool(ALICE, WORKERS)
    await world.catalog.save_pool(pool.model_copy(update={"snapshot_compression": compression}))
    return await world.worker(state=State.SLEEPING)


def compressed(world: World, ref: InstanceRef) -> bool:
    return ref.instance_id in world.runtime.compressed


async def test_a_long_sleep_is_compressed_and_a_short_one_is_not(world: World) -> None:
    ref = await sleeper(world)
    world.time.pass_seconds(LONG_SLEEP_SECONDS - 1)
    await world.policy.tick_and_wait()
    assert not compressed(world, ref)
    world.time.pass_seconds(1)
    await world.policy.tick_and_wait()
    assert compressed(world, ref)
    assert world.state(ref) is State.SLEEPING


async def test_only_where_the_pool_says_so(world: World) -> None:
    ref = await sleeper(world, SnapshotCompression.NONE)
    world.time.pass_seconds(2 * LONG_SLEEP_SECONDS)
    await world.policy.tick_and_wait()
    assert not compressed(world, ref)


async def test_one_that_is_wanted_is_not_compressed_but_woken(world: World) -> None:
    ref = await sleeper(world)
    world.time.pass_seconds(LONG_SLEEP_SECONDS)
    world.lifecycle.wake_wanted = lambda _: True
    await world.policy.tick_and_wait()
    assert not compressed(world, ref)
    assert (await world.lifecycle.wake(ref, actor="test")).state is State.RUNNING


async def test_a_compressed_one_wakes(world: World) -> None:
    ref = await sleeper(world)
    world.time.pass_seconds(LONG_SLEEP_SECONDS)
    await world.policy.tick_and_wait()
    assert (await world.lifecycle.wake(ref, actor="test")).state is State.RUNNING
