"""Requests about the people a deployment serves, and how they reach it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mvm.host.api import Call, Json, Request
from mvm.host.api_tenants import OfTenant, dumped
from mvm.model.base import PoolIdField, UserIdField
from mvm.model.entities import SenderId

if TYPE_CHECKING:
    from mvm.host.app import Host


class UserAdd(OfTenant):
    user_id: UserIdField
    telegram: tuple[SenderId, ...] = ()
    discord: tuple[SenderId, ...] = ()
    pool: PoolIdField | None = None


class OfUser(OfTenant):
    user_id: UserIdField


class UserLink(OfUser):
    telegram: tuple[SenderId, ...] = ()
    discord: tuple[SenderId, ...] = ()

    @property
    def senders(self) -> dict[str, tuple[SenderId, ...]]:
        return {"telegram": self.telegram, "discord": self.discord}


class UserPair(OfTenant):
    code: Annotated[str, Field(max_length=64)]
    user_id: UserIdField | None = None


async def user_add(host: Host, params: UserAdd, call: Call) -> Json:
    known = (params.tenant_id, params.user_id) in host.catalog.users
    user = await host.users.add(
        params.tenant_id,
        params.user_id,
        telegram=params.telegram,
        discord=params.discord,
        pool_id=params.pool,
        actor=call.actor,
        progress=call.progress,
    )
    return {"user": user.model_dump(mode="json"), "added": not known}


async def user_link(host: Host, params: UserLink, call: Call) -> Json:
    before = host.users.get(params.tenant_id, params.user_id)
    user = await host.users.link(params.tenant_id, params.user_id, params.senders, actor=call.actor)
    return {"user": user.model_dump(mode="json"), "changed": user.peers != before.peers}


async def user_unlink(host: Host, params: UserLink, call: Call) -> Json:
    user = await host.users.unlink(params.tenant_id, params.user_id, params.senders, actor=call.actor)
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


REQUESTS: dict[str, Request[Host]] = {
    "UserAdd": Request(UserAdd, user_add),
    "UserLink": Request(UserLink, user_link),
    "UserUnlink": Request(UserLink, user_unlink),
    "UserList": Request(OfTenant, user_list),
    "UserRemove": Request(OfUser, user_remove),
    "UserPair": Request(UserPair, user_pair),
}
