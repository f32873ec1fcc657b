"""What an instance's config and secrets drives hold (CONTRACT 8): pure rendering, from values to files.

No secret is on the config drive; OpenClaw's configuration names its secrets by reference. Two renderings of the same
picture have the same digest, whatever the version numbers are that the caller then gives them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from mvm.model.deployment import loopback_port
from mvm.model.entities import Instance, OpenClawSettings, Pool, Tenant, User
from mvm.model.ids import worker_key
from mvm.model.roles import Role
from mvm.model.routes import DELIVERY_PORT, OUTBOUND_PORT, routes_for_users
from mvm.model.secrets import WORKERS_SCOPE
from mvm.openclaw import render
from mvm.runtime.base import GuestLayout
from mvm.wire import relaying

CONFIG_FILE = "config.json"
OPENCLAW_FILE = "openclaw.json"
ROUTES_FILE = "routes.json"
USERS_FILE = "users.json"

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Everything that the content of an instance's drives follows from."""

    tenant: Tenant
    pool: Pool
    instance: Instance
    layout: GuestLayout
    gateway: Instance | None
    """The gateway instance that serves this instance's tenant."""
    secrets: Mapping[str, str]
    """`scope/KEY` -> value of what the instance may see."""
    served: Collection[User] = ()
    """Gateways: everybody whom this gateway serves."""
    worker_tokens: Mapping[str, str] = field(default_factory=dict)
    """Gateways: instance id -> OpenClaw token of every worker that it delivers to."""
    dns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DriveContents:
    """Rendered drives: relative path -> content; `config.json` gets its version numbers from `config_files`."""

    config: Json
    """`config.json` without `config_version` and `secrets_epoch`."""
    other_config: Mapping[str, bytes]
    secrets: Mapping[str, bytes]

    @property
    def config_digest(self) -> str:
        """Equal for equal configuration."""
        return _digest({**self.other_config, CONFIG_FILE: _document(self.config)})

    @property
    def secrets_digest(self) -> str:
        """Equal for equal secrets. As confidential as the weakest of them: it is never stored in the clear."""
        return _digest(self.secrets)

    def config_files(self, *, config_version: int, secrets_epoch: int) -> dict[str, bytes]:
        """The files of the config drive."""
        numbered = {**self.config, "config_version": config_version, "secrets_epoch": secrets_epoch}
        return {**self.other_config, CONFIG_FILE: _document(numbered)}


def render_drives(picture: Picture) -> DriveContents:
    """Render both drives; raises `InvalidInput` when there is something that OpenClaw cannot be configured with."""
    role = picture.pool.role
    files: dict[str, bytes] = {}
    secrets = {path: value.encode() for path, value in picture.secrets.items()}
    if role is Role.GATEWAY:
        port = relaying.DELIVERY[0] if picture.layout.relayed else DELIVERY_PORT
        table, directory = routes_for_users(picture.served, target_port=port)
        files[ROUTES_FILE] = _document(table.with_given(picture.pool.routing_table).to_json())
        files[USERS_FILE] = _document(directory.to_json())
        secrets |= {
            f"{WORKERS_SCOPE}/{worker_key(user.tenant_id, user.user_id)}": token.encode()
            for user in picture.served
            if user.instance_id is not None and (token := picture.worker_tokens.get(user.instance_id)) is not None
        }
    if role.runs_openclaw:
        files[OPENCLAW_FILE] = _document(_openclaw_config(picture))
    return DriveContents(
        config=_config(picture) if role.has_config_drive else {},
        other_config=files,
        secrets=secrets if role.has_secrets_drive else {},
    )


