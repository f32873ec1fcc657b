"""What `mvm doctor` says of Firecracker: its programs, and its production host checklist line by line.

Everything is read from files below a root, so that tests can have a host of their own. Where nobody wants Firecracker
and none is installed, there is one line.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mvm.cli.checks import Finding, Verdict
from mvm.host.locations import Locations
from mvm.model.errors import MvmError
from mvm.network.apply import nft
from mvm.network.rules import TABLES
from mvm.runtime.firecracker import binaries, jail

RUNTIME = "firecracker"
KERNELS = ((5, 10), (6, 1), (6, 18))
"""Host kernels that Firecracker supports (facts/FIRECRACKER.md)."""
MANY_MOUNTS = 200
"""From here on making a jail takes noticeably longer; with 500 it was seen to take ten times as long."""
METADATA_RANGE = "169.254.0.0/16"
ListRules = Callable[[], Awaitable[str]]
_ELF = b"\x7fELF"
_INTERPRETER = 3
_CONTROLLERS = ("cpu", "memory", "pids")


@dataclass(frozen=True, kw_only=True)
class Host:
    """The host as its kernel describes it."""

    root: Path = Path("/")
    release: str = os.uname().release

    def path(self, name: str) -> Path:
        return self.root / name

    def text(self, name: str) -> str | None:
        """Content of a file; None where there is none."""
        with suppress(OSError):
            return self.path(name).read_text(errors="replace").strip()
        return None

    @property
    def kernel(self) -> tuple[int, int]:
        """Major and minor number."""
        found = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(found[1]), int(found[2])) if found else (0, 0)


async def firecracker_checks(
    locations: Locations,
    host: Host | None = None,
    environ: Mapping[str, str] = os.environ,
    list_rules: ListRules | None = None,
) -> list[Finding]:
    """All of them, in the order of the report; a single one where Firecracker is neither wanted nor there."""
    wanted = locations.runtime == RUNTIME or locations.production
    try:
        present = binaries.locate(binaries.FIRECRACKER, locations.programs_dir, environ) is not None
    except MvmError:
        present = True  # named, and not there: `programs` says so
    if not wanted and not present:
        return [
            Finding(
                name="firecracker",
                verdict=Verdict.OK,
                found="not installed, and not asked for",
                matters="it is for production: `mvm setup firecracker` installs it, MVM_RUNTIME=firecracker takes it",
            )
        ]
    host = host or Host()
    return [
        *programs(locations, environ),
        *(check(host) for check in CHECKLIST),
        await metadata_address(list_rules or _rules_in_force),
    ]


# The programs


def programs(locations: Locations, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Firecracker, and the jailer that belongs to it."""
    matters = "it runs each person's OpenClaw in a machine of its own, at the processor's speed"
    try:
        found = binaries.find(locations.programs_dir, environ=environ)
    except MvmError as error:
        yield Finding(
            name="firecracker",
            verdict=Verdict.PROBLEM,
            found=error.message,
            matters=matters,
            remedy=error.hint or "mvm setup firecracker",
        )
        return
    static = is_static(found.firecracker)
    yield Finding(
        name="firecracker",
        verdict=Verdict.OK if static else Verdict.WARNING,
        found=f"{found.version}, {found.firecracker}" + ("" if static else ", which is not a static program"),
        matters=matters if static else "a program that needs shared libraries does not start in its jail",
        remedy=None if static else "mvm setup firecracker, and unset MVM_FIRECRACKER",
    )
    yield jailer(found.jailer, found.no_jailer, production=locations.production)


def jailer(program: Path | None, problem: str, *, production: bool) -> Finding:
    matters = "in its jail a Firecracker that a guest has broken sees nothing and nobody else; production demands it"
    if program is not None:
        return Finding(name="jailer", verdict=Verdict.OK, found=f"of the same version, {program}", matters=matters)
    return Finding(
        name="jailer",
        verdict=Verdict.PROBLEM if production else Verdict.WARNING,
        found=problem,
        matters=matters,
        remedy="mvm setup firecracker",
    )


def is_static(program: Path) -> bool:
    """Whether a program needs no dynamic linker. True for a script, which is somebody's wrapper and their affair."""
    try:
        with program.open("rb") as file:
            head = file.read(64)
            if head[:4] != _ELF or len(head) < 64:
                return True
            order = "little" if head[5] == 1 else "big"
            table, size, count = (int.from_bytes(head[a:b], order) for a, b in ((32, 40), (54, 56), (56, 58)))  # type: ignore[arg-type]
            file.seek(table)
            headers = file.read(size * count)
    except OSError:
        return True
    kinds = [int.from_bytes(headers[n * size : n * size + 4], order) for n in range(count)]  # type: ignore[arg-type]
    return _INTERPRETER not in kinds


