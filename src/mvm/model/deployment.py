"""A deployment: everything that one of the two files a person writes asks for, checked (CONTRACT 6).

Secrets are in it as sources (which file, which variable), never as values; the CLI reads those and sends them along.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Self
from urllib.parse import urlsplit

from pydantic import model_validator

from mvm.model import addresses, quota
from mvm.model.base import Frozen, NetIdField, TenantIdField, failed
from mvm.model.entities import OpenClawSettings, PoolSpec, Quotas, UserSpec
from mvm.model.errors import InvalidInput
from mvm.model.roles import Role
from mvm.model.secrets import LOGICAL_NAMES, SecretName
from mvm.model.validation import Location, Problem, describe_location


class SecretSource(Frozen):
    """Where the value of one secret comes from: a file or an environment variable of whoever runs the CLI."""

    name: str
    """As the manifest calls it, such as `telegram_token`."""
    scope: str
    key: str
    file: str | None = None
    """Absolute path."""
    env: str | None = None
    place: str = ""
    """Where the manifest says so, `deploy.toml:3`; for messages."""

    @model_validator(mode="after")
    def _is_one_source_of_one_secret(self) -> Self:
        if (self.file is None) == (self.env is None):
            raise failed("does not have exactly one of file and env")
        try:
            SecretName(self.scope, self.key)
        except InvalidInput as error:
            raise failed(error.message, hint=error.hint) from None
        return self

    @property
    def secret(self) -> SecretName:
        """Which secret it is the source of."""
        return SecretName(self.scope, self.key)


class Deployment(Frozen):
    """What one manifest asks for. Complete: templates are filled in, defaults chosen, users given their pools."""

    name: TenantIdField
    """Id of its tenant."""
    template: str | None = None
    net_id: NetIdField | None = None
    """None: keep the one that it has, or take the next free one."""
    subnet: str | None = None
    quotas: Quotas = Quotas()
    pools: tuple[PoolSpec, ...] = ()
    users: tuple[UserSpec, ...] = ()
    openclaw: OpenClawSettings = OpenClawSettings()
    gateway_tenant: TenantIdField | None = None
    """Whose gateway serves it; None for its own."""
    accepts: tuple[TenantIdField, ...] = ()
    """Which tenants its own gateway consents to serve."""
    secrets: tuple[SecretSource, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if troubles := check_deployment(self):
            first = troubles[0]
            place = describe_location(first.location)
            more = f" (and {len(troubles) - 1} more)" if len(troubles) > 1 else ""
            raise failed(f"{place}: {first.message}{more}", hint=first.hint)
        return self

    def pool(self, pool_id: str) -> PoolSpec | None:
        """Its pool of that id."""
        return next((pool for pool in self.pools if pool.pool_id == pool_id), None)

    def users_of(self, pool_id: str) -> list[UserSpec]:
        """Users whose worker is in that pool."""
        return [user for user in self.users if user.pool_id == pool_id]

    def size_of(self, pool: PoolSpec) -> int:
        """How many instances a pool is to have: the sum of its counts, or its users if they are more (CONTRACT 12)."""
        return max(pool.desired.total, len(self.users_of(pool.pool_id)))


class Trouble(Frozen):
    """Something in a deployment that contradicts something else, at a place of the deployment."""

    location: tuple[str | int, ...]
    message: str
    hint: str | None = None

    def at(self, place: str) -> Problem:
        """The problem that it is at a place of a file."""
        return Problem(place, self.message, self.hint)


def check_deployment(deployment: Deployment) -> list[Trouble]:
    """Everything in a deployment that contradicts something else; empty when it fits together.

    Takes a deployment that was made without validation too, so that a manifest's loader can say the line of each.
    """
    return [
        *_subnet_troubles(deployment),
        *_pool_troubles(deployment),
        *_user_troubles(deployment),
        *_gateway_troubles(deployment),
        *_secret_troubles(deployment),
        *_quota_troubles(deployment),
    ]


def _subnet_troubles(deployment: Deployment) -> list[Trouble]:
    if deployment.subnet is None:
        return []
    try:
        addresses.parse_subnet(deployment.subnet)
    except InvalidInput as error:
        return [Trouble(location=("tenant", "subnet"), message=error.message, hint=error.hint)]
    return []


def _pool_troubles(deployment: Deployment) -> list[Trouble]:
    found = []
    seen: set[str] = set()
    for index, pool in enumerate(deployment.pools):
        if pool.pool_id in seen:
            found.append(Trouble(location=("pools", index), message=f"pool {pool.pool_id!r} is there twice"))
        seen.add(pool.pool_id)
        if (problem := pool.role.size_problem(pool.mem_mib)) is not None:
            found.append(Trouble(location=("pools", index, "mem_mib"), message=problem[0], hint=problem[1]))
    return found


def _user_troubles(deployment: Deployment) -> list[Trouble]:
    found = []
    users: set[str] = set()
    owners: dict[str, str] = {}
    workers = [pool.pool_id for pool in deployment.pools if pool.role is Role.CAPABILITY_OPENCLAW]
    for index, user in enumerate(deployment.users):
        place: Location = ("users", index)
        if user.user_id in users:
            found.append(Trouble(location=place, message=f"user {user.user_id!r} is there twice"))
        users.add(user.user_id)
        if user.pool_id not in workers:
            hint = f"pools of role {Role.CAPABILITY_OPENCLAW}: {', '.join(workers) or 'none'}"
            message = f"user {user.user_id!r} has no pool {user.pool_id!r} to have a worker in"
            found.append(Trouble(location=(*place, "pool"), message=message, hint=hint))
        for peer in user.peers:
            if (owner := owners.setdefault(peer, user.user_id)) != user.user_id:
                message = f"{peer} is an address of both {owner!r} and {user.user_id!r}"
                hint = "one sender can have one private worker only"
                found.append(Trouble(location=(*place, peer.split(":")[0]), message=message, hint=hint))
    return found


def _gateway_troubles(deployment: Deployment) -> list[Trouble]:
    found = []
    own = [index for index, pool in enumerate(deployment.pools) if pool.role is Role.GATEWAY]
    if deployment.gateway_tenant == deployment.name:
        message = "a deployment cannot be served by itself as by another"
        hint = "leave [gateway] tenant out to use its own gateway"
        found.append(Trouble(location=("gateway", "tenant"), message=message, hint=hint))
    elif deployment.gateway_tenant is not None and own:
        message = f"the deployment is served by {deployment.gateway_tenant!r} and has a gateway pool of its own"
        found.append(Trouble(location=("pools", own[0]), message=message, hint="leave one of the two out"))
    elif deployment.gateway_tenant is None and deployment.users and not own:
        message = "nobody receives its users' messages: there is no gateway pool"
        hint = 'add a pool with role = "gateway", or name another deployment under [gateway] tenant'
        found.append(Trouble(location=("pools",), message=message, hint=hint))
    if deployment.accepts and not own:
        message = "it accepts others but has no gateway pool of its own"
        found.append(Trouble(location=("gateway", "accepts"), message=message))
    if deployment.name in deployment.accepts:
        message = "its own tenant is among those that it accepts"
        hint = "its own users are served anyway; leave it out"
        found.append(Trouble(location=("gateway", "accepts"), message=message, hint=hint))
    return found


def _secret_troubles(deployment: Deployment) -> list[Trouble]:
    found = []
    names: dict[str, str] = {}
    for source in deployment.secrets:
        path = source.secret.path
        if (other := names.setdefault(path, source.name)) != source.name:
            message = f"{path} is given twice, as {other!r} and as {source.name!r}"
            found.append(Trouble(location=("secrets", source.name), message=message, hint="leave one of them out"))
    return found


def _quota_troubles(deployment: Deployment) -> list[Trouble]:
    """What can never be had within the quotas, whatever else happens; found before anything is created."""
    found = []
    limits, pools = deployment.quotas, deployment.pools
    up = [(pool, pool.desired.running + pool.desired.warm) for pool in pools]
    whole = quota.Request(
        pools=len(pools),
        running=sum(pool.desired.running for pool in pools),
        warm=sum(pool.desired.warm for pool in pools),
        vcpus=sum(pool.vcpus * count for pool, count in up),
        mem_mib=sum(pool.mem_mib * count for pool, count in up),
        disk_mib=sum(pool.data_disk_mib * deployment.size_of(pool) for pool in pools),
    )
    requests: list[tuple[Location, str, quota.Request]] = [
        (
            ("pools", index),
            f"pool {pool.pool_id!r}",
            quota.Request(instances_in_pool=deployment.size_of(pool)),
        )
        for index, pool in enumerate(pools)
    ]
    for location, who, request in [*requests, (("quotas",), "the deployment", whole)]:
        for error in quota.exceeded(limits, quota.Use(), request, who=who):
            hint = "ask for less, or raise it under [quotas]"
            found.append(Trouble(location=location, message=error.message, hint=hint))
    return found


def advice(deployment: Deployment) -> list[str]:
    """What is probably forgotten; nothing that would keep the deployment from being made."""
    given = {source.secret for source in deployment.secrets}
    found = []
    channels = {LOGICAL_NAMES["telegram_token"], LOGICAL_NAMES["discord_token"]}
    if _has_role(deployment.pools, Role.GATEWAY) and not channels & given:
        found.append("no telegram_token and no discord_token is given: nobody can write to this deployment yet")
    keys = {LOGICAL_NAMES["anthropic_key"], LOGICAL_NAMES["openai_key"]}
    custom = deployment.openclaw.provider_base_url is not None or any(
        s.name not in LOGICAL_NAMES for s in deployment.secrets
    )
    if _has_role(deployment.pools, Role.CAPABILITY_OPENCLAW) and not keys & given and not custom:
        found.append("no model provider's key is given: workers cannot answer until there is one")
    return found


def unreachable_services(deployment: Deployment) -> list[str]:
    """Services on this host's loopback that a pool would need and its `egress` does not list, in words.

    Only of interest where instances have networks of their own.
    """
    settings = deployment.openclaw
    needed = (
        (Role.GATEWAY, "telegram_api_root", settings.telegram_api_root),
        (Role.CAPABILITY_OPENCLAW, "provider_base_url", settings.provider_base_url),
    )
    return [
        f"{name} is a service of this host: pool {pool.pool_id!r} reaches it only with 'host:{port}' in its egress"
        for role, name, url in needed
        if (port := loopback_port(url)) is not None
        for pool in deployment.pools
        if pool.role is role and not (isinstance(pool.egress, tuple) and f"host:{port}" in pool.egress)
    ]


def unenforced_limits(deployment: Deployment, enforced: Collection[str]) -> list[str]:
    """Limits of pools that a runtime which enforces only those of disk or network will not keep, in words."""
    limits = (
        ("disk_mib_per_second", "disk"),
        ("disk_ops_per_second", "disk"),
        ("network_mib_per_second", "network"),
    )
    return [
        f"`{name}` of pool {pool.pool_id!r} is not enforced: this runtime does not limit the {of}"
        for pool in deployment.pools
        for name, of in limits
        if getattr(pool, name) and of not in enforced
    ]


def loopback_port(url: str | None) -> int | None:
    """The port of a URL whose host is this machine's loopback; None for any other."""
    parts = urlsplit(url or "")
    host = parts.hostname or ""
    if host not in ("localhost", "::1") and not host.startswith("127."):
        return None
    return parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _has_role(pools: Sequence[PoolSpec], role: Role) -> bool:
    return any(pool.role is role for pool in pools)
