"""Every message between host and guest (CONTRACT 9): a frozen dataclass each, externally tagged on the wire.

Four closed sets: what the host asks (`parse_request`) and the guest answers (`parse_answer`) on guest port 52; what the
guest asks (`parse_host_request`) and the host answers (`parse_host_answer`) on host port 53. `render` turns any of them
into its JSON. A request class names the class of its answer, so that `mvm.wire.rpc.call` is typed.

The caller's identity is the connection, never a field.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, TypeAlias, get_args

from mvm.wire.frames import JsonValue
from mvm.wire.schema import (
    INSTANCE_ID,
    NAME,
    PEER,
    TRACE,
    WORKER_KEY,
    Base64,
    Checked,
    Choice,
    Flag,
    Integer,
    ListOf,
    Moment,
    Nullable,
    Number,
    Optional,
    Pattern,
    Record,
    Text,
)
from mvm.wire.tagged import DETAIL, MessageSet
from mvm.wire.tagged import Answer as Answer
from mvm.wire.tagged import Error as Error
from mvm.wire.tagged import Request as Request
from mvm.wire.tagged import render as render

MAX_SECONDS = 24 * 3600
MAX_ITEMS = 256
MAX_OUTPUT = 64 * 1024
"""Bytes of each output stream in an `ExecResult`; with base64 both fit a frame."""
MAX_LOG_TEXT = 64 * 1024

_WORD = Pattern("a lowercase word", r"[a-z][a-z-]{0,31}")
_SERVICE = Pattern("a service name", r"[a-z][a-z0-9_-]{0,63}")
_ADDRESS = Checked("an IPv4 address", ipaddress.IPv4Address, limit=15)
_COUNT = Integer()
_SECONDS = Integer(0, MAX_SECONDS)

OVER_BUDGET = "refused: over budget: "
"""How the refusal of a wake begins whose rest is for the person who wrote."""


# Host -> guest, guest port 52


class WorkStatus(StrEnum):
    """What a guest is doing, for anyone."""

    READY = "ready"
    IDLE = "idle"
    BUSY = "busy"
    UNKNOWN = "unknown"


class IntegrationPhase(StrEnum):
    """State of an integration that is not in error."""

    ACTIVE = "active"
    PAUSED = "paused"
    PENDING = "pending"


@dataclass(frozen=True, kw_only=True)
class IntegrationFailure:
    """State of an integration that is in error."""

    error: Annotated[str, DETAIL]


class _IntegrationStatus:
    """`"active"`, `"paused"`, `"pending"` or `{"error": "text"}`."""

    _phase = Choice(IntegrationPhase)
    _failure = Record(IntegrationFailure)

    def parse(self, value: JsonValue, path: str) -> IntegrationPhase | IntegrationFailure:
        if isinstance(value, Mapping):
            return self._failure.parse(value, path)
        return self._phase.parse(value, path)

    def render(self, value: IntegrationPhase | IntegrationFailure) -> JsonValue:
        if isinstance(value, IntegrationFailure):
            return self._failure.render(value)
        return self._phase.render(value)


@dataclass(frozen=True, kw_only=True)
class IntegrationState:
    """One integration as the guest sees it; one that does not run here is `active` with a size of 0."""

    name: Annotated[str, NAME]
    status: Annotated[IntegrationPhase | IntegrationFailure, _IntegrationStatus()]
    last_checkpoint_at: Annotated[datetime | None, Nullable(Moment())] = None
    state_size_bytes: Annotated[int, _COUNT] = 0


@dataclass(frozen=True, kw_only=True)
class ServiceLog:
    """The newest lines of one service's log."""

    service: Annotated[str, _SERVICE]
    text: Annotated[str, Text(MAX_LOG_TEXT)]
    truncated: Annotated[bool, Flag()] = False


@dataclass(frozen=True, kw_only=True)
class ServiceStats:
    """One service of the guest: what its supervisor says of it."""

    service: Annotated[str, _SERVICE]
    state: Annotated[str, _WORD]
    pid: Annotated[int | None, Nullable(_COUNT)] = None
    restarts: Annotated[int, _COUNT] = 0
    memory_bytes: Annotated[int, _COUNT] = 0


@dataclass(frozen=True, kw_only=True)
class Pong(Answer):
    pass


@dataclass(frozen=True, kw_only=True)
class WorkerStatus(Answer):
    status: Annotated[WorkStatus, Choice(WorkStatus)]
    last_busy_at: Annotated[datetime | None, Nullable(Moment())] = None
    next_alarm_at: Annotated[datetime | None, Nullable(Moment())] = None
    in_flight: Annotated[int, _COUNT] = 0


@dataclass(frozen=True, kw_only=True)
class SleepPrepAck(Answer):
    success: Annotated[bool, Flag()]
    detail: Annotated[str | None, Nullable(DETAIL)] = None
    next_alarm_at: Annotated[datetime | None, Nullable(Moment())] = None


@dataclass(frozen=True, kw_only=True)
class WakeAck(Answer):
    success: Annotated[bool, Flag()]
    detail: Annotated[str | None, Nullable(DETAIL)] = None
    restarted: Annotated[bool, Flag()] = False


