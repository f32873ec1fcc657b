"""The desired state of a host as JSON (CONTRACT 5), checked as a whole before anything is changed.

The same validation runs for a file, for the API and for signed pushes. It finds every problem: those of shape by the
models, and those between parts (duplicates, overlaps, users without a pool) on whatever of the document can be read, so
that a wrong type in one place hides nothing in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError

from mvm.model import addresses
from mvm.model.base import Frozen, NetIdField, PoolIdField, TenantIdField
from mvm.model.deployment import Deployment
from mvm.model.entities import (
    DesiredCounts,
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
    SnapshotCompression,
    TenantNetwork,
    UserSpec,
    Vcpus,
    default_policy,
)
from mvm.model.errors import InvalidInput
from mvm.model.ids import TenantId
from mvm.model.roles import Role
from mvm.model.routes import Route, RoutingTable, duplicates
from mvm.model.validation import (
    Location,
    Problem,
    ValidationProblems,
    as_field_check,
    describe_location,
    found_in,
    parse_or_report,
)

SCHEMA_VERSION = 1
F = TypeVar("F", bound=Frozen)


def _checked_subnet(text: str) -> str:
    return str(addresses.parse_subnet(text))


class DesiredNetwork(Frozen):
    """Where a tenant's network is to be. What is None is kept as it is, or allocated."""

    tenant_net_id: NetIdField | None = None
    """Number of its network, unique for ever."""
    ipv4_subnet: Annotated[str, AfterValidator(as_field_check(_checked_subnet))] | None = None
    """Its network, a /24."""

    @property
    def subnet(self) -> IPv4Network | None:
        """The subnet that is asked for, or follows from the net id."""
        if self.ipv4_subnet is not None:
            return addresses.parse_subnet(self.ipv4_subnet)
        return None if self.tenant_net_id is None else addresses.subnet_of(self.tenant_net_id)


class Resources(Frozen):
    """What each instance of a pool gets."""

    vcpus: Vcpus = 2
    """Virtual CPUs."""
    mem_mib: MemMib = 1024
    """Memory in MiB."""
    data_disk_mib: DiskMib = 0
    """Data disk in MiB; 0: 1 GiB, taken only as it is used."""


class DesiredPool(Frozen):
    """A pool as it should be."""

    pool_id: PoolIdField
    """Name of the pool."""
    flake_ref: str = ""
    """What the image of its machines is built from: mvm's default when left out, `debian:`, `nix:`, or a flake."""
    profile: str = "minimal"
    """Profile of the image."""
    role: RoleField = Role.WORKER
    """What its instances are for; it never changes afterwards."""
    instance_resources: Resources = Resources()
    """What each instance gets."""
    desired_counts: DesiredCounts = DesiredCounts()
    """How many instances in each state, 100 at most."""
    runtime_policy: RuntimePolicy | None = None
    """None, or with fields left out: what the role has by default."""
    seccomp_policy: SeccompPolicy = SeccompPolicy.BASELINE
    """How strictly a machine's own process is confined."""
    snapshot_compression: SnapshotCompression = SnapshotCompression.NONE
    """zstd: memory of long sleepers is compressed."""
    routing_table: RoutingTable | None = None
    """Whose messages go where."""
    secret_scopes: SecretScopes | None = None
    """Scope -> keys, instead of what the role gets."""
    pinned: bool = False
    """Never put to rest, stopped or restarted but by a person."""
    critical: bool = False
    """As pinned, and reconcile changes nothing about the pool."""
    integrations: tuple[Integration, ...] = ()
    """What else is checkpointed before a sleep."""
    egress: EgressField = "internet"
    """Where its instances may connect to."""
    peer_traffic: bool = False
    """Its instances reach each other."""
    disk_mib_per_second: MibRate = 0
    """MiB that each instance reads and writes in a second, by each of its drives; 0: no limit."""
    disk_ops_per_second: OpsRate = 0
    """Requests that each instance makes in a second, to each of its drives; 0: no limit."""
    network_mib_per_second: MibRate = 0
    """MiB that each instance sends in a second, and that it receives; 0: no limit."""
    allow_exec: bool = True
    """Whether `mvm instance exec` is allowed."""

    def spec(self) -> PoolSpec:
        """The same as a pool's settings."""
        policy = default_policy(self.role)
        if (said := self.runtime_policy) is not None:
            policy = policy.model_copy(update={name: getattr(said, name) for name in said.model_fields_set})
        return PoolSpec(
            flake=self.flake_ref,
            vcpus=self.instance_resources.vcpus,
            mem_mib=self.instance_resources.mem_mib,
            data_disk_mib=self.instance_resources.data_disk_mib,
            desired=self.desired_counts,
            runtime_policy=policy,
            **{name: getattr(self, name) for name in _SAME_IN_BOTH},
        )

    @classmethod
    def from_spec(cls, spec: PoolSpec) -> DesiredPool:
        """A pool's settings in the form of a desired state."""
        return cls(
            flake_ref=spec.flake,
            instance_resources=Resources(vcpus=spec.vcpus, mem_mib=spec.mem_mib, data_disk_mib=spec.data_disk_mib),
            desired_counts=spec.desired,
            # Every field said: what is left out would be taken from the role.
            runtime_policy=RuntimePolicy(**spec.runtime_policy.model_dump()),
            **{name: getattr(spec, name) for name in _SAME_IN_BOTH},
        )


