"""The calls of Firecracker's API that this runtime makes, as data.

A request holds exactly the fields that are named here: Firecracker refuses any other. An answer may hold more than is
read of it. Where this table and Firecracker's own description disagree, this table is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from mvm.model.base import Frozen

DeviceId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=64)]
"""Id of a drive or a network interface: no hyphen, unlike the id of a machine."""
MAX_BODY_BYTES = 51_200


class Phase(StrEnum):
    """When a call is possible."""

    BEFORE_START = "before the machine starts"
    ONCE_STARTED = "once the machine has started"
    ALWAYS = "always"


class Body(Frozen):
    """What a request carries."""

    def encode(self) -> bytes:
        """As JSON, without what is left out."""
        return self.model_dump_json(exclude_none=True).encode()


class Answer(BaseModel):
    """What an answer is read for."""

    model_config = ConfigDict(frozen=True, extra="ignore")


A = TypeVar("A", bound=Answer)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One kind of request. A path with `{id}` takes the id of the device, which its body has too."""

    method: Literal["GET", "PUT", "PATCH"]
    path: str
    phase: Phase
    status: int
    """Of success."""


@dataclass(frozen=True, kw_only=True)
class Query(Call, Generic[A]):
    """A request for information."""

    method: Literal["GET"] = "GET"
    phase: Phase = Phase.ALWAYS
    status: int = 200
    answer: type[A]


@dataclass(frozen=True, kw_only=True)
class Command(Call):
    """A request to do something; its answer is empty."""

    status: int = 204
    request: type[Body]
    id_field: str | None = None
    """Field of the body that the path repeats."""

    def path_for(self, body: Body) -> str:
        """The path of one request."""
        return self.path if self.id_field is None else self.path.format(id=getattr(body, self.id_field))


# What requests carry


class Logger(Body):
    log_path: str
    level: Literal["Warning"]
    show_level: bool


class Metrics(Body):
    metrics_path: str


class BootSource(Body):
    kernel_image_path: str
    initrd_path: str
    boot_args: str


class MachineConfiguration(Body):
    vcpu_count: Annotated[int, Field(ge=1, le=32)]
    mem_size_mib: Annotated[int, Field(ge=1)]
    smt: bool = False
    track_dirty_pages: bool = False


class TokenBucket(Body):
    """How much may pass: at once `size`, and then as much as comes back, all of it in `refill_time` milliseconds.

    One of no size, or that needs no time, limits nothing.
    """

    size: Annotated[int, Field(ge=0)]
    refill_time: Annotated[int, Field(ge=0)]


class RateLimiter(Body):
    """Bytes and operations, each with a bucket of its own or none."""

    bandwidth: TokenBucket | None = None
    ops: TokenBucket | None = None


class Drive(Body):
    drive_id: DeviceId
    path_on_host: str
    is_root_device: bool
    is_read_only: bool
    cache_type: Literal["Unsafe", "Writeback"]
    rate_limiter: RateLimiter | None = None


class DriveChange(Body):
    """A bucket that is left out stays as it is."""

    drive_id: DeviceId
    rate_limiter: RateLimiter


class NetworkInterface(Body):
    iface_id: DeviceId
    host_dev_name: str
    guest_mac: str
    rx_rate_limiter: RateLimiter | None = None
    tx_rate_limiter: RateLimiter | None = None


class NetworkChange(Body):
    """A bucket that is left out stays as it is."""

    iface_id: DeviceId
    rx_rate_limiter: RateLimiter
    tx_rate_limiter: RateLimiter


class Vsock(Body):
    guest_cid: Annotated[int, Field(ge=3)]
    uds_path: str


class EntropyDevice(Body):
    """Without a limit of its rate."""


class Balloon(Body):
    amount_mib: Annotated[int, Field(ge=0)]
    deflate_on_oom: bool
    stats_polling_interval_s: Annotated[int, Field(ge=0)] = 0


class Action(Body):
    action_type: Literal["InstanceStart"]


class VmState(Body):
    state: Literal["Paused", "Resumed"]


