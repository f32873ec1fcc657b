"""Requests about instances."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mvm.host.api import Call, Json, Params, Request
from mvm.host.api_tenants import OfPool, dumped
from mvm.model.base import InstanceIdField, PoolIdField, TenantIdField, UserIdField
from mvm.model.entities import Instance, User
from mvm.model.errors import Conflict, InvalidInput
from mvm.model.ids import Address, InstanceRef

if TYPE_CHECKING:
    from mvm.host.app import Host

MAX_PAGE = 500
"""Instances in one answer: 500 of about 1.5 KiB fit a frame."""


class InstanceCreate(OfPool):
    user: UserIdField | None = None


class InstanceList(Params):
    tenant_id: TenantIdField | None = None
    pool_id: PoolIdField | None = None
    after: InstanceIdField | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = MAX_PAGE


class OfInstance(Params):
    address: str

    @property
    def ref(self) -> InstanceRef:
        return Address.parse(self.address).instance


class Forcible(OfInstance):
    force: bool = False


class WakeInstance(OfPool):
    instance_id: InstanceIdField


class InstanceLogs(OfInstance):
    service: str | None = None
    lines: Annotated[int, Field(ge=1, le=10_000)] = 200


class InstanceExec(OfInstance):
    argv: Annotated[tuple[str, ...], Field(min_length=1, max_length=256)]
    timeout_secs: Annotated[int, Field(ge=1, le=3600)] = 30


def _answer(instance: Instance) -> Json:
    return {"instance": instance.model_dump(mode="json")}


async def instance_create(host: Host, params: InstanceCreate, call: Call) -> Json:
    if params.user is None:
        instance = await host.lifecycle.create_instance(params.tenant_id, params.pool_id, actor=call.actor)
        return _answer(instance)
    user = host.users.get(params.tenant_id, params.user)
    _check_unbound(host, user, params)
    user = await host.users.bind(user, actor=call.actor)
    await host.users.refresh_gateway(params.tenant_id, actor=call.actor)
    assert user.instance_id is not None
    return _answer(host.catalog.instances[user.instance_id])


def _check_unbound(host: Host, user: User, params: InstanceCreate) -> None:
    if user.instance_id is not None and user.instance_id in host.catalog.instances:
        raise Conflict(
            f"user {user.user_id!r} has the worker {user.instance_id} already", hint="a person has one private worker"
        )
    if user.pool_id != params.pool_id:
        raise InvalidInput(
            f"user {user.user_id!r} belongs to the pool {user.pool_id!r}",
            hint=f"write {user.tenant_id}/{user.pool_id}",
        )


async def instance_list(host: Host, params: InstanceList, call: Call) -> Json:
    """Sorted by id, which is also what `after` names; pages may differ in age but miss nothing that stays."""
    if params.tenant_id is not None:
        host.catalog.tenant(params.tenant_id)
        if params.pool_id is not None:
            host.catalog.pool(params.tenant_id, params.pool_id)  # one that does not exist is told from an empty one
        found = host.catalog.instances_of(params.tenant_id, params.pool_id)
    elif params.pool_id is not None:
        raise InvalidInput("pool_id without tenant_id names no pool", hint="write TENANT/POOL")
    else:
        found = list(host.catalog.instances.values())
    after = params.after or ""
    page = sorted((i for i in found if i.instance_id > after), key=lambda i: i.instance_id)[: params.limit]
    return {"instances": dumped(page)}


async def instance_info(host: Host, params: OfInstance, call: Call) -> Json:
    instance = host.catalog.instance(params.ref)
    report = host.reports.latest(instance.instance_id)
    return {
        **_answer(instance),
        "pool": host.catalog.pool(instance.tenant_id, instance.pool_id).model_dump(mode="json"),
        "activity": report.activity.value,
        "in_flight": report.in_flight,
    }


async def _by_hand(host: Host, ref: InstanceRef, operation: Awaitable[Instance]) -> Json:
    """Do what a person asked for, and have policy leave the instance alone for a while."""
    instance = await operation
    await host.lifecycle.leave_alone(ref)
    return _answer(instance)


async def instance_start(host: Host, params: OfInstance, call: Call) -> Json:
    call.progress(f"starting {params.ref}")
    return await _by_hand(host, params.ref, host.lifecycle.start(params.ref, actor=call.actor))


async def instance_stop(host: Host, params: Forcible, call: Call) -> Json:
    call.progress(f"stopping {params.ref}")
    return await _by_hand(host, params.ref, host.lifecycle.stop(params.ref, actor=call.actor, force=params.force))


async def instance_warm(host: Host, params: OfInstance, call: Call) -> Json:
    return await _by_hand(host, params.ref, host.lifecycle.warm(params.ref, actor=call.actor))


async def instance_sleep(host: Host, params: Forcible, call: Call) -> Json:
    call.progress(f"putting {params.ref} to sleep")
    return await _by_hand(host, params.ref, host.lifecycle.sleep(params.ref, actor=call.actor, force=params.force))


async def instance_destroy(host: Host, params: OfInstance, call: Call) -> Json:
    """A user whose worker is destroyed keeps their record, and gets a new worker with the next `mvm new`."""
    ref = params.ref
    instance = host.catalog.instance(ref)
    call.progress(f"destroying {ref}")
    await host.lifecycle.destroy(ref, actor=call.actor)
    if instance.user is not None:
        await host.users.unbind(ref.tenant_id, instance.user, actor=call.actor)
    return {"address": str(ref)}


async def wake_instance(host: Host, params: WakeInstance, call: Call) -> Json:
    ref = InstanceRef(params.tenant_id, params.pool_id, params.instance_id)
    call.progress(f"waking {ref}")
    return await _by_hand(host, ref, host.wakes.wake(ref, actor=call.actor))


async def instance_logs(host: Host, params: InstanceLogs, call: Call) -> Json:
    return {"logs": await host.inspection.logs(params.ref, service=params.service, lines=params.lines)}


async def instance_stats(host: Host, params: OfInstance, call: Call) -> Json:
    return await host.inspection.stats(params.ref)


async def instance_exec(host: Host, params: InstanceExec, call: Call) -> Json:
    return await host.inspection.execute(params.ref, params.argv, timeout_seconds=params.timeout_secs, actor=call.actor)


REQUESTS: dict[str, Request[Host]] = {
    "InstanceCreate": Request(InstanceCreate, instance_create),
    "InstanceList": Request(InstanceList, instance_list),
    "InstanceInfo": Request(OfInstance, instance_info),
    "InstanceStart": Request(OfInstance, instance_start),
    "InstanceStop": Request(Forcible, instance_stop),
    "InstanceWarm": Request(OfInstance, instance_warm),
    "InstanceSleep": Request(Forcible, instance_sleep),
    "InstanceDestroy": Request(OfInstance, instance_destroy),
    "WakeInstance": Request(WakeInstance, wake_instance),
    "InstanceLogs": Request(InstanceLogs, instance_logs),
    "InstanceStats": Request(OfInstance, instance_stats),
    "InstanceExec": Request(InstanceExec, instance_exec),
}
