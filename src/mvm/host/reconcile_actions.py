"""What a reconcile pass can do, and a plan of it: actions in order, what is put off and why. Pure data."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

from mvm.model.entities import PoolSpec, Quotas, UserSpec
from mvm.model.errors import MvmError
from mvm.model.ids import InstanceRef, PoolId, TenantId
from mvm.model.states import State
from mvm.model.validation import Location


class Kind(StrEnum):
    """What an action does, in the words that a person reads."""

    DESTROY_TENANT = "destroy tenant"
    CREATE_TENANT = "create tenant"
    UPDATE_TENANT = "update tenant"
    DESTROY_POOL = "destroy pool"
    CREATE_POOL = "create pool"
    UPDATE_POOL = "update pool"
    SET_SECRETS = "set secrets"
    REMOVE_USER = "remove user"
    ADD_USER = "add user"
    UPDATE_USER = "update user"
    BIND_USER = "make worker"
    BUILD_POOL = "build image"
    WAKE = "wake instance"
    RESUME = "resume instance"
    START = "start instance"
    START_WORKER = "start worker"
    CREATE = "create instance"
    RENEW = "restart instance"
    STOP = "stop instance"
    WARM = "warm instance"
    SLEEP = "put instance to sleep"
    DISCARD = "discard snapshot"

    @property
    def is_about_records(self) -> bool:
        """True when it changes what should be, False when it changes an instance."""
        return self in _RECORDS

    @property
    def brings_up(self) -> bool:
        """True when an instance runs afterwards that did not, or is made."""
        return self in (Kind.WAKE, Kind.RESUME, Kind.START, Kind.START_WORKER, Kind.CREATE)


_RECORDS = frozenset(
    {
        Kind.DESTROY_TENANT,
        Kind.CREATE_TENANT,
        Kind.UPDATE_TENANT,
        Kind.DESTROY_POOL,
        Kind.CREATE_POOL,
        Kind.UPDATE_POOL,
        Kind.SET_SECRETS,
        Kind.REMOVE_USER,
        Kind.ADD_USER,
        Kind.UPDATE_USER,
        Kind.BIND_USER,
    }
)


@dataclass(frozen=True)
class Action:
    """One thing to do."""

    kind: Kind
    object: str
    """What it is done to: `alice`, `alice/workers`, `alice/workers/i-0123abcd`, or a user id."""
    reason: str
    tenant_id: TenantId
    pool_id: PoolId | None = None
    subject: PoolSpec | UserSpec | None = field(default=None, compare=False, repr=False)
    instance: InstanceRef | None = None
    to: State = State.RUNNING
    """Where an instance is to end up."""

    def to_json(self) -> dict[str, str]:
        return {"action": self.kind.value, "object": self.object, "reason": self.reason}


@dataclass(frozen=True)
class Deferral:
    """Something that is wanted and not done now, and why."""

    object: str
    reason: str
    tenant_id: TenantId
    pool_id: PoolId | None = None
    instance: InstanceRef | None = None
    for_room: bool = False
    """True when a quota is in the way: what comes down may make room for it."""

    def to_json(self) -> dict[str, str]:
        return {"object": self.object, "reason": self.reason}


@dataclass(frozen=True)
class Contradiction:
    """Something that cannot be had without losing something; nothing of its document is done then."""

    location: Location
    """Within the tenant of a desired state."""
    error: MvmError


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a tenant should be; None keeps what it has."""

    tenant_id: TenantId
    template: str | None = None
    net_id: int | None = None
    subnet: str | None = None
    settings: dict[str, object] = field(default_factory=dict)
    """Fields of the tenant's record: quotas, openclaw, gateway_tenant, accepts."""
    quotas: Quotas = field(default_factory=Quotas)
    pools: tuple[PoolSpec, ...] = ()
    users: tuple[UserSpec, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Prune:
    """What may be destroyed because nobody asks for it any more."""

    pools: bool = False
    """Pools, with the users whose workers are in them."""
    users: bool = False
    """Users of pools that stay."""


@dataclass
class Plan:
    """Actions in the order in which they are to be done, and what is not done."""

    actions: list[Action] = field(default_factory=list)
    deferrals: list[Deferral] = field(default_factory=list)
    contradictions: list[Contradiction] = field(default_factory=list)
    unknown: list[Deferral] = field(default_factory=list)
    """What there is and nobody asks for; left alone without leave to prune it."""


def listed(words: Collection[str]) -> str:
    """Words as they stand in a sentence."""
    return ", ".join(words)
