"""What mvm says to Firecracker is what Firecracker's own description of its API says, where that is there.

Every bench on the stand-ins checks the requests of its tests in the same way when it is closed (`StandinBench`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from tests.standins.firecracker import rules
from tests.standins.firecracker.description import Description, description, why_missing
from tests.standins.firecracker.rules import Field, Struct, When

from mvm.runtime.firecracker import api
from mvm.runtime.firecracker.api import CALLS, Call, Command, Phase, Query

COMMANDS = [call for call in CALLS if isinstance(call, Command)]
QUERIES = [call for call in CALLS if isinstance(call, Query)]
BEYOND_DESCRIPTION = {"Warn"}
"""A level of logs that the source takes and the description does not name."""


@pytest.fixture
def described() -> Description:
    found = description()
    if found is None:
        pytest.skip(why_missing())
    return found


# The description itself can be broken


@pytest.mark.parametrize(
    ("method", "path", "body", "wrong"),
    [
        ("PUT", "/entropy", {}, None),
        ("PUT", "/nothing", {}, "no such call"),
        ("DELETE", "/entropy", None, "no such call"),
        ("PUT", "/entropy", None, "needs a body"),
        ("GET", "/version", {}, "has no body"),
        ("PUT", "/vm", {"state": "Paused"}, "no such call"),
        ("PATCH", "/vm", {"state": "Stopped"}, "none of"),
        ("PATCH", "/vm", {}, "lacks state"),
        ("PUT", "/vsock", {"guest_cid": 2, "uds_path": "v"}, "is 2"),
        ("PUT", "/vsock", {"guest_cid": "3", "uds_path": "v"}, "is no integer"),
        ("PUT", "/vsock", {"guest_cid": True, "uds_path": "v"}, "is no integer"),
        ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v", "port": 1}, "unknown field port"),
        ("PUT", "/entropy", {"rate_limiter": {"ops": {"size": 1}}}, "lacks refill_time"),
        ("PUT", "/drives/a", {"drive_id": "b", "is_root_device": True}, "does not repeat the id"),
        ("PATCH", "/machine-config", {"mem_size_mib": 128}, None),
        ("PUT", "/machine-config", {"mem_size_mib": 128}, "lacks vcpu_count"),
        ("PUT", "/snapshot/load", {"snapshot_path": "s", "network_overrides": [{}]}, "lacks iface_id"),
        ("PUT", "/mmds", {"anything": {"at": ["all"]}}, None),
    ],
)
def test_what_is_not_described_is_noticed(
    described: Description, method: str, path: str, body: Any, wrong: str | None
) -> None:
    problems = described.problems(method, path, body)
    if wrong is None:
        assert problems == []
    else:
        assert any(wrong in problem for problem in problems), problems


# mvm's table


def called(call: Call | rules.Call) -> str:
    """Name of a parameter."""
    return f"{call.method} {call.path}"


def id_field(call: Call) -> str | None:
    return call.id_field if isinstance(call, Command) else None


def path_of(call: Call) -> str:
    return call.path.replace("{id}", "x")


@pytest.mark.parametrize("call", CALLS, ids=called)
def test_every_call_of_mvms_is_described(described: Description, call: Call) -> None:
    found = described.operation(call.method, path_of(call))
    assert found is not None
    path, operation = found
    assert ("{" in path) == (id_field(call) is not None)
    assert (described.body_of(operation) is None) == isinstance(call, Query)
    assert str(call.status) in {str(status) for status in operation["responses"]}
    says = " ".join((operation["summary"], operation.get("description", ""))).lower()
    if "pre-boot only" in says:
        assert call.phase is Phase.BEFORE_START
    if "post-boot only" in says:
        assert call.phase is Phase.ONCE_STARTED


@pytest.mark.parametrize("call", COMMANDS, ids=called)
def test_what_requests_carry_is_described(described: Description, call: Command) -> None:
    found = described.operation(call.method, path_of(call))
    assert found is not None
    schema = call.request.model_json_schema()
    assert list(differences(described, described.body_of(found[1]), schema, schema, call.request.__name__)) == []


@pytest.mark.parametrize("call", QUERIES, ids=called)
def test_what_is_read_of_answers_is_described(described: Description, call: Query[Any]) -> None:
    found = described.operation(call.method, path_of(call))
    assert found is not None
    answer = described.resolve(found[1]["responses"][200]["schema"])
    schema = call.answer.model_json_schema()
    assert set(schema["properties"]) <= set(answer["required"])
    states = schema.get("$defs", {}).get("MachineState", {}).get("enum")
    if states is not None:
        assert set(states) == set(answer["properties"]["state"]["enum"])


def differences(
    described: Description, theirs: Mapping[str, Any], ours: Mapping[str, Any], root: Mapping[str, Any], where: str
) -> list[str]:
    """What a model of mvm's allows that the description does not."""
    theirs = described.resolve(theirs)
    if "$ref" in ours:
        ours = root["$defs"][ours["$ref"].rpartition("/")[2]]
    if "anyOf" in ours:  # what is None is left out of a request
        (ours,) = (each for each in ours["anyOf"] if each != {"type": "null"})
        return differences(described, theirs, ours, root, where)
    choices = ours.get("enum", [ours["const"]] if "const" in ours else None)
    if "enum" in theirs:
        return [] if choices and set(choices) <= set(theirs["enum"]) else [f"{where}: {choices} of {theirs['enum']}"]
    kind = theirs.get("type", "object")
    if ours.get("type") != kind:
        return [f"{where}: {ours.get('type')} is not {kind}"]
    if kind == "array":
        return differences(described, theirs["items"], ours["items"], root, f"{where}[]")
    if kind == "integer":
        low = ours.get("minimum", ours.get("exclusiveMinimum", -1))
        return [] if low >= theirs.get("minimum", 0) else [f"{where}: from {low}"]
    if kind != "object":
        return []
    return _different_objects(described, theirs, ours, root, where)


