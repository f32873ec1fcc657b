"""The tables of the two manifests, as a person writes them (CONTRACT 6), and what each says of a pool."""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, create_model, model_validator

from mvm.model.base import Frozen, NetIdField, PoolIdField, TenantIdField, UserIdField, failed
from mvm.model.entities import (
    Budget,
    Count,
    DiskMib,
    EgressField,
    Integration,
    MemMib,
    MibRate,
    OpenClawSettings,
    OpsRate,
    PoolSpec,
    Quotas,
    RoleField,
    RuntimePolicy,
    SeccompPolicy,
    SecretScopes,
    SenderId,
    SnapshotCompression,
    Vcpus,
    default_policy,
)
from mvm.model.roles import Role
from mvm.model.routes import RoutingTable

M = TypeVar("M", bound=Frozen)


def _is_table(value: Any) -> Any:
    if isinstance(value, dict):
        return value
    raise failed(
        "expected a table that says where the value is (a secret itself is never written here)",
        hint='write { file = "./secrets/name" } or { env = "NAME" }',
    )


class SecretTable(Frozen):
    """`{ file = "..." }` or `{ env = "..." }`, with scope and key in the long form."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["file"]}, {"required": ["env"]}]})

    file: Annotated[str, Field(min_length=1)] | None = None
    """Path of the file that holds the value, relative to the manifest; `~` is your home directory."""
    env: str | None = None
    """Name of the environment variable that holds the value, of whoever runs the command."""
    scope: str | None = None
    """Directory of the secret below `/run/secrets`, for a secret that is not known by its name."""
    key: str | None = None
    """Name of its file there. One that could name an environment variable becomes one."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.file is None) == (self.env is None):
            raise failed(
                "names no source" if self.file is None else "names two sources",
                hint='write { file = "./secrets/name" } or { env = "NAME" }',
            )
        if (self.scope is None) != (self.key is None):
            raise failed("has one of scope and key", hint='the long form has both: scope = "x", key = "Y"')
        return self


class UserTable(Frozen):
    """`[[users]]`."""

    id: UserIdField
    """Who is served: lowercase letters, digits and inner hyphens."""
    telegram: tuple[SenderId, ...] = ()
    """Telegram sender ids of this person, digits in quotes."""
    discord: tuple[SenderId, ...] = ()
    """Discord user ids of this person, digits in quotes."""
    pool: PoolIdField | None = None
    """Pool of their private worker; needed only where several have the role capability-openclaw."""
    budget: Budget = Budget()
    """What this person may use; without it there is no limit."""


class GatewayTable(Frozen):
    """`[gateway]`."""

    tenant: TenantIdField | None = None
    """Deployment whose gateway serves this one, which then has none of its own. That one must accept it."""
    accepts: tuple[TenantIdField, ...] = ()
    """Deployments without a gateway of their own that this one's gateway serves as well."""


class PoolSettings(Frozen):
    """What both files may say of a pool. None: not said."""

    profile: str | None = None
    """Profile of the image: minimal or python, or what the flake has."""
    flake: str | None = None
    """What the image of its machines is built from: mvm's default when left out, `debian:`, `nix:`, or a flake."""
    vcpus: Vcpus | None = None
    """Virtual CPUs of each instance."""
    mem_mib: MemMib | None = None
    """Memory of each instance in MiB. OpenClaw needs 768 as a gateway and 1024 as a worker at least."""
    data_disk_mib: DiskMib | None = None
    """Data disk of each instance in MiB; 0: 1 GiB, taken only as it is used."""
    desired_running: Count | None = None
    """Instances that run. A gateway pool that does not say has one; each user has a worker anyway."""
    desired_warm: Count | None = None
    """Instances that are paused with their memory kept."""
    desired_sleeping: Count | None = None
    """Instances that sleep."""
    runtime_policy: RuntimePolicy | None = None
    """When its instances go to rest; what is left out is the default of the role."""
    seccomp_policy: SeccompPolicy | None = None
    """How strictly a machine's own process is confined."""
    snapshot_compression: SnapshotCompression | None = None
    """zstd: the memory of a machine that has slept for an hour is compressed; waking it then takes longer."""
    pinned: bool | None = None
    """Its instances are never put to rest, stopped or restarted but by a person."""
    critical: bool | None = None
    """As pinned, and reconcile changes nothing about the pool until this is false again."""
    secret_scopes: SecretScopes | None = None
    """Scope -> keys that its instances get, instead of what their role gets; "*" is every key of the scope."""
    integrations: tuple[Integration, ...] | None = None
    """What else is checkpointed before a sleep and restored after it."""
    routing_table: RoutingTable | None = None
    """Whose messages go where, instead of the table that follows from the users."""
    egress: EgressField | None = None
    """Where its instances may connect to: "internet", "none", or a list of CIDR[:ports], host:PORT and internet."""
    peer_traffic: bool | None = None
    """Its instances reach each other; else only gateway and workers do."""
    disk_mib_per_second: MibRate | None = None
    """MiB that each instance reads and writes in a second, by each of its drives; 0: no limit."""
    disk_ops_per_second: OpsRate | None = None
    """Requests that each instance makes in a second, to each of its drives; 0: no limit."""
    network_mib_per_second: MibRate | None = None
    """MiB that each instance sends in a second, and that it receives; 0: no limit."""
    allow_exec: bool | None = None
    """Whether `mvm instance exec` is allowed."""

    def applied_to(self, pool: PoolSpec) -> PoolSpec:
        """`pool` with everything that this table says."""
        same = set(PoolSettings.model_fields) & set(PoolSpec.model_fields) - {"runtime_policy"}
        said = {name: value for name in same if (value := getattr(self, name)) is not None}
        counts = {state: getattr(self, f"desired_{state}") for state in ("running", "warm", "sleeping")}
        said["desired"] = pool.desired.model_copy(update={k: v for k, v in counts.items() if v is not None})
        if self.runtime_policy is not None:
            said["runtime_policy"] = overlaid(pool.runtime_policy, self.runtime_policy)
        return pool.model_copy(update=said)