# The host


def kernel(host: Host) -> Finding:
    fits = host.kernel in KERNELS
    listed = ", ".join(f"{major}.{minor}" for major, minor in KERNELS)
    return Finding(
        name="host kernel",
        verdict=Verdict.OK if fits else Verdict.WARNING,
        found=f"{host.release}" if fits else f"{host.release}, which Firecracker is not tested on ({listed})",
        matters="Firecracker's isolation, and what a snapshot keeps, are promised on the kernels it is tested on",
        remedy=None if fits else f"boot one of the kernels {listed} on a host for production",
    )


def kvm_access(host: Host) -> Finding:
    """Who may make machines. Whether it can be done at all is the line 'kvm'."""
    matters = "whoever may open it can make machines of their own; the jailer gives each Firecracker its own"
    device = host.path("dev/kvm")
    try:
        mode = device.stat().st_mode
    except OSError:
        return Finding(
            name="kvm device",
            verdict=Verdict.PROBLEM,
            found="there is no /dev/kvm",
            matters="Firecracker does nothing without it",
            remedy="use a machine with hardware virtualisation, or MVM_RUNTIME=qemu",
        )
    opened = bool(mode & (stat.S_IROTH | stat.S_IWOTH))
    return Finding(
        name="kvm device",
        verdict=Verdict.WARNING if opened else Verdict.OK,
        found=f"mode {stat.S_IMODE(mode):04o}" + (", open to every user" if opened else ""),
        matters=matters,
        remedy='chmod o-rw /dev/kvm (and the udev rule that does it: MODE="0660", GROUP="kvm")' if opened else None,
    )


def smt(host: Host) -> Finding:
    matters = "two threads of one core share caches: a guest can read from its neighbour what the other thread does"
    active = host.text("sys/devices/system/cpu/smt/active")
    if active != "1":
        return Finding(
            name="smt", verdict=Verdict.OK, found="off" if active == "0" else "there is none", matters=matters
        )
    return Finding(
        name="smt",
        verdict=Verdict.WARNING,
        found="on",
        matters=matters,
        remedy="echo off > /sys/devices/system/cpu/smt/control, and the kernel parameter nosmt for good",
    )


def same_pages(host: Host) -> Finding:
    matters = "merged pages tell a guest, by the time a write takes, what its neighbour has in memory"
    if host.text("sys/kernel/mm/ksm/run") in (None, "0"):
        return Finding(name="ksm", verdict=Verdict.OK, found="off", matters=matters)
    return Finding(
        name="ksm",
        verdict=Verdict.WARNING,
        found="on: pages of equal content are merged",
        matters=matters,
        remedy="echo 2 > /sys/kernel/mm/ksm/run (2 also takes merged pages apart)",
    )


def swap(host: Host) -> Finding:
    matters = "what a guest has in memory, keys among it, is written to the disk by swapping; and a wake becomes slow"
    used = [line.split()[0] for line in (host.text("proc/swaps") or "").splitlines()[1:]]
    if not used:
        return Finding(name="swap", verdict=Verdict.OK, found="none", matters=matters)
    return Finding(
        name="swap",
        verdict=Verdict.WARNING,
        found=", ".join(used),
        matters=matters,
        remedy="swapoff -a, and take it out of /etc/fstab",
    )


def processor_flaws(host: Host) -> Finding:
    """Known flaws that nothing is done about, and the microcode that would."""
    matters = "through such a flaw of the processor a guest reads memory of its neighbours or of the host"
    place = host.path("sys/devices/system/cpu/vulnerabilities")
    try:
        flaws = {entry.name: entry.read_text(errors="replace") for entry in sorted(place.iterdir())}
    except OSError:
        return Finding(
            name="processor flaws",
            verdict=Verdict.WARNING,
            found=f"this kernel does not say ({place})",
            matters=matters,
            remedy="boot a kernel that lists /sys/devices/system/cpu/vulnerabilities",
        )
    bad = [name for name, state in flaws.items() if state.startswith("Vulnerable")]
    microcode = re.search(r"^microcode\s*: (\S+)", host.text("proc/cpuinfo") or "", re.MULTILINE)
    loaded = f"microcode {microcode[1]}" if microcode else "microcode unknown (a virtual host does not say)"
    if not bad:
        return Finding(name="processor flaws", verdict=Verdict.OK, found=f"all dealt with, {loaded}", matters=matters)
    return Finding(
        name="processor flaws",
        verdict=Verdict.WARNING,
        found=f"open: {', '.join(bad)}; {loaded}",
        matters=matters,
        remedy="apt-get install intel-microcode (or amd64-microcode) and restart; no mitigations=off in the parameters",
    )


