"""The tables of the two manifests, as a person writes them (CONTRACT 6), and what each says of a pool."""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator, Field, create_model, model_validator

from mvm.model.base import Frozen, NetIdField, PoolIdField, TenantIdField, UserIdField, failed
from mvm.model.entities import (
    Budget,
    Count,
    DiskMib,
    EgressField,
    Integration,
    MemMib,
    OpenClawSettings,
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

    file: Annotated[str, Field(min_length=1)] | None = None
    env: str | None = None
    scope: str | None = None
    key: str | None = None

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
    telegram: tuple[SenderId, ...] = ()
    discord: tuple[SenderId, ...] = ()
    pool: PoolIdField | None = None
    budget: Budget = Budget()


class GatewayTable(Frozen):
    """`[gateway]`."""

    tenant: TenantIdField | None = None
    accepts: tuple[TenantIdField, ...] = ()


class PoolSettings(Frozen):
    """What both files may say of a pool. None: not said."""

    profile: str | None = None
    flake: str | None = None
    vcpus: Vcpus | None = None
    mem_mib: MemMib | None = None
    data_disk_mib: DiskMib | None = None
    desired_running: Count | None = None
    desired_warm: Count | None = None
    desired_sleeping: Count | None = None
    runtime_policy: RuntimePolicy | None = None
    seccomp_policy: SeccompPolicy | None = None
    snapshot_compression: SnapshotCompression | None = None
    pinned: bool | None = None
    critical: bool | None = None
    secret_scopes: SecretScopes | None = None
    integrations: tuple[Integration, ...] | None = None
    routing_table: RoutingTable | None = None
    egress: EgressField | None = None
    peer_traffic: bool | None = None
    allow_exec: bool | None = None

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
    role: RoleField = Role.WORKER

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
    net_id: NetIdField | None = None
    subnet: str | None = None


class SharedTables(Frozen):
    """What both files may have."""

    secrets: dict[str, Annotated[SecretTable, BeforeValidator(_is_table)]] = Field(default_factory=dict)
    openclaw: OpenClawSettings = OpenClawSettings()
    users: tuple[UserTable, ...] = ()
    gateway: GatewayTable = GatewayTable()
    quotas: Quotas = Quotas()


class DeploymentFile(SharedTables):
    """A deployment.toml."""

    tenant: TenantTable
    pools: Annotated[tuple[PoolTable, ...], Field(min_length=1)]


class Overrides(Frozen):
    """`[overrides]` of a deploy.toml; one more table for each pool of the template."""

    flake: str | None = None

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
