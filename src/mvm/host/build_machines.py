"""Machines of role builder: each is made for one image that Nix builds, and nothing of it stays (ADR 32).

Its root is an image of Debian's packages with nix in it, made by mvm's own builder and kept. It has a data drive for
Nix's store and what comes along, no secrets, and of the tenant for whom the image is built the address that CONTRACT 11
keeps for it, from which the internet can be reached and nobody else. One is there at a time: it is as large as all that
a small host has.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from mvm.drives import images
from mvm.host.bases import serve_nobody
from mvm.host.build_place import LEAST_LEFT, MachinePlace
from mvm.host.build_removals import BuildRemovals
from mvm.host.builder_image import BuilderImage
from mvm.host.catalog import Catalog
from mvm.host.clock import Clock
from mvm.host.guests import Guests
from mvm.host.in_loop import InLoop
from mvm.host.machines import InstanceDirectories
from mvm.host.networks import Networks
from mvm.host.reports import Reports
from mvm.host.runtimes import Choice, Runtimes
from mvm.host.slots import Slots
from mvm.image import trees
from mvm.image.base import OnProgress, Readiness
from mvm.image.nix.place import Place
from mvm.model import addresses
from mvm.model.entities import Tenant
from mvm.model.errors import InvalidInput, MvmError, Unavailable
from mvm.model.ids import InstanceId, InstanceRef, TenantId
from mvm.model.roles import Role
from mvm.network.picture import BUILDERS, builder_of
from mvm.openclaw.install import Progress
from mvm.runtime.base import HOST_PORT, Connection, Machine, Runtime
from mvm.runtime.machine_files import MachineFiles
from mvm.wire import messages

log = structlog.get_logger(__name__)

SETTING = "machine"
"""Value of the setting `nix_build` that asks for this."""
AGENT_LIMIT_SECONDS = 120.0
SERVICE_LIMIT_SECONDS = 60.0
CALL_MARGIN_SECONDS = 30.0
"""What the answer to a command may take beyond the command itself."""
MOST_SOURCES = 512 * 2**20
"""Bytes of a flake on this host that come along."""
WAIT_SECONDS = 0.2

LEAST_DATA_MIB = 1024
"""A data drive on which an image can be built."""

_WORK = "builds"
_CONTENT, _STATE, _ABOUT = "content", "state", "about.json"
_TAP = re.compile(rf"tn[0-9]{{1,4}}i{addresses.BUILDER_OCTET}", re.ASCII)
"""Names of TAPs that a machine to build in may have had; another one is not removed for what a file says."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a machine to build in is."""

    vcpus: int
    mem_mib: int = 4096
    """An evaluation of nixpkgs takes up to two GiB, and compilers what they want."""
    data_mib: int = 32 * 1024
    """At most, and half of what this host's disk can spare; what is not written takes nothing."""
    free_mib: int = 4096
    """What this host's disk must have free before a build begins: a closure, an image, and the image once more."""


def usual_size() -> Size:
    """As many processors as the host has, four at most."""
    return Size(vcpus=min(4, os.cpu_count() or 1))