def _config(picture: Picture) -> Json:
    instance, pool = picture.instance, picture.pool
    config: Json = {
        "instance_id": instance.instance_id,
        "pool_id": instance.pool_id,
        "tenant_id": instance.tenant_id,
        "role": instance.role.value,
        "guest_ip": instance.network.guest_ip,
        "gateway_ip": instance.network.gateway_ip,
        "prefix": instance.network.prefix,
        "mac": instance.network.mac or None,
        "dns": list(picture.dns),
        "vcpus": pool.vcpus,
        "mem_mib": pool.mem_mib,
        "runtime_policy": pool.runtime_policy.model_dump(mode="json"),
        "allow_exec": pool.allow_exec,
        "integrations": [i.model_dump(mode="json", exclude_none=True) for i in pool.integrations],
    }
    if instance.user is not None:
        config["user"] = instance.user
    if pool.role.runs_openclaw:
        config["openclaw"] = _openclaw_section(picture)
    return config


def _openclaw_section(picture: Picture) -> Json:
    """Ports, addresses and directories for the guest's services around OpenClaw."""
    layout = picture.layout
    section: Json = {
        "port": layout.openclaw_port,
        "router_port": layout.router_port,
        "outbox_port": layout.outbox_port,
        "plugin_dir": layout.plugin_dir,
        "forwarder_port": DELIVERY_PORT,
        "outbound_port": OUTBOUND_PORT,
        "live_secrets": sorted(render.LIVE_SECRETS),
    }
    if picture.pool.role is Role.GATEWAY:
        return section
    # Only its own gateway may deliver to a worker; without one nobody may.
    section["delivery_sources"] = [] if picture.gateway is None else [picture.gateway.network.guest_ip]
    if (url := gateway_url(picture.tenant, picture.gateway, picture.layout)) is not None:
        section["gateway_url"] = url
    if picture.instance.user is not None:
        section["worker_key"] = worker_key(picture.instance.tenant_id, picture.instance.user)
    return section


def gateway_url(tenant: Tenant, gateway: Instance | None, layout: GuestLayout) -> str | None:
    """Where a worker posts what nobody asked for: as the tenant's manifest says, else its gateway."""
    if tenant.openclaw is not None and tenant.openclaw.gateway_url is not None:
        return tenant.openclaw.gateway_url
    port = relaying.OUTBOUND[0] if layout.relayed else OUTBOUND_PORT
    return None if gateway is None else f"http://{gateway.network.guest_ip}:{port}"


def _openclaw_config(picture: Picture) -> render.JsonObject:
    settings = picture.tenant.openclaw or OpenClawSettings()
    layout, keys = picture.layout, [path.partition("/")[2] for path in picture.secrets]
    if picture.pool.role is Role.GATEWAY:
        return render.gateway_config(
            place(layout),
            secret_keys=keys,
            router_port=layout.router_port,
            router_token_file=f"{layout.run}/openclaw/router-token",
            telegram_api_root=as_seen_by_guest(settings.telegram_api_root, layout),
            discord_plugin_dir=layout.discord_plugin_dir,
        )
    return render.worker_config(
        place(layout),
        secret_keys=keys,
        outbox_port=layout.outbox_port,
        outbox_token_file=f"{layout.run}/openclaw/outbox-token",
        model=settings.model,
        provider_base_url=as_seen_by_guest(settings.provider_base_url, layout),
    )


def as_seen_by_guest(url: str | None, layout: GuestLayout) -> str | None:
    """A URL of a manifest where the guest can reach it: the host's loopback is another one in a machine of its own."""
    if url is None or layout.host_address is None:
        return url
    port = loopback_port(url)
    return url if port is None else urlsplit(url)._replace(netloc=f"{layout.host_address}:{port}").geturl()


def place(layout: GuestLayout) -> render.Place:
    """Where an OpenClaw finds its things in a guest of that layout."""
    return render.Place(
        port=layout.openclaw_port,
        plugin_dir=layout.plugin_dir,
        state_dir=f"{layout.data}/openclaw",
        workspace=f"{layout.data}/openclaw/workspace",
        home=f"{layout.data}/home",
        config_file=f"{layout.run}/openclaw/openclaw.json",
        secrets_file=f"{layout.run}/openclaw/secrets.json",
        secrets_dir=layout.secrets,
        control_socket=f"{layout.run}/openclaw/control.sock",
        log_file=f"{layout.data}/log/openclaw-own.log",
    )


def _document(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{len(name.encode())}:{name}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()
