"""The first process of a machine of its own: from what the kernel gives to running services, and back (ADR 5).

The initial RAM disk has loaded modules and mounted the root; everything after that is here, in one process that then
is the supervisor. A stage that fails costs what it was for and no more: the channel and the agent come up whatever is
wrong, so that the host is told. Should this process itself end, the kernel panics and restarts the machine, which is
its end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import stat
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mvm.guest import config as config_files
from mvm.guest import data_drive, drives, identity, kernel, logfiles, machine, supervisor, swap, tokens, users
from mvm.guest.data_drive import DataDriveError
from mvm.guest.drives import Drives
from mvm.guest.kernel import MountFlag
from mvm.guest.network_device import LOOPBACK, NetworkDevice
from mvm.guest.paths import GuestPaths
from mvm.guest.services import DEFAULT_PATH, Programs
from mvm.guest.units import UNITS

CONSOLE = "/dev/console"
LEAST_OOM_SCORE = -1000
OPEN_FILES = 65536

_PLAIN = MountFlag.NO_SETUID | MountFlag.NO_DEVICES
_CLOSED = _PLAIN | MountFlag.NO_EXECUTION
MOUNTS: tuple[tuple[str, str, str, MountFlag, str], ...] = (
    ("proc", "/proc", "proc", _CLOSED, "hidepid=invisible"),
    ("sysfs", "/sys", "sysfs", _CLOSED, ""),
    ("devtmpfs", "/dev", "devtmpfs", MountFlag.NO_SETUID, "mode=0755"),
    ("devpts", "/dev/pts", "devpts", MountFlag.NO_SETUID | MountFlag.NO_EXECUTION, "mode=0620,gid=5,ptmxmode=0666"),
    ("tmpfs", "/dev/shm", "tmpfs", _PLAIN, "mode=1777"),  # noqa: S108 - the place, not a file in it
    ("tmpfs", "/run", "tmpfs", _PLAIN, "mode=0755"),
    ("tmpfs", "/tmp", "tmpfs", _PLAIN, "mode=1777"),  # noqa: S108
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", _CLOSED, ""),
)
"""Source, place, kind, flags and options, in order."""
SYSTEMDS_OWN = ("cgroup2", "devpts")
"""Kinds that systemd has mounted itself, in its own way, where it is the first process."""

SETTINGS: tuple[tuple[str, str], ...] = (
    ("kernel/panic", "1"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/core_pattern", ""),
    ("kernel/dmesg_restrict", "1"),
    ("kernel/kptr_restrict", "2"),
    ("kernel/sysrq", "0"),
    ("kernel/yama/ptrace_scope", "1"),
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("fs/protected_symlinks", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_fifos", "2"),
    ("fs/protected_regular", "2"),
    # Compressed memory is faster than any disk: what is not used goes there before caches are given up.
    ("vm/swappiness", "150"),
    ("vm/page-cluster", "0"),
    # A peer that was put to sleep or moved is noticed within two minutes, not two hours.
    ("net/ipv4/tcp_keepalive_time", "60"),
    ("net/ipv4/tcp_keepalive_intvl", "10"),
    ("net/ipv4/tcp_keepalive_probes", "6"),
    # The tenant's network and its rules are IPv4.
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv6/conf/lo/disable_ipv6", "0"),
    ("net/ipv4/conf/all/rp_filter", "1"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
)
"""Below `/proc/sys`; what this kernel does not have is left out."""


class Console:
    """Where the first process speaks: one line per stage, with the seconds since the machine began."""

    def stage(self, name: str) -> None:
        """A stage is done."""
        with suppress(OSError):
            self._write(f"MVM-T {name} {Path('/proc/uptime').read_text().split()[0]}")

    def note(self, text: str) -> None:
        """Something is out of the ordinary."""
        with suppress(OSError):
            self._write(f"mvm: {text}")

    @staticmethod
    def _write(line: str) -> None:
        descriptor = os.open(CONSOLE, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            os.write(descriptor, line.encode(errors="replace") + b"\n")
        finally:
            os.close(descriptor)


def main(environment: Mapping[str, str]) -> int:
    """Be the first process. Does not return in a machine of its own; 1 anywhere else."""
    if os.getpid() != 1:
        print("init: only the first process of a machine can do this", file=sys.stderr)
        return 1
    console = Console()
    try:
        run(environment, console)
    except BaseException:  # whatever it was: half a machine is worse than none
        console.note(traceback.format_exc())
    finally:
        leave(GuestPaths(), console)
    return 1


def run(environment: Mapping[str, str], console: Console) -> None:
    """Bring the machine up and run its services until it is told to shut down."""
    os.umask(0o022)
    os.chdir("/")
    attempt = _attempts(console)
    _mount_all(console)
    console.stage("mounts")
    attempt("settings", _settle_in)
    attempt("loopback", NetworkDevice(LOOPBACK).up)
    attempt("swap", swap.begin)
    console.stage("kernel")
    paths = GuestPaths()
    take_over(paths, console)
    services = service_environment(environment)
    os.environ.clear()
    os.environ.update(services)
    asyncio.run(supervisor.Supervisor(paths, Programs.from_environment(services), services).run())


def take_over(paths: GuestPaths, console: Console) -> None:
    """Make the machine the instance's: its data, its configuration and secrets, its identity. Raises `OSError`."""
    attempt = _attempts(console)
    problem = _bring_up_data(paths, console)
    make_directories(paths)
    if problem is not None:
        paths.boot_problem.write_text(problem)
    console.stage("data")
    attempt("drives", Drives(paths).take_in)
    console.stage("drives")
    attempt("identity", lambda: _take_identity(paths))
    console.stage("identity")


