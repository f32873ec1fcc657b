"""Which calls there are, when each is taken, and the form of their bodies: every structure is closed.

Read off Firecracker's documentation and its API description, and kept apart from mvm's own table of calls on purpose:
two tables that were written down separately catch each other's mistakes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

Version = tuple[int, int, int]
ALWAYS: Version = (0, 0, 0)
MOST_U32 = 2**32 - 1
MOST_U64 = 2**64 - 1


class Fault(Exception):
    """What is answered with status 400 and this text as `fault_message`."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class When(Enum):
    """When a call is taken."""

    BEFORE = "before the microVM starts"
    AFTER = "after the microVM started"
    ANY = "always"


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a structure."""

    kind: object
    """`str`, `int`, `bool`, a structure, a list with the kind of its items, or `dict` for any object."""
    required: bool = False
    choices: tuple[str, ...] = ()
    least: int = 0
    most: int = MOST_U64
    since: Version = ALWAYS
    any_case: bool = False


Struct = Mapping[str, Field]


def text(required: bool = False, *choices: str, since: Version = ALWAYS, any_case: bool = False) -> Field:
    return Field(kind=str, required=required, choices=choices, since=since, any_case=any_case)


def number(required: bool = False, *, least: int = 0, most: int = MOST_U64) -> Field:
    return Field(kind=int, required=required, least=least, most=most)


def flag(required: bool = False, *, since: Version = ALWAYS) -> Field:
    return Field(kind=bool, required=required, since=since)


def part(struct: object, required: bool = False, *, since: Version = ALWAYS) -> Field:
    return Field(kind=struct, required=required, since=since)


BUCKET: Struct = {"size": number(True), "refill_time": number(True), "one_time_burst": number()}
LIMITER: Struct = {"bandwidth": part(BUCKET), "ops": part(BUCKET)}
PAGES = ("None", "Transparent", "2M")
MACHINE: Struct = {
    "vcpu_count": number(True, most=255),
    "mem_size_mib": number(True),
    "smt": flag(),
    "cpu_template": text(False, "C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"),
    "track_dirty_pages": flag(),
    "huge_pages": text(False, *PAGES),
}
MACHINE_CHANGE: Struct = {name: replace(field, required=False) for name, field in MACHINE.items()}
DRIVE_CHANGE: Struct = {"drive_id": text(True), "path_on_host": text(), "rate_limiter": part(LIMITER)}
LOAD: Struct = {
    "snapshot_path": text(True),
    "mem_file_path": text(),
    "mem_backend": part({"backend_type": text(True, "File", "Uffd"), "backend_path": text(True)}),
    "enable_diff_snapshots": flag(),
    "track_dirty_pages": flag(),
    "resume_vm": flag(),
    "network_overrides": part([{"iface_id": text(True), "host_dev_name": text(True)}], since=(1, 12, 0)),
    "vsock_override": part({"uds_path": text(True)}, since=(1, 16, 0)),
    "clock_realtime": flag(since=(1, 16, 0)),
    "huge_pages": text(False, "Snapshot", *PAGES, since=(1, 17, 0)),
}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the API."""

    method: str
    path: str
    """`{}` stands for the id, which the body's field `identified` must repeat."""
    name: str
    when: When = When.ANY
    body: Struct | None = None
    """None for a call without a body."""
    identified: str = ""
    boots: bool = False
    """It decides for a boot: no snapshot can be loaded afterwards."""
    free_form: bool = False
    optional_body: bool = False
    since: Version = ALWAYS


def _put(path: str, name: str, body: Struct, **more: Any) -> Call:
    return Call(method="PUT", path=path, name=name, when=When.BEFORE, body=body, **more)


def _patch(path: str, name: str, body: Struct, **more: Any) -> Call:
    return Call(method="PATCH", path=path, name=name, body=body, **{"when": When.AFTER} | more)


def _get(path: str, name: str) -> Call:
    return Call(method="GET", path=path, name=name)


