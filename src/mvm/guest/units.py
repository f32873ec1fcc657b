"""What runs in a guest whose first process is systemd (ADR 30), as data; `mvm.image.units` renders it for Nix modules.

The services of `mvm.guest.services` under other names; what mvm's own first process does between kernel and services,
as steps; and the parts of the agent that are units of their own there. Everything is a sub-command of the same program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mvm.guest import services
from mvm.guest.confinement import UNCONFINED, Confinement
from mvm.guest.services import ALL_ROLES, Program, Role, Service

SUPERVISOR_VARIABLE = "MVM_SUPERVISOR"
"""Says to the agent who supervises: `systemd`; nothing where mvm's own supervisor does."""
SYSTEMD = "systemd"

OPENCLAW_ROLES = frozenset(role for role in Role if role.runs_openclaw)
_HELPER_STOP_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One unit. Times are in seconds."""

    name: str
    """Without `.service`."""
    short: str
    """What the supervisor's operations and its log call it."""
    description: str
    roles: frozenset[Role]
    arguments: tuple[str, ...]
    program: Program = Program.GUEST
    step: bool = False
    """It comes to an end, and what needs it waits for that."""
    stays: bool = True
    """A step that is done counts as done until the next boot; false: it is done anew whenever it is asked for."""
    at_boot: bool = True
    after: tuple[str, ...] = ()
    """Units that it is started after, if they are started at all."""
    requires: tuple[str, ...] = ()
    """Units without which it is not started."""
    needs_sound_machine: bool = False
    """True: nothing for a machine whose data drive cannot be used, in which only the host is told so."""
    confinement: Confinement = UNCONFINED
    environment_files: tuple[str, ...] = ()
    stop_rank: int | None = None
    """As `Service.stop_rank`; None for what is left to the end of the machine."""
    stop_seconds: float = _HELPER_STOP_SECONDS
    first_delay: float = 0.1
    longest_delay: float = 5.0

    @property
    def service(self) -> str:
        """How systemd calls it."""
        return f"{self.name}.service"


def _unit(service: Service, name: str, **more: object) -> Unit:
    unit = Unit(
        name=name,
        short=service.name,
        description=service.description,
        roles=service.roles,
        arguments=service.arguments,
        program=service.program,
        at_boot=service.starts_by_itself,
        confinement=service.confinement,
        stop_rank=None if service.outlives_shutdown else service.stop_rank,
        stop_seconds=service.stop_seconds,
        first_delay=service.first_delay,
        longest_delay=service.longest_delay,
    )
    return replace(unit, **more)  # type: ignore[arg-type]


MACHINE = Unit(
    name="mvm-machine",
    short="machine",
    description="mvm data drive, configuration, secrets and identity of this machine",
    roles=ALL_ROLES,
    arguments=("prepare",),
    step=True,
)
SUPERVISOR = Unit(
    name="mvm-supervisor",
    short="supervisor",
    description="mvm control socket of the guest's services",
    roles=ALL_ROLES,
    arguments=("systemd",),
    after=(MACHINE.name,),
    confinement=Confinement(oom_score=-900),
)
CHANNEL = _unit(services.CHANNEL, "mvm-channel", after=(MACHINE.name,))
INTEGRATIONS = Unit(
    name="mvm-integration-manager",
    short="integrations",
    description="mvm checkpoints and restores of integrations",
    roles=ALL_ROLES,
    arguments=("integrations",),
    after=(MACHINE.name, CHANNEL.name),
    needs_sound_machine=True,
    stop_rank=services.AGENT.stop_rank,
)
ENVIRONMENT = Unit(
    name="mvm-openclaw-env",
    short="environment",
    description="mvm environment and configuration of OpenClaw",
    roles=OPENCLAW_ROLES,
    arguments=("environment",),
    step=True,
    after=(MACHINE.name,),
    needs_sound_machine=True,
)
AGENT = _unit(
    services.AGENT,
    "mvm-worker-agent",
    after=(MACHINE.name, SUPERVISOR.name, CHANNEL.name, INTEGRATIONS.name, ENVIRONMENT.name),
)
SLEEP_PREP = Unit(
    name="mvm-sleep-prep-vsock",
    short="sleep-prep",
    description="mvm guest port 5200: SLEEP_PREP is answered ACK or NAK",
    roles=ALL_ROLES,
    arguments=("sleep-prep-port",),
    after=(MACHINE.name, CHANNEL.name),
)
ROUTER = _unit(services.ROUTER, "mvm-router", after=(MACHINE.name, CHANNEL.name, AGENT.name), needs_sound_machine=True)
OPENCLAW = _unit(
    services.OPENCLAW,
    "openclaw-gateway",
    after=(MACHINE.name, CHANNEL.name, AGENT.name, ROUTER.name, ENVIRONMENT.name),
    requires=(ENVIRONMENT.name,),
    needs_sound_machine=True,
    # The later one wins: a secret may have any name.
    environment_files=("/run/openclaw/env", "/run/openclaw/fixed-env"),
)
OPENCLAW_WAKE = Unit(
    name="mvm-openclaw-wake",
    short="openclaw-wake",
    description="mvm restart of OpenClaw with the environment of this wake",
    roles=OPENCLAW_ROLES,
    arguments=("openclaw-wake",),
    step=True,
    stays=False,
    at_boot=False,
    after=(MACHINE.name, SUPERVISOR.name, ENVIRONMENT.name, INTEGRATIONS.name),
    needs_sound_machine=True,
)
UNITS = (
    MACHINE,
    SUPERVISOR,
    CHANNEL,
    INTEGRATIONS,
    ENVIRONMENT,
    AGENT,
    SLEEP_PREP,
    ROUTER,
    OPENCLAW,
    OPENCLAW_WAKE,
)
"""In the order in which they come up."""


def is_supervised_by_systemd(environment: Mapping[str, str]) -> bool:
    """Whether the process that has this environment is one of these units."""
    return environment.get(SUPERVISOR_VARIABLE) == SYSTEMD
