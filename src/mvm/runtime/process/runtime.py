"""The process runtime: the guest's programs as ordinary processes of this host, each instance in its own directory.

Nothing is isolated: it is for development, CI and tests of scale, needs no root, and says so. One small supervisor per
instance runs the guest's services and outlives the agent that started it. Paths that are fixed in a VM hang under
`<run dir>/root`; each instance has a loopback address of its own; the control channel is a pair of Unix sockets.
There is no memory snapshot: sleep is checkpoint and stop, wake is start and restore.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mvm.guest import processes
from mvm.guest.processes import Identity
from mvm.guest.services import PASSED_ON
from mvm.model.addresses import loopback_address
from mvm.model.entities import ProcessIdentity
from mvm.model.errors import MvmError, TimedOut, Unavailable
from mvm.model.ids import InstanceId
from mvm.runtime import bounds, spawning
from mvm.runtime.base import (
    Capabilities,
    ChannelKind,
    Connection,
    GuestLayout,
    Handler,
    Machine,
    Probe,
    Snapshot,
)
from mvm.runtime.process import claims, ending, supervision
from mvm.runtime.process.claims import Claim, PortBlock
from mvm.runtime.process.directories import Directories
from mvm.runtime.records import Record

log = logging.getLogger(__name__)

START_SECONDS = 20.0
FREEZE_SECONDS = 15.0
LEFTOVER_GRACE_SECONDS = 10.0
"""What a start leaves to processes of an instance whose supervisor was killed."""
STOP_MARGIN_SECONDS = 5.0
"""How much longer than its grace a supervisor may take before it is killed."""
MEMORY_FACTOR = 2
SMALLEST_MEMORY_MIB = 1024
_POLL_SECONDS = 0.004


@dataclass(frozen=True, kw_only=True)
class HostPrograms:
    """Where this host has what runs in an instance."""

    node: Path
    openclaw_dir: Path
    """Directory of the npm package `openclaw`."""
    python: Path
    zipapp: Path
    """The guest's programs, packed."""
    plugin_dir: Path
    """Directory of mvm's OpenClaw plugin."""


