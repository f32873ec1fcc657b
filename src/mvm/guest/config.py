"""`config.json` of the config drive, read strictly (CONTRACT 8).

A value of a wrong type, out of range or missing is refused with its path. A key that is not known is reported and
skipped: an image lives longer than the host software that writes its drives, and must start under a newer one.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from mvm.guest.services import Role
from mvm.wire.frames import JsonValue
from mvm.wire.schema import (
    INSTANCE_ID,
    NAME,
    Checked,
    Choice,
    Flag,
    Integer,
    ListOf,
    MessageError,
    Optional,
    Pattern,
    Record,
    Text,
)

T = TypeVar("T")

MAX_INTEGRATIONS = 64
MAX_BYTES = 1024 * 1024


class ConfigError(ValueError):
    """A configuration that cannot be used; the text names the file and the place."""


class Default(Optional[T]):
    """A value whose key may be missing (the field's default then), but which is not null."""

    def parse(self, value: JsonValue, path: str) -> T:
        return self._inner.parse(value, path)


class Either(Optional[T]):
    """A value that may be missing or null."""


_ADDRESS = Checked("an IPv4 address", ipaddress.IPv4Address, limit=15)
_MAC = Pattern("a MAC address such as '02:fc:00:01:02:03'", r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_PORT = Integer(1, 65535)
_SECONDS = Default(Integer(0, 30 * 86400))
_ARGUMENTS = Either(ListOf(Text(32 * 1024), 256, least=1))
_WORKER_KEY = Pattern("a worker key such as 'alice.alice'", r"[a-z0-9-]{1,63}\.[a-z0-9-]{1,63}")
_VARIABLE = Pattern("the name of a secret", r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@dataclass(frozen=True, kw_only=True)
class RuntimePolicy:
    """What the guest needs of its pool's policy; seconds."""

    drain_timeout_seconds: Annotated[int, _SECONDS] = 30
    graceful_shutdown_seconds: Annotated[int, _SECONDS] = 15
    min_running_seconds: Annotated[int, _SECONDS] = 60
    min_warm_seconds: Annotated[int, _SECONDS] = 30
    warm_after_idle_seconds: Annotated[int, _SECONDS] = 300
    sleep_after_idle_seconds: Annotated[int, _SECONDS] = 900


@dataclass(frozen=True, kw_only=True)
class OpenClawConfig:
    """Ports, places and peers of this instance's OpenClaw and of the parts around it."""

    port: Annotated[int, Default(_PORT)] = 18789
    """Loopback port of OpenClaw itself."""
    router_port: Annotated[int, Default(_PORT)] = 18791
    outbox_port: Annotated[int, Default(_PORT)] = 18792
    forwarder_port: Annotated[int, Default(_PORT)] = 18789
    """Port on the instance's own address where deliveries arrive."""
    outbound_port: Annotated[int, Default(_PORT)] = 18790
    """Port on the gateway's own address where workers hand in what nobody asked for."""
    gateway_url: Annotated[str | None, Either(Text(2048))] = None
    worker_key: Annotated[str | None, Either(_WORKER_KEY)] = None
    plugin_dir: Annotated[str | None, Either(Text(4096))] = None
    delivery_sources: Annotated[tuple[str, ...], Default(ListOf(_ADDRESS, 64))] = ()
    """Addresses from which deliveries are taken: the gateway's."""
    live_secrets: Annotated[tuple[str, ...], Default(ListOf(_VARIABLE, 256))] = ()
    """Secrets that OpenClaw re-reads while it runs; a change of any other one restarts it."""


@dataclass(frozen=True, kw_only=True)
class Integration:
    """Something that is checkpointed before sleep and restored after it; commands are argument lists."""

    name: Annotated[str, NAME]
    checkpoint_cmd: Annotated[tuple[str, ...] | None, _ARGUMENTS] = None
    restore_cmd: Annotated[tuple[str, ...] | None, _ARGUMENTS] = None
    critical: Annotated[bool, Default(Flag())] = False


@dataclass(frozen=True, kw_only=True)
class GuestConfig:
    """Everything that the host tells this instance."""

    instance_id: Annotated[str, INSTANCE_ID]
    pool_id: Annotated[str, NAME]
    tenant_id: Annotated[str, NAME]
    role: Annotated[Role, Choice(Role)]
    guest_ip: Annotated[str, _ADDRESS]
    gateway_ip: Annotated[str, _ADDRESS]
    prefix: Annotated[int, Integer(0, 32)]
    vcpus: Annotated[int, Integer(1, 1024)]
    mem_mib: Annotated[int, Integer(1)]
    mac: Annotated[str | None, Either(_MAC)] = None
    """Hardware address of its network device; None to leave that as it is."""
    user: Annotated[str | None, Either(NAME)] = None
    runtime_policy: Annotated[RuntimePolicy, Default(Record(RuntimePolicy))] = RuntimePolicy()
    openclaw: Annotated[OpenClawConfig | None, Either(Record(OpenClawConfig))] = None
    integrations: Annotated[tuple[Integration, ...], Default(ListOf(Record(Integration), MAX_INTEGRATIONS))] = ()
    dns: Annotated[tuple[str, ...], Default(ListOf(_ADDRESS, 16))] = ()
    allow_exec: Annotated[bool, Default(Flag())] = False
    config_version: Annotated[int, Default(Integer())] = 0
    secrets_epoch: Annotated[int, Default(Integer())] = 0


@dataclass(frozen=True)
class Reading:
    """A configuration and what was skipped in it."""

    config: GuestConfig
    unknown: tuple[str, ...]
    """Paths of keys that this guest does not know."""


_NESTED: dict[type, dict[str, type]] = {
    GuestConfig: {"runtime_policy": RuntimePolicy, "openclaw": OpenClawConfig, "integrations": Integration}
}


def read(path: Path) -> Reading:
    """Read `config.json`. Raises `ConfigError` that names the file, the place and what is wrong there."""
    value = _load(path)
    unknown: list[str] = []
    known = _without_unknown(GuestConfig, value, "", unknown)
    try:
        config = Record(GuestConfig).parse(known, "")
    except MessageError as error:
        raise ConfigError(f"{path}: {error}") from None
    names = [integration.name for integration in config.integrations]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: integrations: {', '.join(twice)} is there twice")
    if config.role.runs_openclaw and config.openclaw is None:
        raise ConfigError(f"{path}: openclaw: missing, and the role {config.role} needs it")
    return Reading(config, tuple(unknown))


def role_of(path: Path) -> Role:
    """The role alone, for the supervisor, which must start the agent whatever else is wrong. Raises `ConfigError`."""
    value = _load(path)
    role = value.get("role") if isinstance(value, Mapping) else None
    try:
        return Choice(Role).parse(role, "role")
    except MessageError as error:
        raise ConfigError(f"{path}: {error}") from None


def memory_of(path: Path) -> int | None:
    """The instance's memory in MiB, for what is sized by it; None when the configuration cannot be used."""
    try:
        return read(path).config.mem_mib
    except ConfigError:
        return None


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes")
        return json.loads(data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None


def _without_unknown(kind: type, value: Any, path: str, unknown: list[str]) -> Any:
    """`value` without the keys that `kind` does not have, their paths added to `unknown`."""
    if not isinstance(value, Mapping):
        return value
    fields = {field.name for field in dataclasses.fields(kind)}
    nested = _NESTED.get(kind, {})
    kept: dict[str, Any] = {}
    for key, item in value.items():
        place = f"{path}.{key}" if path else str(key)
        if key not in fields:
            unknown.append(place)
        elif key not in nested:
            kept[key] = item
        elif isinstance(item, list):
            kept[key] = [_without_unknown(nested[key], x, f"{place}[{i}]", unknown) for i, x in enumerate(item)]
        else:
            kept[key] = _without_unknown(nested[key], item, place, unknown)
    return kept
