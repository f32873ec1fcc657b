"""Tenants, pools, instances and users as the host keeps them (CONTRACT 2 and 3).

Every model is frozen: a change makes a new value (`model_copy(update=...)`), which the catalog writes with the revision
it was read at. Times are wall-clock UTC; whoever needs a duration measures it on the monotonic clock.
"""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from mvm.model import ids
from mvm.model.base import (
    ForEditors,
    Frozen,
    InstanceIdField,
    NetIdField,
    PoolIdField,
    TenantIdField,
    UserIdField,
    failed,
)
from mvm.model.egress import Egress, parse_egress
from mvm.model.roles import Role
from mvm.model.routes import RoutingTable
from mvm.model.secrets import check_secret_scopes
from mvm.model.states import State
from mvm.model.validation import as_field_check


class Quotas(Frozen):
    """Limits of a tenant; each is enforced before the action that would exceed it."""

    max_vcpus: int = Field(16, ge=0)
    """Virtual CPUs of all instances that are up, those that are starting included."""
    max_mem_mib: int = Field(32768, ge=0)
    """Memory of all instances that are up, in MiB; a warm one keeps its memory."""
    max_running: int = Field(8, ge=0)
    """Instances that run at once."""
    max_warm: int = Field(4, ge=0)
    """Instances that are warm at once."""
    max_pools: int = Field(4, ge=0)
    """Pools."""
    max_instances_per_pool: int = Field(16, ge=0)
    """Instances of one pool, in any state."""
    max_disk_gib: int = Field(100, ge=0)
    """Data disks of all instances together, in GiB."""


OPENCLAW_QUOTAS = Quotas(
    max_vcpus=32,
    max_mem_mib=65536,
    max_running=16,
    max_warm=8,
    max_pools=10,
    max_instances_per_pool=32,
    max_disk_gib=500,
)


class TenantNetwork(Frozen):
    """A tenant's own /24; the net id is never reused."""

    tenant_net_id: NetIdField
    ipv4_subnet: str


class RuntimePolicy(Frozen):
    """When an instance may be drained, warmed and put to sleep. Seconds; 0 disables a guard."""

    min_running_seconds: int = Field(60, ge=0)
    """How long an instance runs at least before policy pauses it; 0: no guard."""
    min_warm_seconds: int = Field(30, ge=0)
    """How long an instance is warm at least before policy puts it to sleep; 0: no guard."""
    drain_timeout_seconds: int = Field(30, ge=0)
    """How long a guest may take to come to rest when it is asked to."""
    graceful_shutdown_seconds: int = Field(15, ge=0)
    """How long a guest may take to shut down before it is ended."""
    warm_after_idle_seconds: int = Field(300, ge=0)
    """How long it has been idle when policy pauses it; 0: at once."""
    sleep_after_idle_seconds: int = Field(900, ge=0)
    """How long it has been idle when policy puts it to sleep, counted from the same moment; 0: at once."""


OPENCLAW_POLICY = RuntimePolicy(
    min_running_seconds=300, min_warm_seconds=120, drain_timeout_seconds=30, graceful_shutdown_seconds=15
)


def default_policy(role: Role) -> RuntimePolicy:
    """The policy of a pool that gives none (CONTRACT 3)."""
    return OPENCLAW_POLICY if role is Role.CAPABILITY_OPENCLAW else RuntimePolicy()


Count = Annotated[int, Field(ge=0, le=100)]


class DesiredCounts(Frozen):
    """How many instances a pool should have in each state."""

    running: Count = 0
    """Instances that run."""
    warm: Count = 0
    """Instances that are paused with their memory kept."""
    sleeping: Count = 0
    """Instances that sleep."""

    @property
    def total(self) -> int:
        return self.running + self.warm + self.sleeping


class SeccompPolicy(StrEnum):
    BASELINE = "baseline"
    STRICT = "strict"


class SnapshotCompression(StrEnum):
    NONE = "none"
    ZSTD = "zstd"


class Integration(Frozen):
    """Something in the guest that is checkpointed before sleep and restored after it; commands are argument lists."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]
    """Its name; its state is kept below `/data/integrations/<name>`."""
    checkpoint_cmd: tuple[str, ...] | None = None
    """Program and arguments that save its state before a sleep."""
    restore_cmd: tuple[str, ...] | None = None
    """Program and arguments that bring it back after a wake."""
    critical: bool = False
    """A checkpoint that fails refuses the sleep."""


def _check_model(text: str) -> str:
    provider, slash, model = text.partition("/")
    if not (provider and slash and model) or any(character.isspace() for character in text):
        raise failed("is not a model", hint="write 'provider/model', such as 'anthropic/claude-sonnet-4-5'")
    return text


def _check_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or any(character.isspace() for character in text):
        raise failed("is not an http or https URL", hint="write it as 'https://host/path'")
    if parts.username is not None or parts.password is not None:
        raise failed("holds a user name or password", hint="give keys under [secrets] only")
    return text


Url = Annotated[str, AfterValidator(_check_url), ForEditors(pattern="^https?://[^\\s]+$")]


class OpenClawSettings(Frozen):
    """The `[openclaw]` table of a manifest: what OpenClaw is told beyond its defaults."""

    model: Annotated[str, AfterValidator(_check_model), ForEditors(pattern="^[^/\\s]+/\\S+$")] | None = None
    """Model that answers, as provider/model; without it OpenClaw chooses."""
    provider_base_url: Url | None = None
    """Another address of the model provider: a proxy, a local provider."""
    telegram_api_root: Url | None = None
    """Another address of Telegram's bot API."""
    gateway_url: Url | None = None
    """Where a worker posts what nobody asked for (reminders); this deployment's gateway when absent."""


