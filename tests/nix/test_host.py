"""The service of a NixOS host is that of `deploy/mvm-agent.service`."""

from __future__ import annotations

import configparser
from typing import Any

from tests.nix.nix import REPOSITORY, needs_nix

pytestmark = needs_nix

World = dict[str, Any]


def deployed() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string((REPOSITORY / "deploy/mvm-agent.service").read_text())
    return parser


def as_written(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def test_its_settings_are_those_of_the_unit_that_is_installed_elsewhere(world: World) -> None:
    unit, file = world["host"]["unit"], deployed()
    config = {name: as_written(value) for name, value in unit["serviceConfig"].items()}
    wanted = dict(file["Service"])
    assert config.pop("ExecStart").endswith(wanted.pop("ExecStart").removeprefix("/usr/local"))
    assert wanted.items() <= config.items()
    assert unit["description"] == file["Unit"]["Description"]
    assert unit["after"] == [file["Unit"]["After"]]
    assert unit["wantedBy"] == [file["Install"]["WantedBy"]]


def test_the_agent_is_in_production_and_its_socket_is_a_groups(world: World) -> None:
    unit = world["host"]["unit"]
    assert unit["environment"]["MVM_PRODUCTION"] == "1"
    assert unit["serviceConfig"]["Group"] in world["host"]["groups"]


def test_instances_are_not_kept_from_what_their_runtime_needs(world: World) -> None:
    """They are children of the agent: a setting that hides devices, mounts or networks would hide them from QEMU."""
    hiding = {"PrivateDevices", "PrivateNetwork", "PrivateMounts", "ProtectSystem", "NoNewPrivileges", "PrivateTmp"}
    assert not hiding & set(world["host"]["unit"]["serviceConfig"])


def test_a_reload_of_the_hosts_rules_leaves_mvms(world: World) -> None:
    assert world["host"]["flushRuleset"] is False
    assert 'iifname "br-tenant-*" accept' in world["host"]["extraInputRules"]
