"""What a NixOS guest runs is what a Debian guest runs: unit by unit, with the services that the supervisor starts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.nix.nix import needs_nix

from mvm.guest import init, services, units, users
from mvm.guest.channel import SLEEP_PREP_PORT
from mvm.guest.paths import GuestPaths
from mvm.guest.services import Program, Programs, Service
from mvm.image.debian import initrd, rootfs

pytestmark = needs_nix

DEBIAN = Programs(
    python="/usr/bin/python3",
    zipapp="/opt/mvm/guest.pyz",
    node="/usr/local/bin/node",
    openclaw="/opt/openclaw/node_modules/openclaw",
)
"""Where the Debian image has them: its first program says the first two, `make_node` and `make_openclaw` the others."""
NAMES = {"channel": "mvm-channel", "agent": "mvm-worker-agent", "router": "mvm-router", "openclaw": "openclaw-gateway"}
CONTRACT_UNITS = {
    "mvm-openclaw-env",
    "openclaw-gateway",
    "mvm-worker-agent",
    "mvm-integration-manager",
    "mvm-sleep-prep-vsock",
    "mvm-openclaw-wake",
}
"""CONTRACT 18."""

World = dict[str, Any]
each_service = pytest.mark.parametrize("service", services.SERVICES, ids=lambda service: service.name)


def unit_of(world: World, service: Service) -> dict[str, Any]:
    role = sorted(service.roles & {services.Role.GATEWAY})[0]
    found: dict[str, Any] = world["guests"][role]["units"][NAMES[service.name]]
    return found


def test_the_debian_image_has_its_programs_where_this_says() -> None:
    assert f"{DEBIAN.python} -I -S {DEBIAN.zipapp} init" in initrd.script().decode()


def test_the_role_openclaw_has_the_units_of_the_contract(world: World) -> None:
    assert set(world["guests"]["capability-openclaw"]["units"]) >= CONTRACT_UNITS


def test_every_service_has_a_unit_in_just_the_roles_that_run_it(world: World) -> None:
    for service in services.SERVICES:
        having = {role for role, guest in world["guests"].items() if NAMES[service.name] in guest["units"]}
        assert having == {role.value for role in service.roles}, service.name


@each_service
def test_it_is_the_same_command(world: World, service: Service) -> None:
    debian = services.launch(_without_secrets(service), GuestPaths(), DEBIAN, {"PATH": services.DEFAULT_PATH})
    config = unit_of(world, service)["serviceConfig"]
    assert config["ExecStart"].split() == list(debian.argv)
    assert config["WorkingDirectory"] == debian.directory


@each_service
def test_it_is_the_same_user_with_the_same_rights(world: World, service: Service) -> None:
    confinement, config = service.confinement, unit_of(world, service)["serviceConfig"]
    assert config["OOMScoreAdjust"] == confinement.oom_score
    assert config["LimitCORE"] == 0
    assert config["LimitNOFILE"] == init.OPEN_FILES
    if confinement.user is users.ROOT:
        assert "User" not in config
        return
    assert (config["User"], config["Group"]) == (confinement.user.name, confinement.user.name)
    assert config["SupplementaryGroups"] == [group.name for group in confinement.groups]
    assert (config["CapabilityBoundingSet"], config["NoNewPrivileges"]) == ("", True)
    assert config["UMask"] == "0077"
    assert config["ProtectSystem"] == "strict"


@each_service
def test_it_is_started_again_and_stopped_in_the_same_times(world: World, service: Service) -> None:
    unit = unit_of(world, service)
    config = unit["serviceConfig"]
    assert config["Restart"] == "always"
    assert unit["unitConfig"]["StartLimitIntervalSec"] == 0, "it is never given up"
    assert config["RestartSec"] == f"{service.first_delay:g}s"
    assert config["RestartMaxDelaySec"] == f"{service.longest_delay:g}s"
    assert service.first_delay * 2 ** config["RestartSteps"] >= service.longest_delay
    assert config["TimeoutStopSec"] == f"{service.stop_seconds:g}s"
    assert config["KillMode"] == "mixed", "SIGTERM to its main process, SIGKILL for what is left"


@each_service
def test_what_it_needs_at_its_end_is_stopped_after_it(world: World, service: Service) -> None:
    """systemd stops in the reverse of the order in which it starts."""
    after = unit_of(world, service)["after"]
    for other in services.SERVICES:
        if other.stop_rank > service.stop_rank:
            assert f"{NAMES[other.name]}.service" in after, f"{service.name} before {other.name}"


@each_service
def test_it_starts_at_boot_just_when_the_supervisor_starts_it_by_itself(world: World, service: Service) -> None:
    assert unit_of(world, service)["wantedBy"] == (["multi-user.target"] if service.starts_by_itself else [])


@each_service
def test_it_gets_the_same_environment(world: World, service: Service) -> None:
    """OpenClaw's is in a file beside that with its secrets, for some of it depends on the instance."""
    unit = unit_of(world, service)
    debian = services.launch(_without_secrets(service), GuestPaths(), DEBIAN, {"LANG": "C.UTF-8", "PATH": "/bin"})
    own = {name: unit["environment"].get(name) for name in debian.environment}
    if service.program is Program.OPENCLAW:
        fixed = services.fixed_environment(service, GuestPaths(), DEBIAN, {"LANG": "C.UTF-8", "PATH": "/bin"})
        own |= fixed
        assert unit["serviceConfig"]["EnvironmentFile"] == ["/run/openclaw/env", "/run/openclaw/fixed-env"]
    assert own | {"PATH": "/bin"} == debian.environment
    assert unit["environment"]["PATH"].endswith(services.DEFAULT_PATH)