class Tenant(Frozen):
    """Security, quota, secret, audit and network boundary."""

    tenant_id: TenantIdField
    network: TenantNetwork
    quotas: Quotas = Quotas()
    # Which deployment's gateway serves this tenant (None: its own), and whom this tenant's gateway consents to serve.
    gateway_tenant: TenantIdField | None = None
    accepts: tuple[TenantIdField, ...] = ()
    openclaw: OpenClawSettings | None = None
    secrets_epoch: int = 0
    created_at: datetime
    template: str | None = None


def _parse_role(value: object) -> Role:
    if not isinstance(value, str):
        raise failed("expected a string")
    return Role.parse(value)


def _check_scopes(scopes: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    check_secret_scopes(scopes)
    return scopes


SecretScopes = Annotated[dict[str, tuple[str, ...]], AfterValidator(as_field_check(_check_scopes))]
"""Scope -> keys that a pool's instances get, instead of what their role gets; `"*"` is every key of the scope."""


EgressField = Annotated[Egress, BeforeValidator(as_field_check(parse_egress))]
RoleField = Annotated[Role, BeforeValidator(as_field_check(_parse_role))]
Vcpus = Annotated[int, Field(ge=1, le=32)]
MemMib = Annotated[int, Field(ge=64, le=4 * 1024 * 1024)]
DiskMib = Annotated[int, Field(ge=0, le=64 * 1024 * 1024)]
"""0: none was asked for; the drive that such a pool gets all the same is sparse, and counts for nothing."""
MibRate = Annotated[int, Field(ge=0, le=16_384)]
"""MiB in a second; 0: no limit."""
OpsRate = Annotated[int, Field(ge=0, le=1_000_000)]
"""Requests in a second; 0: no limit."""


class PoolSpec(Frozen):
    """What a person (or a template) says of a pool: everything but whose it is and when it was made."""

    pool_id: PoolIdField
    role: RoleField = Role.WORKER
    profile: str = "minimal"
    flake: str = ""
    vcpus: Vcpus = 2
    mem_mib: MemMib = 1024
    data_disk_mib: DiskMib = 0
    desired: DesiredCounts = DesiredCounts()
    runtime_policy: RuntimePolicy = RuntimePolicy()
    seccomp_policy: SeccompPolicy = SeccompPolicy.BASELINE
    snapshot_compression: SnapshotCompression = SnapshotCompression.NONE
    pinned: bool = False
    critical: bool = False
    secret_scopes: SecretScopes | None = None
    integrations: tuple[Integration, ...] = ()
    routing_table: RoutingTable | None = None
    egress: EgressField = "internet"
    peer_traffic: bool = False
    disk_mib_per_second: MibRate = 0
    disk_ops_per_second: OpsRate = 0
    network_mib_per_second: MibRate = 0
    allow_exec: bool = True


class Pool(PoolSpec):
    """A homogeneous group of instances: image, role, resources, policy, desired counts."""

    tenant_id: TenantIdField
    created_at: datetime
    revision: str = ""
    """Image revision that its instances boot from; empty until the first one is built."""
    previous_revisions: tuple[str, ...] = ()
    """What it had before, the latest first; a rollback goes back to the first of them."""

    @classmethod
    def from_spec(cls, spec: PoolSpec, *, tenant_id: ids.TenantId, created_at: datetime) -> Pool:
        """A tenant's pool as `spec` describes it."""
        return cls(tenant_id=tenant_id, created_at=created_at, **{name: getattr(spec, name) for name in _SPEC_FIELDS})

    @property
    def spec(self) -> PoolSpec:
        """The settings alone, comparable with what a manifest asks for."""
        return PoolSpec(**{name: getattr(self, name) for name in _SPEC_FIELDS})


_SPEC_FIELDS = tuple(PoolSpec.model_fields)


class ProcessIdentity(Frozen):
    """A process for certain: pids are reused, a pid with its start time (kernel clock ticks since boot) is not."""

    pid: int
    start_time: int


class TransitionKind(StrEnum):
    """What is being done to an instance."""

    START = "start"
    WARM = "warm"
    RESUME = "resume"
    SLEEP = "sleep"
    WAKE = "wake"
    STOP = "stop"
    DESTROY = "destroy"


class Transition(Frozen):
    """Intent of a transition under way, recorded before it begins, so that a restart can finish or undo it."""

    kind: TransitionKind
    to: State
    began_at: datetime
    actor: str


class InstanceNetwork(Frozen):
    """Network identity of an instance; kept while it sleeps."""

    guest_ip: str
    """Where the instance is reached. A runtime without networks of its own gives one outside the tenant's subnet."""
    gateway_ip: str
    prefix: int = 24
    host_octet: int = Field(0, ge=0, le=255)
    """Last octet of its address in the tenant's subnet."""
    tap: str = ""
    mac: str = ""


class StageTiming(Frozen):
    """One stage of a wake or sleep, in milliseconds."""

    stage: str
    milliseconds: float


class Timeline(Frozen):
    """What a wake (or start, or sleep) spent its time on, stage by stage, in the order they ran."""

    kind: TransitionKind
    began_at: datetime
    stages: tuple[StageTiming, ...] = ()
    actor: str = ""

    @property
    def total_ms(self) -> float:
        return sum(stage.milliseconds for stage in self.stages)


class Instance(Frozen):
    """One microVM: the only thing with run-time state."""

    tenant_id: TenantIdField
    pool_id: PoolIdField
    instance_id: InstanceIdField
    role: Role
    state: State = State.CREATED
    transition: Transition | None = None
    network: InstanceNetwork
    image_revision: str = ""
    # What it was last started with, also while it sleeps; 0 until it was started.
    vcpus: int = 0
    mem_mib: int = 0
    runtime: str = ""
    process: ProcessIdentity | None = None
    user: UserIdField | None = None
    secrets_epoch: int = 0
    config_version: int = 0
    created_at: datetime
    entered_running_at: datetime | None = None
    entered_warm_at: datetime | None = None
    slept_at: datetime | None = None
    last_busy_at: datetime | None = None
    next_alarm_at: datetime | None = None
    manual_until: datetime | None = None
    # True when a person stopped it: only a person starts it again, a message does not.
    held: bool = False
    # True when policy (not a person) warmed it or put it to sleep: reconcile never wakes such an instance.
    rested_by_policy: bool = False
    last_error: str | None = None
    last_wake: Timeline | None = None
    last_sleep: Timeline | None = None

    @property
    def ref(self) -> ids.InstanceRef:
        return ids.InstanceRef(self.tenant_id, self.pool_id, self.instance_id)


def _check_sender(text: str) -> str:
    if re.fullmatch(r"[0-9]{1,20}", text):
        return text
    raise failed("is not a sender id", hint="a sender id is the number of the account, in digits, such as '111111111'")


SenderId = Annotated[str, AfterValidator(_check_sender), ForEditors(pattern="^[0-9]{1,20}$")]
"""Somebody's account on Telegram or Discord, as digits."""


class Budget(Frozen):
    """What a user may use; what is left out is without limit. Checked before a wake; what is under way goes on."""

    wakes_per_hour: Annotated[int, Field(ge=0)] | None = None
    """Wakes for their messages within any 60 minutes."""
    running_minutes_per_day: Annotated[int, Field(ge=0)] | None = None
    """Minutes that their worker runs on one day (UTC)."""


class UserSpec(Frozen):
    """What a person (or a template) says of a user: who they are on each channel, and the pool of their worker."""

    user_id: UserIdField
    """Who is served."""
    pool_id: PoolIdField
    """Pool of their private worker."""
    telegram: tuple[SenderId, ...] = ()
    """Telegram sender ids."""
    discord: tuple[SenderId, ...] = ()
    """Discord user ids."""
    budget: Budget = Budget()
    """What this person may use."""

    @property
    def peers(self) -> tuple[str, ...]:
        """Every address this person writes from, as `channel:sender`."""
        return tuple(f"telegram:{x}" for x in self.telegram) + tuple(f"discord:{x}" for x in self.discord)


class User(UserSpec):
    """A person served by a deployment, and the private worker that is bound to them."""

    tenant_id: TenantIdField
    instance_id: InstanceIdField | None = None
    created_at: datetime

    @classmethod
    def from_spec(cls, spec: UserSpec, *, tenant_id: ids.TenantId, created_at: datetime) -> User:
        """A tenant's user as `spec` describes them, not bound to an instance yet."""
        return cls(
            tenant_id=tenant_id,
            user_id=spec.user_id,
            pool_id=spec.pool_id,
            telegram=spec.telegram,
            discord=spec.discord,
            budget=spec.budget,
            created_at=created_at,
        )

    @property
    def spec(self) -> UserSpec:
        """What a manifest says of this user, comparable with what one asks for."""
        return UserSpec(**{name: getattr(self, name) for name in UserSpec.model_fields})
