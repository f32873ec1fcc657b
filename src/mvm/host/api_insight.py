"""Requests of whoever wants to understand: why something is as it is, what was used, how a deployment is reached."""

from __future__ import annotations

from datetime import UTC, date, timedelta
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mvm.host.accounting import KEEP_DAYS
from mvm.host.api import Call, Json, Params, Request
from mvm.host.api_tenants import Nothing, OfTenant
from mvm.model.base import TenantIdField
from mvm.model.entities import User
from mvm.model.errors import InvalidInput, Unavailable
from mvm.model.ids import Address
from mvm.model.secrets import CHANNEL_SCOPES

if TYPE_CHECKING:
    from mvm.host.app import Host

MAX_ROWS = 2000
"""Rows in one answer: of about 250 bytes each they fit a frame."""
DEFAULT_DAYS = 30


class Explain(Params):
    address: Annotated[str, Field(max_length=300)]


class UsageOf(Params):
    tenant_id: TenantIdField | None = None
    since: Annotated[str, Field(max_length=10)] | None = None
    after: Annotated[str, Field(max_length=200)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_ROWS)] = MAX_ROWS


async def explain(host: Host, params: Explain, call: Call) -> Json:
    return await host.explainer.explain(Address.parse(params.address))


async def usage(host: Host, params: UsageOf, call: Call) -> Json:
    """Sorted by tenant and user; the next page begins `after` the last row's `key`.

    A tenant that is gone may still have figures; one that never was here is `NotFound`.
    """
    now = host.clock.now().astimezone(UTC)
    since = _day(params.since) if params.since is not None else now.date() - timedelta(days=DEFAULT_DAYS - 1)
    rows = await host.accounting.rows(params.tenant_id, since=since)
    if params.tenant_id is not None and not rows:
        host.catalog.tenant(params.tenant_id)
    page = [row for row in rows if row.key > (params.after or "")][: params.limit]
    return {
        "since": since.isoformat(),
        "until": now.isoformat(),
        "usage": [
            {
                "key": row.key,
                "tenant_id": row.tenant_id,
                "user_id": row.user_id,
                "pool_id": row.pool_id,
                "running_seconds": round(row.usage.running_seconds, 1),
                "memory_mib_seconds": round(row.usage.memory_mib_seconds),
                "wakes": row.usage.wakes,
                "messages": row.usage.messages,
            }
            for row in page
        ],
    }


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidInput(
            f"since {text!r} is not a day", hint=f"write it as '2026-01-31'; {KEEP_DAYS} days are kept"
        ) from None


async def connect(host: Host, params: OfTenant, call: Call) -> Json:
    """A deployment at a glance: its channels, its gateway, its users and their workers. No secret is among it."""
    tenant = host.catalog.tenant(params.tenant_id)
    gateway = host.gateways.gateway_of(tenant.tenant_id)
    serving = host.gateways.serving_tenant(tenant.tenant_id)
    scopes = {name.scope for name in await host.secrets.names(serving.tenant_id)} if serving else set()
    users = host.catalog.users_of(tenant.tenant_id)
    return {
        "tenant": tenant.tenant_id,
        "channels": sorted(scopes & CHANNEL_SCOPES),
        "served_by": serving.tenant_id if serving else None,
        "gateway": gateway
        and {
            "address": str(gateway.ref),
            "state": gateway.state.value,
            "guest_ip": gateway.network.guest_ip,
            "last_error": gateway.last_error,
        },
        "users": [_whereabouts(host, user) for user in users],
    }


def _whereabouts(host: Host, user: User) -> Json:
    worker = host.catalog.instances.get(user.instance_id) if user.instance_id else None
    report = host.reports.latest(worker.instance_id) if worker else None
    return {
        "user_id": user.user_id,
        "peers": list(user.peers),
        "paired": bool(user.peers),
        "worker": worker
        and {
            "address": str(worker.ref),
            "state": worker.state.value,
            "activity": report.activity.value if report else None,
            "next_alarm_at": worker.next_alarm_at and worker.next_alarm_at.isoformat(),
            "last_error": worker.last_error,
        },
    }


async def console_link(host: Host, params: Nothing, call: Call) -> Json:
    """The address has the token of the console in it: it is for the person who asks, and nobody else."""
    if host.console_link is None:
        raise Unavailable(
            "this agent shows no console: no metrics port is set",
            hint='write metrics_port = "9464" into mvm.toml (or set MVM_METRICS_PORT), and start the agent again',
        )
    return {"url": host.console_link}


REQUESTS: dict[str, Request[Host]] = {
    "Explain": Request(Explain, explain),
    "Usage": Request(UsageOf, usage),
    "Connect": Request(OfTenant, connect),
    "ConsoleLink": Request(Nothing, console_link),
}
