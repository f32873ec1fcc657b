"""The QEMU runtime: each instance a virtual machine of its own, on any host that has QEMU.

With KVM (or HVF) it is for every day; without, every instruction is emulated: the same behaviour, many times slower.
A machine is given open files and nothing else: sockets for monitor, channel and console, images, its memory, its
network device. Its memory is a file in the state directory, so sleeping writes only the state of the devices. The QEMU
outlives the agent, and the next agent finds it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from mvm.drives import images
from mvm.guest import processes
from mvm.guest.processes import Identity
from mvm.model.addresses import FIRST_UID, loopback_address, networked_address
from mvm.model.entities import ProcessIdentity
from mvm.model.errors import MvmError, SnapshotRejected, Unavailable
from mvm.model.ids import InstanceId
from mvm.runtime import bases, saved, sparse, spawning, vsock_link
from mvm.runtime import makeup as parts
from mvm.runtime.base import (
    Capabilities,
    ChannelKind,
    Connection,
    GuestLayout,
    Handler,
    Limited,
    Machine,
    Probe,
    Snapshot,
)
from mvm.runtime.qemu import accelerator, launching, makeup, snapshots
from mvm.runtime.qemu import bases as own_bases
from mvm.runtime.qemu.accelerator import Found
from mvm.runtime.qemu.attachment import Attachment
from mvm.runtime.qemu.command import Hardware, Network
from mvm.runtime.qemu.files import Files
from mvm.runtime.qemu.launching import Qemu
from mvm.runtime.qemu.monitor import Monitor, MonitorClosed, open_monitor
from mvm.runtime.qemu.snapshots import SNAPSHOTS
from mvm.runtime.virtual_machines import VirtualMachines
from mvm.runtime.vsock_link import VsockHost

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
"""How long a connection to a guest port may wait for the guest: one that boots or wakes answers as soon as it can."""

SLOWNESS_OF_EMULATION = 4.0
"""For limits: single programs take about ten times as long, a start of OpenClaw was seen to take three minutes."""

USER_NETWORK_HOST = "10.0.2.2"
"""Where a guest finds the host's loopback in the network that its QEMU makes up."""

OpenTap = Callable[[Machine], int | None]


def no_network(machine: Machine) -> int | None:
    """The device's other end is not connected to anything."""
    return None


