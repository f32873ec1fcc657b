"""The images of pools: which one each has, what is built when, and what is garbage."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from tests.unit.host.services import ALICE, WORKERS, Services
from tests.unit.image.samples import CONTENTS, QuickBuilder

from mvm.host.clock import Clock
from mvm.host.images import Images
from mvm.host.locations import locate
from mvm.host.programs import image_builders
from mvm.host.progress import silent
from mvm.image.base import Contents, OnProgress, Readiness
from mvm.image.nix import NixBuilder, NixMachineBuilder
from mvm.image.revisions import Revisions
from mvm.model.entities import Pool, PoolSpec
from mvm.model.errors import Conflict, MvmError, Unavailable
from mvm.model.ids import PoolId
from mvm.model.roles import Role
from mvm.openclaw.install import Progress as Step

LIMIT_SECONDS = 10.0
FLAKE = "github:openclaw/nix-openclaw"


@dataclass
class Bases:
    """Bases, by the image that each is of."""

    directories: dict[str, Path]

    def unused(self, images: Collection[str]) -> list[Path]:
        return [path for image, path in self.directories.items() if image not in images]


@dataclass
class World:
    services: Services
    images: Images
    builder: QuickBuilder
    nix: QuickBuilder
    revisions: Revisions
    bases: Bases

    def pool(self, pool_id: str = WORKERS) -> Pool:
        return next(pool for pool in self.services.catalog.pools.values() if pool.pool_id == pool_id)

    async def change(self, **changes: str) -> Pool:
        """Change the pool's settings that decide its image."""
        spec = PoolSpec.model_validate({"pool_id": WORKERS, "role": self.pool().role, **changes})
        return await self.services.pools.update(ALICE, spec, actor="test")

    async def build(self, version: str | None = None) -> Pool:
        if version is not None:
            self.builder.version = version
        return await self.images.build(self.pool(), actor="test", progress=silent)


@pytest.fixture
async def world(services: Services, tmp_path: Path) -> AsyncIterator[World]:
    await services.tenant(gateway=False)
    builder, revisions, bases = QuickBuilder(), Revisions(tmp_path / "images"), Bases({})
    nix = QuickBuilder("nix", usable=False)

    def contents(on_progress: OnProgress) -> Contents:
        on_progress(Step(text="finding programs"))
        return CONTENTS

    images = Images(
        catalog=services.catalog,
        chronicle=services.chronicle,
        clock=Clock(),
        revisions=revisions,
        builders=[builder, nix],
        contents=contents,
        derived=bases,
    )
    yield World(services, images, builder, nix, revisions, bases)
    await images.close()


class NoMachines:
    """Nothing can be built in machines (`mvm.image.nix.place.Machines`)."""

    def probe(self) -> Readiness:
        return Readiness(usable=False, reason="there are none")

    def stale(self) -> list[Path]:
        return []

    def machine(self, tenant: str, sources: Mapping[Path, str], on_progress: OnProgress) -> NoReturn:
        raise Unavailable("there are none")


def test_an_agent_builds_with_debians_packages_and_with_nix(tmp_path: Path) -> None:
    settings = {"state_dir": str(tmp_path / "state"), "run_dir": "/tmp/mvm-none"}
    for where, kind in (("host", NixBuilder), ("machine", NixMachineBuilder)):
        locations = locate({**settings, "nix_build": where}, {}, tmp_path)
        debian, nix = image_builders(locations, NoMachines())
        assert (debian.name, nix.name, type(nix)) == ("debian", "nix", kind)


async def test_a_pool_without_an_image_gets_one_and_keeps_it(world: World) -> None:
    first = await world.images.ensure(world.pool(), silent)
    assert world.images.path(first.revision).is_dir()
    world.builder.version = "newer"
    assert await world.images.ensure(world.pool(), silent) == first == world.pool()
    assert world.builder.builds == 1
    assert world.services.kinds(ALICE).count("PoolBuilt") == 1


async def test_whoever_builds_is_told_how_far_it_is_and_why_it_is_built_so(world: World) -> None:
    told: list[tuple[str, float | None]] = []

    def progress(text: str, *, done: float | None = None, total: float | None = None) -> None:
        told.append((text, total))

    await world.images.build(world.pool(), actor="test", progress=progress)
    assert "with debian" in told[0][0]
    assert ("finding programs", None) in told
    assert ("building", 2) in told


async def test_an_image_that_is_gone_is_built_again(world: World) -> None:
    pool = await world.build()
    world.revisions.remove(pool.revision)
    again = await world.images.ensure(world.pool(), silent)
    assert world.images.path(again.revision).is_dir()


