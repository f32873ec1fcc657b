"""How an instance runs: the protocol that every runtime implements.

A runtime turns a `Machine` (everything one instance is given: resources, drives, addresses, directories) into a
running process and back. It knows nothing of states, policies, quotas or intents: `mvm.host.lifecycle` decides from
what a runtime *declares* (`Capabilities`), never from its name. To add a runtime, implement `Runtime` and register it
in `mvm.host.runtimes`; the conformance suite under `tests/contract` then runs against it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from mvm.drives.table import SPARSE_DATA_DISK_MIB
from mvm.model.entities import ProcessIdentity
from mvm.model.ids import InstanceRef
from mvm.model.roles import Role

GUEST_AGENT_PORT = 52
"""Guest port of the guest agent (CONTRACT 9)."""
HOST_PORT = 53
"""Host port of the wake desk (CONTRACT 9)."""
SLEEP_PREP_PORT = 5200
"""Guest port that takes the one-line text `SLEEP_PREP` (CONTRACT 9)."""


class ChannelKind(StrEnum):
    """What carries the control channel between host and guest."""

    UNIX = "unix"
    VIRTIO_SERIAL = "virtio-serial"
    VSOCK = "vsock"


class Limited(StrEnum):
    """What of a machine's traffic a limit is for."""

    DISK = "disk"
    NETWORK = "network"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a machine may do in a second; 0: no limit."""

    disk_mib: int = 0
    """Read and written, by each drive."""
    disk_ops: int = 0
    """Requests to each drive."""
    network_mib: int = 0
    """Sent, and received: each as much."""

    @property
    def disk_bytes(self) -> int:
        return self.disk_mib << 20

    @property
    def network_bytes(self) -> int:
        return self.network_mib << 20

    def __str__(self) -> str:
        """The same for equal limits: what a machine was given is remembered by it."""
        return f"disk={self.disk_mib}M/{self.disk_ops} network={self.network_mib}M"


NO_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a runtime can do; lifecycle decides from this."""

    isolated: bool
    """Tenants cannot see each other. False is said aloud on every start."""
    memory_snapshot: bool
    """Sleep keeps memory. When False, sleep is checkpoint and stop, and wake is start and restore."""
    clone: bool
    """New instances can start as copies of a warm base."""
    hot_drive_change: bool
    """Config and secrets can be replaced under a running instance (`Refresh` needs it)."""
    channel: ChannelKind
    images: bool = False
    """Runs image revisions (`Machine.image`); otherwise the host's own programs."""
    networks: bool = False
    """Instances have devices in their tenant's network, whose bridge and rules the host keeps."""
    relayed: bool = False
    """Instances have no network in common: the host carries what they say to each other (`mvm.host.relay`)."""
    warm: bool = True
    """An instance can be paused and go on at little cost. False: policy lets it run until it sleeps."""
    limits: frozenset[Limited] = frozenset()
    """Whose limits it enforces."""
    slowness: float = 1.0
    """How many times longer than on this host itself a guest may take; limits for guests are multiplied by it."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Whether a runtime works on this host, found out by trying."""

    usable: bool
    reason: str
    remedy: str | None = None
    unasked: bool = True
    """Whether `auto` may take it: false for one that works but that nobody would want without having asked for it."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Everything that one instance is given. Paths are on the host; directories exist before `start` and `restore`."""

    ref: InstanceRef
    role: Role
    vcpus: int
    mem_mib: int
    guest_ip: str
    gateway_ip: str
    prefix: int
    mac: str
    tap: str
    state_dir: Path
    """Private to the instance, mode 0700, kept until it is destroyed."""
    run_dir: Path
    """Sockets and what need not survive a reboot; short enough for Unix socket paths."""
    data: Path
    """Content of the data drive (process: a directory mounted as `/data`)."""
    secrets: Path
    """Content of the secrets drive: `<scope>/<KEY>` files, on memory-backed storage where there is any."""
    config: Path
    """Content of the config drive: `config.json` and, on gateways, `routes.json` and `users.json`."""
    image: Path | None = None
    """Directory of the image revision; None for a runtime that runs the host's own programs."""
    data_mib: int = SPARSE_DATA_DISK_MIB
    """Size of the data drive; one that has become larger grows at the next start."""
    bridge: str = ""
    """Name of the tenant's bridge; empty where the runtime has no networks."""
    closed: bool = False
    """Its pool lets nothing out; for runtimes whose network the host has no rules for."""
    limits: Limits = NO_LIMITS
    """What it may do in a second, from its next start or wake on."""
    uid: int | None = None
    """User (and group) that its process runs as; None: the agent's own."""
    environment: dict[str, str] = field(default_factory=dict)
    """Extra environment for the guest's services (process runtime: where Node and OpenClaw are)."""


