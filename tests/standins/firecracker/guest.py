"""The machine that a stand-in runs: mvm's real guest programs in namespaces of their own, from what its drives hold."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.standins.firecracker import drives as images
from tests.standins.firecracker.drives import Data, Drive
from tests.standins.firecracker.rules import Fault
from tests.standins.firecracker.settings import Settings

from mvm.guest import processes
from mvm.guest.channel import SUPERVISOR_PORT
from mvm.guest.channel_service import HOST_PORTS

CLONE_NEWPID = 0x20000000
NOT_MEMORY = ("openclaw", "mvm", "secrets")
"""Below `/run`: what belongs to processes, which a guest that is restored begins anew."""
FREEZE_SECONDS = 10.0
BOOT_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Devices:
    """The drives as the guest's kernel names them: the root first, then in the order in which they were attached."""

    root: Drive
    data: Drive | None
    secrets: Drive | None
    config: Drive | None

    @classmethod
    def of(cls, drives: list[Drive]) -> Devices:
        """Raises `Fault` for what no guest of mvm's starts from."""
        roots = [drive for drive in drives if drive.root_device]
        if not roots:
            raise Fault("the guest panics: no drive is its root")
        rest = [drive for drive in drives if not drive.root_device]
        vdb, vdc, vdd = [*rest, None, None, None][:3]
        if vdc is not None and vdd is not None and "config.json" not in vdd.files():
            raise Fault("the guest does not find its configuration: there is no config.json on its fourth drive")
        return cls(root=roots[0], data=vdb, secrets=vdc, config=vdd)


