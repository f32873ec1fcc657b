"""What runs in a guest, described once as data: the supervisor runs it, images render it to units (DESIGN, Images)."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from mvm.guest import users
from mvm.guest.confinement import UNCONFINED, Confinement
from mvm.guest.paths import GuestPaths, real
from mvm.guest.processes import ROOT_MARKER, SERVICE_MARKER

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_HEAP_MIB = 512
LEAST_HEAP_MIB = 384
HOME_OF_OTHERS = "/root"
"""Home of services that are not OpenClaw's, in a machine of its own."""
PASSED_ON = (
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
)
"""What an instance inherits from outside, and its services from their supervisor: how to speak and how to reach the
network, nothing else."""


class Role(StrEnum):
    """Roles of CONTRACT 3, as far as they change what runs in the guest."""

    GATEWAY = "gateway"
    BUILDER = "builder"
    WORKER = "worker"
    CAPABILITY_OPENCLAW = "capability-openclaw"
    CAPABILITY_IMESSAGE = "capability-imessage"

    @property
    def runs_openclaw(self) -> bool:
        return self in (Role.GATEWAY, Role.CAPABILITY_OPENCLAW)


class Program(StrEnum):
    """What a service is run by."""

    GUEST = "guest"
    """This zipapp; the service's arguments are its sub-command."""
    OPENCLAW = "openclaw"
    """OpenClaw's command line."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """One service of a guest. Times are in seconds."""

    name: str
    description: str
    roles: frozenset[Role]
    program: Program
    arguments: tuple[str, ...]
    starts_by_itself: bool
    """False: the agent starts it once its files are in place."""
    stop_rank: int
    """Services of a lower rank are stopped before those of a higher one, which they still need."""
    stop_seconds: float
    """How long it may take to end after SIGTERM when nobody says otherwise."""
    first_delay: float
    """Pause before the first restart after an unexpected end; doubled each time."""
    longest_delay: float
    settled_after: float
    """After running that long the pauses begin anew."""
    environment_file: bool = False
    """True: gets `/run/openclaw/env`, read at each start."""
    confinement: Confinement = UNCONFINED
    """What it may do in a machine of its own; under the process runtime it may what its supervisor may."""
    needs_own_machine: bool = False
    """True: there is nothing for it to do where the guest is a directory of the host's (process runtime)."""
    outlives_shutdown: bool = False
    """True: stopped only after whoever asked for a shutdown has been answered, for the answer takes its way."""


ALL_ROLES = frozenset(Role)

CHANNEL = Service(
    name="channel",
    description="mvm channel to the host",
    roles=ALL_ROLES,
    program=Program.GUEST,
    arguments=("channel",),
    starts_by_itself=True,
    stop_rank=3,
    stop_seconds=3.0,
    first_delay=0.1,
    longest_delay=2.0,
    settled_after=30.0,
    # Without these two nobody could even be told what went wrong.
    confinement=Confinement(oom_score=-900),
    needs_own_machine=True,
    outlives_shutdown=True,
)
AGENT = Service(
    name="agent",
    description="mvm guest agent",
    roles=ALL_ROLES,
    program=Program.GUEST,
    arguments=("agent",),
    starts_by_itself=True,
    stop_rank=2,
    stop_seconds=10.0,
    first_delay=0.1,
    longest_delay=5.0,
    settled_after=30.0,
    confinement=Confinement(oom_score=-900),
)
ROUTER = Service(
    name="router",
    description="mvm router of messages to workers",
    roles=frozenset({Role.GATEWAY}),
    program=Program.GUEST,
    arguments=("router",),
    starts_by_itself=True,
    stop_rank=1,
    stop_seconds=15.0,
    first_delay=0.1,
    longest_delay=10.0,
    settled_after=30.0,
    confinement=Confinement(user=users.ROUTER, oom_score=-500),
)
OPENCLAW = Service(
    name="openclaw",
    description="OpenClaw gateway",
    roles=frozenset({Role.GATEWAY, Role.CAPABILITY_OPENCLAW}),
    program=Program.OPENCLAW,
    arguments=("gateway", "run"),
    starts_by_itself=False,
    stop_rank=0,
    # OpenClaw finishes the turns under way and takes up to 315 s for it (facts/OPENCLAW.md, section 5).
    stop_seconds=320.0,
    first_delay=1.0,
    longest_delay=60.0,
    settled_after=120.0,
    environment_file=True,
    # What uses the most memory by far is ended first, and started again; it resumes what it was doing.
    confinement=Confinement(user=users.OPENCLAW, groups=(users.ROUTER,), oom_score=500),
)
SERVICES = (CHANNEL, AGENT, ROUTER, OPENCLAW)


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Where the programs are in this guest."""

    python: str
    zipapp: str
    node: str
    openclaw: str
    """Directory of the npm package `openclaw`."""
    plugin: str = "/opt/mvm/openclaw-plugin"
    """Directory of mvm's plugin for it."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Programs:
        """As the process runtime says by variables, else where an image has them."""
        return cls(
            python=environment.get("MVM_PYTHON") or sys.executable or "/usr/bin/python3",
            zipapp=environment.get("MVM_GUEST_ZIPAPP") or "/opt/mvm/guest.pyz",
            node=environment.get("MVM_NODE") or shutil.which("node") or "/usr/bin/node",
            openclaw=environment.get("MVM_OPENCLAW_DIR") or "/opt/openclaw/node_modules/openclaw",
            plugin=environment.get("MVM_PLUGIN_DIR") or cls.plugin,
        )

    def guest(self, *arguments: str) -> tuple[str, ...]:
        """Argument list of a sub-command of this zipapp; isolated from whatever Python packages are around."""
        return (self.python, "-I", "-S", self.zipapp, *arguments)

    def command(self, program: Program, arguments: tuple[str, ...]) -> tuple[str, ...]:
        """Argument list of a service."""
        if program is Program.GUEST:
            return self.guest(*arguments)
        return (self.node, str(Path(self.openclaw) / "openclaw.mjs"), *arguments)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Everything that is needed to start a service's process."""

    argv: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)
    directory: str
    confinement: Confinement | None = None
    """What to take before anything else; None under the process runtime."""
    copied: tuple[str, ...] | None = None
    """Sub-command of the zipapp that a copy of this process can run instead of `argv`."""


