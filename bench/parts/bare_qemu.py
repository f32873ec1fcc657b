"""QEMU alone, restored by hand from copies of a sleeper's files: what a wake costs at least where memory is kept.

The command line is the runtime's own (`mvm.runtime.qemu.command`), and so are the guest, its memory and the state of
its devices. Everything else is left out: no lifecycle, no queue, no drives written, no user of its own, no control
group, no TAP, no disk flushed, no asyncio. A blocking client speaks QMP, another the channel's HELLO and one Ping.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvm.drives.table import CONFIG, DATA, ROOTFS, SECRETS, Drive, Mode, drives_of
from mvm.image.base import INITRD, KERNEL, Manifest
from mvm.image.base import ROOTFS as ROOT_IMAGE
from mvm.model.roles import Role
from mvm.runtime import saved, sparse
from mvm.runtime.base import GUEST_AGENT_PORT
from mvm.runtime.qemu.accelerator import BINARY, Accelerator
from mvm.runtime.qemu.command import Descriptors, Hardware, command, layout
from mvm.runtime.qemu.tsc import host_tsc_khz
from mvm.wire import frames
from mvm.wire.messages import Ping
from mvm.wire.mux_frames import NONCE_BYTES, Inbox, Kind, encode
from mvm.wire.tagged import render

LIMIT_SECONDS = 60.0
CONNECTION = 1
"""Connections that the host opens have odd numbers."""


@dataclass(frozen=True, kw_only=True)
class Sleeper:
    """A sleeping instance of the QEMU runtime, by its files."""

    instance: dict[str, Any]
    """As `mvm instance info --json` shows it."""
    state_dir: Path
    """The installation's."""
    run_dir: Path


@dataclass(frozen=True)
class Restored:
    """How long it took, in milliseconds."""

    running: float
    """From exec of QEMU until its guest goes on."""
    pong: float
    """From then to the first Pong of its guest."""

    @property
    def total(self) -> float:
        return self.running + self.pong