def _without_secrets(service: Service) -> Service:
    return dataclasses.replace(service, environment_file=False)


def test_the_parts_of_the_agent_are_units_of_the_same_program(world: World) -> None:
    for role, guest in world["guests"].items():
        for name, unit in guest["units"].items():
            command = unit["serviceConfig"]["ExecStart"].split()
            own = command[:4] == ["/usr/bin/python3", "-I", "-S", "/opt/mvm/guest.pyz"] and len(command) == 5
            assert own or name == "openclaw-gateway", f"{role}: {name} runs something else: {command}"


def test_every_part_knows_that_systemd_supervises(world: World) -> None:
    for guest in world["guests"].values():
        for name, unit in guest["units"].items():
            if name != "openclaw-gateway":
                assert units.is_supervised_by_systemd(unit["environment"]), name


def test_users_are_those_of_the_debian_image(world: World) -> None:
    for guest in world["guests"].values():
        assert {name: user["uid"] for name, user in guest["users"].items()} == rootfs.USERS
        assert guest["groups"] == rootfs.USERS
        assert {name: user["group"] for name, user in guest["users"].items()} == {n: n for n in rootfs.USERS}
        assert guest["users"]["openclaw"]["home"] == str(GuestPaths().home)


def test_the_kernel_is_set_up_as_the_first_process_of_the_debian_image_does_it(world: World) -> None:
    for guest in world["guests"].values():
        found = {name: str(value) for name, value in guest["sysctl"].items()}
        assert {name.replace("/", "."): value for name, value in init.SETTINGS}.items() <= found.items()


def test_a_silent_connection_is_looked_after_as_the_contract_says(world: World) -> None:
    sysctl = world["guests"]["capability-openclaw"]["sysctl"]
    names = ("time", "intvl", "probes")
    assert [int(sysctl[f"net.ipv4.tcp_keepalive_{name}"]) for name in names] == [60, 10, 6]


def test_the_port_for_sleeps_is_the_contracts() -> None:
    assert SLEEP_PREP_PORT == 5200
    assert str(SLEEP_PREP_PORT) in units.SLEEP_PREP.description


def test_openclaw_finds_what_its_tools_need(world: World) -> None:
    packages = {name.split("-")[0] for name in world["guests"]["capability-openclaw"]["packages"]}
    assert packages >= {"nodejs", "socat", "jq", "curl", "git"}


def test_every_option_has_a_type_and_says_what_it_is(world: World) -> None:
    assert len(world["options"]) > 15
    assert [option for option in world["options"] if not (option["typed"] and option["described"])] == []
