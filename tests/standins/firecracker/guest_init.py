"""First process of a stand-in's guest: makes its root, its network card and its name, and runs mvm's own supervisor.

Runs in a pid namespace of its own and makes the others itself. The root is a tmpfs with the host's programs bound into
it, what the root image holds under `/image`, and `/run`, `/data`, `/run/secrets` and `/etc/mvm-config` where a machine
has them. It is mvm's guest in the form in which it does not own its machine (`MVM_GUEST_ROOT`), for the clock, the
caches and the users here are the host's.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mvm.guest.identity import hosts_file, machine_id, resolver_file
from mvm.guest.network_device import Addresses, NetworkDevice

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG = 1
TUNSETIFF = 0x400454CA
TAP_FLAGS = 0x0002 | 0x1000 | 0x4000  # a TAP, without packet information, with the header that virtio has
LEFT_OUT = {"proc", "sys", "dev", "run", "data", "etc", "tmp", "opt", "mnt", "boot", "lost+found", "image", "guest"}
OWN_FILES = {"hostname", "machine-id", "hosts", "resolv.conf", "mvm-config", "mtab"}
CARD = "eth0"

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str, target: Path, kind: str | None = None, flags: int = 0) -> None:
    target.mkdir(parents=True, exist_ok=True)
    _call("mount", source.encode(), str(target).encode(), kind.encode() if kind else None, flags, None)


def make_root(root: Path, base: Path, data: str) -> None:
    """Everything that the guest takes for its machine."""
    _call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    mount("tmpfs", root, "tmpfs")
    for entry in _entries(Path("/"), LEFT_OUT):
        _show(entry, root / entry.name)
    for entry in _entries(Path("/opt"), {"mvm", "openclaw"}):
        _show(entry, root / "opt" / entry.name)
    for name in ("proc", "sys"):
        mount(name if name == "proc" else "sysfs", root / name, name if name == "proc" else "sysfs")
    mount("/dev", root / "dev", flags=MS_BIND | MS_REC)
    mount("tmpfs", root / "dev/shm", "tmpfs")
    mount("tmpfs", root / "tmp", "tmpfs")
    show_runner(base / "image", root)
    mount("/etc", root / ".etc", flags=MS_BIND | MS_REC)
    (root / "etc").mkdir()
    for entry in _entries(Path("/etc"), OWN_FILES):
        (root / "etc" / entry.name).symlink_to(f"/.etc/{entry.name}")
    for source, target in (
        (base / "image", "image"),
        (base / "run", "run"),
        (base / "secrets", "run/secrets"),
        (base / "config", "etc/mvm-config"),
        (Path(data), "data"),
    ):
        mount(str(source), root / target, flags=MS_BIND)
    for name in ("mvm", "openclaw"):
        (root / "opt").mkdir(exist_ok=True)
        (root / "opt" / name).symlink_to(f"/image/opt/{name}")
    (root / "guest/etc").mkdir(parents=True)
    for link, target in (("run", "/run"), ("data", "/data"), ("etc/mvm-config", "/etc/mvm-config")):
        (root / "guest" / link).symlink_to(target)


def show_runner(image: Path, root: Path) -> None:
    """What the image runs its services by is a program of the host; one below `/tmp` would be hidden."""
    script = image / "usr/local/bin/node"
    if not script.exists():
        return
    program = Path(script.read_text().split("exec ")[1].split(" ")[0])
    if program.is_relative_to("/tmp"):
        mount(str(program.parent), root / program.parent.relative_to("/"), flags=MS_BIND)


def _entries(directory: Path, without: set[str]) -> Iterator[Path]:
    if directory.is_dir():
        yield from (entry for entry in sorted(directory.iterdir()) if entry.name not in without)


def _show(entry: Path, target: Path) -> None:
    if entry.is_symlink():
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(entry.readlink())
    elif entry.is_dir():
        mount(str(entry), target, flags=MS_BIND | MS_REC)


def make_card() -> int:
    """The guest's network card: a TAP whose other end is the stand-in, as the host's TAP is."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH14x", CARD.encode(), TAP_FLAGS))
    return descriptor


def be(config: dict[str, Any], *, card: bool) -> None:
    """Be the machine that the config drive names; in a real one `mvm.guest.identity` does this."""
    name = config["instance_id"]
    socket.sethostname(name)
    Path("/etc/hostname").write_text(f"{name}\n")
    Path("/etc/machine-id").write_text(f"{machine_id(name)}\n")
    Path("/etc/hosts").write_text(hosts_file(name))
    Path("/etc/resolv.conf").write_text(resolver_file(tuple(config.get("dns", ()))))
    if not card:
        return
    device = NetworkDevice(CARD)
    wanted = Addresses(
        mac=config.get("mac"), address=config["guest_ip"], prefix=config["prefix"], gateway=config["gateway_ip"]
    )
    if not device.has(wanted):
        device.take(wanted)
    with suppress(OSError):
        device.announce(wanted.address)


def main() -> int:
    with socket.socket(fileno=int(sys.argv[1])) as control:
        orders: dict[str, Any] = json.loads(control.recv(1 << 20))
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _call("unshare", CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET)
        card = make_card() if orders["card"] else None
        NetworkDevice("lo").up()
        base = Path(orders["base"])
        root = base / "root"
        make_root(root, base, orders["data"])
        os.chroot(root)
        os.chdir("/")
        if orders["config"] is not None:
            be(orders["config"], card=card is not None)
        # With the card goes the word that everything is ready.
        socket.send_fds(control, [b"ready"], [] if card is None else [card])
        return run(control, orders, card=card is not None)


def run(control: socket.socket, orders: dict[str, Any], *, card: bool) -> int:
    """Have the supervisor run until it ends; take orders meanwhile."""
    wake_reader, wake_writer = os.pipe()
    os.set_blocking(wake_writer, False)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    supervisor = None if orders["held"] else start_supervisor(orders)
    while True:
        readable, _, _ = select.select([control, wake_reader], [], [])
        if wake_reader in readable:
            os.read(wake_reader, 512)
            if (status := reap(supervisor)) is not None:
                return status
        if control in readable:
            message = control.recv(1 << 20)
            if not message:
                return 0
            told = json.loads(message)
            if "config" in told:
                be(told["config"], card=card)
                control.send(b"done")
            if told.get("go") and supervisor is None:
                supervisor = start_supervisor(orders)
            if told.get("end") and supervisor is not None:
                supervisor.send_signal(signal.SIGTERM)


def start_supervisor(orders: dict[str, Any]) -> subprocess.Popen[bytes] | None:
    """Have mvm's guest programs run, if the image has them."""
    if not orders["argv"]:
        return None
    return subprocess.Popen(orders["argv"], env=orders["environment"], cwd="/guest", stdin=subprocess.DEVNULL)


def reap(supervisor: subprocess.Popen[bytes] | None) -> int | None:
    """Take in whoever ended; the status of the supervisor when it is among them."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == 0:
            return None
        if supervisor is not None and pid == supervisor.pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
