"""Production mode runs nothing that is not isolated: instances that are there already no more than new ones."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.simulation.test_recovery import killed_at
from tests.simulation.world import World

from mvm.host.runtimes import NotIsolated
from mvm.model.ids import InstanceRef
from mvm.model.states import State


@contextlib.asynccontextmanager
async def host(directory: Path) -> AsyncIterator[World]:
    world = await World(directory).open()
    await world.tenant()
    try:
        yield world
    finally:
        await world.close()


async def restart(world: World, *, isolated: bool) -> None:
    """A new agent in production mode, on a host where the runtime isolates tenants, or does not."""
    world.runtime.capabilities = dataclasses.replace(world.runtime.capabilities, isolated=isolated)
    world.production = True
    await world.restart_agent()


async def refused(world: World, ref: InstanceRef) -> None:
    with pytest.raises(NotIsolated, match="does not isolate tenants"):
        await world.wakes.wake(ref, actor="writer")


@pytest.mark.parametrize("state", [State.READY, State.STOPPED])
async def test_what_was_made_before_is_not_started(tmp_path: Path, state: State) -> None:
    async with host(tmp_path) as world:
        ref = await world.worker(state=state)
        starts = world.runtime.starts
        await restart(world, isolated=False)
        await refused(world, ref)
        assert (world.state(ref), world.runtime.starts) == (state, starts)
        assert "production mode" in str(world.catalog.instance(ref).last_error)


async def test_a_sleeper_is_left_asleep_and_wakes_from_its_memory_once_it_may(tmp_path: Path) -> None:
    async with host(tmp_path) as world:
        ref = await world.worker(state=State.SLEEPING)
        prepared = world.drives.prepared
        await restart(world, isolated=False)
        await refused(world, ref)
        assert (world.state(ref), world.drives.prepared) == (State.SLEEPING, prepared)
        await restart(world, isolated=True)
        await world.wakes.wake(ref, actor="writer")
        assert world.state(ref) is State.RUNNING
        assert world.runtime.starts == 1, "it went on from its memory"


async def test_a_paused_machine_stays_paused(tmp_path: Path) -> None:
    async with host(tmp_path) as world:
        ref = await world.worker(state=State.WARM)
        await restart(world, isolated=False)
        await refused(world, ref)
        assert world.state(ref) is State.WARM
        assert world.has_process(ref)


async def test_a_start_that_was_cut_short_is_undone_instead_of_finished(tmp_path: Path) -> None:
    async with host(tmp_path) as world:
        ref = await world.worker(state=State.STOPPED)
        await killed_at(world, "after start", world.lifecycle.start(ref, actor="test"))
        assert world.has_process(ref)
        await restart(world, isolated=False)
        assert world.state(ref) is State.STOPPED
        assert not world.has_process(ref)


async def test_what_is_isolated_starts_in_production_mode(tmp_path: Path) -> None:
    async with host(tmp_path) as world:
        ref = await world.worker(state=State.STOPPED)
        await restart(world, isolated=True)
        await world.wakes.wake(ref, actor="writer")
        assert world.state(ref) is State.RUNNING