DRIVE: Struct = {
    "drive_id": text(True),
    "is_root_device": flag(True),
    "partuuid": text(),
    "cache_type": text(False, "Unsafe", "Writeback"),
    "is_read_only": flag(),
    "path_on_host": text(),
    "rate_limiter": part(LIMITER),
    "io_engine": text(False, "Sync", "Async"),
    "socket": text(),
}
NETWORK: Struct = {
    "iface_id": text(True),
    "host_dev_name": text(True),
    "guest_mac": text(),
    "mtu": Field(kind=int, least=68, most=65535, since=(1, 17, 0)),
    "rx_rate_limiter": part(LIMITER),
    "tx_rate_limiter": part(LIMITER),
}
LEVELS = ("Error", "Warning", "Info", "Debug", "Trace", "Off", "Warn")
LOGGER: Struct = {
    "log_path": text(),
    "level": text(False, *LEVELS, any_case=True),
    "show_level": flag(),
    "show_log_origin": flag(),
    "module": text(),
}
METRICS: Struct = {
    "metrics_path": text(True),
    "emit_id": flag(since=(1, 17, 0)),
    "properties": Field(kind=dict, since=(1, 17, 0)),
}
BALLOON: Struct = {
    "amount_mib": number(True, most=MOST_U32),
    "deflate_on_oom": flag(True),
    "stats_polling_interval_s": number(most=65535),
    "free_page_hinting": flag(since=(1, 14, 0)),
    "free_page_reporting": flag(since=(1, 14, 0)),
}
HOTPLUG: Struct = {
    "total_size_mib": number(most=MOST_U32),
    "block_size_mib": number(least=2, most=MOST_U32),
    "slot_size_mib": number(least=128, most=MOST_U32),
}
SNAPSHOT: Struct = {
    "snapshot_path": text(True),
    "mem_file_path": text(True),
    "snapshot_type": text(False, "Full", "Diff"),
}
CPU: Struct = {
    name: Field(kind=[str] if name == "kvm_capabilities" else [dict])
    for name in ("kvm_capabilities", "cpuid_modifiers", "msr_modifiers", "reg_modifiers", "vcpu_features")
}
BOOT: Struct = {"kernel_image_path": text(True), "initrd_path": text(), "boot_args": text()}
VSOCK: Struct = {"guest_cid": number(True, least=3, most=MOST_U32), "uds_path": text(True), "vsock_id": text()}
MMDS_CONFIG: Struct = {
    "network_interfaces": part([str], True),
    "version": text(False, "V1", "V2"),
    "ipv4_address": text(),
    "imds_compat": flag(since=(1, 13, 0)),
}
PMEM: Struct = {
    "id": text(True),
    "path_on_host": text(True),
    "root_device": flag(),
    "read_only": flag(),
    "rate_limiter": part(LIMITER, since=(1, 16, 0)),
}
SERIAL: Struct = {"serial_out_path": text(), "rate_limiter": part(BUCKET, since=(1, 16, 0))}
ACTION: Struct = {"action_type": text(True, "FlushMetrics", "InstanceStart", "SendCtrlAltDel")}

CALLS = (
    _get("/", "describe"),
    _get("/version", "version"),
    _get("/vm/config", "export"),
    _get("/machine-config", "machine"),
    _get("/balloon", "balloon"),
    _get("/balloon/statistics", "balloon_statistics"),
    _get("/mmds", "mmds"),
    _put("/boot-source", "boot_source", BOOT, boots=True),
    _put("/machine-config", "machine_config", MACHINE, boots=True),
    _patch("/machine-config", "machine_change", MACHINE_CHANGE, when=When.BEFORE, boots=True),
    _put("/cpu-config", "cpu_config", CPU, boots=True),
    _put("/drives/{}", "drive", DRIVE, identified="drive_id", boots=True),
    _patch("/drives/{}", "drive_change", DRIVE_CHANGE, identified="drive_id"),
    _put("/pmem/{}", "pmem", PMEM, identified="id", boots=True, since=(1, 14, 0)),
    _patch("/pmem/{}", "pmem_change", {"id": text(True), "rate_limiter": part(LIMITER)}, identified="id",
           since=(1, 16, 0)),
    _put("/network-interfaces/{}", "network", NETWORK, identified="iface_id", boots=True),
    _patch(
        "/network-interfaces/{}",
        "network_change",
        {"iface_id": text(True), "rx_rate_limiter": part(LIMITER), "tx_rate_limiter": part(LIMITER)},
        identified="iface_id",
    ),
    _put("/vsock", "vsock", VSOCK, boots=True),
    _put("/entropy", "entropy", {"rate_limiter": part(LIMITER)}, boots=True),
    _put("/serial", "serial", SERIAL, since=(1, 14, 0)),
    _put("/balloon", "balloon_config", BALLOON, boots=True),
    _patch("/balloon", "balloon_change", {"amount_mib": number(True, most=MOST_U32)}),
    _patch("/balloon/statistics", "balloon_interval", {"stats_polling_interval_s": number(True, most=65535)}),
    _put("/hotplug/memory", "hotplug", HOTPLUG, boots=True, since=(1, 14, 0)),
    _put("/logger", "logger", LOGGER),
    _put("/metrics", "metrics", METRICS),
    _put("/mmds/config", "mmds_config", MMDS_CONFIG, boots=True),
    Call(method="PUT", path="/mmds", name="mmds_put", body={}, free_form=True),
    Call(method="PATCH", path="/mmds", name="mmds_patch", body={}, free_form=True),
    Call(method="PUT", path="/actions", name="action", body=ACTION),
    _patch("/vm", "vm", {"state": text(True, "Paused", "Resumed")}),
    Call(method="PUT", path="/snapshot/create", name="create", when=When.AFTER, body=SNAPSHOT),
    _put("/snapshot/load", "load", LOAD),
)  # fmt: skip