class Guest:
    """One guest, from its boot or its restore to its end."""

    def __init__(self, settings: Settings, devices: Devices, data: Data | None) -> None:
        self._base = settings.control / "guests" / secrets.token_hex(4)
        self._devices = devices
        self.data = data
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._config: dict[str, Any] | None = None
        self._namespace = ""
        self.card: int | None = None
        self.paused = False
        self._held = False
        """It was restored, and has not run yet."""

    async def boot(self, *, with_card: bool, console: int, run: bytes | None) -> None:
        """Start it. Raises `Fault` when it does not come up.

        `run` is what it had in memory, if it had any; then it is paused, and nothing of it has run.
        """
        self._held = self.paused = run is not None
        for name in ("image", "run", "secrets", "config"):
            (self._base / name).mkdir(parents=True)
        if run is not None:
            images.unpack(run, self._base / "run")
        (self._base / "run/mvm/ch").mkdir(parents=True, exist_ok=True)
        _lay_out(self._devices.root, self._base / "image")
        self._read_drives()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        _own_pid_namespace()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.standins.firecracker.guest_init", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
        )
        theirs.close()
        ours.send(json.dumps(self._orders(with_card)).encode())
        ours.setblocking(False)
        try:
            await self._until_ready(ours)
        except TimeoutError:
            raise Fault("the guest does not come up") from None
        self._namespace = os.readlink(f"/proc/{self._process.pid}/ns/pid_for_children")

    async def _until_ready(self, control: socket.socket) -> None:
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(control, readable.set)
        try:
            async with asyncio.timeout(BOOT_SECONDS):
                await readable.wait()
        finally:
            loop.remove_reader(control)
        said, descriptors, _, _ = socket.recv_fds(control, 64, 1)
        if said != b"ready":
            raise Fault("the guest panics before its first service")
        self.card = descriptors[0] if descriptors else None

    def _orders(self, with_card: bool) -> dict[str, Any]:
        data = self.data.directory if self.data is not None else self._base / "nowhere"
        data.mkdir(exist_ok=True)
        zipapp = "/opt/mvm/guest.pyz"
        python = os.path.realpath(sys.executable)
        node = "/image/usr/local/bin/node"
        bootable = (self._base / f"image{zipapp}").exists()
        return {
            "base": str(self._base),
            "data": str(data),
            "card": with_card,
            "held": self._held,
            "config": self._config,
            "argv": [python, "-I", "-S", zipapp, "supervise"] if bootable else [],
            "environment": {
                "PATH": os.environ.get("PATH", os.defpath),
                "LANG": "C.UTF-8",
                "MVM_GUEST_ROOT": "/guest",
                "MVM_CHANNEL_DIR": "/run/mvm/ch",
                "MVM_PYTHON": python,
                "MVM_NODE": node,
                "MVM_GUEST_ZIPAPP": zipapp,
                "MVM_OPENCLAW_DIR": "/opt/openclaw/node_modules/openclaw",
            },
        }

    # Its drives

    def _read_drives(self) -> None:
        for name in ("secrets", "config"):
            drive: Drive | None = getattr(self._devices, name)
            if drive is None:
                continue
            if not drive.is_erofs:
                raise Fault(f"the guest cannot read {drive.named}: it is no erofs")
            _lay_out(drive, self._base / name)
        with suppress(FileNotFoundError, ValueError):
            self._config = json.loads((self._base / "config/config.json").read_text())

    def exchange(self, drive_id: str, drive: Drive) -> None:
        """One of its drives has another file behind it from now on."""
        for name in ("root", "data", "secrets", "config"):
            if (old := getattr(self._devices, name)) is not None and old.drive_id == drive_id:
                self._devices = Devices(**{**self._devices.__dict__, name: drive})

    async def read_drives_again(self) -> None:
        """Take in what is on config and secrets now: a real guest does this when it is told to wake or to refresh."""
        before = self._config
        self._read_drives()
        if self._config is not None and self._config != before and self._control is not None:
            told = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(self._control, told.set)
            self._control.send(json.dumps({"config": self._config}).encode())
            with suppress(TimeoutError):
                await asyncio.wait_for(told.wait(), 5)
                self._control.recv(64)
            loop.remove_reader(self._control)

    # Its ports

    @property
    def channel(self) -> Path:
        return self._base / "run/mvm/ch"

    def port(self, number: int) -> Path:
        """The socket of who listens at a guest port."""
        if number == SUPERVISOR_PORT:
            return self._base / "run/mvm/supervisor.sock"
        return self.channel / f"guest_{number}.sock"

    @property
    def host_ports(self) -> tuple[int, ...]:
        return HOST_PORTS

    # Its course

    async def pause(self) -> None:
        """Every process of it stops, also one that is being forked meanwhile."""
        deadline = asyncio.get_running_loop().time() + FREEZE_SECONDS
        # A process that waits for its child to become another program does not stop before that, and nothing else.
        while moving := [process for process in self._members() if process.state not in "tTD"]:
            if asyncio.get_running_loop().time() > deadline:
                raise Fault(f"{len(moving)} processes of the guest do not stop")
            for process in moving:
                processes.send(process.identity, signal.SIGSTOP)
            # One that waits in the kernel, as for a child that was stopped before its exec, stops when it comes out.
            if all(process.state == "D" for process in moving):
                break
            await asyncio.sleep(0.001)
        if self.data is not None and not self.paused:
            self.data.flush()
        self.paused = True

    def resume(self) -> None:
        if self.data is not None:
            self.data.in_use()
        if self._held and self._control is not None:
            self._control.send(b'{"go": true}')
        for process in self._members():
            processes.send(process.identity, signal.SIGCONT)
        self._held = self.paused = False

    def memory(self) -> bytes:
        """What it has in memory, as far as that is modelled."""
        return images.pack(self._base / "run", NOT_MEMORY)

    def press_ctrl_alt_del(self) -> None:
        if self._control is not None:
            self._control.send(b'{"end": true}')

    async def ended(self) -> int:
        """Its status, once it has ended."""
        assert self._process is not None
        descriptor = os.pidfd_open(self._process.pid)
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, over.set)
        await over.wait()
        loop.remove_reader(descriptor)
        os.close(descriptor)
        return self._process.wait()

    def clear(self) -> None:
        """Forget it; what was on its data drive is in the image."""
        if self.data is not None and not self.paused:
            self.data.flush()
        shutil.rmtree(self._base, ignore_errors=True)

    def _members(self) -> list[processes.Process]:
        found = []
        for name in os.listdir("/proc"):
            if name.isdecimal() and _namespace(name) == self._namespace:
                process = processes.read(int(name))
                if process is not None and not process.ended:
                    found.append(process)
        return found


def _own_pid_namespace() -> None:
    """The next child of this process is the first one in a pid namespace, which ends with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWPID) != 0:
        raise Fault(f"the stand-in cannot make a namespace: {os.strerror(ctypes.get_errno())}")


def _namespace(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _lay_out(drive: Drive, directory: Path) -> None:
    """Make a directory hold what is on an erofs image; a file that is the same is left alone."""
    if not drive.is_erofs:
        return
    wanted = drive.files()
    for name, (mode, content) in wanted.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_bytes() == content:
            continue
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_bytes(content)
        fresh.chmod(mode)
        fresh.replace(path)
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_file() and str(path.relative_to(directory)) not in wanted:
            path.unlink()
