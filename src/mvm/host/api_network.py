"""Requests about the networks of tenants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvm.host.api import Call, Json, Params, Request
from mvm.host.network_check import NetworkCheck
from mvm.model.base import TenantIdField

if TYPE_CHECKING:
    from mvm.host.app import Host


class NetVerify(Params):
    tenant_id: TenantIdField | None = None


async def net_verify(host: Host, params: NetVerify, call: Call) -> Json:
    """Real connections from inside guests; nothing is changed."""
    check = NetworkCheck(host.catalog, host.networks, host.inspection)
    return await check.verify(params.tenant_id, actor=call.actor)


REQUESTS: dict[str, Request[Host]] = {"NetVerify": Request(NetVerify, net_verify)}
