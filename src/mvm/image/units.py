"""What the Nix modules read (`nix/generated/*.json`): the guest's units, drives and machine, from the one source.

`scripts/render_nix.py` writes the files; a test fails when they are old. Nothing here is known to the Nix side by other
means, so what a NixOS image runs cannot drift from what a Debian image runs.
"""

from __future__ import annotations

import json
import math
from typing import Any

from mvm.drives.table import DRIVES, ROOTFS, drives_of
from mvm.guest import init, services, users
from mvm.guest.channel import AGENT_PORT, HOST_PORT, SLEEP_PREP_PORT, SUPERVISOR_PORT
from mvm.guest.confinement import Confinement
from mvm.guest.paths import GuestPaths
from mvm.guest.processes import ROOT_MARKER, SERVICE_MARKER
from mvm.guest.services import HOME_OF_OTHERS, Program, Programs
from mvm.guest.units import SUPERVISOR_VARIABLE, SYSTEMD, UNITS, Unit
from mvm.image import nix_settings
from mvm.image.debian import initrd
from mvm.model.roles import Role

PROGRAMS = Programs(
    python="/usr/bin/python3",
    zipapp="/opt/mvm/guest.pyz",
    node="/usr/local/bin/node",
    openclaw="/opt/openclaw/node_modules/openclaw",
)
"""Where programs are in every image, whoever built it: the host knows these places too."""
PATH = f"/run/current-system/sw/bin:{services.DEFAULT_PATH}"
CHECK_PROGRAM = "/sbin/e2fsck"
KERNEL_ARGUMENTS = ("rootfstype=erofs", "systemd.crash_action=reboot", "systemd.show_status=no")
"""A machine whose first process fails ends, as it does with mvm's own."""
RESERVED_ROLES = (Role.CAPABILITY_IMESSAGE,)
"""Roles that have a module and no image yet (CONTRACT 3)."""

_WRITABLE = {
    users.OPENCLAW: ("/data", "/run/openclaw", "-/tmp", "-/var/tmp"),
    users.ROUTER: ("/data/mvm", "/run/mvm", "-/tmp"),
}
_HARDENING: dict[str, Any] = {
    "ProtectSystem": "strict",
    "ProtectClock": True,
    "ProtectKernelLogs": True,
    "ProtectKernelModules": True,
    "ProtectKernelTunables": True,
    "ProtectControlGroups": True,
    "LockPersonality": True,
    "RestrictRealtime": True,
    "RestrictSUIDSGID": True,
    "SystemCallArchitectures": "native",
}
"""Beyond what the supervisor takes from a service of a user's own. Not `ProtectHostname`: a copy takes another name."""


def files() -> dict[str, str]:
    """Every generated file by its name, with its text."""
    return {
        "services.json": _text({"programs": _programs(), "units": {unit.name: _unit(unit) for unit in UNITS}}),
        "drives.json": _text(_drives()),
        "machine.json": _text(_machine()),
    }