_SAME_IN_BOTH = tuple(sorted(DesiredPool.model_fields.keys() & PoolSpec.model_fields.keys() - {"runtime_policy"}))


class DesiredTenant(Frozen):
    """A tenant as it should be."""

    tenant_id: TenantIdField
    """Name of the tenant."""
    network: DesiredNetwork | None = None
    """None: the one that it has, or the next free one."""
    quotas: Quotas = Quotas()
    """Limits of the tenant."""
    secrets_hash: str | None = None
    """Of whoever makes the document; the agent does not look at it."""
    pools: tuple[DesiredPool, ...] = ()
    """Its pools."""
    users: tuple[UserSpec, ...] = ()
    """Who is served."""
    openclaw: OpenClawSettings | None = None
    """What OpenClaw is told."""
    gateway_tenant: TenantIdField | None = None
    """Whose gateway serves it; its own when absent."""
    accepts: tuple[TenantIdField, ...] = ()
    """Tenants that its gateway serves as well."""


class DesiredState(Frozen):
    """Everything that a host should run."""

    schema_version: Literal[1]
    """Version of this form."""
    node_id: Annotated[str, Field(min_length=1, max_length=255)]
    """Whose state it is: `local`, or a host's name."""
    tenants: tuple[DesiredTenant, ...] = ()
    """Its tenants."""
    prune_unknown_tenants: bool = False
    """Destroy the tenants that are not named, in this pass."""
    prune_unknown_pools: bool = False
    """Destroy the pools that are not named, in this pass."""

    def to_json(self) -> dict[str, Any]:
        """The document, as `validate_desired` takes it."""
        return self.model_dump(mode="json", exclude_none=True)


def validate_desired(document: object, *, host_networks: Mapping[str, str] | None = None) -> DesiredState:
    """Check a desired state and return it; raises one `ValidationProblems` with every problem and its path.

    `host_networks` are networks that no tenant may overlap, by a phrase for each ("this host's interface 'eth0'").
    """
    problems: list[tuple[Location, str, str | None]] = []
    state = None
    try:
        state = parse_or_report(DesiredState, document)
    except ValidationError as error:
        problems += found_in(error, DesiredState)
    problems += _between_parts(document, host_networks or {})
    if state is None or problems:
        # Both ways of looking may find the same thing.
        found = dict.fromkeys(Problem(describe_location(where), what, hint) for where, what, hint in problems)
        raise ValidationProblems("desired state", list(found))
    return state


_Found = Iterator[tuple[Location, str, str | None]]


