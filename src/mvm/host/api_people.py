"""Requests about the people a deployment serves, and how they reach it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mvm.host.api import Call, Json, Request
from mvm.host.api_tenants import OfTenant, dumped
from mvm.model.base import PoolIdField, UserIdField
from mvm.model.entities import SenderId, User
from mvm.model.secrets import CHANNEL_SCOPES

if TYPE_CHECKING:
    from mvm.host.app import Host


class UserAdd(OfTenant):
    user_id: UserIdField
    telegram: tuple[SenderId, ...] = ()
    discord: tuple[SenderId, ...] = ()
    pool: PoolIdField | None = None


class OfUser(OfTenant):
    user_id: UserIdField


class UserPair(OfTenant):
    code: Annotated[str, Field(max_length=64)]
    user_id: UserIdField | None = None


async def user_add(host: Host, params: UserAdd, call: Call) -> Json:
    user = await host.users.add(
        params.tenant_id,
        params.user_id,
        telegram=params.telegram,
        discord=params.discord,
        pool_id=params.pool,
        actor=call.actor,
        progress=call.progress,
    )
    return {"user": user.model_dump(mode="json")}


async def user_list(host: Host, params: OfTenant, call: Call) -> Json:
    return {"users": dumped(host.users.list(params.tenant_id))}


async def user_remove(host: Host, params: OfUser, call: Call) -> Json:
    await host.users.remove(params.tenant_id, params.user_id, actor=call.actor, progress=call.progress)
    return {"tenant_id": params.tenant_id, "user_id": params.user_id}


async def user_pair(host: Host, params: UserPair, call: Call) -> Json:
    host.catalog.tenant(params.tenant_id)  # one that does not exist is told apart from one without a gateway
    user = await host.pairing.pair(params.tenant_id, params.code, user_id=params.user_id, actor=call.actor)
    return {"user": user.model_dump(mode="json")}


async def connect(host: Host, params: OfTenant, call: Call) -> Json:
    """Single values first, then the users: what a person needs to reach the deployment. No token is among it."""
    tenant = host.catalog.tenant(params.tenant_id)
    gateway = host.gateways.gateway_of(tenant.tenant_id)
    serving = host.gateways.serving_tenant(tenant.tenant_id)
    scopes = {name.scope for name in await host.secrets.names(serving.tenant_id)} if serving else set()
    users = host.catalog.users_of(tenant.tenant_id)
    answer: Json = {
        "tenant": tenant.tenant_id,
        "channels": ", ".join(sorted(scopes & CHANNEL_SCOPES)) or "none: no channel's token is set",
        "gateway": str(gateway.ref) if gateway else "none",
        "gateway_state": gateway.state.value if gateway else None,
        "gateway_address": gateway.network.guest_ip if gateway else None,
        "served_by": serving.tenant_id if serving and serving.tenant_id != tenant.tenant_id else None,
    }
    if any(not user.peers for user in users):
        answer["to_pair"] = f"write to the bot, then: mvm user pair {tenant.tenant_id} CODE"
    return answer | {"users": {user.user_id: _whereabouts(host, user) for user in users}}


def _whereabouts(host: Host, user: User) -> str:
    instance = host.catalog.instances.get(user.instance_id) if user.instance_id else None
    peers = ", ".join(user.peers) or "not paired yet"
    if instance is None:
        return f"{peers}; no worker yet"
    return f"{peers}; worker {instance.ref} is {instance.state}"


REQUESTS: dict[str, Request[Host]] = {
    "UserAdd": Request(UserAdd, user_add),
    "UserList": Request(OfTenant, user_list),
    "UserRemove": Request(OfUser, user_remove),
    "UserPair": Request(UserPair, user_pair),
    "Connect": Request(OfTenant, connect),
}
