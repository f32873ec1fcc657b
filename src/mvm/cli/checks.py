"""The checks of `mvm doctor`: each tries the thing itself, and says why it matters and what to type."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from mvm.cli.output import mib
from mvm.host.autostart import is_there
from mvm.host.client import AgentClient
from mvm.host.locations import SYSTEM_SOCKET, Locations
from mvm.host.remote_client import remote_client
from mvm.model.errors import MvmError, Unavailable
from mvm.runtime import bounds

KVM_API_VERSION = 12
_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01
_KVM_CREATE_VCPU = 0xAE41

WORKER_MIB = 2048
"""Memory of one running OpenClaw (OPENCLAW.md section 1)."""
LOW_DISK_MIB = 2048


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    NOTE = "note"
    """It works, and there is something to know."""
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    name: str
    verdict: Verdict
    found: str
    matters: str
    remedy: str | None = None

    def as_json(self) -> dict[str, str | None]:
        return {**asdict(self), "verdict": str(self.verdict)}


def python_version() -> Finding:
    found = platform.python_version()
    fits = sys.version_info >= (3, 11)
    return Finding(
        name="python",
        verdict=Verdict.OK if fits else Verdict.PROBLEM,
        found=found,
        matters="mvm needs Python 3.11 or newer",
        remedy=None if fits else "python3.11 scripts/setup.py",
    )


def node_program() -> Finding:
    from mvm.openclaw.programs import find_programs

    matters = "OpenClaw is a Node program"
    try:
        programs = find_programs(os.environ.get("MVM_NODE"))
    except MvmError as error:
        return Finding(name="node", verdict=Verdict.PROBLEM, found=error.message, matters=matters, remedy=error.hint)
    return Finding(name="node", verdict=Verdict.OK, found=f"{programs.version}, {programs.node}", matters=matters)


def openclaw_installation(locations: Locations) -> Finding:
    from mvm.openclaw.install import committed_lock, installed

    found = installed(locations.programs_dir)
    if found is not None:
        text = f"{found.version}, {found.root}"
        return Finding(name="openclaw", verdict=Verdict.OK, found=text, matters="it is what instances run")
    return Finding(
        name="openclaw",
        verdict=Verdict.WARNING,
        found=f"{committed_lock().version} is not in {locations.programs_dir}",
        matters="it is what instances run; the first `mvm new` has to download it",
        remedy="make setup",
    )


def kvm(device: Path = Path("/dev/kvm")) -> Finding:
    """Whether KVM makes a machine with a processor, found out by making one."""
    matters = "by it virtual machines run at the processor's own speed; without it they are emulated"
    text, remedy = _try_kvm(device)
    if remedy is not None:
        return Finding(name="kvm", verdict=Verdict.WARNING, found=text, matters=matters, remedy=remedy)
    if _is_virtual():
        text += "; this machine is virtual itself, so guests may still fail to run: the line 'qemu' has tried one"
    return Finding(name="kvm", verdict=Verdict.OK, found=text, matters=matters)


def process_runtime(locations: Locations) -> Finding:
    matters = "it runs instances as ordinary processes: for development and tests, nothing is isolated"
    if locations.production:
        asked = locations.runtime == "process"
        return Finding(
            name="process runtime",
            verdict=Verdict.PROBLEM if asked else Verdict.NOTE,
            found="refused in production mode: it does not isolate tenants",
            matters=matters,
            remedy="MVM_RUNTIME=auto, firecracker or qemu" if asked else None,
        )
    if sys.platform != "linux":
        return Finding(
            name="process runtime",
            verdict=Verdict.PROBLEM,
            found=f"not supported on {sys.platform}",
            matters=matters,
            remedy="use a Linux machine",
        )
    return Finding(
        name="process runtime",
        verdict=Verdict.OK,
        found="usable; instances are not isolated from each other",
        matters=matters,
    )


def loopback_addresses() -> Finding:
    matters = "each instance of the process runtime has an address in 127.240.0.0/12"
    try:
        with socket.socket() as probe:
            probe.bind(("127.240.255.254", 0))
    except OSError as error:
        return Finding(
            name="loopback",
            verdict=Verdict.PROBLEM,
            found=f"127.240.255.254 cannot be used: {error.strerror}",
            matters=matters,
            remedy="ip address add 127.0.0.1/8 dev lo && ip link set lo up",
        )
    return Finding(name="loopback", verdict=Verdict.OK, found="127.240.0.0/12 can be used", matters=matters)


def secrets_memory(locations: Locations) -> Finding:
    matters = "secrets of running instances shall never be on a disk"
    if locations.secrets_in_memory:
        return Finding(name="secrets", verdict=Verdict.OK, found=f"in memory, {locations.secrets_dir}", matters=matters)
    return Finding(
        name="secrets",
        verdict=Verdict.WARNING,
        found=f"no writable tmpfs: kept in {locations.secrets_dir} on disk, mode 0600",
        matters=matters,
        remedy="mount -t tmpfs -o mode=1777 tmpfs /dev/shm",
    )


def nearest(directory: Path) -> Path:
    """The directory, or the nearest one above it that there is, as far as it may be looked at."""
    # `Path.exists` raises where a directory on the way may not be searched.
    return next(path for path in (directory, *directory.parents) if os.path.exists(path))


def disk_space(locations: Locations) -> Finding:
    place = nearest(locations.state_dir)
    free = shutil.disk_usage(place).free // 2**20
    low = free < LOW_DISK_MIB
    return Finding(
        name="disk",
        verdict=Verdict.WARNING if low else Verdict.OK,
        found=f"{mib(free)} free at {place}",
        matters="data and sleeping instances are kept there",
        remedy=f"free some space, or choose another place with MVM_STATE_DIR (at least {mib(LOW_DISK_MIB)})"
        if low
        else None,
    )


def memory() -> Finding:
    import psutil

    available = psutil.virtual_memory().available // 2**20
    room = available // WORKER_MIB
    return Finding(
        name="memory",
        verdict=Verdict.OK if room >= 2 else Verdict.WARNING,
        found=f"{mib(available)} available: room for about {room} running OpenClaw",
        matters="a gateway and one worker run at the same time; sleeping workers need none",
        remedy=None if room >= 2 else "end other programs, or use a larger machine",
    )


def control_groups(proc: Path = bounds.PROC) -> Finding:
    """What instances are bounded in, tried out by making a group as the agent does."""
    matters = "they bound what one instance takes of memory, processes and processors, under every runtime"
    obtained = bounds.obtainable(proc)
    missing = [kind for kind in bounds.CONTROLLERS if kind not in obtained]
    if not missing:
        return Finding(name="cgroups", verdict=Verdict.OK, found=f"{', '.join(obtained)} are bounded", matters=matters)
    found = f"{', '.join(obtained)} bounded, {', '.join(missing)} not" if obtained else bounds.UNBOUND
    return Finding(
        name="cgroups",
        verdict=Verdict.WARNING,
        found=found,
        matters=matters,
        remedy="run the agent as root, or by systemd (from 254) with Delegate=yes and DelegateSubgroup=agent",
    )


def agent_socket(locations: Locations) -> Path:
    """Where the agent that commands would use listens."""
    system = not locations.chosen and is_there(SYSTEM_SOCKET)
    return SYSTEM_SOCKET if system else locations.socket


def agent_client(locations: Locations) -> AgentClient:
    """A client of the agent that commands would use; it may not run."""
    if locations.agent is not None:
        return remote_client(locations, locations.agent)
    return AgentClient(agent_socket(locations))


async def agent(locations: Locations) -> Finding:
    matters = "it is the only process that changes anything; the first command starts one when none runs"
    path = agent_socket(locations)
    try:
        await agent_client(locations).call("NodeInfo", timeout=5)
    except Unavailable as error:
        stale = locations.agent is not None or path.exists()
        return Finding(
            name="agent",
            verdict=Verdict.WARNING if stale else Verdict.OK,
            found=error.message if stale else "none runs",
            matters=matters,
            remedy=error.hint if stale else None,
        )
    except MvmError as error:
        return Finding(name="agent", verdict=Verdict.PROBLEM, found=error.message, matters=matters, remedy=error.hint)
    if locations.agent is not None:
        return Finding(name="agent", verdict=Verdict.OK, found=f"answers at tls://{locations.agent}", matters=matters)
    owner = "unknown"
    with contextlib.suppress(OSError, KeyError):
        owner = path.owner()
    return Finding(name="agent", verdict=Verdict.OK, found=f"answers at {path} (owner {owner})", matters=matters)


def local_checks(locations: Locations) -> Iterator[Finding]:
    """All checks but the agent's, in the order of the report."""
    checks: list[Callable[[], Finding]] = [
        python_version,
        node_program,
        lambda: openclaw_installation(locations),
        kvm,
        lambda: process_runtime(locations),
        loopback_addresses,
        lambda: secrets_memory(locations),
        lambda: disk_space(locations),
        memory,
        control_groups,
    ]
    for check in checks:
        yield check()


def _try_kvm(device: Path) -> tuple[str, str | None]:
    """What was found, and what to do when it does not work."""
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return f"there is no {device}", "use a machine with hardware virtualisation (modprobe kvm_intel or kvm_amd)"
    except PermissionError:
        return f"{device} may not be opened by this user", "usermod -aG kvm $USER, then log in again"
    except OSError as error:
        return f"{device} cannot be opened: {error.strerror}", "use a machine with hardware virtualisation"
    opened = [descriptor]
    try:
        version = fcntl.ioctl(descriptor, _KVM_GET_API_VERSION, 0)
        if version != KVM_API_VERSION:
            return f"{device} speaks version {version} of its interface", "use a kernel of this century"
        opened.append(fcntl.ioctl(descriptor, _KVM_CREATE_VM, 0))
        opened.append(fcntl.ioctl(opened[-1], _KVM_CREATE_VCPU, 0))
    except OSError as error:
        return f"{device} makes no machine: {error.strerror}", "use a machine with hardware virtualisation"
    finally:
        for each in reversed(opened):
            os.close(each)
    return "makes a machine", None


def _is_virtual() -> bool:
    try:
        return " hypervisor" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
