"""A runtime without machines, for simulations and for measuring the agent alone: every step takes no time.

It keeps the rules of the real ones strictly: a machine is started once, paused before a snapshot, restored from a
snapshot only once, and spoken to only while it runs. Its guests answer the real messages over real sockets.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from mvm.model.entities import ProcessIdentity
from mvm.model.errors import SnapshotRejected, Unavailable
from mvm.model.ids import InstanceId
from mvm.runtime.base import (
    GUEST_AGENT_PORT,
    Capabilities,
    ChannelKind,
    Connection,
    GuestLayout,
    Handler,
    Machine,
    Probe,
    Snapshot,
)
from mvm.wire import messages, rpc
from mvm.wire.tagged import Answer


@dataclass
class Guest:
    """How one guest behaves. Tests change the fields; the counters say what happened to it."""

    status: messages.WorkStatus = messages.WorkStatus.IDLE
    in_flight: int = 0
    next_alarm_at: datetime | None = None
    last_busy_at: datetime | None = None
    refuse_sleep: str | None = None
    failed_integrations: tuple[str, ...] = ()
    answer_gate: asyncio.Event | None = None
    """When set, the guest answers nothing until the event is set."""
    before: Callable[[messages.HostToGuest], Awaitable[None]] | None = None
    wakes: int = 0
    sleeps: int = 0
    refreshes: int = 0
    logs: dict[str, str] = field(default_factory=lambda: {"agent": "all is well"})
    requests: list[str] = field(default_factory=list)
    last: str = ""
    """Tag of the last request but for pings: a guest that was drained last is one that nobody let go on."""


@dataclass
class _Process:
    identity: ProcessIdentity
    machine: Machine
    paused: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class _Server(asyncio.AbstractServer):
    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close

    def close(self) -> None:
        self._close()


class InstantRuntime:
    """Implements `mvm.runtime.base.Runtime` in memory."""

    def __init__(self, *, name: str = "instant", memory_snapshot: bool = True, clone: bool = False) -> None:
        self.name = name
        self.capabilities = Capabilities(
            isolated=True,
            memory_snapshot=memory_snapshot,
            clone=clone,
            hot_drive_change=True,
            channel=ChannelKind.UNIX,
        )
        self.guests: dict[InstanceId, Guest] = {}
        self.processes: dict[InstanceId, _Process] = {}
        self.snapshots: dict[InstanceId, Snapshot] = {}
        self.listeners: dict[InstanceId, Handler] = {}
        self.compressed: set[InstanceId] = set()
        self.memory: set[InstanceId] = set()
        """Whose memory is on the disk: of everybody who ran or is a copy, until it is discarded."""
        self.starts = 0
        self.restores = 0
        self.most_at_once = 0
        self.fail: dict[str, Exception] = {}
        """Next call of that method raises this, once."""
        self.reject_snapshot: str | None = None
        self.on_step: Callable[[str], None] = lambda step: None
        """Called before and after everything that changes a machine; may raise to end the agent there."""
        self.gate: asyncio.Event | None = None
        """When set, start and restore wait for it."""
        self._pids = itertools.count(100_000)
        self._waiting: dict[InstanceId, Snapshot] = {}
        """Snapshots of machines that were started and not told yet to go on from them."""

    def guest(self, instance: InstanceId) -> Guest:
        return self.guests.setdefault(instance, Guest())

    def _fault(self, method: str) -> None:
        if (error := self.fail.pop(method, None)) is not None:
            raise error

    async def probe(self) -> Probe:
        return Probe(usable=True, reason="it is only memory")

    async def assign_address(self, guest_ip: str) -> str:
        return guest_ip

    async def layout(self, machine: Machine) -> GuestLayout:
        return GuestLayout(
            run="/run", data="/data", secrets="/run/secrets", config="/etc/mvm-config", plugin_dir="/opt/mvm/plugin"
        )

    async def _launch(self, machine: Machine) -> ProcessIdentity:
        instance = machine.ref.instance_id
        assert instance not in self.processes, f"{instance} would run twice"
        if self.gate is not None:
            await self.gate.wait()
        assert instance not in self.processes, f"{instance} would run twice"
        identity = ProcessIdentity(pid=next(self._pids), start_time=1)
        self.memory.add(instance)
        self.processes[instance] = _Process(identity, machine)
        self.most_at_once = max(self.most_at_once, len(self.processes))
        return identity

    async def start(self, machine: Machine) -> ProcessIdentity:
        self._fault("start")
        self.starts += 1
        self.on_step("before start")
        identity = await self._launch(machine)
        self.on_step("after start")
        return identity

    async def pause(self, machine: Machine, process: ProcessIdentity) -> None:
        self._fault("pause")
        self.on_step("before pause")
        self._process(machine, process).paused = True
        self.on_step("after pause")

    async def resume(self, machine: Machine, process: ProcessIdentity) -> None:
        self._fault("resume")
        self.on_step("before resume")
        self._process(machine, process).paused = False
        self.on_step("after resume")

    async def snapshot(self, machine: Machine, process: ProcessIdentity) -> Snapshot | None:
        self._fault("snapshot")
        assert self._process(machine, process).paused, "a snapshot of a running machine"
        if not self.capabilities.memory_snapshot:
            return None
        snapshot = Snapshot(directory=Path("/nowhere"), metadata={})
        self.on_step("before snapshot")
        self.snapshots[machine.ref.instance_id] = snapshot
        self.on_step("after snapshot")
        return snapshot

    async def restore(self, machine: Machine, snapshot: Snapshot | None) -> ProcessIdentity:
        self._fault("restore")
        if self.reject_snapshot:
            raise SnapshotRejected(self.reject_snapshot)
        self.on_step("before restore")
        instance = machine.ref.instance_id
        assert snapshot is not None
        assert self.snapshots.pop(instance, None) is snapshot, "a snapshot is used at most once"
        self._waiting[instance] = snapshot
        self.compressed.discard(instance)
        identity = await self._launch(machine)
        self.on_step("before load")
        self.restores += 1
        del self._waiting[instance]
        self.on_step("after restore")
        return identity

    async def discard_snapshot(self, machine: Machine) -> None:
        self.snapshots.pop(machine.ref.instance_id, None)
        if machine.ref.instance_id not in self.processes:
            self.memory.discard(machine.ref.instance_id)

    async def compress_snapshot(self, machine: Machine, abandon: Callable[[], bool]) -> int | None:
        assert machine.ref.instance_id not in self.processes, "compressed while it runs"
        if machine.ref.instance_id not in self.snapshots or machine.ref.instance_id in self.compressed or abandon():
            return None
        self.compressed.add(machine.ref.instance_id)
        return 1

    async def saved_snapshot(self, machine: Machine) -> Snapshot | None:
        return self.snapshots.get(machine.ref.instance_id)

    async def publish_drives(self, machine: Machine) -> None:
        self._fault("publish_drives")

    async def base_key(self, machine: Machine) -> str | None:
        return f"{machine.role}-{machine.vcpus}-{machine.mem_mib}" if self.capabilities.clone else None

    async def keep_as_base(self, machine: Machine, process: ProcessIdentity, directory: Path) -> None:
        self._fault("keep_as_base")
        assert self._process(machine, process).paused, "a base of a running machine"
        assert not any(directory.iterdir())
        self.on_step("before keep_as_base")
        (directory / "memory").write_text(str(machine.ref))
        self.on_step("after keep_as_base")

    async def clone(self, machine: Machine, directory: Path) -> Snapshot:
        self._fault("clone")
        assert machine.ref.instance_id not in self.processes
        assert machine.ref.instance_id not in self.snapshots, "it is a copy already"
        self.on_step("before clone")
        self.memory.add(machine.ref.instance_id)
        snapshot = Snapshot(directory=machine.state_dir, metadata={"of": (directory / "memory").read_text()})
        self.snapshots[machine.ref.instance_id] = snapshot
        self.on_step("after clone")
        return snapshot

    async def stop(self, machine: Machine, process: ProcessIdentity, *, grace_seconds: float) -> bool:
        self._fault("stop")
        if machine.ref.instance_id in self.snapshots and machine.ref.instance_id in self.processes:
            assert grace_seconds == 0, "what is saved would go on while it shuts down"
        self.on_step("before stop")
        self.end(machine.ref.instance_id)
        self.on_step("after stop")
        return True

    def end(self, instance: InstanceId) -> None:
        """The process ends, whoever wanted it."""
        self._waiting.pop(instance, None)
        if (process := self.processes.pop(instance, None)) is not None:
            process.ended.set()

    async def alive(self, process: ProcessIdentity) -> bool:
        return any(p.identity == process for p in self.processes.values())

    async def find(self, machine: Machine) -> ProcessIdentity | None:
        process = self.processes.get(machine.ref.instance_id)
        return process.identity if process else None

    async def retract(self, machine: Machine, process: ProcessIdentity) -> bool:
        instance = machine.ref.instance_id
        if instance not in self._waiting:
            return False
        unused = self._waiting.pop(instance)
        self.end(instance)
        self.snapshots[instance] = unused
        return True

    async def wait(self, process: ProcessIdentity) -> None:
        for known in list(self.processes.values()):
            if known.identity == process:
                await known.ended.wait()

    def _process(self, machine: Machine, identity: ProcessIdentity) -> _Process:
        process = self.processes.get(machine.ref.instance_id)
        if process is None or process.identity != identity:
            raise Unavailable(f"{machine.ref} has no such process")
        return process

    async def connect(self, machine: Machine, port: int) -> Connection:
        process = self.processes.get(machine.ref.instance_id)
        waiting = machine.ref.instance_id in self._waiting
        if process is None or process.paused or waiting or port != GUEST_AGENT_PORT:
            raise Unavailable(f"nobody listens on guest port {port} of {machine.ref}")
        ours, theirs = socket.socketpair()
        guest = self.guest(machine.ref.instance_id)
        serving = asyncio.create_task(self._serve(theirs, guest))
        _serving.add(serving)
        serving.add_done_callback(_serving.discard)
        try:
            return await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise

    async def _serve(self, connected: socket.socket, guest: Guest) -> None:
        reader, writer = await asyncio.open_connection(sock=connected)
        await rpc.serve_connection(
            reader, writer, lambda request: self._answer(guest, request), parse=messages.parse_request
        )

    async def _answer(self, guest: Guest, request: messages.HostToGuest) -> Answer:
        guest.requests.append(request.tag)
        if request.tag != "Ping":
            guest.last = request.tag
        if guest.answer_gate is not None:
            await guest.answer_gate.wait()
        if guest.before is not None:
            await guest.before(request)
        match request:
            case messages.Ping():
                return messages.Pong()
            case messages.QueryWorkerStatus():
                return messages.WorkerStatus(
                    status=guest.status,
                    in_flight=guest.in_flight,
                    next_alarm_at=guest.next_alarm_at,
                    last_busy_at=guest.last_busy_at,
                )
            case messages.SleepPrep():
                if guest.refuse_sleep:
                    return messages.SleepPrepAck(success=False, detail=guest.refuse_sleep)
                guest.sleeps += 1
                return messages.SleepPrepAck(success=True, next_alarm_at=guest.next_alarm_at)
            case messages.CheckpointIntegrations():
                failed = tuple(name for name in request.integrations if name in guest.failed_integrations)
                return messages.CheckpointResult(success=not failed, failed=failed)
            case messages.Wake():
                assert abs((request.host_time - datetime.now(UTC)).total_seconds()) < 3600 * 24 * 365 * 100
                guest.wakes += 1
                return messages.WakeAck(success=True, restarted=False)
            case messages.Refresh():
                guest.refreshes += 1
                return messages.RefreshAck(success=True, restarted=False)
            case messages.Stats():
                return messages.StatsResult(
                    uptime_seconds=1.0,
                    cpu_seconds=0.5,
                    memory_used_bytes=1,
                    memory_total_bytes=2,
                    disk_used_bytes=1,
                    disk_total_bytes=2,
                )
            case messages.Exec():
                return messages.ExecResult(status=0, stdout=" ".join(request.argv).encode())
            case messages.Logs(service=None):
                logs = tuple(messages.ServiceLog(service=name, text=text) for name, text in guest.logs.items())
                return messages.LogsResult(logs=logs)
            case messages.Logs(service=str(name)):
                if name not in guest.logs:
                    raise rpc.Refusal(f"there is no log of {name!r}; there are logs of {', '.join(guest.logs)}")
                return messages.LogsResult(logs=(messages.ServiceLog(service=name, text=guest.logs[name]),))
            case _:
                raise rpc.Refusal(f"{request.tag} is not simulated")

    async def listen(self, machine: Machine, port: int, handler: Handler) -> asyncio.AbstractServer:
        instance = machine.ref.instance_id
        self.listeners[instance] = handler
        return _Server(lambda: self.listeners.pop(instance, None) and None)

    async def destroy(self, machine: Machine) -> None:
        self._fault("destroy")
        assert machine.ref.instance_id not in self.processes, "destroyed while it runs"
        self.snapshots.pop(machine.ref.instance_id, None)
        self.memory.discard(machine.ref.instance_id)
        self.guests.pop(machine.ref.instance_id, None)


_serving: set[asyncio.Task[None]] = set()