def _text(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _programs() -> dict[str, str]:
    return {
        "python": PROGRAMS.python,
        "zipapp": PROGRAMS.zipapp,
        "node": PROGRAMS.node,
        "openclaw": PROGRAMS.openclaw,
        "plugin": PROGRAMS.plugin,
        "check": CHECK_PROGRAM,
    }


def _unit(unit: Unit) -> dict[str, Any]:
    settings: dict[str, Any] = {"StartLimitIntervalSec": 0}
    if unit.needs_sound_machine:
        settings["ConditionPathExists"] = f"!{GuestPaths().boot_problem}"
    return {
        "description": unit.description,
        "roles": sorted(role.value for role in unit.roles),
        "atBoot": unit.at_boot,
        "after": _services(unit.after),
        "requires": _services(unit.requires),
        "environment": environment(unit),
        "unitConfig": settings,
        "serviceConfig": service_config(unit),
    }


def _services(names: tuple[str, ...]) -> list[str]:
    return [f"{name}.service" for name in names]


def command(unit: Unit) -> str:
    """`ExecStart=`; nothing in it means anything to systemd."""
    words = PROGRAMS.command(unit.program, unit.arguments)
    assert all(word.isascii() and not set(word) & set(" \t\"'\\$%;") for word in words)
    return " ".join(words)


def environment(unit: Unit) -> dict[str, str]:
    """Variables of a unit that are the same in every instance."""
    variables = {
        "LANG": "C.UTF-8",
        "PATH": PATH,
        "HOME": HOME_OF_OTHERS if unit.confinement.user is not users.OPENCLAW else str(GuestPaths().home),
        ROOT_MARKER: str(GuestPaths().root),
        SERVICE_MARKER: unit.short,
    }
    return variables if unit.program is Program.OPENCLAW else {**variables, SUPERVISOR_VARIABLE: SYSTEMD}


def service_config(unit: Unit) -> dict[str, Any]:
    """The section `[Service]` of a unit."""
    config: dict[str, Any] = {
        "Type": "oneshot" if unit.step else "exec",
        "ExecStart": command(unit),
        "WorkingDirectory": str(GuestPaths().home) if unit.program is Program.OPENCLAW else "/",
        "TimeoutStopSec": _seconds(unit.stop_seconds),
        # SIGTERM to the main process, SIGKILL for whatever is left.
        "KillMode": "mixed",
        "StandardInput": "null",
        **_output(unit),
        **_rights(unit.confinement),
    }
    if unit.step:
        config["RemainAfterExit"] = unit.stays
        config["TimeoutStartSec"] = "infinity"
    else:
        config |= _restart(unit)
    if unit.environment_files:
        config["EnvironmentFile"] = list(unit.environment_files)
    return config


def _seconds(value: float) -> str:
    return f"{value:g}s"


def _output(unit: Unit) -> dict[str, Any]:
    # Before the first step is done there is no data drive to write to.
    log = "journal" if unit is UNITS[0] else f"append:{GuestPaths().log(unit.short)}"
    return {"StandardOutput": log, "StandardError": "inherit"}


def _restart(unit: Unit) -> dict[str, Any]:
    """After a pause that doubles each time, as the supervisor has it."""
    return {
        "Restart": "always",
        "RestartSec": _seconds(unit.first_delay),
        "RestartMaxDelaySec": _seconds(unit.longest_delay),
        "RestartSteps": math.ceil(math.log2(unit.longest_delay / unit.first_delay)),
        # What ends one process for want of memory does not end the rest.
        "OOMPolicy": "continue",
    }


def _rights(confinement: Confinement) -> dict[str, Any]:
    """What `Confinement.take` takes, in systemd's words."""
    rights: dict[str, Any] = {
        "OOMScoreAdjust": confinement.oom_score,
        "LimitCORE": 0,
        "LimitNOFILE": init.OPEN_FILES,
        "UMask": "0022",
    }
    if confinement.user is users.ROOT:
        return rights
    name = confinement.user.name
    return {
        **rights,
        "UMask": "0077",
        "User": name,
        "Group": name,
        "SupplementaryGroups": [group.name for group in confinement.groups],
        "CapabilityBoundingSet": "",
        "AmbientCapabilities": "",
        "NoNewPrivileges": True,
        "ReadWritePaths": list(_WRITABLE[confinement.user]),
        **_HARDENING,
    }


def _drives() -> dict[str, Any]:
    return {
        "drives": [
            {
                "device": drive.device,
                "serial": drive.serial,
                "mode": drive.mode.value,
                "mountPoint": drive.mount_point,
                "life": drive.life.value,
                "memoryOnly": drive.memory_only,
                "optional": drive is not ROOTFS,
            }
            for drive in DRIVES
        ],
        "roles": {role.value: [drive.serial for drive in drives_of(role)] for role in Role},
    }


def _machine() -> dict[str, Any]:
    return {
        "roles": [role.value for role in Role],
        "reservedRoles": [role.value for role in RESERVED_ROLES],
        "openclawRoles": [role.value for role in Role if role.runs_openclaw],
        "sysctl": {name.replace("/", "."): value for name, value in init.SETTINGS},
        "users": {user.name: user.number for user in (users.OPENCLAW, users.ROUTER)},
        "homes": {users.OPENCLAW.name: str(GuestPaths().home), users.ROUTER.name: "/nonexistent"},
        "ports": {
            "supervisor": SUPERVISOR_PORT,
            "agent": AGENT_PORT,
            "sleepPrep": SLEEP_PREP_PORT,
            "host": HOST_PORT,
        },
        "modules": list(initrd.MODULES),
        "kernelArguments": list(KERNEL_ARGUMENTS),
        "nixOfBuilders": dict(nix_settings.EVERYWHERE),
    }
