"""What `mvm doctor` checks of the host itself: kernel, file system, clock, what others run on it."""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
import re
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mvm.cli.checks import Finding, Verdict, nearest
from mvm.host.locations import Locations

OLDEST_KERNEL = (5, 10)
"""Long-term kernels from this one on are what machines, their networks and Firecracker are made for."""
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "fuse.glusterfs"})
AHEAD_SECONDS = 60.0
"""A file of the state that was written this much later than now tells of a clock that went back."""
_STA_UNSYNC = 0x0040


def host_checks(locations: Locations) -> Iterator[Finding]:
    """All of them, in the order of the report."""
    checks: list[Callable[[], Finding]] = [
        kernel,
        lambda: file_system(locations.state_dir),
        swap,
        same_page_merging,
        sibling_threads,
        lambda: clock(locations.state_dir),
        certificates,
        lambda: ports(locations),
        program_on_path,
    ]
    for check in checks:
        yield check()


def kernel(release: str | None = None) -> Finding:
    release = release or platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    old = found is None or (int(found[1]), int(found[2])) < OLDEST_KERNEL
    return Finding(
        name="kernel",
        verdict=Verdict.WARNING if old else Verdict.OK,
        found=f"{platform.system()} {release} {platform.machine()}",
        matters="a snapshot wakes only under the kernel that it was made under; old kernels lack what machines need",
        remedy=f"use a kernel {OLDEST_KERNEL[0]}.{OLDEST_KERNEL[1]} or newer" if old else None,
    )


def file_system(state_dir: Path, mounts: Path = Path("/proc/self/mountinfo")) -> Finding:
    """What the state is kept on, and whether copies on it share their blocks, found out by making one."""
    place = nearest(state_dir)
    kind = file_system_of(place, mounts)
    name, matters = "file system", "the database, data drives and sleeping memory are kept there"
    if (danger := _danger(kind)) is not None:
        return Finding(
            name=name,
            verdict=Verdict.WARNING,
            found=f"{kind} at {place}: {danger}",
            matters=matters,
            remedy="choose a directory on a disk of this machine with MVM_STATE_DIR",
        )
    shares = shares_blocks(place)
    if shares is None:
        return Finding(name=name, verdict=Verdict.OK, found=f"{kind} at {place}", matters=matters)
    copies = "share their blocks (reflink)" if shares else "take their full size and time (no reflink)"
    return Finding(
        name=name,
        verdict=Verdict.OK if shares else Verdict.NOTE,
        found=f"{kind} at {place}: copies of a warm machine {copies}",
        matters=matters,
        remedy=None if shares else "XFS (mkfs.xfs makes it so) or Btrfs makes new workers in less time and space",
    )


def _danger(kind: str) -> str | None:
    """What is wrong with keeping the state on a file system of that kind; None when nothing is."""
    if kind in ("tmpfs", "ramfs"):
        return "gone after a reboot"
    return "a database is not safe on a network's file system" if kind in NETWORK_FILE_SYSTEMS else None