def _between_parts(document: object, host_networks: Mapping[str, str]) -> _Found:
    """What parts of a document say against each other; what has not the right shape is passed over."""
    tenants = list(_tables(document, ("tenants",)))
    yield from _repeated(tenants, "tenant_id", "tenant")
    yield from _repeated(
        [((*at, "network"), net) for at, tenant in tenants if isinstance(net := tenant.get("network"), dict)],
        "tenant_net_id",
        "tenant net id",
    )
    yield from _overlaps(tenants, host_networks)
    yield from _shared_peers(tenants)
    for at, tenant in tenants:
        pools = list(_tables(tenant, ("pools",), at))
        users = list(_tables(tenant, ("users",), at))
        yield from _repeated(pools, "pool_id", "pool")
        yield from _repeated(users, "user_id", "user")
        yield from _homeless(tenant, pools, users)
        yield from _gateways(at, tenant, pools)
        for pool_at, pool in pools:
            yield from _routes(pool_at, pool, tenant, pools)
            yield from _size(pool_at, pool)


def _size(at: Location, pool: dict[str, Any]) -> _Found:
    resources = pool.get("instance_resources")
    mem_mib = resources.get("mem_mib") if isinstance(resources, dict) else None
    role = pool.get("role")
    if isinstance(mem_mib, int) and role in list(Role) and (problem := Role(role).size_problem(mem_mib)) is not None:
        yield (*at, "instance_resources", "mem_mib"), *problem


def _tables(value: object, keys: Location, at: Location = ()) -> Iterator[tuple[Location, dict[str, Any]]]:
    """The tables of the list under `keys`, each with its location."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) and isinstance(key, str) else None
        at = (*at, key)
    for index, entry in enumerate(value if isinstance(value, list | tuple) else ()):
        if isinstance(entry, dict):
            yield (*at, index), entry


def _repeated(entries: list[tuple[Location, dict[str, Any]]], key: str, what: str) -> _Found:
    seen: dict[str | int, Location] = {}
    for at, entry in entries:
        value = entry.get(key)
        if isinstance(value, str | int) and (first := seen.setdefault(value, at)) != at:
            yield (*at, key), f"{what} {str(value)[:80]!r} is already at {describe_location(first)}", None


def _overlaps(tenants: list[tuple[Location, dict[str, Any]]], host_networks: Mapping[str, str]) -> _Found:
    taken = {name: IPv4Network(network, strict=False) for name, network in host_networks.items()}
    for at, tenant in tenants:
        if (subnet := _subnet(tenant.get("network"))) is None:
            continue
        for owner, other in taken.items():
            if subnet.overlaps(other):
                yield (*at, "network", "ipv4_subnet"), f"{subnet} overlaps {other} of {owner}", None
        taken[describe_location(at)] = subnet


def _subnet(network: object) -> IPv4Network | None:
    """The subnet that a tenant's network asks for, even where other things in it are wrong."""
    if not isinstance(network, dict):
        return None
    said = {key: network[key] for key in ("tenant_net_id", "ipv4_subnet") if network.get(key) is not None}
    # A wrong net id matters only to a network that follows from it.
    asked = _parsed(DesiredNetwork, {"ipv4_subnet": said["ipv4_subnet"]} if "ipv4_subnet" in said else said)
    return None if asked is None else asked.subnet


def _shared_peers(tenants: list[tuple[Location, dict[str, Any]]]) -> _Found:
    """People whom one gateway serves must be told apart by their address."""
    owners: dict[tuple[str, str], Location] = {}
    for at, tenant in tenants:
        gateway = str(tenant.get("gateway_tenant") or tenant.get("tenant_id"))
        for user_at, user in _tables(tenant, ("users",), at):
            parsed = _parsed(UserSpec, user)
            for peer in parsed.peers if parsed is not None else ():
                if (owner := owners.setdefault((gateway, peer), user_at)) != user_at:
                    hint = "one sender can have one private worker only"
                    channel = peer.split(":")[0]
                    yield (*user_at, channel), f"{peer} is also an address of {describe_location(owner)}", hint