class SnapshotCreate(Body):
    """A `Diff` holds what was written since the load, or the last snapshot. It goes into the memory file that is there
    already, if that has the memory's size."""

    snapshot_type: Literal["Full", "Diff"]
    snapshot_path: str
    mem_file_path: str


class MemoryBackend(Body):
    backend_type: Literal["File"]
    backend_path: str


class NetworkOverride(Body):
    iface_id: DeviceId
    host_dev_name: str


class SnapshotLoad(Body):
    snapshot_path: str
    mem_backend: MemoryBackend
    network_overrides: tuple[NetworkOverride, ...]
    resume_vm: bool = False
    track_dirty_pages: bool = False


# What answers are read for


class VersionInfo(Answer):
    firecracker_version: str


class MachineState(StrEnum):
    """Firecracker's words."""

    NOT_STARTED = "Not started"
    RUNNING = "Running"
    PAUSED = "Paused"


class InstanceInfo(Answer):
    id: str
    state: MachineState
    vmm_version: str


# The calls

GET_VERSION = Query(path="/version", answer=VersionInfo)
GET_INSTANCE = Query(path="/", answer=InstanceInfo)
PUT_LOGGER = Command(method="PUT", path="/logger", phase=Phase.BEFORE_START, request=Logger)
PUT_METRICS = Command(method="PUT", path="/metrics", phase=Phase.BEFORE_START, request=Metrics)
PUT_BOOT_SOURCE = Command(method="PUT", path="/boot-source", phase=Phase.BEFORE_START, request=BootSource)
PUT_MACHINE = Command(method="PUT", path="/machine-config", phase=Phase.BEFORE_START, request=MachineConfiguration)
PUT_DRIVE = Command(method="PUT", path="/drives/{id}", phase=Phase.BEFORE_START, request=Drive, id_field="drive_id")
PUT_NETWORK = Command(
    method="PUT",
    path="/network-interfaces/{id}",
    phase=Phase.BEFORE_START,
    request=NetworkInterface,
    id_field="iface_id",
)
PUT_VSOCK = Command(method="PUT", path="/vsock", phase=Phase.BEFORE_START, request=Vsock)
PUT_ENTROPY = Command(method="PUT", path="/entropy", phase=Phase.BEFORE_START, request=EntropyDevice)
PUT_BALLOON = Command(method="PUT", path="/balloon", phase=Phase.BEFORE_START, request=Balloon)
START = Command(method="PUT", path="/actions", phase=Phase.BEFORE_START, request=Action)
"""Once."""
PATCH_VM = Command(method="PATCH", path="/vm", phase=Phase.ONCE_STARTED, request=VmState)
PATCH_DRIVE = Command(
    method="PATCH", path="/drives/{id}", phase=Phase.ONCE_STARTED, request=DriveChange, id_field="drive_id"
)
PATCH_NETWORK = Command(
    method="PATCH",
    path="/network-interfaces/{id}",
    phase=Phase.ONCE_STARTED,
    request=NetworkChange,
    id_field="iface_id",
)
"""Both also of a machine that was loaded and is still paused."""
CREATE_SNAPSHOT = Command(method="PUT", path="/snapshot/create", phase=Phase.ONCE_STARTED, request=SnapshotCreate)
"""Of a paused machine."""
LOAD_SNAPSHOT = Command(method="PUT", path="/snapshot/load", phase=Phase.BEFORE_START, request=SnapshotLoad)
"""Nothing but logger and metrics may have been set before; when it fails Firecracker ends."""

CALLS: tuple[Call, ...] = (
    GET_VERSION,
    GET_INSTANCE,
    PUT_LOGGER,
    PUT_METRICS,
    PUT_BOOT_SOURCE,
    PUT_MACHINE,
    PUT_DRIVE,
    PUT_NETWORK,
    PUT_VSOCK,
    PUT_ENTROPY,
    PUT_BALLOON,
    START,
    PATCH_VM,
    PATCH_DRIVE,
    PATCH_NETWORK,
    CREATE_SNAPSHOT,
    LOAD_SNAPSHOT,
)