def file_system_of(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The kind of file system that a path is on, as the mount table names it."""
    found, longest = "unknown", -1
    path = Path(os.path.realpath(path))
    for line in _lines(mounts):
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        # A later mount at the same place hides the earlier one.
        if path.is_relative_to(point) and len(point.parts) >= longest:
            found, longest = after.split(" ")[0], len(point.parts)
    return found


def shares_blocks(directory: Path) -> bool | None:
    """Whether a file here can be a copy of another without taking its space; None when nothing may be written here."""
    import fcntl

    from mvm.runtime.sparse import FICLONE

    try:
        with (
            tempfile.TemporaryFile(dir=directory, prefix=".mvm-doctor-") as source,
            tempfile.TemporaryFile(dir=directory, prefix=".mvm-doctor-") as target,
        ):
            source.write(bytes(65536))
            source.flush()
            try:
                fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
            except OSError:
                return False
            return True
    except OSError:
        return None


def swap(table: Path = Path("/proc/swaps")) -> Finding:
    matters = "memory of guests, their keys included, may be written to it"
    devices = [line.split()[0] for line in _lines(table)[1:]]
    on_disk = [device for device in devices if not device.startswith("/dev/zram")]
    if not on_disk:
        found = "in compressed memory only" if devices else "none"
        return Finding(name="swap", verdict=Verdict.OK, found=found, matters=matters)
    return Finding(
        name="swap",
        verdict=Verdict.NOTE,
        found=f"on {', '.join(on_disk)}",
        matters=matters,
        remedy="swapoff -a (and out of /etc/fstab), or have it encrypted",
    )


def same_page_merging(switch: Path = Path("/sys/kernel/mm/ksm/run")) -> Finding:
    matters = "a guest can find out by timing what is in the memory of another one"
    on = "".join(_lines(switch)).strip() == "1"
    return Finding(
        name="page merging",
        verdict=Verdict.NOTE if on else Verdict.OK,
        found="KSM is on" if on else "KSM is off",
        matters=matters,
        remedy="echo 2 > /sys/kernel/mm/ksm/run" if on else None,
    )


def sibling_threads(switch: Path = Path("/sys/devices/system/cpu/smt/active")) -> Finding:
    matters = "two guests on the threads of one core can learn from each other's timing"
    on = "".join(_lines(switch)).strip() == "1"
    return Finding(
        name="SMT",
        verdict=Verdict.NOTE if on else Verdict.OK,
        found="on: the threads of a core are shared by guests" if on else "off",
        matters=matters,
        remedy="where tenants are strangers to each other: echo off > /sys/devices/system/cpu/smt/control"
        if on
        else None,
    )


class _Timex(ctypes.Structure):
    """The beginning of the kernel's `struct timex`, with room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("largest_error", ctypes.c_long),
        ("estimated_error", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 40),
    )


def synchronised() -> tuple[bool, int] | None:
    """Whether a time service keeps the clock, and its largest error in microseconds; None when nobody tells."""
    if sys.platform != "linux":
        return None
    timex = _Timex()
    if ctypes.CDLL(None).adjtimex(ctypes.byref(timex)) < 0:
        return None
    return not timex.status & _STA_UNSYNC, timex.largest_error


def clock(
    state_dir: Path,
    *,
    ask: Callable[[], tuple[bool, int] | None] = synchronised,
    now: Callable[[], float] = time.time,
) -> Finding:
    """Whether the clock can be right: compared with a time service's word and with what was written before."""
    matters = "alarms ring, secrets of channels hold and usage counts by it"
    newest = max((path.stat().st_mtime for path in state_dir.glob("*") if path.is_file()), default=0.0)
    if newest > now() + AHEAD_SECONDS:
        return Finding(
            name="clock",
            verdict=Verdict.PROBLEM,
            found=f"behind: files in {state_dir} are {newest - now():.0f} s ahead of it",
            matters=matters,
            remedy="set the clock: timedatectl set-ntp true",
        )
    told = ask()
    if told is None:
        return Finding(name="clock", verdict=Verdict.OK, found="nobody tells whether it is kept right", matters=matters)
    kept, error = told
    return Finding(
        name="clock",
        verdict=Verdict.OK if kept else Verdict.NOTE,
        found=f"kept right by a time service, to {error / 1000:.0f} ms" if kept else "kept right by no time service",
        matters=matters,
        remedy=None
        if kept
        else "systemctl enable --now systemd-timesyncd (or chrony); a host may do it for its guests",
    )


def certificates(environ: Mapping[str, str] = os.environ) -> Finding:
    """Whether there are authorities by which servers can be trusted, read as a connection would."""
    name, matters = "certificates", "Telegram, the model provider and package registries are reached by TLS only"
    for variable in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"):
        if (path := environ.get(variable)) and (why := _unreadable(Path(path))) is not None:
            return Finding(
                name=name,
                verdict=Verdict.PROBLEM,
                found=f"{variable}={path}: {why}",
                matters=matters,
                remedy=f"let {variable} name a file of PEM certificates, or unset it",
            )
    paths = ssl.get_default_verify_paths()
    directory = Path(paths.capath) if paths.capath else None
    if paths.cafile is None and not (directory is not None and any(directory.iterdir())):
        return Finding(
            name=name,
            verdict=Verdict.WARNING,
            found="this machine trusts no authority",
            matters=matters,
            remedy="apt-get install ca-certificates",
        )
    return Finding(name=name, verdict=Verdict.OK, found=f"trusted: {paths.cafile or paths.capath}", matters=matters)