def _different_objects(
    described: Description, theirs: Mapping[str, Any], ours: Mapping[str, Any], root: Mapping[str, Any], where: str
) -> list[str]:
    own, known = ours.get("properties", {}), theirs.get("properties", {})
    found = [f"{where}: unknown field {name}" for name in own.keys() - known.keys()]
    found += [f"{where}: lacks {name}" for name in set(theirs.get("required", ())) - own.keys()]
    if ours.get("additionalProperties") is not False:
        found.append(f"{where}: is not closed")
    for name in own.keys() & known.keys():
        found += differences(described, known[name], own[name], root, f"{where}.{name}")
    return found


# The stand-in's table


@pytest.mark.parametrize("call", rules.CALLS, ids=called)
def test_the_stand_in_takes_what_is_described(described: Description, call: rules.Call) -> None:
    found = described.operation(call.method, call.path.replace("{}", "x"))
    assert found is not None
    operation = found[1]
    says = " ".join((operation["summary"], operation.get("description", ""))).lower()
    if "pre-boot only" in says:
        assert call.when is When.BEFORE
    if "post-boot only" in says:
        assert call.when is When.AFTER
    schema = described.body_of(operation)
    assert (schema is None) == (call.body is None)
    if call.body is not None and not call.free_form:
        partial = call.name == "machine_change"
        assert other_form(described, schema, call.body, call.name, partial=partial) == []


def other_form(
    described: Description, schema: Mapping[str, Any], struct: Struct, where: str, *, partial: bool = False
) -> list[str]:
    """Where a structure of the stand-in's has other fields than the description."""
    theirs = described.resolve(schema)
    known = theirs.get("properties", {})
    found = [f"{where}: {name}" for name in struct.keys() ^ known.keys()]
    for name in struct.keys() & known.keys():
        field, other = struct[name], described.resolve(known[name])
        if not partial and field.required != (name in theirs.get("required", ())):
            found.append(f"{where}.{name}: required")
        if set(field.choices) - BEYOND_DESCRIPTION != set(other.get("enum", ())):
            found.append(f"{where}.{name}: choices")
        found += _other_kind(described, other, field, f"{where}.{name}")
    return found


def _other_kind(described: Description, schema: Mapping[str, Any], field: Field, where: str) -> list[str]:
    kinds: dict[object, str] = {str: "string", int: "integer", bool: "boolean", dict: "object"}
    kind = schema.get("type", "object")
    if isinstance(field.kind, Mapping):
        return other_form(described, schema, field.kind, where)
    if isinstance(field.kind, list):
        item = described.resolve(schema["items"])
        if isinstance(field.kind[0], Mapping):
            return other_form(described, item, field.kind[0], f"{where}[]")
        return [] if kinds[field.kind[0]] == item.get("type", "object") else [f"{where}[]: kind"]
    return [] if kinds[field.kind] == kind else [f"{where}: {kind}"]


NOT_MODELLED = {
    ("GET", "/balloon/hinting/status"),
    ("PATCH", "/balloon/hinting/start"),
    ("PATCH", "/balloon/hinting/stop"),
    ("PATCH", "/hotplug/memory"),
    ("GET", "/hotplug/memory"),
}
"""Developer previews that mvm leaves alone (facts/FIRECRACKER.md)."""


def test_the_stand_in_knows_every_call(described: Description) -> None:
    theirs = {
        (method.upper(), path.partition("{")[0])
        for path, methods in described.document["paths"].items()
        for method in methods
    }
    ours = {(call.method, call.path.partition("{")[0]) for call in rules.CALLS}
    assert theirs - ours == NOT_MODELLED
    assert ours <= theirs


# The two tables, which need nothing else


@pytest.mark.parametrize("call", CALLS, ids=called)
def test_both_tables_agree_on_when_a_call_is_taken(call: Call) -> None:
    wanted = {Phase.BEFORE_START: When.BEFORE, Phase.ONCE_STARTED: When.AFTER, Phase.ALWAYS: When.ANY}
    found, _ = rules.find(call.method, path_of(call), (1, 15, 0))
    # Which actions there are before a start and which after it is told by the body.
    assert found.when is (When.ANY if call.path == "/actions" else wanted[call.phase])
    assert found.identified == (id_field(call) or "")


def test_ids_of_devices_have_no_hyphen() -> None:
    with pytest.raises(ValueError, match="drive_id"):
        api.Drive(drive_id="a-b", path_on_host="x", is_root_device=False, is_read_only=True, cache_type="Unsafe")