def restore(sleeper: Sleeper) -> Restored:
    """Restore copies of a sleeper's files, and end what came of it."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mvm-bench-")))
        hardware, paths = _copies(sleeper, directory)
        machine = stack.enter_context(_opened(hardware, paths, directory))
        arguments = command(
            shutil.which(BINARY) or BINARY,
            hardware,
            machine.descriptors,
            name="bare",
            mac=sleeper.instance["network"]["mac"],
            sandbox=True,
            incoming=True,
        )
        log = stack.enter_context((directory / "log").open("w+b"))
        began = time.perf_counter()
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=machine.descriptors.all()
        )
        stack.callback(_end, process)
        machine.let_go()  # so that its end is seen
        try:
            running, pong = _restore(directory)
        except (OSError, EOFError) as error:
            raise RuntimeError(f"bare QEMU failed: {error}: {(directory / 'log').read_text()}") from error
        return Restored((running - began) * 1000, (pong - running) * 1000)


def _restore(directory: Path) -> tuple[float, float]:
    """Load, go on and ask; returns when it went on and when it answered."""
    with _Channel(directory / "mux.sock") as channel, _Monitor(directory / "qmp.sock") as monitor:
        monitor.load(directory / saved.DEVICES)
        monitor.execute("cont")
        running = time.perf_counter()
        channel.ping()
        return running, time.perf_counter()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


# The machine


def _copies(sleeper: Sleeper, directory: Path) -> tuple[Hardware, dict[Drive, Path]]:
    """Copies of what a QEMU may write, and what it is made of."""
    instance = sleeper.instance
    own = sleeper.state_dir / "instances" / instance["instance_id"]
    snapshot = saved.load(own / "memory")
    if snapshot is None:
        raise RuntimeError(f"{instance['instance_id']} has no snapshot")
    image = sleeper.state_dir / "images" / instance["image_revision"]
    accelerator = Accelerator(snapshot.metadata["accelerator"])
    hardware = Hardware(
        accelerator=accelerator,
        vcpus=int(snapshot.metadata["vcpus"]),
        mem_mib=int(snapshot.metadata["mem_mib"]),
        drives=drives_of(Role(instance["role"])),
        kernel=image / KERNEL,
        initrd=image / INITRD,
        parameters=" ".join(Manifest.read(image).kernel_arguments),
        tsc_khz=host_tsc_khz(),
    )
    if layout(hardware) != snapshot.metadata["layout"]:
        raise RuntimeError("the bare machine is not the machine that sleeps")
    sparse.copy(own / "memory/ram", directory / "ram")
    sparse.copy(own / "memory" / saved.DEVICES, directory / saved.DEVICES)
    sparse.copy(own / "data.img", directory / "data.img")
    sparse.copy(sleeper.run_dir / "i" / instance["instance_id"] / "config.erofs", directory / "config.erofs")
    sizes = dict(part.split("=") for part in snapshot.metadata["drives"].split(","))
    with (directory / "secrets.erofs").open("wb") as empty:  # a sleeper has none; its guest looks at it when told to
        empty.truncate(int(sizes[SECRETS.serial]))
    paths = {
        ROOTFS: image / ROOT_IMAGE,
        DATA: directory / "data.img",
        SECRETS: directory / "secrets.erofs",
        CONFIG: directory / "config.erofs",
    }
    return hardware, {drive: paths[drive] for drive in hardware.drives}


@dataclass(frozen=True)
class _Opened:
    descriptors: Descriptors
    sockets: tuple[socket.socket, ...]

    def let_go(self) -> None:
        """Close the listening sockets here."""
        for listener in self.sockets:
            listener.close()


@contextmanager
def _opened(hardware: Hardware, paths: dict[Drive, Path], directory: Path) -> Iterator[_Opened]:
    """Everything that the QEMU works with, open."""
    with ExitStack() as stack:

        def opened(path: Path, mode: int) -> int:
            descriptor = os.open(path, mode | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            return descriptor

        listeners = []
        for name in ("qmp.sock", "mux.sock", "console.sock"):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(str(directory / name))
            listener.listen(1)
            listeners.append(listener)
        modes = {Mode.READ_ONLY: (os.O_RDONLY,), Mode.READ_WRITE: (os.O_RDONLY, os.O_RDWR)}
        monitor, mux, console = (listener.fileno() for listener in listeners)
        descriptors = Descriptors(
            monitor=monitor,
            channel=mux,
            console=console,
            ram=opened(directory / "ram", os.O_RDWR),
            kernel=opened(hardware.kernel, os.O_RDONLY),
            initrd=opened(hardware.initrd, os.O_RDONLY),
            drives={
                drive.serial: tuple(opened(path, mode) for mode in modes[drive.mode]) for drive, path in paths.items()
            },
        )
        yield _Opened(descriptors, tuple(listeners))


# Its two clients


class _Client:
    """A connection to one of its sockets."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(LIMIT_SECONDS)
        self._socket.connect(str(path))

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class _Monitor(_Client):
    """Just enough QMP."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lines = self._socket.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._next()  # its greeting
        self.execute("qmp_capabilities")

    def _next(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise EOFError("QEMU hung up")
        document: dict[str, Any] = json.loads(line)
        return document

    def execute(self, name: str, arguments: dict[str, Any] | None = None, *, descriptors: tuple[int, ...] = ()) -> None:
        """Have a command done."""
        document = {"execute": name} | ({"arguments": arguments} if arguments else {})
        socket.send_fds(self._socket, [json.dumps(document).encode()], descriptors)
        while "return" not in (answer := self._next()):
            if "error" in answer:
                raise OSError(f"{name}: {answer['error']}")
            self._events.append(answer)

    def load(self, devices: Path) -> None:
        """Load the state of the devices; returns when that is done."""
        wanted = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
        self.execute("migrate-set-capabilities", {"capabilities": wanted})
        with devices.open("rb") as file:
            self.execute("getfd", {"fdname": "snapshot"}, descriptors=(file.fileno(),))
        self.execute("migrate-incoming", {"uri": "fd:snapshot"})
        while not self._loaded():
            self._events.append(self._next())

    def _loaded(self) -> bool:
        statuses = [event["data"]["status"] for event in self._events if event["event"] == "MIGRATION"]
        if "failed" in statuses:
            raise OSError("the snapshot is not taken")
        return "completed" in statuses


class _Channel(_Client):
    """Just enough of the multiplexer."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._inbox = Inbox()
        self._nonce = os.urandom(NONCE_BYTES)
        self._socket.sendall(encode(Kind.HELLO, payload=self._nonce))

    def _receive(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise EOFError("the channel ended")
        self._inbox.feed(data)

    def ping(self) -> None:
        """Return at the guest agent's Pong."""
        acknowledged = encode(Kind.ACK, payload=self._nonce)
        while not self._inbox.skip_past(acknowledged):
            self._receive()
        self.acked = time.perf_counter()
        request = frames.encode(render(Ping()))
        self._socket.sendall(
            encode(Kind.OPEN, CONNECTION, GUEST_AGENT_PORT) + encode(Kind.DATA, CONNECTION, payload=request)
        )
        answer = b""
        while b"Pong" not in answer:
            while (frame := self._inbox.frame()) is None:
                self._receive()
            kind, connection, _, payload = frame
            if connection == CONNECTION and kind == Kind.DATA:
                answer += payload
            elif connection == CONNECTION and kind in (Kind.RST, Kind.CLOSE):
                raise OSError("the guest agent does not listen")