@dataclass(frozen=True, kw_only=True)
class IntegrationStatusReport(Answer):
    integrations: Annotated[tuple[IntegrationState, ...], ListOf(Record(IntegrationState), MAX_ITEMS)] = ()


@dataclass(frozen=True, kw_only=True)
class CheckpointResult(Answer):
    success: Annotated[bool, Flag()]
    failed: Annotated[tuple[str, ...], ListOf(NAME, MAX_ITEMS)] = ()
    detail: Annotated[str | None, Nullable(DETAIL)] = None


@dataclass(frozen=True, kw_only=True)
class RefreshAck(Answer):
    success: Annotated[bool, Flag()]
    restarted: Annotated[bool, Flag()] = False


@dataclass(frozen=True, kw_only=True)
class ExecResult(Answer):
    """`status` is the exit status, or minus the number of the signal that ended the command."""

    status: Annotated[int, Integer(-255, 255)]
    stdout: Annotated[bytes, Base64(MAX_OUTPUT)] = b""
    stderr: Annotated[bytes, Base64(MAX_OUTPUT)] = b""
    truncated: Annotated[bool, Flag()] = False


@dataclass(frozen=True, kw_only=True)
class LogsResult(Answer):
    logs: Annotated[tuple[ServiceLog, ...], ListOf(Record(ServiceLog), MAX_ITEMS)] = ()


@dataclass(frozen=True, kw_only=True)
class StatsResult(Answer):
    """Use of the machine as the guest sees it; bytes and seconds."""

    uptime_seconds: Annotated[float, Number()]
    cpu_seconds: Annotated[float, Number()]
    memory_used_bytes: Annotated[int, _COUNT]
    memory_total_bytes: Annotated[int, _COUNT]
    disk_used_bytes: Annotated[int, _COUNT]
    disk_total_bytes: Annotated[int, _COUNT]
    services: Annotated[tuple[ServiceStats, ...], ListOf(Record(ServiceStats), MAX_ITEMS)] = ()


@dataclass(frozen=True, kw_only=True)
class Ping(Request[Pong], answer=Pong):
    pass


@dataclass(frozen=True, kw_only=True)
class QueryWorkerStatus(Request[WorkerStatus], answer=WorkerStatus, tag="WorkerStatus"):
    pass


@dataclass(frozen=True, kw_only=True)
class SleepPrep(Request[SleepPrepAck], answer=SleepPrepAck):
    drain_timeout_secs: Annotated[int, _SECONDS]


@dataclass(frozen=True, kw_only=True)
class Wake(Request[WakeAck], answer=WakeAck):
    """Tells a guest what it missed: the time, the generation of its drives, and randomness nobody else has."""

    host_time: Annotated[datetime, Moment()]
    secrets_epoch: Annotated[int, _COUNT]
    config_version: Annotated[int, _COUNT]
    entropy: Annotated[bytes, Base64(1024)] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class BareWake(Request[WakeAck], answer=WakeAck, tag="Wake"):
    """`"Wake"` without fields: go on, nothing changed."""


@dataclass(frozen=True, kw_only=True)
class IntegrationStatus(Request[IntegrationStatusReport], answer=IntegrationStatusReport):
    pass


@dataclass(frozen=True, kw_only=True)
class CheckpointIntegrations(Request[CheckpointResult], answer=CheckpointResult):
    integrations: Annotated[tuple[str, ...], ListOf(NAME, MAX_ITEMS)] = ()


@dataclass(frozen=True, kw_only=True)
class Refresh(Request[RefreshAck], answer=RefreshAck):
    secrets_epoch: Annotated[int, _COUNT]
    config_version: Annotated[int, _COUNT]


@dataclass(frozen=True, kw_only=True)
class Exec(Request[ExecResult], answer=ExecResult):
    """Runs an argument list (never a shell line); `stdin` is text as it stands."""

    argv: Annotated[tuple[str, ...], ListOf(Text(32 * 1024), MAX_ITEMS, least=1)]
    stdin: Annotated[str | None, Optional(Text(64 * 1024))] = None
    timeout_secs: Annotated[int, Integer(1, MAX_SECONDS)] = 30


@dataclass(frozen=True, kw_only=True)
class Logs(Request[LogsResult], answer=LogsResult):
    """`"Logs"` for the newest lines of every service, or `{"Logs": {"service"?, "lines"?}}`."""

    service: Annotated[str | None, Optional(_SERVICE)] = None
    lines: Annotated[int | None, Optional(Integer(1, 10_000))] = None


@dataclass(frozen=True, kw_only=True)
class Stats(Request[StatsResult], answer=StatsResult):
    pass


# Guest -> host, host port 53


@dataclass(frozen=True, kw_only=True)
class Ok(Answer):
    pass


@dataclass(frozen=True, kw_only=True)
class WakeResult(Answer):
    success: Annotated[bool, Flag()]
    detail: Annotated[str | None, Nullable(DETAIL)] = None
    guest_ip: Annotated[str | None, Nullable(_ADDRESS)] = None
    state: Annotated[str | None, Nullable(_WORD)] = None


