"""What a machine is told before it starts, and what of that a snapshot has to fit to."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mvm.drives.table import DATA, DRIVES, ROOTFS, drives_of
from mvm.model.roles import Role
from mvm.runtime.firecracker import api, configuration, files
from mvm.runtime.firecracker.api import Phase
from mvm.runtime.firecracker.configuration import Hardware


def hardware(role: Role = Role.CAPABILITY_OPENCLAW, **changes: Any) -> Hardware:
    given_to_it: dict[str, Any] = {
        "vcpus": 2,
        "mem_mib": 2048,
        "drives": drives_of(role),
        "mac": "02:fc:00:01:00:03",
        "parameters": "rootfstype=erofs",
    }
    return Hardware(**given_to_it | changes)


def test_a_machine_is_told_everything_in_the_order_in_which_it_can_be_told() -> None:
    calls = [(call, call.path_for(body)) for call, body in configuration.boot(hardware(), tap="tn1i3")]
    assert [path for _, path in calls] == [
        "/logger",
        "/metrics",
        "/boot-source",
        "/machine-config",
        "/drives/rootfs",
        "/drives/data",
        "/drives/secrets",
        "/drives/config",
        "/network-interfaces/eth0",
        "/vsock",
        "/entropy",
        "/balloon",
        "/actions",
    ]
    assert all(call.phase is Phase.BEFORE_START for call, _ in calls)
    assert [path for _, path in calls if path.startswith("/drives/")] == [f"/drives/{d.serial}" for d in DRIVES]


def drives(of: Hardware) -> dict[str, api.Drive]:
    return {body.drive_id: body for _, body in configuration.devices(of, tap="t") if isinstance(body, api.Drive)}


def test_what_a_guest_flushes_is_flushed_and_only_its_data_can_be_written() -> None:
    told = drives(hardware())
    assert {name for name, drive in told.items() if not drive.is_read_only} == {DATA.serial}
    assert told[DATA.serial].cache_type == "Writeback"
    assert [name for name, drive in told.items() if drive.is_root_device] == [ROOTFS.serial]


def test_a_role_without_configuration_has_no_drive_for_it() -> None:
    assert list(drives(hardware(Role.BUILDER))) == ["rootfs", "data"]


def test_paths_are_relative_names_in_the_room() -> None:
    for _, body in configuration.boot(hardware(), tap="t"):
        for name, value in body.model_dump().items():
            if name.endswith(("_path", "_on_host")):
                assert "/" not in value, name
    load = configuration.load(tap="t")
    assert (load.snapshot_path, load.mem_backend.backend_path) == (files.DEVICES, files.MEMORY)
    assert not load.resume_vm


def test_a_serial_line_is_not_there_and_what_is_freed_is_cleared() -> None:
    words = configuration.kernel_line(hardware()).split()
    assert {"8250.nr_uarts=0", "init_on_free=1", "reboot=k", "rootfstype=erofs"} <= set(words)
    assert not [word for word in words if word.startswith("console=") or word == "nomodule"]


@given(
    st.sampled_from(["vcpus", "mem_mib", "drives"]),
    st.integers(min_value=1, max_value=30),
)
def test_a_machine_of_another_make_has_another_layout(name: str, number: int) -> None:
    changed = {"vcpus": 2 + number, "mem_mib": 2048 + number, "drives": DRIVES[: number % 4]}[name]
    assert configuration.layout(hardware()) != configuration.layout(hardware(**{name: changed}))


def test_address_tap_and_command_line_are_no_part_of_the_layout() -> None:
    layouts = {
        configuration.layout(hardware(mac=mac, parameters=parameters))
        for mac, parameters in itertools.product(["02:fc:00:01:00:03", "02:fc:00:01:00:04"], ["", "quiet"])
    }
    assert len(layouts) == 1
