"""Requests that bring a tenant out of this host and into it, and move the file in pieces."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mvm.host.api import Call, Json, Params, Request
from mvm.host.api_tenants import Nothing, OfTenant
from mvm.host.backups import Outcome
from mvm.host.transfers import PIECE
from mvm.model.base import TenantIdField
from mvm.model.errors import InvalidInput

if TYPE_CHECKING:
    from mvm.host.app import Host

Passphrase = Annotated[str, Field(min_length=1, max_length=4096, repr=False)]


class OfTransfer(Params):
    transfer: Annotated[str, Field(max_length=64)]


class TransferRead(OfTransfer):
    offset: Annotated[int, Field(ge=0)]


class TransferWrite(TransferRead):
    data: Annotated[str, Field(max_length=PIECE * 4 // 3 + 8, repr=False)]


class TenantExport(OfTenant):
    passphrase: Passphrase


class TenantImport(OfTransfer):
    passphrase: Passphrase
    tenant_id: TenantIdField | None = None
    start: bool = True


async def transfer_begin(host: Host, params: Nothing, call: Call) -> Json:
    return {"transfer": host.transfers.begin(), "piece": PIECE}


async def transfer_write(host: Host, params: TransferWrite, call: Call) -> Json:
    try:
        data = base64.b64decode(params.data, validate=True)
    except binascii.Error:
        raise InvalidInput("data is not base64") from None
    return {"size": await asyncio.to_thread(host.transfers.write, params.transfer, params.offset, data)}


async def transfer_read(host: Host, params: TransferRead, call: Call) -> Json:
    data = await asyncio.to_thread(host.transfers.read, params.transfer, params.offset)
    return {"data": base64.b64encode(data).decode()}


async def transfer_end(host: Host, params: OfTransfer, call: Call) -> Json:
    host.transfers.end(params.transfer)
    return {}


async def tenant_export(host: Host, params: TenantExport, call: Call) -> Json:
    """Answers with the transfer that holds the file; the caller reads it and ends the transfer."""
    transfer = host.transfers.begin()
    try:
        with host.transfers.in_use(transfer) as path:
            outcome = await host.backups.export(
                params.tenant_id, path, params.passphrase, actor=call.actor, progress=call.progress
            )
            size = path.stat().st_size
    except BaseException:
        host.transfers.end(transfer)
        raise
    return {**_told(outcome), "transfer": transfer, "size": size}


async def tenant_import(host: Host, params: TenantImport, call: Call) -> Json:
    """Takes the file of a transfer that the caller wrote. The transfer is ended, whatever becomes of the import."""
    try:
        with host.transfers.in_use(params.transfer) as path:
            outcome = await host.backups.restore(
                path,
                params.passphrase,
                name=params.tenant_id,
                start=params.start,
                actor=call.actor,
                progress=call.progress,
            )
    finally:
        host.transfers.end(params.transfer)
    return _told(outcome)


def _told(outcome: Outcome) -> Json:
    return {"tenant_id": outcome.tenant_id, "instances": outcome.instances, "notes": list(outcome.notes)}


REQUESTS: dict[str, Request[Host]] = {
    "TransferBegin": Request(Nothing, transfer_begin),
    "TransferWrite": Request(TransferWrite, transfer_write),
    "TransferRead": Request(TransferRead, transfer_read),
    "TransferEnd": Request(OfTransfer, transfer_end),
    "TenantExport": Request(TenantExport, tenant_export),
    "TenantImport": Request(TenantImport, tenant_import),
}
