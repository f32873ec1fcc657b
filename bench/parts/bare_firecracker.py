"""Firecracker alone, restored by hand from a sleeper's files: what a wake costs at least where memory is kept.

The calls are the runtime's own (`mvm.runtime.firecracker.configuration`), and so are the guest, its memory and the
state of its devices. Everything else is left out: no lifecycle, no queue, no drives written, no jail, no control group,
no verification, no logs, no asyncio. A blocking client makes the two calls, another one `CONNECT` and one Ping.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.parts.bare_qemu import LIMIT_SECONDS, Restored, Sleeper

from mvm.drives import images
from mvm.drives.table import CONFIG, DATA, ROOTFS, SECRETS, drives_of
from mvm.host.locations import locate
from mvm.image.base import ROOTFS as ROOT_IMAGE
from mvm.model.roles import Role
from mvm.network.taps import make_lasting_tap, remove_lasting_tap
from mvm.runtime import saved, sparse
from mvm.runtime.base import GUEST_AGENT_PORT
from mvm.runtime.firecracker import api, binaries, configuration, files
from mvm.runtime.firecracker.api import Body, Command
from mvm.wire import frames
from mvm.wire.messages import Ping
from mvm.wire.tagged import render

TAP = "mvmbench0"
RETRY_SECONDS = 0.0005


def restore(sleeper: Sleeper) -> Restored:
    """Restore a sleeper's files, what is written of them as copies, and end what came of it."""
    executable = binaries.find(locate({}).programs_dir).firecracker
    with ExitStack() as stack:
        room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mvm-bench-")))
        _furnish(sleeper, room)
        make_lasting_tap(TAP, "", owner=None)
        stack.callback(remove_lasting_tap, TAP)
        log = stack.enter_context((room / "log").open("w+b"))
        began = time.perf_counter()
        process = subprocess.Popen(
            [executable, "--id", "bare", "--api-sock", files.API_SOCKET],
            cwd=room,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        stack.callback(_end, process)
        try:
            with _connected(room / files.API_SOCKET) as client:
                _tell(client, api.LOAD_SNAPSHOT, configuration.load(tap=TAP))
                _tell(client, api.PATCH_VM, api.VmState(state="Resumed"))
            running = time.perf_counter()
            _ping(room / files.VSOCK)
        except (OSError, EOFError) as error:
            raise RuntimeError(f"bare Firecracker failed: {error}: {(room / 'log').read_text()}") from error
        return Restored((running - began) * 1000, (time.perf_counter() - running) * 1000)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _furnish(sleeper: Sleeper, room: Path) -> None:
    """What the sleeper's own Firecracker would find in its room."""
    instance = sleeper.instance
    own = sleeper.state_dir / "instances" / instance["instance_id"]
    snapshot = saved.load(own / "memory")
    if snapshot is None:
        raise RuntimeError(f"{instance['instance_id']} has no snapshot")
    (room / files.MEMORY).symlink_to(own / "memory/ram")  # mapped privately, so it stays what it is
    (room / files.DEVICES).symlink_to(own / "memory" / saved.DEVICES)
    sizes = dict(part.split("=") for part in snapshot.metadata["drives"].split(","))
    for drive in drives_of(Role(instance["role"])):
        target = room / configuration.drive_file(drive)
        if drive is ROOTFS:
            target.symlink_to(sleeper.state_dir / "images" / instance["image_revision"] / ROOT_IMAGE)
        elif drive is SECRETS:  # a sleeper has none
            with tempfile.TemporaryDirectory(prefix="mvm-bench-") as nothing:
                images.write_erofs(Path(nothing), target, smallest=int(sizes[SECRETS.serial]))
        else:
            sparse.copy(own / {DATA: "data.img", CONFIG: "config.erofs"}[drive], target)


@contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    """A connection to a socket that is about to be there."""
    deadline = time.perf_counter() + LIMIT_SECONDS
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(LIMIT_SECONDS)
            try:
                client.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                if time.perf_counter() > deadline:
                    raise
                time.sleep(RETRY_SECONDS)
                continue
            yield client
            return


def _tell(client: socket.socket, command: Command, body: Body) -> None:
    """One request, and its answer without a body."""
    content = body.encode()
    head = f"{command.method} {command.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = client.recv(65536)
        if not data:
            raise EOFError("Firecracker hung up")
        answer += data
    if f" {command.status} ".encode() not in answer.partition(b"\r\n")[0]:
        raise OSError(f"{command.path}: {answer.decode(errors='replace')}")


def _ping(vsock: Path) -> None:
    """Return at the guest agent's Pong."""
    deadline = time.perf_counter() + LIMIT_SECONDS
    while not _answers(vsock):
        if time.perf_counter() > deadline:
            raise EOFError("the guest agent does not listen")
        time.sleep(RETRY_SECONDS)


def _answers(vsock: Path) -> bool:
    """One Ping; False when nobody listens yet."""
    with _connected(vsock) as client, client.makefile("rb") as lines:
        client.sendall(b"CONNECT %d\n" % GUEST_AGENT_PORT)
        if not lines.readline().startswith(b"OK "):
            return False
        client.sendall(frames.encode(render(Ping())))
        length = int.from_bytes(lines.read(4), "big")
        return length > 0 and json.loads(lines.read(length)) == "Pong"
