"""Arguments and options that several commands share."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mvm.model.errors import InvalidInput, Refused
from mvm.model.ids import Address, InstanceRef, PoolId, TenantId

Tenant = Annotated[str, typer.Argument(metavar="TENANT", help="Id of the tenant.")]
Pool = Annotated[str, typer.Argument(metavar="TENANT/POOL", help="Address of the pool.")]
Instance = Annotated[str, typer.Argument(metavar="TENANT/POOL/INSTANCE", help="Address of the instance.")]
Force = Annotated[bool, typer.Option("--force", help="Do not ask.")]


def tenant(text: str) -> TenantId:
    """The tenant that an argument names; raises `InvalidInput`."""
    address = Address.parse(text)
    if address.pool_id is not None:
        raise InvalidInput(f"{text!r} names more than a tenant", hint=f"write '{address.tenant_id}'")
    return address.tenant_id


def pool(text: str) -> tuple[TenantId, PoolId]:
    """The pool that an argument names; raises `InvalidInput`."""
    address = Address.parse(text)
    if address.pool_id is None or address.instance_id is not None:
        raise InvalidInput(f"{text!r} names no pool", hint="write 'tenant/pool'")
    return address.tenant_id, address.pool_id


def instance(text: str) -> InstanceRef:
    """The instance that an argument names; raises `InvalidInput`."""
    return Address.parse(text).instance


MAX_DIGITS = 18
"""Of a number that somebody types."""


def numbers(written: list[str] | None, *, what: str, example: str) -> dict[str, int]:
    """What was given as NAME=NUMBER, however often; raises `InvalidInput`."""
    found = {}
    for item in written or []:
        name, equals, number = item.partition("=")
        if not equals or not (number.isascii() and number.isdigit() and len(number) <= MAX_DIGITS):
            raise InvalidInput(f"{what} {item[:80]!r} is not valid", hint=f"write NAME=NUMBER, such as {example}")
        found[name] = int(number)
    return found


def confirm(what: str, *, force: bool) -> None:
    """Ask before something is destroyed. Without a terminal it must be forced."""
    if force:
        return
    if not sys.stdin.isatty():
        raise InvalidInput(f"to {what} needs a yes, and there is no terminal to ask at", hint="add --force")
    print(f"{what[0].upper()}{what[1:]}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Refused(f"not confirmed: did not {what}", hint="nothing was changed")