class PoolTable(PoolSettings):
    """`[[pools]]` of a deployment.toml."""

    id: PoolIdField
    """Name of the pool: lowercase letters, digits and inner hyphens."""
    role: RoleField = Role.WORKER
    """What its instances are for; it never changes afterwards."""

    def pool(self) -> PoolSpec:
        """The pool that it describes. A gateway pool that does not say how many it has, has one (CONTRACT 6)."""
        spec = PoolSpec(pool_id=self.id, role=self.role, runtime_policy=default_policy(self.role))
        spec = self.applied_to(spec)
        if self.role is Role.GATEWAY and self.desired_running is None:
            spec = spec.model_copy(update={"desired": spec.desired.model_copy(update={"running": 1})})
        return spec


class OverrideTable(PoolSettings):
    """`[overrides.<pool>]` of a deploy.toml."""

    instances: Count | None = None
    """How many the pool has; another word for `desired_running`."""

    @model_validator(mode="after")
    def _says_the_number_once(self) -> Self:
        if self.instances is not None and self.desired_running is not None:
            raise failed("has both instances and desired_running", hint="they mean the same: leave one out")
        return self

    def applied_to(self, pool: PoolSpec) -> PoolSpec:
        """`pool` with everything that this table says."""
        pool = super().applied_to(pool)
        if self.instances is not None:
            pool = pool.model_copy(update={"desired": pool.desired.model_copy(update={"running": self.instances})})
        return pool


class TenantTable(Frozen):
    """`[tenant]` of a deployment.toml."""

    id: TenantIdField
    """Name of the deployment and of its tenant: lowercase letters, digits and inner hyphens."""
    net_id: NetIdField | None = None
    """Number of its network, unique for ever; the next free one when absent."""
    subnet: str | None = None
    """Its network, a /24; by its number when absent."""


class SharedTables(Frozen):
    """What both files may have."""

    secrets: dict[str, Annotated[SecretTable, BeforeValidator(_is_table)]] = Field(default_factory=dict)
    """Keys and tokens by name, each with where its value is; the value itself is never written here."""
    openclaw: OpenClawSettings = OpenClawSettings()
    """What OpenClaw is told beyond its defaults."""
    users: tuple[UserTable, ...] = ()
    """Who is served by a private worker. Without any there is one, called like the deployment and not yet paired."""
    gateway: GatewayTable = GatewayTable()
    """Sharing of a gateway between deployments."""
    quotas: Quotas = Quotas()
    """Limits of the tenant."""


class DeploymentFile(SharedTables):
    """A deployment.toml."""

    tenant: TenantTable
    """Whose deployment it is."""
    pools: Annotated[tuple[PoolTable, ...], Field(min_length=1)]
    """Its pools of instances."""


class Overrides(Frozen):
    """`[overrides]` of a deploy.toml; one more table for each pool of the template."""

    flake: str | None = None
    """What the images of all pools are built from."""

    def of(self, pool_id: str) -> OverrideTable | None:
        """What it says of one pool of the template."""
        for name, field in type(self).model_fields.items():
            if field.alias == pool_id:
                table = getattr(self, name)
                return table if isinstance(table, OverrideTable) else None
        return None


class DeployFile(SharedTables):
    """A deploy.toml; made for one template by `deploy_file`, which gives `overrides` its pools."""

    overrides: Overrides = Overrides()
    """What differs from the template: for all pools, and one table for each pool."""


def deploy_file(pool_ids: tuple[str, ...]) -> type[DeployFile]:
    """The model of a deploy.toml for a template with these pools."""
    tables: Any = {
        # Pool ids are no Python names, so that the field has another one.
        f"pool_{index}": (OverrideTable | None, Field(None, alias=pool_id))
        for index, pool_id in enumerate(pool_ids)
    }
    overrides = create_model("Overrides", __base__=Overrides, **tables)
    return create_model("DeployFile", __base__=DeployFile, overrides=(overrides, overrides()))


def overlaid(base: M, said: M) -> M:
    """`base` with those fields of `said` that were written down."""
    return base.model_copy(update={name: getattr(said, name) for name in said.model_fields_set})