def start_of_machines(host: Host) -> Finding:
    """Kernels since 6.1 make each new machine wait for a grace period, unless told otherwise."""
    matters = "without one of the two every start and wake waits tens of milliseconds for the kernel"
    if host.kernel < (6, 1):
        return Finding(name="start of machines", verdict=Verdict.OK, found="not slowed by this kernel", matters=matters)
    favoured = any("favordynmods" in line.split()[3].split(",") for line in _mounts(host) if " cgroup" in line)
    never = host.text("sys/module/kvm/parameters/nx_huge_pages") == "never"
    if favoured or never:
        found = "cgroups are mounted with favordynmods" if favoured else "kvm.nx_huge_pages=never"
        return Finding(name="start of machines", verdict=Verdict.OK, found=found, matters=matters)
    return Finding(
        name="start of machines",
        verdict=Verdict.WARNING,
        found="neither favordynmods nor kvm.nx_huge_pages=never",
        matters=matters,
        remedy="mount -o remount,favordynmods /sys/fs/cgroup (kvm.nx_huge_pages=never only where "
        "vulnerabilities/itlb_multihit says 'Not affected')",
    )


def groups(host: Host) -> Finding:
    """Which control groups bound a machine."""
    matters = "they bound what one machine takes of memory, processors and processes; version 2 counts memory honestly"
    found = jail.control_groups(host.path("proc/self/mountinfo"))
    if not found.bases:
        return Finding(
            name="machine cgroups",
            verdict=Verdict.WARNING,
            found=f"not all of {', '.join(_CONTROLLERS)} are there: machines are not bounded",
            matters=matters,
            remedy="mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1",
        )
    old = found.version == 1
    return Finding(
        name="machine cgroups",
        verdict=Verdict.WARNING if old else Verdict.OK,
        found=f"version {found.version}" + (", which is all there is: it will do" if old else ""),
        matters=matters,
        remedy="boot with systemd.unified_cgroup_hierarchy=1 (cgroup_no_v1=all)" if old else None,
    )


def mounts(host: Host) -> Finding:
    matters = "each jail copies the host's table of mounts: with hundreds a start takes many times as long"
    count = len(_mounts(host))
    many = count > MANY_MOUNTS
    return Finding(
        name="mounts",
        verdict=Verdict.WARNING if many else Verdict.OK,
        found=f"{count}",
        matters=matters,
        remedy="run the agent where containers do not mount: systemd-run, or another host" if many else None,
    )


async def metadata_address(list_rules: ListRules) -> Finding:
    """Whether the rules that are in force keep machines from it."""
    matters = "a guest that reaches 169.254.169.254 has this host's credentials in its cloud"
    try:
        rules = await list_rules()
    except MvmError:
        return Finding(
            name="metadata address",
            verdict=Verdict.OK,
            found="no network of a tenant is there yet; the rules that come with the first one drop 169.254.0.0/16",
            matters=matters,
        )
    dropped = METADATA_RANGE in rules
    return Finding(
        name="metadata address",
        verdict=Verdict.OK if dropped else Verdict.PROBLEM,
        found="dropped at every TAP; `mvm net verify` proves it from inside"
        if dropped
        else f"mvm's rules are in force and do not name {METADATA_RANGE}",
        matters=matters,
        remedy=None if dropped else "restart the agent, which puts its rules back; then `mvm net verify`",
    )


async def _rules_in_force() -> str:
    family, table = TABLES[0]
    return await nft("list", "table", family, table)


def page_faults(host: Host) -> Finding:
    there = host.path("dev/userfaultfd").exists()
    return Finding(
        name="userfaultfd",
        verdict=Verdict.OK,
        found=f"not needed ({'there' if there else 'not there'}): machines wake from files",
        matters="only a handler of page faults would use it, and a guest stands still for ever when that dies",
    )


def _mounts(host: Host) -> list[str]:
    return (host.text("proc/mounts") or "").splitlines()


CHECKLIST: tuple[Callable[[Host], Finding], ...] = (
    kernel,
    kvm_access,
    smt,
    same_pages,
    swap,
    processor_flaws,
    start_of_machines,
    groups,
    mounts,
    page_faults,
)
"""What is asked of the host, in the order of the report."""