async def test_another_profile_is_another_image(world: World) -> None:
    before = await world.build()
    spec = PoolSpec(pool_id=WORKERS, role=before.role, profile="python")
    changed = await world.services.pools.update(ALICE, spec, actor="test")
    assert changed.revision == before.revision
    after = await world.images.ensure(changed, silent)
    assert world.images.manifest(after.revision).profile == "python"
    assert after.previous_revisions == (before.revision,)


async def test_a_pool_that_names_a_flake_is_built_by_nix_where_there_is_one(world: World) -> None:
    await world.change(flake=FLAKE)
    before = await world.images.ensure(world.pool(), silent)
    assert world.images.manifest(before.revision).builder == "debian"
    world.nix.usable = True
    after = await world.images.ensure(world.pool(), silent)
    assert world.images.manifest(after.revision).builder == "nix"
    assert after.previous_revisions == (before.revision,)


async def test_what_nix_has_built_serves_whether_it_is_still_there_or_not(world: World) -> None:
    world.nix.usable = True
    await world.change(flake=FLAKE)
    built = await world.images.ensure(world.pool(), silent)
    world.nix.usable = False
    assert await world.images.ensure(world.pool(), silent) == built


async def test_another_flake_is_another_image(world: World) -> None:
    world.nix.usable = True
    revisions = []
    for flake in (FLAKE, "github:else/where", "debian:", FLAKE):
        await world.change(flake=flake)
        revisions.append((await world.images.ensure(world.pool(), silent)).revision)
    assert len(set(revisions)) == 3
    assert revisions[0] == revisions[3]
    assert world.nix.builds == 2


@pytest.mark.parametrize(("flake", "images"), [(FLAKE, 2), ("", 1)])
async def test_each_role_gets_its_own_image_from_a_flake_and_all_one_from_debian(
    flake: str, images: int, world: World
) -> None:
    world.nix.usable = True
    specs = [PoolSpec(pool_id=PoolId(role), role=role, flake=flake) for role in (Role.WORKER, Role.BUILDER)]
    pools = [await world.services.pools.create(ALICE, spec, actor="test") for spec in specs]
    assert len({(await world.images.ensure(pool, silent)).revision for pool in pools}) == images


async def test_roles_that_are_built_at_once_do_not_get_each_others_image(world: World) -> None:
    world.nix.usable = True
    specs = [PoolSpec(pool_id=PoolId(role), role=role, flake=FLAKE) for role in (Role.WORKER, Role.BUILDER)]
    pools = [await world.services.pools.create(ALICE, spec, actor="test") for spec in specs]
    built = await asyncio.gather(*(world.images.ensure(pool, silent) for pool in pools))
    assert len({pool.revision for pool in built}) == 2


async def test_nothing_of_this_host_is_prepared_for_what_does_not_take_it(world: World) -> None:
    world.nix.usable = True
    told: list[str] = []

    def progress(text: str, *, done: float | None = None, total: float | None = None) -> None:
        told.append(text)

    await world.change(flake=FLAKE)
    await world.images.build(world.pool(), actor="test", progress=progress)
    assert told[0] == f"building the image with nix: the pool names the flake '{FLAKE}', and it works"
    assert "finding programs" not in told


async def test_building_again_changes_nothing_unless_something_has(world: World) -> None:
    first = await world.build("1")
    assert await world.build("1") == first
    second = await world.build("2")
    assert (second.revision != first.revision, second.previous_revisions) == (True, (first.revision,))
    assert world.builder.builds == 2


async def test_two_revisions_are_kept_for_a_way_back(world: World) -> None:
    built = [(await world.build(version)).revision for version in ("1", "2", "3", "4")]
    assert world.pool().previous_revisions == (built[2], built[1])


async def test_a_rollback_goes_back_one_by_one_until_there_is_none(world: World) -> None:
    built = [(await world.build(version)).revision for version in ("1", "2", "3")]
    for expected in (built[1], built[0]):
        pool = await world.images.roll_back(world.pool(), actor="test", reason="no good")
        assert pool is not None
        assert pool.revision == expected
    assert await world.images.roll_back(world.pool(), actor="test", reason="no good") is None
    assert world.pool().revision == built[0]


async def test_a_rollback_passes_over_what_is_gone(world: World) -> None:
    built = [(await world.build(version)).revision for version in ("1", "2", "3")]
    world.revisions.remove(built[1])
    pool = await world.images.roll_back(world.pool(), actor="test", reason="no good")
    assert pool is not None
    assert pool.revision == built[0]


async def test_all_who_ask_at_once_wait_for_one_build(world: World) -> None:
    world.builder.may_go_on.clear()
    tasks = [asyncio.create_task(world.images.ensure(world.pool(), silent)) for _ in range(5)]
    await asyncio.to_thread(world.builder.began.wait, LIMIT_SECONDS)
    world.builder.may_go_on.set()
    pools = await asyncio.gather(*tasks)
    assert {pool.revision for pool in pools} == {world.pool().revision}
    assert world.builder.builds == 1
    assert world.services.kinds(ALICE).count("PoolBuilt") == 1