def _may_be(pool: dict[str, Any], role: Role) -> bool:
    """Whether a pool has that role, or one that is misspelt: that is told of the role itself, and of nothing else."""
    written = pool.get("role", Role.WORKER)
    return written == role or written not in list(Role)


def _homeless(
    tenant: dict[str, Any], pools: list[tuple[Location, dict[str, Any]]], users: list[tuple[Location, dict[str, Any]]]
) -> _Found:
    workers = [pool.get("pool_id") for _, pool in pools if _may_be(pool, Role.CAPABILITY_OPENCLAW)]
    for at, user in users:
        if isinstance(pool_id := user.get("pool_id"), str) and pool_id not in workers:
            yield (*at, "pool_id"), f"there is no pool {pool_id[:80]!r} of role {Role.CAPABILITY_OPENCLAW}", None


def _gateways(at: Location, tenant: dict[str, Any], pools: list[tuple[Location, dict[str, Any]]]) -> _Found:
    own = [pool_at for pool_at, pool in pools if pool.get("role") == Role.GATEWAY]
    served_by, accepts, name = tenant.get("gateway_tenant"), tenant.get("accepts"), tenant.get("tenant_id")
    if served_by is not None and served_by == name:
        yield (*at, "gateway_tenant"), "a tenant cannot be served by itself as by another", "leave it out"
    elif served_by is not None and own:
        yield own[0], f"the tenant is served by {str(served_by)[:80]!r} and has a gateway pool of its own", None
    if accepts and not any(_may_be(pool, Role.GATEWAY) for _, pool in pools):
        yield (*at, "accepts"), "it accepts others but has no gateway pool of its own", None


def _routes(
    at: Location, pool: dict[str, Any], tenant: dict[str, Any], pools: list[tuple[Location, dict[str, Any]]]
) -> _Found:
    """Routes that repeat one another, and those that lead to a pool that the same tenant does not have."""
    where = (*at, "routing_table")
    known = [other.get("pool_id") for _, other in pools]
    routes = []
    for index, (_, entry) in enumerate(_tables(pool, ("routing_table", "routes"), at)):
        if (route := _parsed(Route, entry)) is None:
            continue
        routes.append((index, route))
        target = route.target
        if target.tenant_id in (None, tenant.get("tenant_id")) and target.pool_id not in known:
            place = (*where, "routes", index, "target", "pool_id")
            yield place, f"the tenant has no pool {target.pool_id!r}", None
    for index, message in duplicates(routes):
        # As the table's own check says it, which sees it only where all routes can be read.
        yield where, f"routes[{index}] {message}", None


def _parsed(model: type[F], value: object) -> F | None:
    try:
        return parse_or_report(model, value)
    except (ValidationError, InvalidInput):
        return None


def deployment_to_tenant(deployment: Deployment, *, network: TenantNetwork | None = None) -> DesiredTenant:
    """A deployment as the tenant of a desired state.

    `network` is the one that the tenant has already; it is kept unless the deployment names another. The deployment's
    secrets are not part of a desired state: they are delivered beside it.
    """
    net_id, subnet = deployment.net_id, deployment.subnet
    if network is not None:
        if subnet is None and net_id in (None, network.tenant_net_id):
            subnet = network.ipv4_subnet
        net_id = net_id or network.tenant_net_id
    return DesiredTenant(
        tenant_id=deployment.name,
        network=DesiredNetwork(tenant_net_id=net_id, ipv4_subnet=subnet) if net_id or subnet else None,
        quotas=deployment.quotas,
        pools=tuple(DesiredPool.from_spec(pool) for pool in deployment.pools),
        users=deployment.users,
        openclaw=deployment.openclaw,
        gateway_tenant=deployment.gateway_tenant,
        accepts=deployment.accepts,
    )


def desired_of(tenants: Mapping[TenantId, DesiredTenant], *, node_id: str = "local") -> DesiredState:
    """A desired state of these tenants that prunes nothing."""
    return DesiredState(schema_version=SCHEMA_VERSION, node_id=node_id, tenants=tuple(tenants.values()))
