"""Requests about what this host keeps and nobody needs any more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mvm.host.api import Call, Json, Params, Request
from mvm.host.api_images import listed
from mvm.host.orphans import Orphan

if TYPE_CHECKING:
    from mvm.host.app import Host


class OrphanList(Params):
    clear: bool = False


class NodeGc(Params):
    dry_run: bool = False
    drives: bool = True
    """Whether drives that were put aside go too."""


async def orphans(host: Host, params: OrphanList, call: Call) -> Json:
    """What belongs to no instance; with `clear` it is cleared away, data drives by being put aside."""
    found = await host.orphans.find()
    failed = await host.orphans.clear(found, actor=call.actor) if params.clear else []
    reasons = {orphan.name: reason for orphan, reason in failed}
    return {
        "cleared": params.clear,
        "aside": str(host.orphans.aside),
        "orphans": [{**_dumped(orphan), "failed": reasons.get(orphan.name)} for orphan in found],
    }


async def node_gc(host: Host, params: NodeGc, call: Call) -> Json:
    """Remove images that nobody uses, and drives that were put aside."""
    garbage = await (host.images.garbage() if params.dry_run else host.images.collect())
    drives = await asyncio.to_thread(host.orphans.set_aside) if params.drives else {}
    if not params.dry_run:
        await asyncio.to_thread(host.orphans.discard, list(drives))
    return {
        "removed": not params.dry_run,
        "bytes": garbage.size + sum(drives.values()),
        **listed(garbage),
        "drives": [{"path": str(path), "bytes": size} for path, size in drives.items()],
    }


def _dumped(orphan: Orphan) -> Json:
    return {"kind": str(orphan.kind), "name": orphan.name, "why": orphan.why, "bytes": orphan.bytes}


REQUESTS: dict[str, Request[Host]] = {
    "Orphans": Request(OrphanList, orphans),
    "NodeGc": Request(NodeGc, node_gc),
}