async def test_a_request_that_waits_for_many_instances_is_told_each_step_once(world: World) -> None:
    told: list[str] = []

    def progress(text: str, *, done: float | None = None, total: float | None = None) -> None:
        told.append(text)

    await asyncio.gather(*(world.images.ensure(world.pool(), progress) for _ in range(5)))
    assert len(told) == len(set(told)) >= 3


async def test_who_stops_waiting_does_not_stop_the_build(world: World) -> None:
    world.builder.may_go_on.clear()
    impatient = asyncio.create_task(world.images.ensure(world.pool(), silent))
    patient = asyncio.create_task(world.images.ensure(world.pool(), silent))
    await asyncio.to_thread(world.builder.began.wait, LIMIT_SECONDS)
    impatient.cancel()
    world.builder.may_go_on.set()
    assert (await patient).revision
    assert world.builder.builds == 1


async def test_the_end_of_the_agent_ends_a_build_that_leaves_nothing(world: World) -> None:
    world.builder.may_go_on.clear()
    asking = asyncio.create_task(world.images.ensure(world.pool(), silent))
    await asyncio.to_thread(world.builder.began.wait, LIMIT_SECONDS)
    await world.images.close()
    with pytest.raises(Unavailable, match="the agent ends"):
        await asking
    assert world.revisions.all() == []
    assert world.pool().revision == ""


async def test_a_build_that_fails_is_an_event_and_the_pool_keeps_what_it_has(world: World) -> None:
    before = await world.build("1")

    def fail() -> None:
        raise MvmError("no room")

    world.builder.before_files = fail
    with pytest.raises(MvmError, match="no room"):
        await world.build("2")
    assert world.pool() == before
    (event,) = [e for e in world.services.chronicle.events.recent(tenant_id=ALICE) if e.kind == "PoolBuildFailed"]
    assert event.detail == f"{WORKERS}: no room"


async def test_a_full_disk_is_told_as_such(world: World) -> None:
    def fail() -> None:
        raise OSError(28, os.strerror(28), "/somewhere")

    world.builder.before_files = fail
    with pytest.raises(MvmError, match="No space left on device") as failed:
        await world.build()
    assert failed.value.hint


async def test_what_anybody_uses_is_no_garbage(world: World) -> None:
    built = [(await world.build(version)).revision for version in ("1", "2", "3", "4", "5")]
    await world.services.scale(WORKERS, running=1)
    (sleeper,) = world.services.catalog.instances_of(ALICE)
    await world.services.catalog.save_instance(sleeper.model_copy(update={"image_revision": built[0]}))
    garbage = await world.images.garbage()
    assert [revision.digest for revision in garbage.revisions] == [built[1]]
    assert len(world.revisions.all()) == 5


async def test_garbage_is_removed_with_what_was_made_of_it(world: World, tmp_path: Path) -> None:
    built = [(await world.build(version)).revision for version in ("1", "2", "3", "4")]
    for name in ("old-base", "new-base", "old-layer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * 4096)
    world.bases.directories = {built[0]: tmp_path / "old-base", built[3]: tmp_path / "new-base"}
    world.builder.kept = [tmp_path / "old-layer"]
    expected = await world.images.garbage()
    assert await world.images.collect() == expected
    assert expected.size > 8192
    assert [(tmp_path / name).exists() for name in ("old-base", "new-base", "old-layer")] == [False, True, False]
    assert {revision.digest for revision in world.revisions.all()} == set(built[1:])


async def test_images_of_pools_that_are_gone_are_garbage(world: World) -> None:
    await world.build()
    await world.services.pools.destroy(ALICE, WORKERS, actor="test", progress=silent)
    assert len((await world.images.collect()).revisions) == 1
    assert world.revisions.all() == []


async def test_nothing_is_removed_while_an_image_is_built(world: World) -> None:
    world.builder.may_go_on.clear()
    building = asyncio.create_task(world.build())
    await asyncio.to_thread(world.builder.began.wait, LIMIT_SECONDS)
    with pytest.raises(Conflict, match="being built"):
        await world.images.collect()
    world.builder.may_go_on.set()
    assert world.images.path((await building).revision).is_dir()


async def test_nor_while_a_build_goes_on_that_nobody_waits_for_any_more(world: World) -> None:
    world.builder.may_go_on.clear()
    building = asyncio.create_task(world.build())
    await asyncio.to_thread(world.builder.began.wait, LIMIT_SECONDS)
    building.cancel()
    await asyncio.wait([building])
    with pytest.raises(Conflict, match="being built"):
        await world.images.collect()
    world.builder.may_go_on.set()
    assert world.images.path((await world.build()).revision).is_dir()
    assert world.builder.builds == 1
    await world.images.collect()
