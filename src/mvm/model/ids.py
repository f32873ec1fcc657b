"""Identifiers and the addresses that people write (CONTRACT 1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NewType

from mvm.model.errors import InvalidInput

TenantId = NewType("TenantId", str)
PoolId = NewType("PoolId", str)
UserId = NewType("UserId", str)
InstanceId = NewType("InstanceId", str)
TenantNetId = NewType("TenantNetId", int)

MAX_NAME_LENGTH = 63
MIN_TENANT_NET_ID = 1
MAX_TENANT_NET_ID = 4094

NAME_PATTERN = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(NAME_PATTERN)
_INSTANCE = re.compile(r"i-[0-9a-f]{8}")


def _check_name(kind: str, value: str) -> str:
    """Return `value` when it is a valid name, else say which rule it breaks."""
    if _NAME.fullmatch(value):
        return value
    if not value:
        rule = "it is empty"
    elif len(value) > MAX_NAME_LENGTH:
        rule = f"it has {len(value)} characters and may have {MAX_NAME_LENGTH}"
    elif value[0] == "-" or value[-1] == "-":
        rule = "it may not begin or end with a hyphen"
    else:
        bad = next(c for c in value if not re.fullmatch(r"[a-z0-9-]", c))
        rule = f"{bad!r} is not allowed in it"
    raise InvalidInput(
        f"{kind} {value[:80]!r} is not valid: {rule}",
        hint=f"a {kind} has 1 to {MAX_NAME_LENGTH} lowercase letters, digits and inner hyphens, such as 'alice-2'",
    )


def tenant_id(value: str) -> TenantId:
    """Check and return a tenant id; raises `InvalidInput` naming the rule that was broken."""
    return TenantId(_check_name("tenant id", value))


def pool_id(value: str) -> PoolId:
    """Check and return a pool id; raises `InvalidInput` naming the rule that was broken."""
    return PoolId(_check_name("pool id", value))


def user_id(value: str) -> UserId:
    """Check and return a user id; raises `InvalidInput` naming the rule that was broken."""
    return UserId(_check_name("user id", value))


def instance_id(value: str) -> InstanceId:
    """Check and return an instance id (`i-` and 8 lowercase hex digits)."""
    if not _INSTANCE.fullmatch(value):
        raise InvalidInput(
            f"instance id {value[:80]!r} is not valid",
            hint="an instance id is 'i-' and 8 lowercase hex digits, such as 'i-0a1b2c3d'",
        )
    return InstanceId(value)


def tenant_net_id(value: int) -> TenantNetId:
    """Check and return a tenant net id (1..4094)."""
    if isinstance(value, bool) or not MIN_TENANT_NET_ID <= value <= MAX_TENANT_NET_ID:
        raise InvalidInput(
            f"tenant net id {value} is out of range",
            hint=f"a tenant net id is a number from {MIN_TENANT_NET_ID} to {MAX_TENANT_NET_ID}",
        )
    return TenantNetId(value)


def worker_key(tenant: TenantId, user: UserId) -> str:
    """Name of a person's worker at a gateway, `<tenant>.<user>`: safe in paths and URLs, and no id holds a dot."""
    return f"{tenant}.{user}"


@dataclass(frozen=True, order=True)
class InstanceRef:
    """Full name of an instance: `tenant/pool/instance`."""

    tenant_id: TenantId
    pool_id: PoolId
    instance_id: InstanceId

    def __str__(self) -> str:
        return f"{self.tenant_id}/{self.pool_id}/{self.instance_id}"


@dataclass(frozen=True)
class Address:
    """What a person writes to name a tenant, a pool or an instance."""

    tenant_id: TenantId
    pool_id: PoolId | None = None
    instance_id: InstanceId | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `tenant`, `tenant/pool` or `tenant/pool/instance`; anything else shows the expected form."""
        parts = text.split("/")
        if not 1 <= len(parts) <= 3 or not all(parts):
            raise InvalidInput(
                f"address {text[:200]!r} is not valid", hint="write 'tenant', 'tenant/pool' or 'tenant/pool/instance'"
            )
        return cls(
            tenant_id(parts[0]),
            pool_id(parts[1]) if len(parts) > 1 else None,
            instance_id(parts[2]) if len(parts) > 2 else None,
        )

    @property
    def instance(self) -> InstanceRef:
        """The instance it names; `InvalidInput` when it stops at a tenant or pool."""
        if self.pool_id is None or self.instance_id is None:
            raise InvalidInput(f"{str(self)!r} names no instance", hint="write 'tenant/pool/instance'")
        return InstanceRef(self.tenant_id, self.pool_id, self.instance_id)

    def __str__(self) -> str:
        return "/".join(part for part in (self.tenant_id, self.pool_id, self.instance_id) if part is not None)