def prepare(environment: Mapping[str, str]) -> int:
    """What is left of this program where systemd is the first process: the step before all services (ADR 30)."""
    os.umask(0o022)
    paths = GuestPaths.from_environment(environment)
    if not paths.owns_machine:
        print("prepare: only in a machine of its own", file=sys.stderr)
        return 1
    console = Console()
    attempt = _attempts(console)
    # With the flags that they have in every guest; the rest is as systemd needs it.
    _mount_all(console, tuple(mount for mount in MOUNTS if mount[2] not in SYSTEMDS_OWN))
    attempt("keyboard", kernel.keep_keyboard_quiet)
    attempt("swap", swap.begin)
    console.stage("kernel")
    try:
        take_over(paths, console)
        for unit in UNITS:
            logfiles.make(paths.log(unit.short))
    except OSError as error:
        console.note(f"this machine cannot be made ready: {error}")
        return 1
    return 0


def service_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What services get from a kernel that passes unknown parameters on as variables: the locale and the programs."""
    return {"LANG": "C.UTF-8", **{k: v for k, v in environment.items() if k == "MVM_LOG"}, "PATH": DEFAULT_PATH}


def leave(paths: GuestPaths, console: Console) -> None:
    """End the machine with everything on disk that belongs there."""
    os.sync()
    if os.path.ismount(paths.data):
        try:
            kernel.unmount(paths.data)
        except OSError as error:
            console.note(str(error))
            with suppress(OSError):
                kernel.mount("none", paths.data, "", MountFlag.REMOUNT | MountFlag.READ_ONLY)
    os.sync()
    console.stage("end")
    with suppress(OSError):
        kernel.restart_machine()


def make_directories(paths: GuestPaths) -> None:
    """Every directory with the access that its users have; tokens that two of them need. Raises `OSError`."""
    for directory, access in users.directories(paths).items():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        access.give(directory)
    tokens.renew_all(paths)


def _attempts(console: Console) -> Callable[[str, Callable[[], None]], None]:
    def attempt(what: str, step: Callable[[], None]) -> None:
        try:
            step()
        except (OSError, ValueError) as error:
            console.note(f"{what}: {error}")

    return attempt


def _mount_all(console: Console, mounts: Sequence[tuple[str, str, str, MountFlag, str]] = MOUNTS) -> None:
    for source, place, kind, flags, options in mounts:
        target = Path(place)
        # The initial RAM disk may have done it; then only the flags are put right.
        again = MountFlag.REMOUNT if os.path.ismount(target) else MountFlag(0)
        try:
            target.mkdir(exist_ok=True)
            kernel.mount(source, target, kind, flags | again, options)
        except OSError as error:
            console.note(str(error))


def _settle_in() -> None:
    kernel.keep_keyboard_quiet()
    Path("/proc/self/oom_score_adj").write_text(str(LEAST_OOM_SCORE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    for name, value in SETTINGS:
        with suppress(OSError):
            (Path("/proc/sys") / name).write_text(f"{value}\n")
    for console in (Path("/dev/console"), Path("/dev/ttyS0")):
        if console.exists() and stat.S_ISCHR(console.stat().st_mode):
            console.chmod(0o600)


def _bring_up_data(paths: GuestPaths, console: Console) -> str | None:
    """The data drive in its place; returns what makes this machine unfit to run services."""
    device = drives.find(drives.DATA)
    if device is None:
        console.note("there is no data drive: what is written is lost with this machine")
        return None
    try:
        data_drive.bring_up(device, paths.data, console.note)
    except DataDriveError as error:
        console.note(f"the data drive cannot be used: {error}")
        return f"the data drive cannot be used: {error}"
    return None


def _take_identity(paths: GuestPaths) -> None:
    logging.lastResort = None  # what is said before services run is said on the console
    config = config_files.read(paths.config).config
    identity.take(paths, config)
    if identity.is_nobodys(config):
        machine.set_clock_back()