class ProcessRuntime:
    """Implements `mvm.runtime.base.Runtime` with processes."""

    name = "process"
    capabilities = Capabilities(
        isolated=False, memory_snapshot=False, clone=False, hot_drive_change=True, channel=ChannelKind.UNIX
    )

    def __init__(
        self,
        programs: HostPrograms,
        *,
        environment: Mapping[str, str] | None = None,
        chance: random.Random | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:
        """`environment` is what instances may inherit from; default: this process's own."""
        self._programs = programs
        self._environment = dict(os.environ if environment is None else environment)
        self._chance = chance or random.SystemRandom()
        self._start_seconds = start_seconds
        self._addresses: dict[str, Claim] = {}
        self._ports: dict[InstanceId, PortBlock] = {}
        self._told_bounds: set[str] = set()

    async def probe(self) -> Probe:
        """Whether instances can run as processes here; the reason always says that nothing is isolated."""
        try:
            processes.require_linux()
            claims.bound("127.240.255.254", 0).close()
        except OSError as error:
            return Probe(usable=False, reason=str(error), remedy="use Linux, or a runtime with virtual machines")
        for what, path in (("Python", self._programs.python), ("the guest's zipapp", self._programs.zipapp)):
            if not path.is_file():
                return Probe(usable=False, reason=f"{what} is not at '{path}'", remedy="run `make setup`")
        return Probe(
            usable=True,
            reason="instances are ordinary processes of this user and NOT isolated from each other",
            remedy="for isolation run them in virtual machines: --runtime qemu",
        )

    async def assign_address(self, guest_ip: str) -> str:
        """A loopback address for it, claimed until the instance's end; the usual one when that is free."""
        usual = loopback_address(guest_ip)
        held = self._addresses.pop(usual, None)
        if held is not None:
            held.close()  # of a start that did not happen
        address, claim = claims.claim_address(guest_ip, self._chance)
        self._addresses[address] = claim
        if address != usual:
            log.warning("address %s is taken on this machine; the instance gets %s", usual, address)
        return address

    async def layout(self, machine: Machine) -> GuestLayout:
        """Real paths, and a block of free loopback ports claimed until the instance's end."""
        self._release_ports(machine)
        ports = claims.claim_ports(self._chance)
        self._ports[machine.ref.instance_id] = ports
        directories = Directories.of(machine)
        return GuestLayout(
            run=str(directories.run),
            data=str(directories.data),
            secrets=str(directories.secrets),
            config=str(directories.config),
            plugin_dir=str(self._programs.plugin_dir),
            discord_plugin_dir=_discord_beside(self._programs.openclaw_dir),
            openclaw_port=ports.openclaw,
            router_port=ports.router,
            outbox_port=ports.outbox,
        )

    async def publish_drives(self, machine: Machine) -> None:
        """Nothing: the guest sees the directories themselves."""

    async def base_key(self, machine: Machine) -> str | None:
        return None

    async def keep_as_base(self, machine: Machine, process: ProcessIdentity, directory: Path) -> None:
        raise _cannot_clone(machine)

    async def clone(self, machine: Machine, directory: Path) -> Snapshot:
        raise _cannot_clone(machine)

    async def start(self, machine: Machine) -> ProcessIdentity:
        """Start the instance's supervisor and wait until it answers. On failure nothing runs."""
        self._require_programs(machine)
        if (running := await self.find(machine)) is not None:
            raise MvmError(f"{machine.ref} runs already (pid {running.pid})", hint="stop it first")
        directories = Directories.of(machine)
        await self._end_everything(machine, directories, grace_seconds=LEFTOVER_GRACE_SECONDS)
        directories.make_root()
        try:
            identity = await asyncio.to_thread(
                spawning.spawn,
                [str(self._programs.python), "-I", "-S", str(self._programs.zipapp), "supervise"],
                environment=self._guest_environment(machine, directories),
                directory=directories.root,
                output=directories.output,
                held=[claim.fileno() for claim in self._held(machine)],
            )
            self._bound(machine, directories, identity)
            await self._wait_for_supervisor(machine, directories, identity)
        except BaseException:
            await asyncio.shield(self._end_everything(machine, directories))
            raise
        finally:
            # The supervisor holds them now, or nobody needs them.
            self._release(machine)
        return spawning.recorded(identity)

    async def pause(self, machine: Machine, process: ProcessIdentity) -> None:
        """Stop every process of the instance but its supervisor."""
        await supervision.ask(Directories.of(machine).supervisor_socket, {"op": "freeze"}, seconds=FREEZE_SECONDS)

    async def resume(self, machine: Machine, process: ProcessIdentity) -> None:
        """Let them go on. Nothing happens to an instance that is not paused."""
        await supervision.ask(Directories.of(machine).supervisor_socket, {"op": "thaw"}, seconds=FREEZE_SECONDS)

    async def snapshot(self, machine: Machine, process: ProcessIdentity) -> Snapshot | None:
        return None

    async def restore(self, machine: Machine, snapshot: Snapshot | None) -> ProcessIdentity:
        return await self.start(machine)

    async def discard_snapshot(self, machine: Machine) -> None:
        return None

    async def compress_snapshot(self, machine: Machine, abandon: Callable[[], bool]) -> int | None:
        return None

    async def saved_snapshot(self, machine: Machine) -> Snapshot | None:
        return None

    async def stop(self, machine: Machine, process: ProcessIdentity, *, grace_seconds: float) -> bool:
        """Have the supervisor end its services within the grace, then end whatever is left."""
        directories = Directories.of(machine)
        identity = spawning.identity_of(process)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_seconds
        clean = False
        if processes.alive(identity):
            try:
                request = {"op": "shutdown", "grace_seconds": grace_seconds}
                answer = await supervision.ask(
                    directories.supervisor_socket, request, seconds=grace_seconds + STOP_MARGIN_SECONDS
                )
                left = await processes.wait_until_ended([identity], STOP_MARGIN_SECONDS)
                clean = not left and not answer.get("killed")
            except (Unavailable, TimedOut) as error:
                log.warning("%s does not end by itself and is killed: %s", machine.ref, error.message)
                # Its supervisor does not do it: whatever of the grace is left goes to its services directly.
                grace_seconds = max(0.0, deadline - loop.time())
        else:
            grace_seconds = min(grace_seconds, LEFTOVER_GRACE_SECONDS)
        await self._end_everything(machine, directories, grace_seconds=grace_seconds)
        spawning.reap(identity)
        return clean

    async def alive(self, process: ProcessIdentity) -> bool:
        return spawning.alive(process)

    async def find(self, machine: Machine) -> ProcessIdentity | None:
        directories = Directories.of(machine)
        # The supervisor's own record tells of it even when the agent died right after starting it.
        for identity in (Record.process(directories.record), Record.supervisor(directories.supervisor_record)):
            if identity is not None and processes.alive(identity) and ending.is_supervisor(identity, directories.root):
                return spawning.recorded(identity)
        return None

    async def retract(self, machine: Machine, process: ProcessIdentity) -> bool:
        return False

    async def wait(self, process: ProcessIdentity) -> None:
        await spawning.wait_for_end(spawning.identity_of(process))

    async def connect(self, machine: Machine, port: int) -> Connection:
        directories = Directories.of(machine)
        directories.check_lengths()
        try:
            return await asyncio.open_unix_connection(str(directories.guest_socket(port)))
        except OSError as error:
            raise Unavailable(
                f"nobody listens on guest port {port} of {machine.ref} ({error.strerror or error})",
                hint=f"`mvm instance logs {machine.ref}` shows what its agent says",
            ) from error

    async def listen(self, machine: Machine, port: int, handler: Handler) -> asyncio.AbstractServer:
        directories = Directories.of(machine)
        directories.make_channel()
        path = directories.host_socket(port)
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(handler, str(path))
        path.chmod(0o600)
        return server

    async def destroy(self, machine: Machine) -> None:
        directories = Directories.of(machine)
        process = await self.find(machine)
        if process is not None:
            await self.stop(machine, process, grace_seconds=0)
        await self._end_everything(machine, directories)
        self._release(machine)
        directories.remove()

    # Starting

    def _require_programs(self, machine: Machine) -> None:
        programs = self._programs
        wanted = {"Python": programs.python, "the guest's zipapp": programs.zipapp}
        if machine.role.runs_openclaw:
            wanted |= {
                "Node": programs.node,
                "OpenClaw": programs.openclaw_dir / "openclaw.mjs",
                "mvm's OpenClaw plugin": programs.plugin_dir / "openclaw.plugin.json",
            }
        for what, path in wanted.items():
            if not path.is_file():
                raise Unavailable(
                    f"{what} is not at '{path}'", hint="run `make setup`; `mvm doctor` shows what is there"
                )

    def _guest_environment(self, machine: Machine, directories: Directories) -> dict[str, str]:
        environment = {name: self._environment[name] for name in PASSED_ON if name in self._environment}
        environment |= {
            "PATH": self._environment.get("PATH", os.defpath),
            "MVM_GUEST_ROOT": str(directories.root),
            "MVM_CHANNEL_DIR": str(directories.channel),
            "MVM_NODE": str(self._programs.node),
            "MVM_OPENCLAW_DIR": str(self._programs.openclaw_dir),
            "MVM_PLUGIN_DIR": str(self._programs.plugin_dir),
            "MVM_PYTHON": str(self._programs.python),
            "MVM_GUEST_ZIPAPP": str(self._programs.zipapp),
        }
        if (loud := self._environment.get("MVM_LOG")) is not None:
            environment["MVM_LOG"] = loud
        return environment | machine.environment

    def _bound(self, machine: Machine, directories: Directories, identity: Identity) -> None:
        held = bounds.apply(
            identity.pid,
            name=f"{machine.ref.instance_id}-{identity.pid}",
            vcpus=machine.vcpus,
            memory_bytes=process_memory(machine.mem_mib),
        )
        Record(identity=identity, groups=held.groups).write(directories.record)
        if held.note not in self._told_bounds:
            self._told_bounds.add(held.note)
            log.info("process runtime: instances are %s", held.note)

    async def _wait_for_supervisor(self, machine: Machine, directories: Directories, identity: Identity) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._start_seconds
        while True:
            if not processes.alive(identity):
                raise Unavailable(
                    f"the supervisor of {machine.ref} ended at once: {spawning.last_words(directories.output)}",
                    hint=f"see '{directories.output}'",
                )
            if directories.supervisor_socket.exists():
                try:
                    await supervision.ask(directories.supervisor_socket, {"op": "status"}, seconds=2.0)
                    return
                except MvmError:
                    pass  # it has just made the socket, or is busy; the deadline decides
            if loop.time() > deadline:
                raise TimedOut(
                    f"the supervisor of {machine.ref} did not answer within {self._start_seconds:g} s",
                    hint=f"see '{directories.output}'",
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def _end_everything(self, machine: Machine, directories: Directories, *, grace_seconds: float = 0.0) -> None:
        """Nothing of the instance runs afterwards; its record goes with it."""
        record = Record.load(directories.record)
        groups = record.groups if record else ()
        await ending.end_all(directories.root, groups, who=str(machine.ref), grace_seconds=grace_seconds)
        if record is not None:
            spawning.reap(record.identity)
        directories.record.unlink(missing_ok=True)

    # Claims

    def _held(self, machine: Machine) -> list[Claim]:
        address = self._addresses.get(machine.guest_ip)
        ports = self._ports.get(machine.ref.instance_id)
        return [*([address] if address else []), *([ports.claim] if ports else [])]

    def _release(self, machine: Machine) -> None:
        if (claim := self._addresses.pop(machine.guest_ip, None)) is not None:
            claim.close()
        self._release_ports(machine)

    def _release_ports(self, machine: Machine) -> None:
        if (ports := self._ports.pop(machine.ref.instance_id, None)) is not None:
            ports.claim.close()


def process_memory(mem_mib: int) -> int:
    """Bytes that all processes of an instance of that size may use together.

    Twice the machine's size: what a guest's kernel would hold (page cache) and what V8 reserves are counted here too.
    """
    return max(mem_mib, SMALLEST_MEMORY_MIB) * MEMORY_FACTOR * 1024 * 1024


def _cannot_clone(machine: Machine) -> MvmError:
    return MvmError(f"{machine.ref} cannot be cloned: processes have no memory that could be copied")


def _discord_beside(openclaw_dir: Path) -> str | None:
    """Directory of OpenClaw's Discord channel, which npm installs beside OpenClaw; None when it is not there."""
    directory = openclaw_dir.parent / "@openclaw/discord"
    return str(directory) if (directory / "package.json").is_file() else None