_ID = re.compile(r"[A-Za-z0-9_]+")
AFTER_START = "The requested operation is not supported after starting the microVM."
BEFORE_START = "The requested operation is not supported before starting the microVM."
INSTANCE_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


def find(method: str, path: str, version: Version) -> tuple[Call, str]:
    """The call and the id in its path. Raises `Fault`."""
    parts = path.split("/")
    for call in CALLS:
        wanted = call.path.split("/")
        if call.method != method or len(wanted) != len(parts) or call.since > version:
            continue
        if all(want in (got, "{}") for want, got in zip(wanted, parts, strict=True)):
            return call, parts[-1] if "{}" in wanted else ""
    raise Fault(f"Invalid request method and/or path: {method} {path}.")


def check_body(call: Call, identity: str, body: Any, version: Version) -> None:
    """Raise `Fault` unless the body has the form of that call and repeats the id of its path."""
    if not isinstance(body, dict):
        raise _malformed("invalid type: expected a structure")
    if call.identified:
        if not _ID.fullmatch(identity):
            raise Fault(f"API Resource IDs can only contain alphanumeric characters and underscores: {identity!r}")
        if call.identified in body and body[call.identified] != identity:
            raise Fault(
                f"The id from the path [{identity}] does not match the id from the body [{body[call.identified]}]!"
            )
    if not call.free_form:
        assert call.body is not None
        _check(call.body, body, version)


def _check(struct: Struct, value: Mapping[str, Any], version: Version) -> None:
    known = {name: field for name, field in struct.items() if field.since <= version}
    for name in value:
        if name not in known:
            expected = ", ".join(f"`{each}`" for each in known)
            raise _malformed(f"unknown field `{name}`, expected one of {expected}")
    for name, field in known.items():
        if value.get(name) is not None:
            _check_value(name, field, value[name], version)
        elif field.required:
            raise _malformed(f"missing field `{name}`")


def _check_value(name: str, field: Field, value: Any, version: Version) -> None:
    kind = field.kind
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise _malformed(f"invalid type for `{name}`: expected a sequence")
        for item in value:
            _check_value(name, Field(kind=kind[0]), item, version)
    elif isinstance(kind, Mapping):
        if not isinstance(value, dict):
            raise _malformed(f"invalid type for `{name}`: expected a structure")
        _check(kind, value, version)
    elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):  # type: ignore[arg-type]
        raise _malformed(f"invalid type for `{name}`: {type(value).__name__}")
    elif kind is int and not field.least <= value <= field.most:
        raise _malformed(f"invalid value for `{name}`: {value}")
    elif field.choices and not _chosen(field, value):
        choices = ", ".join(f"`{each}`" for each in field.choices)
        raise _malformed(f"unknown variant `{value}`, expected one of {choices}")


def _chosen(field: Field, value: str) -> bool:
    if field.any_case:
        return value.lower() in [each.lower() for each in field.choices]
    return value in field.choices


def _malformed(detail: str) -> Fault:
    return Fault(f"An error occurred when deserializing the json body of a request: {detail}.")
