"""Requests about this host and what happens on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import socket
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import psutil
from pydantic import Field

from mvm.host.api import Call, Json, Params, Request
from mvm.host.api_tenants import Nothing
from mvm.host.audit import Verdict
from mvm.host.events import Event
from mvm.host.tenants import HOST_AUDIT
from mvm.host.version import own_version
from mvm.model.base import TenantIdField
from mvm.model.errors import MvmError
from mvm.model.ids import TenantId

if TYPE_CHECKING:
    from mvm.host.app import Host

DEFAULT_EVENTS = 100


class Events(Params):
    tenant_id: TenantIdField | None = None
    since: Annotated[int, Field(ge=0)] | None = None
    limit: Annotated[int, Field(ge=0, le=10_000)] = DEFAULT_EVENTS
    follow: bool = False


class OfAudit(Params):
    tenant_id: TenantIdField | None = None


async def node_info(host: Host, params: Nothing, call: Call) -> Json:
    """Also how clients find out whether an agent answers, so it must not wait for anything slow."""
    try:
        choice = await host.runtimes.choose()
        runtime, reason = choice.runtime.name, choice.reason
        isolated, limits = choice.runtime.capabilities.isolated, sorted(choice.runtime.capabilities.limits)
    except MvmError as error:
        runtime, reason, isolated, limits = "none", error.message, False, []
    locations = host.locations
    return {
        "hostname": socket.gethostname(),
        "version": own_version(),
        "agent_pid": os.getpid(),
        "runtime": runtime,
        "runtime_reason": reason,
        "isolated": isolated,
        "limits": limits,
        "production": locations.production,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "state_dir": str(locations.state_dir),
        "run_dir": str(locations.run_dir),
        "secrets_in_memory": locations.secrets_in_memory,
        "metrics_port": host.metrics_port,
        "listen": host.listens,
        "tenants": len(host.catalog.tenants),
        "instances": len(host.catalog.instances),
    }


async def node_stats(host: Host, params: Nothing, call: Call) -> Json:
    agent = psutil.Process()
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage(str(host.locations.state_dir))
    states = Counter(instance.state.value for instance in host.catalog.instances.values())
    return {
        "agent_memory_bytes": agent.memory_info().rss,
        "agent_cpu_seconds": round(sum(agent.cpu_times()[:2]), 2),
        "host_memory_available_bytes": memory.available,
        "host_memory_total_bytes": memory.total,
        "state_disk_free_bytes": disk.free,
        "load": round(os.getloadavg()[0], 2),
        "users": len(host.catalog.users),
        "pools": len(host.catalog.pools),
        "instances": dict(sorted(states.items())),
    }


async def events(host: Host, params: Events, call: Call) -> Json:
    """The newest events after `since`, then with `follow` each new one.

    A tenant that is gone may still have events; one that never was here is `NotFound`.
    """
    log = host.chronicle.events
    if params.tenant_id is not None and not log.recent(1, tenant_id=params.tenant_id):
        host.catalog.tenant(params.tenant_id)
    past = log.recent(params.limit, since=params.since or 0, tenant_id=params.tenant_id)
    for event in past:
        await call.send("Event", _dumped(event))
    if params.follow:
        reached = past[-1].number if past else log.last_number
        async with contextlib.aclosing(log.subscribe(reached, tenant_id=params.tenant_id)) as stream:
            async for event in stream:
                await call.send("Event", _dumped(event))
    return {"last_number": log.last_number}


async def audit_verify(host: Host, params: OfAudit, call: Call) -> Json:
    """Check the chain of one audit, or of all: every tenant's, and the host's own about tenants that are gone."""
    audit = host.chronicle.audit
    if params.tenant_id is not None:
        host.catalog.tenant(params.tenant_id)
    tenants = [params.tenant_id] if params.tenant_id is not None else [*sorted(host.catalog.tenants), HOST_AUDIT]
    found = []
    for number, tenant in enumerate(tenants, 1):
        call.progress(f"reading the audit of {tenant}", done=number, total=len(tenants))
        found.append(_verdict(tenant, await asyncio.to_thread(audit.verify, tenant)))
    return {"audits": found}


def _verdict(tenant: TenantId, verdict: Verdict) -> Json:
    broken = verdict.broken
    return {
        "tenant_id": tenant,
        "intact": verdict.intact,
        "lines": verdict.lines,
        "head": verdict.head,
        "broken": broken and {"file": str(broken.file), "line": broken.line, "problem": broken.problem},
    }


def _dumped(event: Event) -> Json:
    return event.model_dump(mode="json", exclude_none=True)


async def shutdown(host: Host, params: Nothing, call: Call) -> Json:
    """End the agent; instances live on."""
    host.shutdown.set()
    return {}


REQUESTS: dict[str, Request[Host]] = {
    "NodeInfo": Request(Nothing, node_info),
    "NodeStats": Request(Nothing, node_stats),
    "Events": Request(Events, events, only_waits=True),
    "AuditVerify": Request(OfAudit, audit_verify, only_waits=True),
    "Shutdown": Request(Nothing, shutdown),
}
