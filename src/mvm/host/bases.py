"""Bases: warm machines of nobody's, of which new instances are copies (DESIGN, "Sleep and wake").

A base is made once for everything that a copy must have in common with it (`Runtime.base_key`): a placeholder machine
is booted with placeholder secrets and no network, its OpenClaw takes one turn against a canned provider inside the
guest, is drained and paused, and its memory, devices and data drive are kept. Nothing of a person, a tenant or a key is
in it. A new instance starts from copies of these files and learns who it is from its own drives, by `Wake`.

A base that cannot be made is no error for whoever asked: the instance boots cold, and the reason is an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import structlog

from mvm.drives.content import CONFIG_FILE_MODE, SECRET_FILE_MODE, write_tree
from mvm.host import progress
from mvm.host.chronicle import Chronicle
from mvm.host.clock import Clock
from mvm.host.configuration import Picture, render_drives
from mvm.host.guests import Guests
from mvm.host.machines import InstanceDirectories, base_id
from mvm.host.records import describe
from mvm.host.reports import Reports
from mvm.host.slots import Slots
from mvm.image import trees
from mvm.model.addresses import FIRST_UID
from mvm.model.entities import Instance, InstanceNetwork, OpenClawSettings, Pool, ProcessIdentity, Tenant, TenantNetwork
from mvm.model.errors import MvmError, Unavailable
from mvm.model.ids import InstanceId, InstanceRef, PoolId, TenantId, TenantNetId, UserId
from mvm.model.roles import Role
from mvm.runtime.base import HOST_PORT, NO_LIMITS, Machine, Runtime, Snapshot
from mvm.security.tokens import random_token
from mvm.wire import messages, rpc
from mvm.wire.frames import FrameError
from mvm.wire.tagged import Answer

log = structlog.get_logger(__name__)

NOBODY = TenantId("base")
NOBODYS_POOL = PoolId("base")
PLACEHOLDER = "placeholder-of-a-base"
CANNED_PROVIDER = "http://127.0.0.1:18799"
"""Where `guest.pyz warm-up` answers as a model provider would."""
WARM_UP = ("/usr/bin/python3", "-I", "-S", "/opt/mvm/guest.pyz", "warm-up")
WARM_UP_SECONDS = 900
AGENT_LIMIT_SECONDS = 120.0
SERVICE_LIMIT_SECONDS = 300.0
DRAIN_SECONDS = 60
RETRY_SECONDS = 1800.0
"""How long after a failure nobody waits for another attempt; whoever starts meanwhile boots."""
NO_NETWORK = InstanceNetwork(guest_ip="192.0.2.3", gateway_ip="192.0.2.1", mac="02:fc:00:00:00:03")
"""Addresses from the range that is never routed (RFC 5737); there is nobody at the other end either."""
STALE_SECONDS = 30 * 24 * 3600.0
"""A base that nobody asked for in this time is of an earlier kernel, runtime or size; making one costs minutes."""
_WORK = ".work"
_ABOUT = "about.json"
_RUNTIME = "runtime"
"""Who runs the machine that a base is being made with, and so knows its process."""


class Bases:
    """Makes bases and gives instances copies of them."""

    def __init__(
        self,
        *,
        directories: InstanceDirectories,
        guests: Guests,
        reports: Reports,
        chronicle: Chronicle,
        slots: Slots,
        clock: Clock,
        environment: dict[str, str],
    ) -> None:
        self._directories = directories
        self._guests = guests
        self._reports = reports
        self._chronicle = chronicle
        self._slots = slots
        self._clock = clock
        self._environment = environment
        self._locks: dict[str, asyncio.Lock] = {}
        self._failed: dict[str, float] = {}
        """Bases that could not be made, with the time by the monotonic clock: not tried again for a while."""

    @property
    def directory(self) -> Path:
        """Where the bases are, each under its key."""
        return self._directories.state_dir / "bases"

    async def clone(self, instance: Instance, pool: Pool, machine: Machine, runtime: Runtime) -> Snapshot | None:
        """Make an instance that never ran a copy of its base, which is made first when there is none yet.

        None when it has to boot: its role or runtime knows no bases, or there is a problem, which is then an event.
        """
        if instance.role is not Role.CAPABILITY_OPENCLAW or not runtime.capabilities.clone:
            return None
        key = await runtime.base_key(machine)
        if key is None:
            return None
        base = self.directory / key
        async with self._locks.setdefault(key, asyncio.Lock()):
            if not base.is_dir() and self._may_try(key):
                try:
                    await self._make(key, base, pool, machine, runtime)
                except (MvmError, OSError) as error:
                    self._failed[key] = self._clock.monotonic()
                    self._chronicle.event(instance, "BaseFailed", actor="bases", detail=describe(error))
        if not base.is_dir():
            return None
        try:
            snapshot = await runtime.clone(machine, base)
            now = self._clock.now().timestamp()
            os.utime(base, (now, now))  # needed now
            return snapshot
        except (MvmError, OSError) as error:
            self._chronicle.event(instance, "CloneFailed", actor="bases", detail=describe(error))
            return None

    def _may_try(self, key: str) -> bool:
        failed = self._failed.get(key)
        return failed is None or self._clock.monotonic() - failed >= RETRY_SECONDS

    async def clear_unfinished(self, runtime: Runtime) -> None:
        """After a start of the agent: end and remove what is left of bases that were being made, or removed."""
        if not runtime.capabilities.clone:
            return
        for left in sorted((self.directory / _WORK).glob("*")):
            try:
                if (left / _RUNTIME).exists() and (left / _RUNTIME).read_text() != runtime.name:
                    continue
                log.info("removing an unfinished base", key=left.name)
                await self._remove(self._nobody(left.name, _bare(left / "state")), runtime)
            except (MvmError, OSError, ValueError) as error:  # the others are removed all the same
                log.error("an unfinished base could not be removed", key=left.name, reason=str(error))
        await asyncio.to_thread(trees.clear_removed, self.directory)

    def unused(self, images: Collection[str]) -> list[Path]:
        """Bases of images that are none of `images`, and those that nobody asked for in a long while."""
        about = ((path.parent, json.loads(path.read_text())) for path in self.directory.glob(f"*/{_ABOUT}"))
        oldest = self._clock.now().timestamp() - STALE_SECONDS
        return sorted(
            base
            for base, told in about
            if (told["image"] is not None and told["image"] not in images) or base.stat().st_mtime < oldest
        )

    async def _make(self, key: str, base: Path, pool: Pool, like: Machine, runtime: Runtime) -> None:
        tell = progress.current()
        machine = self._nobody(key, like)
        await self._remove(machine, runtime)
        work = self.directory / _WORK / key
        finished = work / "base"
        await asyncio.to_thread(_sign, work, runtime.name)
        try:
            tell("making the pool's base: waiting for another machine that boots")
            async with self._slots.boot(slowness=runtime.capabilities.slowness):
                tell("making the pool's base: booting a machine")
                process = await self._boot(machine, pool, runtime)
                tell("making the pool's base: its OpenClaw takes a turn")
                await self._warm_up(machine, runtime)
            tell("making the pool's base: saving its memory")
            ack = await self._guests.sleep_prep(runtime, machine, drain_seconds=DRAIN_SECONDS)
            if not ack.success:
                raise Unavailable(f"it could not be drained: {ack.detail or 'no reason given'}")
            await runtime.pause(machine, process)
            finished.mkdir(mode=0o700, parents=True)
            await runtime.keep_as_base(machine, process, finished)
            about = {"image": machine.image.name if machine.image else None}
            await asyncio.to_thread(_write_lasting, finished / _ABOUT, json.dumps(about))
            await runtime.stop(machine, process, grace_seconds=0)
            finished.replace(base)
        finally:
            await asyncio.shield(self._remove(machine, runtime))
        log.info("base made", key=key, image=machine.image.name if machine.image else None)

    async def _boot(self, machine: Machine, pool: Pool, runtime: Runtime) -> ProcessIdentity:
        slowness = runtime.capabilities.slowness
        await asyncio.to_thread(self._directories.prepare, machine)
        await self._write_drives(machine, pool, runtime)
        await runtime.listen(machine, HOST_PORT, serve_nobody)
        process = await runtime.start(machine)
        await self._guests.wait_for_agent(runtime, machine, process, limit=AGENT_LIMIT_SECONDS * slowness)
        await self._guests.wait_for_service(runtime, machine, process, limit=SERVICE_LIMIT_SECONDS * slowness)
        return process

    async def _write_drives(self, machine: Machine, pool: Pool, runtime: Runtime) -> None:
        contents = render_drives(
            Picture(
                tenant=Tenant(
                    tenant_id=NOBODY,
                    network=TenantNetwork(tenant_net_id=TenantNetId(1), ipv4_subnet="192.0.2.0/24"),
                    openclaw=OpenClawSettings(provider_base_url=CANNED_PROVIDER),
                    created_at=self._clock.now(),
                ),
                # What another pool of the same size would have as well, and the one right that the warm-up needs.
                pool=pool.model_copy(
                    update={
                        "tenant_id": NOBODY,
                        "pool_id": NOBODYS_POOL,
                        "allow_exec": True,
                        "integrations": (),
                        "routing_table": None,
                    }
                ),
                instance=Instance(
                    tenant_id=NOBODY,
                    pool_id=NOBODYS_POOL,
                    instance_id=machine.ref.instance_id,
                    role=machine.role,
                    network=NO_NETWORK,
                    user=UserId(NOBODY),
                    created_at=self._clock.now(),
                ),
                # Its model provider is in the guest itself.
                layout=replace(await runtime.layout(machine), host_address=None),
                gateway=None,
                secrets={
                    "anthropic/ANTHROPIC_API_KEY": PLACEHOLDER,
                    "openclaw/OPENCLAW_AUTH_TOKEN": random_token(),
                },
            )
        )

        def write() -> None:
            write_tree(machine.secrets, contents.secrets, file_mode=SECRET_FILE_MODE)
            write_tree(
                machine.config, contents.config_files(config_version=0, secrets_epoch=0), file_mode=CONFIG_FILE_MODE
            )

        await asyncio.to_thread(write)
        await runtime.publish_drives(machine)

    async def _warm_up(self, machine: Machine, runtime: Runtime) -> None:
        result = await self._guests.call(
            runtime,
            machine,
            messages.Exec(argv=WARM_UP, timeout_secs=WARM_UP_SECONDS),
            timeout=WARM_UP_SECONDS + 10.0,
        )
        if result.status:
            words = result.stderr.decode(errors="replace").strip()[-300:]
            raise Unavailable(f"its OpenClaw did not take its first turn: {words or f'status {result.status}'}")

    def _nobody(self, key: str, like: Machine) -> Machine:
        """The placeholder machine, of the same size as `like`."""
        name = base_id(key)
        run = self._directories.run_dir / "b" / name
        state = self.directory / _WORK / key / "state"
        return replace(
            like,
            ref=InstanceRef(NOBODY, NOBODYS_POOL, name),
            guest_ip=NO_NETWORK.guest_ip,
            gateway_ip=NO_NETWORK.gateway_ip,
            mac=NO_NETWORK.mac,
            tap="",
            bridge="",
            limits=NO_LIMITS,  # every copy sets its own
            uid=None if like.uid is None else FIRST_UID + 1 + int(name[2:], 16) % 0xFF,
            state_dir=state,
            run_dir=run,
            data=state / "data",
            secrets=self._directories.secrets(name),
            config=run / "config",
            environment=self._environment,
        )

    async def _remove(self, machine: Machine, runtime: Runtime) -> None:
        """Nothing is left of a placeholder machine. Idempotent."""
        if (process := await runtime.find(machine)) is not None:
            await runtime.stop(machine, process, grace_seconds=0)
        with contextlib.suppress(FileNotFoundError):
            await runtime.destroy(machine)
        self._reports.forget(machine.ref.instance_id)
        self._directories.remove_secrets(machine.ref)
        for directory in (machine.state_dir.parent, machine.run_dir):
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


async def serve_nobody(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The host port of a machine that is no instance: what it reports is taken, nothing is granted."""

    async def answer(request: messages.GuestToHost) -> Answer:
        if isinstance(request, (messages.ReportStatus, messages.ReportEvent)):
            return messages.Ok()
        raise rpc.Refusal("this machine is no instance")

    with contextlib.suppress(FrameError):
        await rpc.serve_connection(reader, writer, answer, parse=messages.parse_host_request)


def _sign(work: Path, runtime: str) -> None:
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    (work / _RUNTIME).write_text(runtime)


def _write_lasting(path: Path, text: str) -> None:
    """Write a file that is whole even after a power cut that keeps its name."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _bare(state: Path) -> Machine:
    """What is enough of a machine to find and remove it."""
    return Machine(
        ref=InstanceRef(NOBODY, NOBODYS_POOL, InstanceId("i-00000000")),
        role=Role.CAPABILITY_OPENCLAW,
        vcpus=1,
        mem_mib=64,
        guest_ip=NO_NETWORK.guest_ip,
        gateway_ip=NO_NETWORK.gateway_ip,
        prefix=NO_NETWORK.prefix,
        mac=NO_NETWORK.mac,
        tap="",
        state_dir=state,
        run_dir=state,
        data=state,
        secrets=state,
        config=state,
    )
