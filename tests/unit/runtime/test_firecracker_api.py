"""The table of calls against Firecracker's own description, and what a machine is told."""

from __future__ import annotations

import itertools
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from mvm.drives.table import DATA, DRIVES, ROOTFS, drives_of
from mvm.model.roles import Role
from mvm.runtime.firecracker import api, configuration, files
from mvm.runtime.firecracker.api import CALLS, Command, Phase, Query
from mvm.runtime.firecracker.configuration import Hardware

DESCRIPTION = next(
    (
        found
        for parent in Path(__file__).resolve().parents
        if (found := parent / "shared/facts/firecracker-api.swagger.yaml").is_file()
    ),
    None,
)
described = pytest.mark.skipif(DESCRIPTION is None, reason="Firecracker's API description is not here")
COMMANDS = [call for call in CALLS if isinstance(call, Command)]


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    assert DESCRIPTION is not None
    found: dict[str, Any] = yaml.safe_load(DESCRIPTION.read_text())
    return found


def operation(description: dict[str, Any], call: api.Call) -> dict[str, Any]:
    """What the description says of a call."""
    for path, operations in description["paths"].items():
        parts = zip(path.split("/"), call.path.split("/"), strict=False)
        if path.count("/") == call.path.count("/") and all(a == b or ("{" in a and "{" in b) for a, b in parts):
            found: dict[str, Any] = operations[call.method.lower()]
            return found
    raise AssertionError(f"there is no {call.path}")


@described
@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.method} {call.path} {type(call).__name__}")
def test_a_call_is_described_with_that_status(description: dict[str, Any], call: api.Call) -> None:
    assert call.status in operation(description, call)["responses"]


def schema_of_body(description: dict[str, Any], call: Command) -> dict[str, Any]:
    (body,) = [each for each in operation(description, call)["parameters"] if each["in"] == "body"]
    return resolved(description, body["schema"])


def resolved(description: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = description["definitions"][schema["$ref"].rpartition("/")[2]]
    return schema


def check(description: dict[str, Any], model: type[BaseModel], schema: dict[str, Any]) -> None:
    """Every field of a model is one of the schema, of its type and choices, and none that is required is left out."""
    properties = schema.get("properties", {})
    assert set(model.model_fields) <= set(properties), model
    assert set(schema.get("required", ())) <= set(model.model_fields), model
    for name, field in model.model_fields.items():
        check_type(description, field.annotation, resolved(description, properties[name]), f"{model.__name__}.{name}")


def check_type(description: dict[str, Any], kind: Any, schema: dict[str, Any], where: str) -> None:
    origin = get_origin(kind)
    if origin is Literal:
        assert set(get_args(kind)) <= set(schema["enum"]), where
    elif origin is tuple:
        assert schema["type"] == "array", where
        check_type(description, get_args(kind)[0], resolved(description, schema["items"]), where)
    elif origin in (Union, types.UnionType):
        raise AssertionError(f"{where} is sent or not: nothing here is")
    elif issubclass(kind, BaseModel):
        check(description, kind, schema)
    else:
        names = {str: "string", bool: "boolean", int: "integer", api.MachineState: "string"}
        assert schema["type"] == names[kind], where


@described
@pytest.mark.parametrize("call", COMMANDS, ids=lambda call: f"{call.method} {call.path}")
def test_a_request_has_fields_that_are_described(description: dict[str, Any], call: Command) -> None:
    check(description, call.request, schema_of_body(description, call))


@described
@pytest.mark.parametrize("call", [c for c in CALLS if isinstance(c, Query)], ids=lambda call: call.path)
def test_an_answer_is_read_for_what_is_described(description: dict[str, Any], call: Query[Any]) -> None:
    schema = resolved(description, operation(description, call)["responses"][200]["schema"])
    assert set(call.answer.model_fields) <= set(schema["properties"])


@described
def test_states_of_a_machine_are_those_that_are_described(description: dict[str, Any]) -> None:
    states = description["definitions"]["InstanceInfo"]["properties"]["state"]["enum"]
    assert {state.value for state in api.MachineState} == set(states)


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