def _unreadable(path: Path) -> str | None:
    """Why a file is no bundle of certificates; None when it is one."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=str(path))
    except ssl.SSLError:
        return "there is no certificate in it"
    except OSError as error:
        return error.strerror or "it cannot be read"
    return None


def ports(locations: Locations) -> Finding:
    """Whether the ports that instances and the agent listen on are free for them."""
    from mvm.runtime.process.claims import FORWARDER_PORT, OUTBOUND_PORT, require_free

    wanted = [("127.240.255.254", port, "instances of the process runtime") for port in (FORWARDER_PORT, OUTBOUND_PORT)]
    if locations.metrics_port:
        wanted.append(("127.0.0.1", locations.metrics_port, "metrics_port"))
    matters = "what listens there already keeps instances or the agent from it"
    for address, port, whose in wanted:
        try:
            require_free(address, port)
        except OSError:
            holder, ours = listener(port)
            if ours:
                continue
            return Finding(
                name="ports",
                verdict=Verdict.WARNING,
                found=f"{port} ({whose}) is taken by {holder}",
                matters=matters,
                remedy=f"`ss -ltnp 'sport = :{port}'` shows it; stop it or let it listen on 127.0.0.1 only"
                if whose != "metrics_port"
                else "choose another metrics_port",
            )
    return Finding(
        name="ports",
        verdict=Verdict.OK,
        found=", ".join(str(port) for _, port, _ in wanted) + " are free",
        matters=matters,
    )


def listener(port: int) -> tuple[str, bool]:
    """Who listens on a port, and whether that is an agent of mvm's."""
    import psutil

    try:
        found = psutil.net_connections("tcp")
    except psutil.Error:
        return "a program that is not told", False
    for connection in found:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            if connection.pid is None:
                break
            try:
                process = psutil.Process(connection.pid)
                return f"{process.name()} (pid {connection.pid})", is_agent(process.cmdline())
            except psutil.Error:
                break
    return "a program of another user", False


def is_agent(command: Sequence[str]) -> bool:
    """Whether that is the command line of an agent, whatever options it was given."""
    return ("agent", "serve") in itertools.pairwise(command)


def program_on_path(path: str | None = None, own: Path | None = None) -> Finding:
    """Whether `mvm` means this mvm when somebody types it."""
    own = own or Path(sys.executable).parent / "mvm"
    search = os.environ.get("PATH", os.defpath) if path is None else path
    candidates = [Path(directory) / "mvm" for directory in search.split(os.pathsep) if directory]
    there = [candidate for candidate in candidates if os.path.isfile(candidate) and os.access(candidate, os.X_OK)]
    foreign = [each for each in there if os.path.realpath(each) != os.path.realpath(own)]
    matters = "another program of that name, or another version, would answer to what you type"
    remedy = f'export PATH="{own.parent}:$PATH"'
    if not there:
        return Finding(name="PATH", verdict=Verdict.NOTE, found="mvm is not on it", matters=matters, remedy=remedy)
    if foreign and there[0] == foreign[0]:
        return Finding(
            name="PATH",
            verdict=Verdict.WARNING,
            found=f"`mvm` is {foreign[0]}, not this one ({own})",
            matters=matters,
            remedy=remedy,
        )
    also = f"; {', '.join(map(str, foreign))} comes later" if foreign else ""
    return Finding(name="PATH", verdict=Verdict.OK, found=f"`mvm` is this one, {there[0]}{also}", matters=matters)


def _lines(path: Path) -> list[str]:
    """The lines of a file of the kernel's; none where there is no such file."""
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