@dataclass(frozen=True, kw_only=True)
class InstanceStatus(Answer):
    """`status` is an instance state of CONTRACT 4."""

    status: Annotated[str, _WORD]
    guest_ip: Annotated[str | None, Nullable(_ADDRESS)] = None


@dataclass(frozen=True, kw_only=True)
class HostTime(Answer):
    """The host's wall clock: whole seconds since 1970 and the nanoseconds beyond them."""

    unix_seconds: Annotated[int, _COUNT]
    unix_nanos: Annotated[int, Integer(0, 999_999_999)]


@dataclass(frozen=True, kw_only=True)
class PairingCode(Answer):
    """A code for a sender whom nobody knows; None when too many were asked for."""

    code: Annotated[str | None, Nullable(Pattern("a pairing code", r"[A-Z0-9]{4,16}"))]
    expires_at: Annotated[datetime | None, Nullable(Moment())]
    tenant_id: Annotated[str, NAME]


@dataclass(frozen=True, kw_only=True)
class WakeInstance(Request[WakeResult], answer=WakeResult):
    """`trace` names the message that needs the wake: the id of its turn at the worker's OpenClaw."""

    tenant_id: Annotated[str, NAME]
    pool_id: Annotated[str, NAME]
    instance_id: Annotated[str, INSTANCE_ID]
    trace: Annotated[str | None, Optional(TRACE)] = None


@dataclass(frozen=True, kw_only=True)
class QueryInstanceStatus(Request[InstanceStatus], answer=InstanceStatus):
    tenant_id: Annotated[str, NAME]
    pool_id: Annotated[str, NAME]
    instance_id: Annotated[str, INSTANCE_ID]


@dataclass(frozen=True, kw_only=True)
class QueryHostTime(Request[HostTime], answer=HostTime):
    pass


@dataclass(frozen=True, kw_only=True)
class ReportStatus(Request[Ok], answer=Ok):
    status: Annotated[WorkStatus, Choice(WorkStatus)]
    in_flight: Annotated[int, _COUNT] = 0
    next_alarm_at: Annotated[datetime | None, Nullable(Moment())] = None


@dataclass(frozen=True, kw_only=True)
class RequestPairing(Request[PairingCode], answer=PairingCode):
    """A gateway asks for a code for a sender who is in nobody's `users` (gateway role only)."""

    peer: Annotated[str, PEER]
    display_name: Annotated[str | None, Nullable(Text(256))] = None


@dataclass(frozen=True, kw_only=True)
class ReportEvent(Request[Ok], answer=Ok):
    """Something that an operator should see, such as `DeliveryFailed`."""

    kind: Annotated[str, Pattern("an event such as 'DeliveryFailed'", r"[A-Z][A-Za-z]{0,63}")]
    user: Annotated[str | None, Nullable(NAME)] = None
    detail: Annotated[str | None, Nullable(DETAIL)] = None
    worker: Annotated[str | None, Optional(WORKER_KEY)] = None
    """Whose worker it is about, as `<tenant>.<user>`; told by gateways."""
    trace: Annotated[str | None, Optional(TRACE)] = None
    """The message it is about, as in `WakeInstance`."""


HostToGuest: TypeAlias = (
    Ping
    | QueryWorkerStatus
    | SleepPrep
    | Wake
    | BareWake
    | IntegrationStatus
    | CheckpointIntegrations
    | Refresh
    | Exec
    | Logs
    | Stats
)
GuestAnswer: TypeAlias = (
    Pong
    | WorkerStatus
    | SleepPrepAck
    | WakeAck
    | IntegrationStatusReport
    | CheckpointResult
    | RefreshAck
    | ExecResult
    | LogsResult
    | StatsResult
    | Error
)
GuestToHost: TypeAlias = (
    WakeInstance | QueryInstanceStatus | QueryHostTime | ReportStatus | RequestPairing | ReportEvent
)
HostAnswer: TypeAlias = WakeResult | InstanceStatus | HostTime | PairingCode | Ok | Error


_REQUESTS: MessageSet[HostToGuest] = MessageSet(*get_args(HostToGuest))
_ANSWERS: MessageSet[GuestAnswer] = MessageSet(*get_args(GuestAnswer))
_HOST_REQUESTS: MessageSet[GuestToHost] = MessageSet(*get_args(GuestToHost))
_HOST_ANSWERS: MessageSet[HostAnswer] = MessageSet(*get_args(HostAnswer))


def parse_request(value: JsonValue) -> HostToGuest:
    """Read a request on guest port 52; raises `MessageError` naming the place."""
    return _REQUESTS.parse(value)


def parse_answer(value: JsonValue) -> GuestAnswer:
    """Read a guest's answer; raises `MessageError` naming the place."""
    return _ANSWERS.parse(value)


def parse_host_request(value: JsonValue) -> GuestToHost:
    """Read a request on host port 53; raises `MessageError` naming the place."""
    return _HOST_REQUESTS.parse(value)


def parse_host_answer(value: JsonValue) -> HostAnswer:
    """Read the host's answer; raises `MessageError` naming the place."""
    return _HOST_ANSWERS.parse(value)
