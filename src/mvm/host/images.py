"""The images of pools: built when they are missing or asked for, kept for a way back, removed when nobody uses them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog

from mvm.host.audit import AuditAction
from mvm.host.catalog import Catalog
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.progress import Progress
from mvm.image import trees
from mvm.image.base import Builder, BuildRequest, Contents, Manifest, OnProgress
from mvm.image.builders import Choice, choose
from mvm.image.revisions import Revision, Revisions
from mvm.model.entities import Pool
from mvm.model.errors import Conflict, MvmError, Unavailable
from mvm.openclaw.install import Progress as Step

log = structlog.get_logger(__name__)

KEPT_PREVIOUS = 2
"""How many revisions before its present one a pool can go back to."""
SHOWN = 12
"""Characters of a digest that people are shown."""


class Derived(Protocol):
    """What was made from images and is of use with them only: bases (`mvm.host.bases`)."""

    def unused(self, images: Collection[str]) -> list[Path]:
        """Directories that belong to none of these images, or were not needed for long."""


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """What nobody uses any more."""

    revisions: tuple[Revision, ...]
    others: dict[Path, int]
    """Bases of images that nobody uses, and bases and what builders kept that were not needed for a while: bytes."""

    @property
    def size(self) -> int:
        """Bytes that it takes on the disk."""
        return sum(revision.size for revision in self.revisions) + sum(self.others.values())


@dataclass
class _Build:
    """A build under way and everybody who waits for it."""

    task: asyncio.Task[tuple[str, float]]
    listeners: list[Progress] = field(default_factory=list)
    last: Step | None = None


_Key = tuple[str, str, str, str, bool]
"""What builds of the same image have in common: builder, role (empty: every one), profile, flake, by force."""


class Images:
    """The image revisions of this host and which pool has which."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        chronicle: Chronicle,
        clock: Clock,
        revisions: Revisions,
        builders: Sequence[Builder],
        contents: Callable[[OnProgress], Contents],
        derived: Derived,
    ) -> None:
        """`contents` finds (or installs) what mvm puts into images; it is called in a thread."""
        self._catalog = catalog
        self._chronicle = chronicle
        self._clock = clock
        self._revisions = revisions
        self._builders = builders
        self._contents = contents
        self._derived = derived
        self._under_way: dict[_Key, _Build] = {}
        self._at_work = 0
        """Builds whose revision is not their pool's yet."""
        self._gate = asyncio.Lock()
        """Held while garbage is removed: no build begins then that would find its revision there and then not."""
        self._giving = asyncio.Lock()
        self._closing = threading.Event()

    def path(self, revision: str) -> Path:
        """Directory of a revision; `NotFound` when it is not there."""
        return self._revisions.path(revision)

    def manifest(self, revision: str) -> Manifest:
        """What is in a revision."""
        return self._revisions.manifest(revision)

    async def ensure(self, pool: Pool, progress: Progress) -> Pool:
        """The pool with a revision that is there and fits its settings; built first when there is none."""
        if await asyncio.to_thread(self._fits, pool):
            return pool
        return await self.build(pool, actor="images", progress=progress)

    async def build(self, pool: Pool, *, actor: str, progress: Progress, force: bool = False) -> Pool:
        """Build what the pool asks for from what there is now, and make it the pool's revision.

        A build of the same inputs is found, not made again, unless `force`. Raises what the builder raises; the pool
        keeps the revision that it had then.
        """
        async with self._gate:
            self._at_work += 1
        try:
            choice = await asyncio.to_thread(choose, pool.flake, self._builders)
            digest, seconds = await self._built(pool, choice, progress, force=force)
            async with self._giving:
                pool = self._catalog.pool(pool.tenant_id, pool.pool_id)
                if pool.revision == digest and not force:
                    return pool
                pool = await self._give(pool, digest)
        except MvmError as error:
            self._chronicle.tenant_event(
                pool.tenant_id, "PoolBuildFailed", actor=actor, detail=f"{pool.pool_id}: {error.message}"
            )
            raise
        finally:
            self._at_work -= 1
        self._chronicle.record_tenant(
            pool.tenant_id,
            AuditAction.POOL_BUILT,
            actor=actor,
            pool_id=pool.pool_id,
            detail=f"image {digest[:SHOWN]} with {choice.builder.name} in {seconds:.0f} s ({choice.reason})",
        )
        return pool

    async def roll_back(self, pool: Pool, *, actor: str, reason: str) -> Pool | None:
        """Go back to the revision before; None when there is none. What runs goes on with what it was started from."""
        pool = self._catalog.pool(pool.tenant_id, pool.pool_id)
        before = [digest for digest in pool.previous_revisions if self._revisions.has(digest)]
        if not before:
            return None
        changed = pool.model_copy(update={"revision": before[0], "previous_revisions": tuple(before[1:])})
        saved = await self._catalog.save_pool(changed)
        self._chronicle.record_tenant(
            pool.tenant_id,
            AuditAction.POOL_UPDATED,
            actor=actor,
            pool_id=pool.pool_id,
            detail=f"image back from {pool.revision[:SHOWN]} to {saved.revision[:SHOWN]}: {reason}",
        )
        return saved

    async def garbage(self) -> Garbage:
        """What `collect` would remove."""
        return await asyncio.to_thread(self._find_garbage, self.in_use())

    async def collect(self) -> Garbage:
        """Remove every revision that no pool has or can go back to and no instance was started from, running or asleep.

        With them go bases of such images, and what builders kept for long without need. `Conflict` while one builds.
        """
        async with self._gate:
            if self._at_work or self._under_way:  # a build goes on when nobody waits for it any more
                raise Conflict("an image is being built", hint="run it again when that is done")
            garbage = await self.garbage()
            await asyncio.to_thread(self._remove, garbage)
        return garbage

    def in_use(self) -> frozenset[str]:
        """Revisions that may not be removed."""
        used: set[str] = set()
        for pool in self._catalog.pools.values():
            used |= {pool.revision, *pool.previous_revisions}
        used |= {instance.image_revision for instance in self._catalog.instances.values()}
        return frozenset(used - {""})

    async def close(self) -> None:
        """End the builds under way; each leaves nothing but its builder's cache."""
        self._closing.set()
        await asyncio.gather(*(build.task for build in self._under_way.values()), return_exceptions=True)

    def _fits(self, pool: Pool) -> bool:
        if not self._revisions.has(pool.revision):
            return False
        manifest = self._revisions.manifest(pool.revision)
        if manifest.profile != pool.profile:
            return False
        if manifest.source is not None:
            # What was built from the pool's flake serves, whether this host could build it once more or not.
            return manifest.source.flake == pool.flake
        return manifest.builder == choose(pool.flake, self._builders).builder.name

    async def _give(self, pool: Pool, digest: str) -> Pool:
        before = [one for one in (pool.revision, *pool.previous_revisions) if one not in ("", digest)]
        kept = tuple(dict.fromkeys(before))[:KEPT_PREVIOUS]
        return await self._catalog.save_pool(pool.model_copy(update={"revision": digest, "previous_revisions": kept}))

    async def _built(self, pool: Pool, choice: Choice, progress: Progress, *, force: bool) -> tuple[str, float]:
        """Digest of the revision and the seconds it took; who asks for the same meanwhile waits for the same build."""
        key = (choice.builder.name, choice.builder.serves(str(pool.role)), pool.profile, pool.flake, force)
        build = self._under_way.get(key)
        if build is None:
            progress(f"building the image with {choice.builder.name}: {choice.reason}")
            build = self._under_way[key] = _Build(
                asyncio.create_task(self._run(key, pool, choice.builder), name=f"image of {pool.pool_id}")
            )
        elif build.last is not None and progress not in build.listeners:
            _tell(progress, build.last)
        build.listeners.append(progress)
        try:
            return await asyncio.shield(build.task)
        finally:
            build.listeners.remove(progress)

    async def _run(self, key: _Key, pool: Pool, builder: Builder) -> tuple[str, float]:
        loop = asyncio.get_running_loop()
        began = self._clock.monotonic()

        def told(step: Step) -> None:
            build = self._under_way[key]
            build.last = step
            for listener in dict.fromkeys(build.listeners):  # one request may wait for many instances
                _tell(listener, step)

        def on_progress(step: Step) -> None:
            if self._closing.is_set():
                raise Unavailable("the agent ends, and the build of an image with it", hint="start it again")
            loop.call_soon_threadsafe(told, step)

        def make() -> str:
            request = BuildRequest(
                contents=self._contents(on_progress) if builder.needs_contents else None,
                role=str(pool.role),
                profile=pool.profile,
                flake=pool.flake,
                tenant=pool.tenant_id,
            )
            self._revisions.clear_unfinished()
            with builder.at_work() as work:
                inputs = work.resolve(request, on_progress)
                self._revisions.build(work, inputs, on_progress, force=key[-1])
            return inputs.digest

        try:
            digest = await asyncio.to_thread(make)
        except OSError as error:
            raise MvmError(
                f"the image could not be built: {error.strerror or error} ({error.filename})",
                hint="is the file system full or read-only?",
            ) from error
        finally:
            del self._under_way[key]
        return digest, self._clock.monotonic() - began

    def _find_garbage(self, used: frozenset[str]) -> Garbage:
        revisions = tuple(self._revisions.unused(used))
        kept = [path for builder in self._builders for path in builder.stale()]
        others = {path: _disk_use(path) for path in (*self._derived.unused(used), *kept)}
        return Garbage(revisions=revisions, others=others)

    def _remove(self, garbage: Garbage) -> None:
        self._revisions.clear_unfinished()
        for revision in garbage.revisions:
            self._revisions.remove(revision.digest)
            log.info("image revision removed", revision=revision.digest, size=revision.size)
        for path in garbage.others:
            trees.remove(path)


def _disk_use(path: Path) -> int:
    """Bytes that a file, or a directory with all in it, takes on the disk."""
    return sum(each.lstat().st_blocks * 512 for each in (path, *path.rglob("*")))


def _tell(progress: Progress, step: Step) -> None:
    progress(step.text, done=step.done if step.total else None, total=step.total)
