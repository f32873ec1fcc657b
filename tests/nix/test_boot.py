"""How a NixOS guest comes up: in an order that is written down, and without waiting for anything."""

from __future__ import annotations

from typing import Any

import pytest
from tests.nix.nix import needs_nix

from mvm.drives.table import ROOTFS, drives_of
from mvm.guest import drives as guest_drives
from mvm.guest import units
from mvm.model.roles import Role

pytestmark = needs_nix

World = dict[str, Any]
RELATIONS = ("after", "before", "requires", "wants", "bindsTo")
each_role = pytest.mark.parametrize("role", list(Role), ids=str)


@each_role
def test_no_unit_waits_for_a_network_or_a_device(world: World, role: Role) -> None:
    guest = world["guests"][role]
    named = {other for unit in guest["units"].values() for relation in RELATIONS for other in unit[relation]}
    assert {other for other in named if not other.endswith(".service")} == set()
    assert named <= {unit.service for unit in units.UNITS}
    assert guest["waiting"] == {"udev": False, "settling": False, "online": False, "dhcp": False}


@each_role
def test_the_order_is_the_one_that_is_written_down(world: World, role: Role) -> None:
    known = [unit.service for unit in units.UNITS]
    for name, unit in world["guests"][role]["units"].items():
        for other in (*unit["after"], *unit["requires"]):
            assert known.index(other) < known.index(f"{name}.service"), f"{name} comes before {other}"


@each_role
def test_what_is_required_is_also_waited_for(world: World, role: Role) -> None:
    for name, unit in world["guests"][role]["units"].items():
        assert set(unit["requires"]) <= set(unit["after"]), name


@each_role
def test_everything_but_the_machine_itself_comes_after_the_machine(world: World, role: Role) -> None:
    for name, unit in world["guests"][role]["units"].items():
        if name != units.MACHINE.name:
            assert units.MACHINE.service in unit["after"], name


@each_role
def test_a_drive_is_taken_and_never_mounted_by_a_unit_that_would_wait_for_it(world: World, role: Role) -> None:
    guest = world["guests"][role]
    assert [drive["serial"] for drive in guest["drives"]] == [drive.serial for drive in drives_of(role)]
    assert guest["mounts"] == ["/"]
    for drive, known in zip(guest["drives"], drives_of(role), strict=True):
        assert (drive["device"], drive["mode"], drive["mountPoint"]) == (known.device, known.mode, known.mount_point)
        assert drive["optional"] is (known is not ROOTFS)


def test_the_guests_program_knows_the_drives_by_the_same_names(world: World) -> None:
    known = {drive["serial"]: drive["device"] for drive in world["guests"]["gateway"]["drives"]}
    for drive in (guest_drives.DATA, guest_drives.SECRETS, guest_drives.CONFIG):
        assert known[drive.serial] == drive.device


def test_a_machine_whose_data_drive_is_no_use_only_tells_its_host(world: World) -> None:
    shut = {
        name
        for name, unit in world["guests"]["gateway"]["units"].items()
        if unit["unitConfig"].get("ConditionPathExists") == "!/run/mvm/boot-problem"
    }
    assert shut == {unit.name for unit in units.UNITS} - {
        "mvm-machine",
        "mvm-supervisor",
        "mvm-channel",
        "mvm-worker-agent",
        "mvm-sleep-prep-vsock",
    }


def test_what_the_host_knows_by_its_place_is_there(world: World) -> None:
    layout = world["guests"]["capability-openclaw"]["layout"]
    places = ("/opt/mvm/guest.pyz", "/opt/mvm/openclaw-plugin", "/opt/openclaw/node_modules", "/usr/local/bin/node")
    assert set(layout) >= {*places, "/usr/bin/python3", "/sbin/e2fsck"}
    copied = {place for place, there in layout.items() if there["copied"]}
    assert copied == set(places) - {"/usr/local/bin/node"}, "OpenClaw takes no links for files of its own"
    assert len(world["guests"]["capability-openclaw"]["links"]) >= len(layout)