def launch(
    service: Service,
    paths: GuestPaths,
    programs: Programs,
    environment: Mapping[str, str],
    *,
    mem_mib: int | None = None,
) -> Launch:
    """How to start a service now. `environment` is the supervisor's own, `mem_mib` the memory of the instance.

    Raises `OSError` or `ValueError` when the service's environment file cannot be read.
    """
    variables = fixed_environment(service, paths, programs, environment, mem_mib=mem_mib)
    if service.program is Program.GUEST:
        own = {name: value for name, value in environment.items() if name.startswith("MVM_")}
        variables = own | variables
    if service.environment_file:
        # A secret may have any name; what the service needs to run goes before.
        variables = parse_environment_file(paths.environment_file.read_text()) | variables
    alike = service.program is Program.GUEST and service.confinement.user is users.ROOT
    return Launch(
        argv=programs.command(service.program, service.arguments),
        environment=variables,
        directory=real(paths.home) if service.program is Program.OPENCLAW else str(paths.root),
        confinement=service.confinement if paths.owns_machine else None,
        copied=service.arguments if alike and paths.owns_machine else None,
    )


def fixed_environment(
    service: Service,
    paths: GuestPaths,
    programs: Programs,
    environment: Mapping[str, str],
    *,
    mem_mib: int | None = None,
) -> dict[str, str]:
    """What a service gets whatever its secrets are; `environment` is that of who supervises."""
    variables = base_environment(service.name, paths, environment)
    if service.program is Program.OPENCLAW:
        variables.update(openclaw_environment(paths, programs.plugin, mem_mib))
    if paths.owns_machine and service.confinement.user is not users.OPENCLAW:
        # What lies in OpenClaw's home may tell a program what to do.
        variables["HOME"] = HOME_OF_OTHERS
    return variables


def base_environment(service: str, paths: GuestPaths, environment: Mapping[str, str]) -> dict[str, str]:
    """What a process of the guest gets in any case: the marks by which it is found again, and the locale."""
    variables = {name: environment[name] for name in PASSED_ON if name in environment}
    variables["PATH"] = environment.get("PATH") or DEFAULT_PATH
    variables["HOME"] = real(paths.home)
    variables[ROOT_MARKER] = real(paths.root)
    variables[SERVICE_MARKER] = service
    return variables


def heap_mib(mem_mib: int | None) -> int:
    """Limit of OpenClaw's JavaScript heap, in an instance of that much memory.

    After its first turns 230 MiB of it are in use, and as much again and more is outside of it. A limit that is higher
    than need be is not used for work but for putting off to clear up.
    """
    if mem_mib is None:
        return DEFAULT_HEAP_MIB
    return max(LEAST_HEAP_MIB, mem_mib // 4)


def openclaw_environment(paths: GuestPaths, plugin: str, mem_mib: int | None = None) -> dict[str, str]:
    """What OpenClaw is told without secrets (facts/OPENCLAW.md, section 1)."""
    patience = json.dumps(str(Path(plugin) / "patience.cjs"))  # quoted as Node reads it
    return {
        "OPENCLAW_STATE_DIR": real(paths.openclaw_state),
        "OPENCLAW_CONFIG_PATH": real(paths.openclaw_config),
        "OPENCLAW_CONFIG_READONLY": "1",
        "OPENCLAW_NO_RESPAWN": "1",
        "OPENCLAW_NO_AUTO_UPDATE": "1",
        "OPENCLAW_DISABLE_BONJOUR": "1",
        # The plugin holds a Telegram update until it is answered; OpenClaw would dispatch it again after five minutes.
        "OPENCLAW_TELEGRAM_SPOOLED_HANDLER_TIMEOUT_MS": str(24 * 3600 * 1000),
        # Together these save a sixth of the resident memory and cost no start time.
        "MALLOC_ARENA_MAX": "2",
        "NODE_OPTIONS": f"--max-old-space-size={heap_mib(mem_mib)} --max-semi-space-size=8 --require {patience}",
    }


def render_environment_file(variables: Mapping[str, str]) -> str:
    """`KEY="value"` lines that systemd's EnvironmentFile and `parse_environment_file` read back exactly."""
    return "".join(f'{name}="{_escaped(value)}"\n' for name, value in sorted(variables.items()))


def _escaped(value: str) -> str:
    for special in '\\"`$':
        value = value.replace(special, "\\" + special)
    return value


def parse_environment_file(text: str) -> dict[str, str]:
    """Read what `render_environment_file` wrote; `ValueError` names the line of anything else, never its value."""
    variables: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line:
            continue
        name, separator, quoted = line.partition("=")
        if not separator or len(quoted) < 2 or quoted[0] != '"' or quoted[-1] != '"':
            raise ValueError(f'line {number} of the environment file is not NAME="value"')
        variables[name] = _unescaped(quoted[1:-1])
    return variables


def _unescaped(value: str) -> str:
    plain, rest = [], iter(value)
    for character in rest:
        plain.append(next(rest, "") if character == "\\" else character)
    return "".join(plain)
