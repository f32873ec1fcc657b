"""The virtual machine monitor: which calls are taken now, what runs, snapshots. A load that fails ends the process."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.standins.firecracker import snapshots
from tests.standins.firecracker.configuration import Configuration
from tests.standins.firecracker.drives import Data, Drive
from tests.standins.firecracker.guest import Devices, Guest
from tests.standins.firecracker.jail import Jail
from tests.standins.firecracker.network import Wire, open_tap
from tests.standins.firecracker.rules import AFTER_START, BEFORE_START, Call, Fault, When
from tests.standins.firecracker.settings import Journal, Settings
from tests.standins.firecracker.vsock import Vsock

ELF = b"\x7fELF"
VSOCK_HANGS = ((1, 16, 1), (1, 17, 0))
"""From this version on, and from that on no more, a bare pause breaks what the host begins (#6100)."""
WATCH_SECONDS = 0.05


class Fatal(Exception):
    """The process ends, after this answer."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class Vmm(Configuration):
    """One microVM."""

    def __init__(self, settings: Settings, jail: Jail, identity: str, journal: Journal) -> None:
        super().__init__(settings, jail, identity, journal)
        self._boots = False
        self._snapshotted = False
        self._memory: tuple[int, os.stat_result] | None = None
        self._marks: dict[int, bytes] = {}
        self._written: snapshots.Pages | None = None
        """The memory as it was when it was loaded or written last, where what is written since is noted."""
        self._guest: Guest | None = None
        self._wire: Wire | None = None
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []

    # Every call

    async def call(self, call: Call, body: dict[str, Any]) -> Any:
        """Do what a call asks for; its answer, None for no content. Raises `Fault`, `Fatal`."""
        self._check_when(call)
        self.look_at_memory()
        handler: Callable[[dict[str, Any]], Awaitable[Any] | Any] = getattr(self, f"on_{call.name}", self._nothing)
        if call.boots:
            self._boots = True  # also when it fails: that is what the source does
        answer = handler(body)
        return await answer if isinstance(answer, Awaitable) else answer

    def _check_when(self, call: Call) -> None:
        started = self.state != "Not started"
        if call.when is When.BEFORE and started:
            raise Fault(AFTER_START)
        if call.when is When.AFTER and not started:
            raise Fault(BEFORE_START)

    def _nothing(self, body: dict[str, Any]) -> None:
        return None

    # Start

    async def on_action(self, body: dict[str, Any]) -> None:
        started = self.state != "Not started"
        match body["action_type"]:
            case "InstanceStart":
                if started:
                    raise Fault(AFTER_START)
                await self._start()
            case "FlushMetrics" if started:
                self._plain_one("metrics", "Internal VMM error: the metrics system is not initialized.")
            case "SendCtrlAltDel" if started and self._guest is not None:
                self._guest.press_ctrl_alt_del()
            case _:
                raise Fault(BEFORE_START)

    async def _start(self) -> None:
        if self._boot is None:
            raise Fault("Start microvm error: Cannot start microvm without kernel configuration.")
        kernel = self._jail.open(self._boot["kernel_image_path"], os.O_RDONLY, "Cannot load kernel")
        magic = os.pread(kernel, 4, 0)
        os.close(kernel)
        if magic != ELF:
            raise Fault("Start microvm error: Cannot load kernel due to invalid memory configuration or image: no ELF")
        await self._run(None)
        self._marks = snapshots.marks(self._machine["mem_size_mib"])
        self._written = {} if self._machine["track_dirty_pages"] else None
        self._journal.note("limits", buckets=self.buckets)
        self.state = "Running"

    async def _run(self, memory: bytes | None) -> None:
        """Have a guest: one that boots, or one with memory, which is paused."""
        devices = Devices.of(list(self._drives.values()))
        data = Data.attach(self._settings, devices.data) if devices.data is not None else None
        guest = Guest(self._settings, devices, data)
        console = self._console()
        try:
            if data is not None and memory is None:
                data.in_use()
            await guest.boot(with_card=bool(self._taps), console=console, run=memory)
        finally:
            os.close(console)
        self._guest = guest
        if guest.card is not None:
            self._wire = Wire(next(iter(self._taps.values())), guest.card)
        if self._vsock is not None:
            await self._vsock.serve(guest, guest.read_drives_again)
        if memory is None and self._wire is not None:
            self._wire.open()
        self._tasks.append(asyncio.create_task(self._until_end(guest)))
        self._tasks.append(asyncio.create_task(self._watch_memory()))

    def _console(self) -> int:
        if self._serial is not None:
            path = self._jail.path(self._serial)
            if not path.exists():
                os.close(self._jail.create(self._serial, "The serial file cannot be opened"))
            return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
        talks = "console=ttyS0" in ((self._boot or {}).get("boot_args") or "")
        return os.dup(1) if talks else os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    async def _until_end(self, guest: Guest) -> None:
        status = await guest.ended()
        self._journal.note("guest ended", status=status)
        with suppress(Fault):
            guest.clear()
        if not self.ended.done():
            self.ended.set_result(0)

    # While it runs

    async def on_vm(self, body: dict[str, Any]) -> None:
        assert self._guest is not None
        if body["state"] == "Paused":
            if self.state == "Running":
                if self._wire is not None:
                    self._wire.close()
                await self._guest.pause()
                self._snapshotted = False
            self.state = "Paused"
        else:
            await self._resume()
            self._journal.note("limits", buckets=self.buckets)

    async def _resume(self) -> None:
        assert self._guest is not None
        if self.state == "Paused":
            self._guest.resume()
            # A guest that runs writes to its memory, here and there.
            self._marks |= {at: secrets.token_bytes(snapshots.TOKEN) for at in sorted(self._marks)[::3]}
            if self._wire is not None:
                self._wire.open()
            since, until = VSOCK_HANGS
            if self._vsock is not None and not self._snapshotted and since <= self._settings.numbers < until:
                self._vsock.hangs = True
        self.state = "Running"

    def hang(self) -> None:
        """The host's connections get no answer from now on."""
        if self._vsock is not None:
            self._vsock.hangs = True

    def on_drive_change(self, body: dict[str, Any]) -> None:
        former = self._drives.get(body["drive_id"])
        if former is None:
            raise Fault(f"Drive config error: there is no drive {body['drive_id']!r}")
        self._limit("drive", body["drive_id"], body, "rate_limiter")
        self._journal.note("limits", buckets=self.buckets)
        if body.get("path_on_host") is None:
            return
        assert self._guest is not None
        config = self._described(former) | {"path_on_host": body["path_on_host"]}
        drive = Drive.open(self._jail, config)
        if not former.read_only and self._guest.data is not None:
            drive.close()
            raise Fault("the stand-in does not model another data drive under a guest")
        self._attach(drive)
        self._guest.exchange(drive.drive_id, drive)

    def on_network_change(self, body: dict[str, Any]) -> None:
        if body["iface_id"] not in self._networks:
            raise Fault(f"Network config error: there is no interface {body['iface_id']!r}")
        for name in ("rx_rate_limiter", "tx_rate_limiter"):
            self._limit("network", body["iface_id"], body, name)
        self._journal.note("limits", buckets=self.buckets)

    def on_balloon_change(self, body: dict[str, Any]) -> None:
        balloon = self._plain_one("balloon", "Balloon update error: Device not found.")
        if body["amount_mib"] > self._machine["mem_size_mib"]:
            raise Fault("Balloon update error: Amount of pages requested is too large.")
        balloon["amount_mib"] = body["amount_mib"]

    def on_balloon_interval(self, body: dict[str, Any]) -> None:
        before = self._plain_one("balloon", "Balloon update error: Device not found.").get("stats_polling_interval_s")
        if bool(before) != bool(body["stats_polling_interval_s"]):
            raise Fault("Balloon update error: Statistics cannot be enabled/disabled after activation.")

    # Snapshots

    def on_create(self, body: dict[str, Any]) -> None:
        assert self._guest is not None
        if self.state != "Paused":
            raise Fault("Create snapshot error: the microVM is not paused.")
        for name in ("snapshot_path", "mem_file_path"):
            self._refuse_to_spoil_own_memory(body[name])
        run = self._guest.memory()
        memory = snapshots.pages(self._marks, run)
        diff = body.get("snapshot_type") == "Diff"
        if diff and self._written is None:
            self.violation("a diff was asked for and nothing notes what is written: swapped pages would be left out")
        state = self._saved() | {"run_bytes": len(run)}
        since = (self._written or {}) if diff else None
        snapshots.write(self._jail, body["snapshot_path"], body["mem_file_path"], state, memory, since=since)
        self._written = memory if self._machine["track_dirty_pages"] else None
        if self._vsock is not None:
            self._vsock.reset()
        self._snapshotted = True

    def _refuse_to_spoil_own_memory(self, named: str) -> None:
        path = self._jail.path(named)
        if self._memory is not None and path.exists() and os.path.samestat(path.stat(), os.fstat(self._memory[0])):
            self.violation(f"{named} was to be overwritten while the guest runs from it")

    def _saved(self) -> dict[str, Any]:
        return {
            "version": self._settings.version,
            "machine": self._machine,
            "drives": [self._described(drive) for drive in self._drives.values()],
            "networks": list(self._networks.values()),
            "vsock": {"cid": self._vsock.cid, "uds_path": self._vsock.named} if self._vsock else None,
            "balloon": self._plain.get("balloon"),
            "entropy": self._plain.get("entropy"),
            "buckets": self.buckets,
        }

    async def on_load(self, body: dict[str, Any]) -> None:
        if self._boots:
            raise Fault("Loading a microVM snapshot not allowed after configuring boot-specific resources.")
        if (body.get("mem_backend") is None) == (body.get("mem_file_path") is None):
            raise Fault("exactly one of `mem_backend` and `mem_file_path` has to be given.")
        backend = body.get("mem_backend") or {"backend_type": "File", "backend_path": body["mem_file_path"]}
        if backend["backend_type"] == "Uffd":
            raise Fatal(Fault("Failed to restore from snapshot: the stand-in has no page fault handler"))
        if body.get("huge_pages") == "2M":
            raise Fatal(Fault("Failed to restore from snapshot: 2M pages need a Uffd backend"))
        if body.get("clock_realtime") and _host_kernel() < (5, 16):
            raise Fatal(Fault("Failed to restore from snapshot: clock_realtime is not supported by this kernel"))
        try:
            await self._load(body, backend["backend_path"])
        except Fault as fault:
            raise Fatal(Fault(f"Load snapshot error: {fault.message}")) from fault

    async def _load(self, body: dict[str, Any], memory_path: str) -> None:
        loaded = snapshots.read(self._jail, body["snapshot_path"], memory_path, self._settings.version)
        self._memory = (loaded.memory, os.fstat(loaded.memory))
        for problem in loaded.problems:
            self.violation(problem)
        if loaded.problems:
            raise Fault("the guest crashes: its memory is not what it was")
        state = loaded.state
        self._marks = snapshots.marks_in(loaded.pages)
        self._written = loaded.pages if body.get("track_dirty_pages") else None
        self._machine = state["machine"] | {"track_dirty_pages": bool(body.get("track_dirty_pages"))}
        self.buckets = dict(state["buckets"])
        for config in state["drives"]:
            self._attach(Drive.open(self._jail, config))
        overrides = {each["iface_id"]: each["host_dev_name"] for each in body.get("network_overrides") or []}
        for config in state["networks"]:
            name = config["iface_id"]
            config = config | {"host_dev_name": overrides.pop(name, config["host_dev_name"])}
            self._taps[name] = open_tap(config["host_dev_name"], self._jail)
            self._networks[name] = config
        if overrides:
            raise Fault(f"network_overrides name an unknown interface: {', '.join(overrides)}")
        if state["vsock"] is not None:
            named = (body.get("vsock_override") or state["vsock"])["uds_path"]
            self._vsock = Vsock(self._jail, named, state["vsock"]["cid"])
        elif body.get("vsock_override"):
            raise Fault("vsock_override: the snapshot has no vsock device")
        for name in ("balloon", "entropy"):
            if state[name] is not None:
                self._plain[name] = state[name]
        await self._run(loaded.run)
        self.state = "Paused"
        self._snapshotted = True
        if body.get("resume_vm"):
            await self._resume()

    # What nobody would notice but the stand-in

    def look_at_memory(self) -> None:
        """The file that a guest runs from must stay as it was."""
        if self._memory is None:
            return
        descriptor, before = self._memory
        now = os.fstat(descriptor)
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            self._memory = (descriptor, now)
            self.violation("the memory file was changed while the guest ran from it")
            if now.st_size < before.st_size:
                self._journal.note("exit", reason="SIGBUS")
                os.abort()

    async def _watch_memory(self) -> None:
        while not self.ended.done():
            self.look_at_memory()
            await asyncio.sleep(WATCH_SECONDS)


def _host_kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdecimal()) or 0)


def files_of_last_snapshot(body: dict[str, Any], jail: Jail) -> tuple[Path, Path]:
    """State and memory file that a create named."""
    return jail.path(body["snapshot_path"]), jail.path(body["mem_file_path"])
