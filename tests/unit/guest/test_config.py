"""How `config.json` is read: strictly in what is known, patiently with what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.guest.guest_world import config

from mvm.guest.config import ConfigError, read, role_of
from mvm.guest.services import Role


def write(directory: Path, value: Any) -> Path:
    path = directory / "config.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_what_is_left_out_has_the_values_of_the_contract(tmp_path: Path) -> None:
    reading = read(write(tmp_path, config()))
    assert reading.unknown == ()
    assert reading.config.role is Role.CAPABILITY_OPENCLAW
    assert reading.config.runtime_policy.drain_timeout_seconds == 30
    assert not reading.config.allow_exec, "what runs commands has to be said"
    openclaw = reading.config.openclaw
    assert openclaw is not None
    assert (openclaw.port, openclaw.forwarder_port, openclaw.outbound_port) == (18789, 18789, 18790)
    assert openclaw.live_secrets == ("ANTHROPIC_API_KEY",)


def test_keys_of_a_newer_host_are_told_and_skipped(tmp_path: Path) -> None:
    value = config(news={"a": 1}, openclaw={"speed": 9}, integrations=[{"name": "notes", "colour": "red"}])
    reading = read(write(tmp_path, value))
    assert sorted(reading.unknown) == ["integrations[0].colour", "news", "openclaw.speed"]
    assert reading.config.integrations[0].name == "notes"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"role": "king"}, "role: 'king' is none of gateway, builder, worker"),
        ({"prefix": "24"}, "prefix: expected a whole number, got a string"),
        ({"guest_ip": "nowhere"}, "guest_ip: 'nowhere' is not an IPv4 address"),
        ({"instance_id": "i-1"}, "instance_id: 'i-1' is not an instance id"),
        ({"openclaw": {"port": 70000}}, "openclaw.port: 70000 is not between 1 and 65535"),
        ({"openclaw": {"delivery_sources": ["x"]}}, "openclaw.delivery_sources[0]: 'x' is not an IPv4 address"),
        ({"openclaw": None}, "openclaw: missing, and the role capability-openclaw needs it"),
        ({"runtime_policy": {"drain_timeout_seconds": -1}}, "runtime_policy.drain_timeout_seconds: -1 is not"),
        ({"runtime_policy": None}, "runtime_policy: expected an object, got null"),
        ({"integrations": [{"name": "a"}, {"name": "a"}]}, "integrations: a is there twice"),
        ({"integrations": [{"name": "a", "checkpoint_cmd": "sh -c x"}]}, "integrations[0].checkpoint_cmd: expected a"),
        ({"integrations": [{"name": "a", "checkpoint_cmd": []}]}, "integrations[0].checkpoint_cmd: the list has 0"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, config(**changes))
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["instance_id", "role", "guest_ip", "mem_mib"])
def test_what_is_missing_is_named(tmp_path: Path, key: str) -> None:
    value = config()
    del value[key]
    with pytest.raises(ConfigError, match=f"{key}: missing"):
        read(write(tmp_path, value))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", "[" * 100_000, "\x00", '"role"'])
def test_anything_else_than_an_object_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError):
        read(path)
    with pytest.raises(ConfigError):
        role_of(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json cannot be read: No such file"):
        read(tmp_path / "config.json")


def test_the_role_alone_is_found_in_an_otherwise_useless_file(tmp_path: Path) -> None:
    assert role_of(write(tmp_path, {"role": "gateway", "prefix": "?"})) is Role.GATEWAY
