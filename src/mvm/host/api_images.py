"""Requests about the images of pools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvm.host.api import Call, Json, Params, Request
from mvm.host.api_tenants import OfPool
from mvm.host.images import Garbage
from mvm.model.entities import Pool
from mvm.model.errors import Conflict, MvmError

if TYPE_CHECKING:
    from mvm.host.app import Host


class PoolBuild(OfPool):
    force: bool = False


class PoolGc(Params):
    dry_run: bool = False


async def pool_build(host: Host, params: PoolBuild, call: Call) -> Json:
    before = host.catalog.pool(params.tenant_id, params.pool_id)
    if not params.force:
        await _require_use(host, before)
    pool = await host.images.build(before, actor=call.actor, progress=call.progress, force=params.force)
    return {
        "pool": pool.model_dump(mode="json"),
        "built": params.force or pool.revision != before.revision,
        "manifest": host.images.manifest(pool.revision).model_dump(mode="json"),
    }


async def _require_use(host: Host, pool: Pool) -> None:
    """Raise `Conflict` where nothing of a pool would run an image: to build one takes minutes and gigabytes."""
    try:
        chosen = (await host.runtimes.choose()).runtime.name
    except MvmError:
        return  # no runtime works here yet: an image may be made before one does
    instances = host.catalog.instances_of(pool.tenant_id, pool.pool_id)
    names = {chosen, *(i.runtime for i in instances if i.runtime in host.runtimes.names)}
    if not any(host.runtimes.named(name).capabilities.images for name in names):
        raise Conflict(
            f"nothing is built for pool '{pool.tenant_id}/{pool.pool_id}': the runtime {chosen} uses no images",
            hint="--force builds one all the same, for a later agent with virtual machines (MVM_RUNTIME=qemu)",
        )


async def pool_rollback(host: Host, params: OfPool, call: Call) -> Json:
    before = host.catalog.pool(params.tenant_id, params.pool_id)
    pool = await host.images.roll_back(before, actor=call.actor, reason="asked for")
    if pool is None:
        raise Conflict(
            f"pool '{before.tenant_id}/{before.pool_id}' has no revision before its present one",
            hint="`mvm pool build` makes one from what there is now",
        )
    return {"pool": pool.model_dump(mode="json"), "from": before.revision}


async def pool_gc(host: Host, params: PoolGc, call: Call) -> Json:
    garbage = await (host.images.garbage() if params.dry_run else host.images.collect())
    return {"removed": not params.dry_run, "bytes": garbage.size, **listed(garbage)}


def listed(garbage: Garbage) -> Json:
    """What nobody uses, as JSON."""
    return {
        "revisions": [
            {
                "revision": revision.digest,
                "bytes": revision.size,
                "profile": revision.manifest.profile,
                "openclaw": revision.manifest.openclaw,
            }
            for revision in garbage.revisions
        ],
        "others": [{"path": str(path), "bytes": size} for path, size in garbage.others.items()],
    }


REQUESTS: dict[str, Request[Host]] = {
    "PoolBuild": Request(PoolBuild, pool_build),
    "PoolRollback": Request(OfPool, pool_rollback),
    "PoolGc": Request(PoolGc, pool_gc),
}