class QemuRuntime(VirtualMachines[Files]):
    """Implements `mvm.runtime.base.Runtime` with QEMU's machines."""

    name = "qemu"
    snapshots = SNAPSHOTS

    def __init__(
        self,
        *,
        run_dir: Path | None = None,
        open_tap: OpenTap = no_network,
        user_network: bool = False,
        channel: ChannelKind = ChannelKind.VIRTIO_SERIAL,
    ) -> None:
        """`run_dir` is where it keeps what it found out about this host; `open_tap` opens a machine's network device
        (an open file that QEMU may read and write; closed by this runtime). With `user_network`, for hosts that let
        nobody make one, machines get a network that their own QEMU makes up, and reach each other by the relay.
        `channel` is what carries the control channel: a virtio serial port, or vsock where the host has vhost-vsock."""
        self._run_dir = run_dir
        self._open_tap = no_network if user_network else open_tap
        self._user_network = user_network
        self._found: Found | None = None
        self._finding = asyncio.Lock()
        self._attachments: dict[InstanceId, Attachment] = {}
        self._channel = channel
        self._vsock = VsockHost() if channel is ChannelKind.VSOCK else None

    @property
    def capabilities(self) -> Capabilities:
        emulated = self._found is not None and not self._found.accelerator.is_hardware
        return Capabilities(
            # With a user network it is QEMU that connects outwards, and reaches the host's own services.
            isolated=not self._user_network,
            memory_snapshot=True,
            clone=True,
            hot_drive_change=True,
            channel=self._channel,
            images=True,
            networks=not self._user_network,
            relayed=self._user_network,
            limits=frozenset({Limited.DISK}),
            slowness=SLOWNESS_OF_EMULATION if emulated else 1.0,
        )

    # What there is

    async def probe(self) -> Probe:
        """Whether virtual machines run here, and with what."""
        if self._vsock is not None and not vsock_link.usable():
            return Probe(
                usable=False,
                reason=f"the channel shall be vsock, and {vsock_link.DEVICE} is not there or not ours to use",
                remedy="`modprobe vhost_vsock`, or leave qemu_channel out: a virtio serial port works everywhere",
            )
        try:
            processes.require_linux()
            found = await self._host()
        except (MvmError, OSError) as error:
            return Probe(usable=False, reason=str(error), remedy=getattr(error, "hint", None))
        if missing := images.missing_programs():
            return Probe(
                usable=False,
                reason=f"{', '.join(missing)} not installed",
                remedy=f"install {', '.join(sorted(set(missing.values())))} (Debian's names)",
            )
        if found.accelerator.is_hardware:
            return Probe(usable=True, reason=f"QEMU {found.version} with {found.accelerator}")
        return Probe(
            usable=True,
            reason=f"QEMU {found.version} without hardware virtualisation: guests are emulated, about 10 times slower",
            remedy=f"{found.reason}; on a host with KVM it runs at full speed",
            unasked=False,
        )

    async def assign_address(self, guest_ip: str) -> str:
        """The address itself, or the loopback one that stands for it where machines have no network in common."""
        return loopback_address(guest_ip) if self._user_network else networked_address(guest_ip)

    async def layout(self, machine: Machine) -> GuestLayout:
        """Every guest has a machine of its own: the same paths and ports everywhere."""
        host = USER_NETWORK_HOST if self._user_network else machine.gateway_ip
        return parts.guest_layout(machine, host_address=host, relayed=self._user_network)

    # From nothing to running

    async def start(self, machine: Machine) -> ProcessIdentity:
        """Boot. Returns when QEMU runs and answers; on failure nothing runs."""
        files = Files.of(machine)
        await self._clear(machine, files)
        made_of = await self._made_of(machine)
        await asyncio.to_thread(self._prepare_boot, machine, files)
        async with AsyncExitStack() as stack:
            identity, _ = await self._launch(machine, files, made_of, stack, incoming=False)
        return spawning.recorded(identity)

    def _prepare_boot(self, machine: Machine, files: Files) -> None:
        """A data drive of the size asked for, and no memory of earlier times."""
        saved.discard(files)
        parts.prepare_data(files.data, mib=machine.data_mib)
        os.close(files.make_ram(mib=machine.mem_mib, uid=machine.uid))

    async def restore(self, machine: Machine, snapshot: Snapshot | None) -> ProcessIdentity:
        """Bring a sleeper back. Once a QEMU may have touched its memory the snapshot is used up, whatever happens."""
        if snapshot is None:
            return await self.start(machine)
        files = Files.of(machine)
        await self._clear(machine, files)
        made_of = await self._made_of(machine)
        _, wanted = made_of
        makeup.require_what_it_ran_on(snapshot, await self._host(), now=time.time())
        await asyncio.to_thread(SNAPSHOTS.make_ready, files, snapshot, wanted, uid=machine.uid)
        saved.consume(files)
        lasting = asyncio.create_task(asyncio.to_thread(sparse.sync_directory, files.memory))
        async with AsyncExitStack() as stack:
            try:
                identity, monitor = await self._launch(machine, files, made_of, stack, incoming=True)
            except BaseException:
                saved.give_back(files)
                await asyncio.gather(lasting, return_exceptions=True)
                raise
            try:
                await lasting
                saved.begin(files)
                await self._load(monitor, files)
            except (MvmError, OSError) as error:
                await self._end(machine, files)
                raise SnapshotRejected(f"QEMU does not take the snapshot: {self._why(files, error)}") from error
            except BaseException:
                await asyncio.shield(self._end(machine, files))
                raise
        return spawning.recorded(identity)

    async def _load(self, monitor: Monitor, files: Files) -> None:
        descriptor = os.open(files.memory / saved.DEVICES, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await monitor.load_devices(descriptor)
            await monitor.execute("cont")
        finally:
            os.close(descriptor)
        saved.remove_used(files)

    async def _launch(
        self,
        machine: Machine,
        files: Files,
        made_of: tuple[Hardware, dict[str, str]],
        stack: AsyncExitStack,
        *,
        incoming: bool,
    ) -> tuple[Identity, Monitor]:
        """Start QEMU, attach to it and wait for its greeting. On failure nothing is left of it.

        Its monitor is open until `stack` ends.
        """
        hardware, made_by = made_of
        qemu = Qemu(binary=(await self._host()).binary, sandbox=platform.system() == "Linux")
        ram = os.open(files.ram, os.O_RDWR | os.O_CLOEXEC)
        try:
            tap = self._open_tap(machine)
        except BaseException:
            os.close(ram)
            raise
        try:
            with launching.opened(hardware, files, parts.drive_images(machine, files), ram, tap) as descriptors:
                parts.remember(files.memory, made_by)  # first: no machine of unknown make is ever left
                identity = launching.launch(qemu, machine, files, hardware, descriptors, incoming=incoming)
            self._attachment(machine).begin()
            bounding = asyncio.create_task(asyncio.to_thread(launching.bound, machine, files, identity))
            try:
                monitor = await stack.enter_async_context(self._monitor(machine))
            finally:
                await asyncio.shield(bounding)
        except MonitorClosed as error:
            await asyncio.shield(self._end(machine, files))
            raise Unavailable(
                f"the QEMU of {machine.ref} ended at once: {spawning.last_words(files.output)}",
                hint=f"see '{files.output}'",
            ) from error
        except BaseException:
            await asyncio.shield(self._end(machine, files))
            raise
        return identity, monitor

    # Warm, asleep, copied

    async def pause(self, machine: Machine, process: ProcessIdentity) -> None:
        async with self._monitor(machine) as monitor:
            await monitor.execute("stop")

    async def resume(self, machine: Machine, process: ProcessIdentity) -> None:
        """Let it run again; a snapshot of it, if there is one, is void from now."""
        files = Files.of(machine)
        async with self._monitor(machine) as monitor:
            if await monitor.status() != "running":
                await asyncio.to_thread(saved.discard_name, files)
                await monitor.execute("cont")

    async def snapshot(self, machine: Machine, process: ProcessIdentity) -> Snapshot | None:
        """Write the devices beside the memory, flush both, and verify."""
        files = Files.of(machine)
        made_by = parts.remembered(files.memory, who=str(machine.ref))
        try:
            async with self._monitor(machine) as monitor:
                await monitor.execute("stop")
                await snapshots.write(files, monitor)
            return await asyncio.to_thread(SNAPSHOTS.finish, files, made_by)
        except OSError as error:
            raise MvmError(
                f"the snapshot of {machine.ref} cannot be written: {error.strerror or error}",
                hint="is the file system full?",
            ) from error

    async def discard_snapshot(self, machine: Machine) -> None:
        files = Files.of(machine)
        if launching.find(files) is None:
            await asyncio.to_thread(saved.discard, files)
        else:
            await asyncio.to_thread(saved.discard_name, files)

    async def base_key(self, machine: Machine) -> str | None:
        _, wanted = await self._made_of(machine)
        return bases.key(wanted, role=machine.role.value, data_mib=machine.data_mib)

    async def keep_as_base(self, machine: Machine, process: ProcessIdentity, directory: Path) -> None:
        files = Files.of(machine)
        made_by = parts.remembered(files.memory, who=str(machine.ref))
        async with self._monitor(machine) as monitor:
            await monitor.execute("stop")
            await own_bases.keep(files, monitor, directory, made_by)

    async def clone(self, machine: Machine, directory: Path) -> Snapshot:
        files = Files.of(machine)
        _, wanted = await self._made_of(machine)
        return await asyncio.to_thread(bases.copy, directory, files, SNAPSHOTS, uid=machine.uid, wanted=wanted)

    # To an end

    async def _lets_shut_down(self, machine: Machine, files: Files) -> bool:
        """Let a paused guest run for its end. False for one that is asleep: running on would spoil its snapshot."""
        async with self._monitor(machine) as monitor:
            status = await monitor.status()
            if status == "paused" and saved.load(files.memory) is None:
                await monitor.execute("cont")
                return True
            return status == "running"

    async def retract(self, machine: Machine, process: ProcessIdentity) -> bool:
        """A machine that was to go on from its memory and was not told to yet: its snapshot is not used."""
        files = Files.of(machine)
        try:
            async with self._monitor(machine) as monitor:
                if not await monitor.waits_for_devices():
                    return False
        except MvmError as error:  # whoever waits for its guest will find out
            log.debug("%s: %s", machine.ref, error.message)
            return False
        await self._end(machine, files)
        saved.give_back(files)
        return True

    async def destroy(self, machine: Machine) -> None:
        files = Files.of(machine)
        await self._end(machine, files)
        attachment = self._attachments.pop(machine.ref.instance_id, None)
        if attachment is not None:
            await attachment.close()
        await asyncio.to_thread(files.remove)

    async def _end(self, machine: Machine, files: Files) -> None:
        await launching.end_all(files, who=str(machine.ref))
        attachment = self._attachments.get(machine.ref.instance_id)
        if attachment is not None:
            await attachment.process_ended()

    # Channel

    async def connect(self, machine: Machine, port: int) -> Connection:
        return await self._attachment(machine).connect(port, seconds=CONNECT_SECONDS)

    async def listen(self, machine: Machine, port: int, handler: Handler) -> asyncio.AbstractServer:
        return await self._attachment(machine).listen(port, handler)

    async def close(self) -> None:
        """Let go of all machines; they go on running, and another agent can take them over."""
        attachments, self._attachments = list(self._attachments.values()), {}
        for attachment in attachments:
            await attachment.close()
        if self._vsock is not None:
            self._vsock.close()

    def _attachment(self, machine: Machine) -> Attachment:
        found = self._attachments.get(machine.ref.instance_id)
        if found is None:
            who, instance = str(machine.ref), machine.ref.instance_id
            link = None if self._vsock is None else self._vsock.link(vsock_link.cid_of(instance), name=who)
            found = Attachment(Files.of(machine), who=who, link=link)
            self._attachments[machine.ref.instance_id] = found
        return found

    # Facts

    def _files(self, machine: Machine) -> Files:
        return Files.of(machine)

    def _running(self, files: Files) -> Identity | None:
        return launching.find(files)

    async def _host(self) -> Found:
        async with self._finding:
            if self._found is None or not self._found.holds(time.time()):
                # As root, machines run as users of their own: the trial has no more rights than they.
                self._found = await accelerator.find(self._run_dir, uid=FIRST_UID if os.geteuid() == 0 else None)
            return self._found

    async def _made_of(self, machine: Machine) -> tuple[Hardware, dict[str, str]]:
        """What the machine is made of, and what a snapshot of it fits to."""
        found = await self._host()
        user_network = Network.USER_CLOSED if machine.closed else Network.USER
        network = user_network if self._user_network else Network.HOST
        hardware = await asyncio.to_thread(makeup.hardware, machine, found, network, self._channel)
        return hardware, makeup.made_by(machine, Files.of(machine), hardware, found)

    async def _clear(self, machine: Machine, files: Files) -> None:
        """Refuse while it runs; otherwise nothing is left of a process that crashed."""
        self._refuse_running(machine, files)
        if files.record.exists() or files.monitor.exists() or launching.drive_in_use(files):
            await self._end(machine, files)

    def _why(self, files: Files, error: MvmError | OSError) -> str:
        return spawning.last_words(files.output) if isinstance(error, MonitorClosed) else str(error)

    @asynccontextmanager
    async def _monitor(self, machine: Machine) -> AsyncIterator[Monitor]:
        """One at a time: QEMU serves one connection, and one more may wait."""
        async with (
            self._attachment(machine).turn_at_monitor,
            open_monitor(Files.of(machine).monitor, who=str(machine.ref)) as monitor,
        ):
            yield monitor