@dataclass(frozen=True, kw_only=True)
class GuestLayout:
    """Where things are as the guest's programs see them; rendered configurations name these paths and ports."""

    run: str
    """`/run`: OpenClaw's sockets, environment and assembled secrets hang under `<run>/openclaw`."""
    data: str
    """`/data`."""
    secrets: str
    """`/run/secrets`."""
    config: str
    """`/etc/mvm-config`."""
    plugin_dir: str
    """Directory of mvm's OpenClaw plugin."""
    discord_plugin_dir: str | None = None
    """Directory of OpenClaw's Discord channel, where it is installed."""
    openclaw_port: int = 18789
    """Loopback port of OpenClaw's own gateway."""
    router_port: int = 18791
    """Loopback port where the router answers the plugin (gateway role)."""
    outbox_port: int = 18792
    """Loopback port of the worker's outbox."""
    host_address: str | None = None
    """Where the guest finds what listens on the host's loopback, as far as its pool's `egress` lists it (`host:PORT`);
    None where the host's loopback is its own."""
    relayed: bool = False
    """Other instances are reached at the relay's ports (`mvm.wire.relaying`)."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A verified snapshot of a sleeping instance; the files it names are consumed at most once."""

    directory: Path
    metadata: dict[str, str]


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Runtime(Protocol):
    """One way to run instances. All methods are coroutines that raise `MvmError` and leave nothing half-done."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    async def probe(self) -> Probe:
        """Try, quickly, whether this runtime works here."""

    async def assign_address(self, guest_ip: str) -> str:
        """Address that an instance gets for its address in the tenant's network (process: a free loopback one)."""

    async def layout(self, machine: Machine) -> GuestLayout:
        """Paths and ports for the next start (process: free ports, chosen anew at each call; VMs: always the same)."""

    async def publish_drives(self, machine: Machine) -> None:
        """Make what is in `machine.config` and `machine.secrets` what the guest reads next.

        Called before each start and restore, and before a running guest is told to read its drives again. Raises
        `Conflict`, and changes nothing, when the drives that a running machine has are too small for it.
        """

    async def start(self, machine: Machine) -> ProcessIdentity:
        """Boot. Returns when the process exists and its host ports are being listened on; on failure nothing runs.

        The caller then waits for the guest agent (`connect(..., GUEST_AGENT_PORT)` and Ping).
        """

    async def pause(self, machine: Machine, process: ProcessIdentity) -> None:
        """Stop the vCPUs; memory is kept. If this fails the instance is still running."""

    async def resume(self, machine: Machine, process: ProcessIdentity) -> None:
        """Let the vCPUs run again."""

    async def snapshot(self, machine: Machine, process: ProcessIdentity) -> Snapshot | None:
        """Write and verify a snapshot of a paused instance, which stays paused. None without memory snapshots."""

    async def restore(self, machine: Machine, snapshot: Snapshot | None) -> ProcessIdentity:
        """Bring a sleeping instance back, running. Without memory snapshots this is `start`.

        Raises `SnapshotRejected` before the guest runs when the snapshot does not fit; the caller boots cold.
        """

    async def discard_snapshot(self, machine: Machine) -> None:
        """Remove whatever snapshot there is. Idempotent."""

    async def compress_snapshot(self, machine: Machine, abandon: Callable[[], bool]) -> int | None:
        """Compress what a sleeping instance left; `restore` unpacks it, which makes that wake longer.

        Gives up, leaving the snapshot as it was, as soon as `abandon()`. Returns the bytes that are left on the disk;
        None when it gave up or there is nothing to compress.
        """

    async def saved_snapshot(self, machine: Machine) -> Snapshot | None:
        """The complete, unconsumed snapshot on disk, if there is one (used after an agent restart)."""

    async def base_key(self, machine: Machine) -> str | None:
        """Name of the base that this machine could be a copy of: everything that both must have in common.

        None when the runtime cannot clone it.
        """

    async def keep_as_base(self, machine: Machine, process: ProcessIdentity, directory: Path) -> None:
        """Save a paused instance (memory, devices, data drive) into `directory`, which is empty, to be copied from.

        The instance stays paused. Nobody ever runs from the files of a base.
        """

    async def clone(self, machine: Machine, directory: Path) -> Snapshot:
        """Give an instance that never ran copies of a base; `restore` then brings it up.

        On failure the instance has neither snapshot nor data drive.
        """

    async def stop(self, machine: Machine, process: ProcessIdentity, *, grace_seconds: float) -> bool:
        """Shut down within `grace_seconds`, then kill. True when it ended by itself. Afterwards no process is left."""

    async def alive(self, process: ProcessIdentity) -> bool:
        """True when that very process (pid and start time) exists."""

    async def find(self, machine: Machine) -> ProcessIdentity | None:
        """The process that runs this instance according to its own records, for adoption after an agent restart."""

    async def retract(self, machine: Machine, process: ProcessIdentity) -> bool:
        """After the end of an agent: end a process that waits for what only that agent would have given it, so that
        everything is as before its start. False, and nothing is done, for one that comes up by itself."""

    async def wait(self, process: ProcessIdentity) -> None:
        """Return when that process has ended."""

    async def connect(self, machine: Machine, port: int) -> Connection:
        """Connect to a guest port; raises `Unavailable` when nobody listens there."""

    async def listen(self, machine: Machine, port: int, handler: Handler) -> asyncio.AbstractServer:
        """Listen on a host port on behalf of this instance only: who connects there *is* this instance."""

    async def destroy(self, machine: Machine) -> None:
        """Remove everything this runtime made for the instance. No process may be left. Idempotent."""