class BuildMachines:
    """Makes them (`mvm.image.nix.place.Machines`). Methods block, but those that are coroutines."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        runtimes: Runtimes,
        directories: InstanceDirectories,
        guests: Guests,
        reports: Reports,
        slots: Slots,
        networks: Networks,
        clock: Clock,
        image: BuilderImage,
        size: Size | None = None,
        settings: str = "",
    ) -> None:
        """`image` is that of the machines; `settings` are for the nix in it, as its variable NIX_CONFIG has them."""
        self._catalog = catalog
        self._runtimes = runtimes
        self._directories = directories
        self._guests = guests
        self._removals = BuildRemovals(reports)
        self._slots = slots
        self._networks = networks
        self._clock = clock
        self._image = image
        self._size = size or usual_size()
        self._environment = {"NIX_CONFIG": settings} if settings else {}
        self._loop = InLoop()
        self._one = threading.Lock()
        self._doors: dict[InstanceId, asyncio.AbstractServer] = {}
        """Where what a machine reports is taken."""

    def probe(self) -> Readiness:
        try:
            choice = self._loop.run(self._runtime())
        except MvmError as error:
            return _not_here(error.message, error.hint)
        if not (readiness := self._image.probe()).usable:
            return _not_here(f"no image for one can be made: {readiness.reason}", readiness.remedy)
        return Readiness(usable=True, reason=f"it is built in a machine ({choice.runtime.name})")

    def stale(self) -> list[Path]:
        return self._image.stale()

    @contextmanager
    def machine(self, tenant: str, sources: Mapping[Path, str], on_progress: OnProgress) -> Iterator[Place]:
        for_whom = self._catalog.tenant(TenantId(tenant))
        with self._only_one(on_progress):
            runtime = self._loop.run(self._runtime()).runtime
            self._loop.run(self._removals.remove_left())
            image = self._image.make(on_progress)
            machine = self._loop.run(self._plan(for_whom, runtime, image))
            on_progress(Progress(text="making a machine to build in"))
            try:
                self._fill(machine, sources, runtime.name)
                step = Progress(text="booting a machine to build in")
                guest = _Guest(runtime, machine, self._guests)
                place = MachinePlace(
                    guest,
                    self._loop,
                    sources=sources,
                    environment=self._environment,
                    slowness=runtime.capabilities.slowness,
                )
                try:
                    self._loop.run(self._boot(machine, runtime, place), lambda: on_progress(step))
                except Unavailable as error:
                    raise Unavailable(
                        f"the machine to build in did not come up: {error.message}",
                        hint="`mvm doctor` says whether machines run here",
                    ) from error
                yield place
            finally:
                self._loop.run(self._remove(machine, runtime))

    async def clear_unfinished(self, runtime: Runtime) -> None:
        """After a start of the agent: end and remove the machine of a build that its predecessor was at."""
        if not runtime.capabilities.images:
            return
        for left in sorted((self._directories.state_dir / _WORK).glob("i-*")):
            about = _about(left)
            if about.get("runtime", runtime.name) != runtime.name:
                continue  # another one knows its process
            log.info("removing a machine that was built in", instance=left.name)
            await self._remove(self._somebodys(InstanceId(left.name), about.get("tap", "")), runtime)
            tenant = TenantId(about.get("tenant", ""))
            if runtime.capabilities.networks and tenant in self._catalog.tenants:
                # What was put in place for it goes as it would have gone.
                try:
                    await self._networks.admit_builder(tenant)
                except MvmError as error:
                    log.warning("the network of a build is not known", tenant=tenant, reason=error.message)
                finally:
                    await self._networks.dismiss_builder(tenant)

    @contextmanager
    def _only_one(self, on_progress: OnProgress) -> Iterator[None]:
        while not self._one.acquire(timeout=WAIT_SECONDS):
            on_progress(Progress(text="waiting for another image that is built in a machine"))
        try:
            yield
        finally:
            self._one.release()

    async def _runtime(self) -> Choice:
        """What runs machines here. Raises `MvmError` where nothing does."""
        choice = await self._runtimes.choose()
        if not choice.runtime.capabilities.images:
            raise Unavailable(
                f"instances run as runtime '{choice.runtime.name}' here, which has no machines ({choice.reason})",
                hint='MVM_RUNTIME=qemu has them on every host, or let nix build on the host: nix_build = "host"',
            )
        return choice

    async def _plan(self, tenant: Tenant, runtime: Runtime, image: Path) -> Machine:
        """What its runtime is given. Nothing is there of it yet."""
        data_mib = self._room_for_data()
        place = builder_of(tenant)
        subnet = addresses.parse_subnet(tenant.network.ipv4_subnet)
        networked = runtime.capabilities.networks
        instance = self._clock.new_instance_id()
        state, run = self._directories.state_dir / _WORK / instance / _STATE, self._directories.run_dir / "b" / instance
        net_id, octet = tenant.network.tenant_net_id, addresses.BUILDER_OCTET
        return Machine(
            ref=InstanceRef(tenant.tenant_id, BUILDERS, instance),
            role=Role.BUILDER,
            vcpus=self._size.vcpus,
            mem_mib=self._size.mem_mib,
            guest_ip=await runtime.assign_address(str(place.ip)),
            gateway_ip=str(addresses.gateway_address(subnet)),
            prefix=subnet.prefixlen,
            mac=place.mac,
            tap=place.tap if networked else "",
            bridge=addresses.bridge_name(net_id) if networked else "",
            state_dir=state,
            run_dir=run,
            data=state / "data",
            secrets=state / "secrets",
            config=run / "config",
            image=image,
            data_mib=data_mib,
            uid=addresses.instance_uid(net_id, octet) if self._directories.own_uids else None,
        )

    def _room_for_data(self) -> int:
        """MiB of a data drive, which whoever builds may fill: as much again is left for the copy of an image."""
        size, directory = self._size, self._directories.state_dir
        free, kept = shutil.disk_usage(directory).free // 2**20, LEAST_LEFT // 2**20
        needed = max(size.free_mib, kept + 2 * min(size.data_mib, LEAST_DATA_MIB))
        if free < needed:
            raise Unavailable(
                f"{directory} has {free} MiB free and a build in a machine needs {needed}",
                hint="free some space (`mvm pool gc` removes unused images), or let nix build elsewhere",
            )
        return min(size.data_mib, (free - kept) // 2)

    def _fill(self, machine: Machine, sources: Mapping[Path, str], runtime: str) -> None:
        """Make its directories, and its data drive with what it is told and what comes along."""
        for directory in (machine.state_dir, machine.run_dir):
            directory.mkdir(mode=0o700, parents=True)
        about = {"runtime": runtime, "tenant": machine.ref.tenant_id, "tap": machine.tap}
        (machine.state_dir.parent / _ABOUT).write_text(json.dumps(about))
        content = machine.state_dir.parent / _CONTENT
        room = content / "build"
        (room / "sources").mkdir(parents=True)
        for path, name in sources.items():
            _copy(path, room / "sources" / name)
        dns = self._networks.resolvers_behind(machine.gateway_ip)
        (room / "config.json").write_text(json.dumps(configuration(machine, dns)))
        images.make_ext4(MachineFiles.of(machine).data, mib=machine.data_mib, content=content)
        shutil.rmtree(content)

    async def _boot(self, machine: Machine, runtime: Runtime, place: MachinePlace) -> None:
        slowness = runtime.capabilities.slowness
        async with self._slots.boot(slowness=slowness):
            if machine.bridge:
                await self._networks.admit_builder(machine.ref.tenant_id)
            self._doors[machine.ref.instance_id] = await runtime.listen(machine, HOST_PORT, serve_nobody)
            process = await runtime.start(machine)
            await self._guests.wait_for_agent(runtime, machine, process, limit=AGENT_LIMIT_SECONDS * slowness)
            await self._guests.wait_for_service(runtime, machine, process, limit=SERVICE_LIMIT_SECONDS * slowness)
        await place.settle()

    async def _remove(self, machine: Machine, runtime: Runtime) -> None:
        if (door := self._doors.pop(machine.ref.instance_id, None)) is not None:
            door.close()
        try:
            await self._removals.remove(machine, runtime)
        finally:
            if machine.bridge:
                await self._networks.dismiss_builder(machine.ref.tenant_id)

    def _somebodys(self, instance: InstanceId, tap: str) -> Machine:
        """What is enough of a machine to find and remove it."""
        state, run = self._directories.state_dir / _WORK / instance / _STATE, self._directories.run_dir / "b" / instance
        return Machine(
            ref=InstanceRef(TenantId(BUILDERS), BUILDERS, instance),
            role=Role.BUILDER,
            vcpus=1,
            mem_mib=64,
            guest_ip="192.0.2.2",
            gateway_ip="192.0.2.1",
            prefix=24,
            mac="02:fc:00:00:00:02",
            tap=tap if _TAP.fullmatch(tap) else "",
            state_dir=state,
            run_dir=run,
            data=state / "data",
            secrets=state / "secrets",
            config=run / "config",
        )


@dataclass(frozen=True)
class _Guest:
    """The guest of a machine (`mvm.host.build_place.BuildGuest`)."""

    runtime: Runtime
    machine: Machine
    guests: Guests

    async def execute(self, argv: Sequence[str], *, seconds: int) -> messages.ExecResult:
        return await self.guests.call(
            self.runtime,
            self.machine,
            messages.Exec(argv=tuple(argv), timeout_secs=seconds),
            timeout=seconds + CALL_MARGIN_SECONDS * self.runtime.capabilities.slowness,
        )

    async def connect(self, port: int) -> Connection:
        return await self.runtime.connect(self.machine, port)


def configuration(machine: Machine, dns: Sequence[str]) -> dict[str, object]:
    """`config.json` of a builder; it may be told what to do, for that is what it is for."""
    return {
        "instance_id": machine.ref.instance_id,
        "pool_id": machine.ref.pool_id,
        "tenant_id": machine.ref.tenant_id,
        "role": machine.role.value,
        "guest_ip": machine.guest_ip,
        "gateway_ip": machine.gateway_ip,
        "prefix": machine.prefix,
        "mac": machine.mac,
        "dns": list(dns),
        "vcpus": machine.vcpus,
        "mem_mib": machine.mem_mib,
        "allow_exec": True,
    }


def _about(directory: Path) -> dict[str, str]:
    """Whose machine it was that has left a directory; nothing where it did not get so far."""
    try:
        return {str(name): str(value) for name, value in json.loads((directory / _ABOUT).read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _not_here(reason: str, remedy: str | None) -> Readiness:
    # Whoever set that flakes are built in machines does not want them built in another way.
    return Readiness(usable=False, reason=f"nix_build is '{SETTING}', and {reason}", remedy=remedy, replaceable=False)


def _copy(path: Path, target: Path) -> None:
    """Copy a file, or a directory with all that is in it. Raises `InvalidInput` when that is too much."""
    inside = (path, *path.rglob("*")) if path.is_dir() else (path,)
    size = sum(each.lstat().st_size for each in inside)
    if size > MOST_SOURCES:
        raise InvalidInput(
            f"'{path}' has {size // 2**20} MiB and at most {MOST_SOURCES // 2**20} come along to a machine",
            hint="name the flake's own directory, without what was built in it",
        )
    if path.is_dir():
        trees.copy(path, target)
    else:
        trees.copy_file(path, target)
