"""The Firecracker runtime: each instance a virtual machine of its own under KVM, jailed where the agent is root.

A machine outlives the agent, and the next agent finds it again by its room (`files`). Its vsock is its channel. Asleep
there is no process, only its memory and the state of its devices; it goes on from a private view of that memory, which
is neither copied nor read before the guest needs it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mvm.drives import images
from mvm.guest import processes
from mvm.guest.processes import Identity
from mvm.image.base import INITRD, KERNEL
from mvm.model.addresses import networked_address
from mvm.model.entities import ProcessIdentity
from mvm.model.errors import MvmError, Refused, SnapshotRejected, Unavailable
from mvm.model.ids import InstanceId
from mvm.runtime import bases, kvm, saved, sparse, spawning
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
from mvm.runtime.firecracker import api, binaries, configuration, files, launching, lineage, makeup, snapshots
from mvm.runtime.firecracker.api import MachineState
from mvm.runtime.firecracker.binaries import Binaries
from mvm.runtime.firecracker.configuration import Hardware, Step
from mvm.runtime.firecracker.files import Files
from mvm.runtime.firecracker.machinery import Machinery
from mvm.runtime.firecracker.room import Room
from mvm.runtime.firecracker.snapshots import SNAPSHOTS
from mvm.runtime.firecracker.taps import NoTaps, Taps, tap_name
from mvm.runtime.firecracker.versions import features
from mvm.runtime.virtual_machines import VirtualMachines

if TYPE_CHECKING:
    from mvm.runtime.firecracker.client import Client

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
"""How long a connection to a guest port may wait for the guest: one that boots or wakes answers as soon as it can."""

LOAD_SECONDS = 30.0
"""A load takes milliseconds; on a host whose disk is busy it is waited for, because giving up costs the memory."""

LIMITS = "limits"
"""Of a snapshot: the limits that its machine has when it is loaded. What else a snapshot may have (a copy's is of its
base's machine, an earlier version's says nothing) is taken for unknown, and the limits are set."""

WhyNoKvm = Callable[[], Awaitable[str | None]]


class FirecrackerRuntime(VirtualMachines[Files]):
    """Implements `mvm.runtime.base.Runtime` with Firecracker's machines."""

    name = "firecracker"
    snapshots = SNAPSHOTS

    def __init__(
        self,
        *,
        programs_dir: Path,
        taps: Taps | None = None,
        no_networks: str | None = None,
        jailed: bool | None = None,
        production: bool = False,
        diffs: bool = False,
        why_no_kvm: WhyNoKvm = kvm.why_not,
    ) -> None:
        """`programs_dir` is where `mvm setup firecracker` installs. `taps` makes the machines' network devices;
        `no_networks` says why that cannot be done here. Machines are jailed where the agent is root, unless `jailed`
        says otherwise; with `production` they must be. With `diffs` a sleep writes only what has changed since the last
        wake, where that is known. `why_no_kvm` tries KVM."""
        self._programs_dir = programs_dir
        self._no_networks = no_networks
        self._jailed = os.geteuid() == 0 if jailed is None else jailed
        self._production = production
        self._diffs = diffs
        self._why_no_kvm = why_no_kvm
        self._binaries: Binaries | None = None
        self._machinery = Machinery(taps=taps or NoTaps(), jailed=self._jailed)
        self._reset: set[InstanceId] = set()
        """Paused machines whose vsock was reset by a snapshot since: they can go on."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            isolated=True,
            memory_snapshot=True,
            clone=True,
            hot_drive_change=True,
            channel=ChannelKind.VSOCK,
            images=True,
            networks=True,
            limits=frozenset(Limited),
            warm=self._binaries is not None and features(self._binaries.version).bare_resume,
        )

    # What there is

    async def probe(self) -> Probe:
        """Whether virtual machines run here, jailed if they must be."""
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
        if self._no_networks is not None:
            return Probe(
                usable=False,
                reason=f"machines would have no network: {self._no_networks}",
                remedy="run the agent as root (docs/network.md)",
            )
        if (why := await self._why_no_kvm()) is not None:
            return Probe(
                usable=False,
                reason=f"KVM does not work here: {why}",
                remedy="use a host with hardware virtualisation and access to /dev/kvm",
            )
        from mvm.runtime.firecracker import client  # here, so that no wake has to wait for its libraries

        log.debug("%s is ready", client.__name__)
        if not self._jailed:
            return Probe(
                usable=True,
                reason=f"Firecracker {found.version} WITHOUT ITS JAILER",
                remedy="the agent is not root, so a guest that breaks out of its machine is this user",
            )
        old = "; this host has control groups of version 1 only" if self._machinery.groups.version == 1 else ""
        return Probe(usable=True, reason=f"Firecracker {found.version} with KVM, jailed{old}")

    async def assign_address(self, guest_ip: str) -> str:
        """The address itself."""
        return networked_address(guest_ip)

    async def layout(self, machine: Machine) -> GuestLayout:
        return parts.guest_layout(machine, host_address=machine.gateway_ip)

    # From nothing to running

    async def start(self, machine: Machine) -> ProcessIdentity:
        """Boot. Returns when the machine has started; on failure nothing runs."""
        places = Files.of(machine)
        host = await self._clear(machine, places)
        hardware = await asyncio.to_thread(makeup.hardware, machine)
        wanted = makeup.made_by(machine, places, hardware, host.version)
        await asyncio.to_thread(_prepare_boot, machine, places)
        # First: no machine of unknown make is ever left.
        await asyncio.to_thread(_remember, places, wanted, machine)
        image = parts.image_of(machine)

        def furnish(room: Room) -> None:
            room.put_image(files.KERNEL, image / KERNEL)
            room.put_image(files.INITRD, image / INITRD)
            room.put_drives(parts.drive_images(machine, places))

        async with self._machinery.started(machine, places, host, furnish) as (identity, client):
            for call, body in configuration.boot(hardware, tap=tap_name(machine)):
                await client.tell(call, body)
        return spawning.recorded(identity)

    async def restore(self, machine: Machine, snapshot: Snapshot | None) -> ProcessIdentity:
        """Bring a sleeper back. Once a Firecracker was told to load it the snapshot is used up, whatever happens."""
        if snapshot is None:
            return await self.start(machine)
        places = Files.of(machine)
        host = await self._clear(machine, places)
        hardware, wanted = await self._made_of(machine, places)
        await asyncio.to_thread(SNAPSHOTS.make_ready, places, snapshot, wanted, uid=None)
        saved.consume(places)
        lasting = asyncio.create_task(asyncio.to_thread(sparse.sync_directory, places.memory))
        loading = False
        limited = snapshot.metadata.get(LIMITS) == str(machine.limits)

        def furnish(room: Room) -> None:
            room.put_drives(parts.drive_images(machine, places))
            room.put_memory(places.ram, places.memory / saved.DEVICES)

        try:
            await asyncio.to_thread(_remember, places, wanted, machine)
            async with self._machinery.started(machine, places, host, furnish) as (identity, client):
                await lasting
                for call, body in configuration.logging():
                    await client.tell(call, body)
                loading = True
                saved.begin(places)
                await self._load(machine, client, [] if limited else configuration.limits(hardware))
        except BaseException as error:
            if not loading:
                saved.give_back(places)
                await asyncio.gather(lasting, return_exceptions=True)
            elif isinstance(error, (MvmError, OSError)):
                raise SnapshotRejected(f"Firecracker does not take the snapshot: {error}") from error
            raise
        await asyncio.to_thread(_used, places, identity if self._diffs else None)
        return spawning.recorded(identity)

    async def _load(self, machine: Machine, client: Client, limits: Sequence[Step]) -> None:
        """Load what is in the room, and only when that has been taken and its limits set, let it run."""
        body = configuration.load(tap=tap_name(machine), tracked=self._diffs)
        await client.tell(api.LOAD_SNAPSHOT, body, seconds=LOAD_SECONDS)
        for call, limit in limits:
            await client.tell(call, limit)
        await client.tell(api.PATCH_VM, api.VmState(state="Resumed"))

    # Warm, asleep, copied

    async def pause(self, machine: Machine, process: ProcessIdentity) -> None:
        async with self._machinery.api(machine) as (client, _):
            await self._pause(machine, client)

    async def _pause(self, machine: Machine, client: Client) -> None:
        if await client.state() is not MachineState.PAUSED:
            self._reset.discard(machine.ref.instance_id)
            await client.tell(api.PATCH_VM, api.VmState(state="Paused"))

    async def resume(self, machine: Machine, process: ProcessIdentity) -> None:
        """Let it run again; a snapshot of it, if there is one, is void from now."""
        async with self._machinery.api(machine) as (client, room):
            if await client.state() is not MachineState.RUNNING:
                await asyncio.to_thread(saved.discard, Files.of(machine))
                await self._go_on(machine, client, room)

    async def _go_on(self, machine: Machine, client: Client, room: Room) -> None:
        """Let a paused machine run on, with a vsock that works.

        In some versions that of a machine that was only paused does not. Writing a snapshot resets it, so one is
        written for nothing.
        """
        _, able = await client.negotiate()
        if not able.bare_resume and machine.ref.instance_id not in self._reset:
            lineage.forget(Files.of(machine))
            try:
                await snapshots.write(client, room)
            except MvmError as error:
                log.warning("%s goes on, but may not be reached: %s", machine.ref, error.message)
            finally:
                room.clear(files.FRESH_DEVICES, files.FRESH_MEMORY)
        await client.tell(api.PATCH_VM, api.VmState(state="Resumed"))
        self._reset.discard(machine.ref.instance_id)

    async def snapshot(self, machine: Machine, process: ProcessIdentity) -> Snapshot | None:
        """Write memory and devices into fresh files, flush them, and verify."""
        places = Files.of(machine)
        made_by = parts.remembered(places.memory, who=str(machine.ref))
        try:
            async with self._machinery.api(machine) as (client, room):
                await self._pause(machine, client)
                await asyncio.to_thread(saved.discard, places)
                with lineage.taken(places, spawning.identity_of(process) if self._diffs else None) as before:
                    copy = None if before is None else await asyncio.to_thread(lineage.copy, places, before)
                    await snapshots.write(client, room, upon=copy)
                    self._reset.add(machine.ref.instance_id)
                    return await asyncio.to_thread(_finish, room, places, made_by, before)
        except OSError as error:
            raise MvmError(
                f"the snapshot of {machine.ref} cannot be written: {error.strerror or error}",
                hint="is the file system full?",
            ) from error

    async def discard_snapshot(self, machine: Machine) -> None:
        await asyncio.to_thread(saved.discard, Files.of(machine))

    async def base_key(self, machine: Machine) -> str | None:
        _, wanted = await self._made_of(machine, Files.of(machine))
        return bases.key(wanted, role=machine.role.value, data_mib=machine.data_mib)

    async def keep_as_base(self, machine: Machine, process: ProcessIdentity, directory: Path) -> None:
        places = Files.of(machine)
        made_by = parts.remembered(places.memory, who=str(machine.ref))
        bases.require_empty(directory)
        try:
            async with self._machinery.api(machine) as (client, room):
                await self._pause(machine, client)
                lineage.forget(places)
                await snapshots.write(client, room)
                self._reset.add(machine.ref.instance_id)
                await asyncio.to_thread(snapshots.keep, room, places, directory, made_by)
        except BaseException:
            bases.remove_files(directory)
            raise

    async def clone(self, machine: Machine, directory: Path) -> Snapshot:
        """A copy has the base's own memory file under one more name: a machine never writes to what it goes on from."""
        places = Files.of(machine)
        _, wanted = await self._made_of(machine, places)
        return await asyncio.to_thread(bases.copy, directory, places, SNAPSHOTS, uid=None, wanted=wanted, shared=True)

    # To an end

    async def _lets_shut_down(self, machine: Machine, places: Files) -> bool:
        """Let a paused guest run for its end. False for one that is asleep: running on would spoil its snapshot."""
        async with self._machinery.api(machine) as (client, room):
            state = await client.state()
            if state is MachineState.PAUSED and saved.load(places.memory) is None:
                await self._go_on(machine, client, room)
                return True
            return state is MachineState.RUNNING

    async def retract(self, machine: Machine, process: ProcessIdentity) -> bool:
        """A machine that was not told to run yet: its snapshot is not used."""
        places = Files.of(machine)
        try:
            async with self._machinery.api(machine) as (client, _):
                state = await client.state()
        except MvmError as error:  # whoever waits for its guest will find out
            log.debug("%s: %s", machine.ref, error.message)
            return False
        loaded = state is MachineState.PAUSED and (places.memory / saved.CONSUMED).exists()
        if state is not MachineState.NOT_STARTED and not loaded:
            return False
        await self._machinery.end(machine, places)
        saved.give_back(places)
        return True

    async def destroy(self, machine: Machine) -> None:
        places = Files.of(machine)
        await self._machinery.end(machine, places)
        await self._machinery.forget(machine)
        await asyncio.to_thread(places.remove)

    # Channel

    async def connect(self, machine: Machine, port: int) -> Connection:
        return await self._machinery.channel(machine).connect(port, seconds=CONNECT_SECONDS)

    async def listen(self, machine: Machine, port: int, handler: Handler) -> asyncio.AbstractServer:
        return await self._machinery.channel(machine).listen(port, handler)

    async def close(self) -> None:
        """Let go of all machines; they go on running, and another agent can take them over."""
        await self._machinery.close()

    # Facts

    def _files(self, machine: Machine) -> Files:
        return Files.of(machine)

    def _running(self, files: Files) -> Identity | None:
        return launching.find(files)

    async def _end(self, machine: Machine, files: Files) -> None:
        await self._machinery.end(machine, files)

    async def _host(self) -> Binaries:
        """What runs machines here. Raises `Unavailable` without it, `Refused` when it may not be used."""
        if self._production and not self._jailed:
            raise Refused(
                "production mode needs Firecracker's jailer, which only root can use", hint="run the agent as root"
            )
        found = await asyncio.to_thread(binaries.find, self._programs_dir)
        if self._jailed and found.jailer is None:
            raise Unavailable(found.no_jailer, hint=binaries.SETUP)
        self._binaries = found
        return found

    async def _made_of(self, machine: Machine, places: Files) -> tuple[Hardware, dict[str, str]]:
        """What the machine is made of, and what a snapshot of it fits to."""
        host = await self._host()
        hardware = await asyncio.to_thread(makeup.hardware, machine)
        return hardware, makeup.made_by(machine, places, hardware, host.version)

    async def _clear(self, machine: Machine, places: Files) -> Binaries:
        """Refuse while it runs; otherwise nothing is left of a process that crashed."""
        host = await self._host()
        self._machinery.owner(machine)
        self._refuse_running(machine, places)
        if places.record.exists() or places.room is not None or launching.in_use(places.data):
            with launching.alone(places.data):
                await self._machinery.end(machine, places)
        return host


def _remember(places: Files, wanted: dict[str, str], machine: Machine) -> None:
    parts.remember(places.memory, {**wanted, LIMITS: str(machine.limits)})


def _prepare_boot(machine: Machine, places: Files) -> None:
    """A data drive of the size asked for, and no memory of earlier times."""
    saved.discard(places)
    lineage.forget(places)
    places.make_memory()
    parts.prepare_data(places.data, mib=machine.data_mib)


def _used(places: Files, process: Identity | None) -> None:
    """The guest runs. What it went on from is kept for its next sleep where `process` tells whose it is."""
    if process is not None:
        try:
            lineage.keep(places, process)
        except OSError as error:
            log.warning("%s: its next sleep writes everything: %s", places.instance, error)
            lineage.forget(places)
    snapshots.remove_used(places)


def _finish(room: Room, places: Files, made_by: dict[str, str], before: int | None) -> Snapshot:
    try:
        snapshots.take(room, ram=places.ram, devices=places.memory / saved.DEVICES, upon=before)
        snapshots.require_whole(places.ram, mem_mib=int(made_by["mem_mib"]))
        return SNAPSHOTS.finish(places, made_by)
    except BaseException:
        saved.discard(places)
        raise
