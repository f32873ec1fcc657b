"""Who a machine is: what follows from its configuration, and a real network device that takes addresses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.guest.guest_world import config

from mvm.guest import identity
from mvm.guest.config import GuestConfig, read
from mvm.guest.network_device import Addresses, only_device
from mvm.guest.paths import GuestPaths


def configured(directory: Path, **changes: object) -> GuestConfig:
    path = directory / "config.json"
    path.write_text(json.dumps(config(**changes)))
    return read(path).config


def test_a_machine_id_is_one_instances_for_ever() -> None:
    first, second = identity.machine_id("i-1"), identity.machine_id("i-2")
    assert first == identity.machine_id("i-1") != second
    assert len(first) == 32
    assert int(first, 16) >= 0


def test_resolvers_are_those_of_the_configuration() -> None:
    assert identity.resolver_file(("9.9.9.9", "1.1.1.1")).startswith("nameserver 9.9.9.9\nnameserver 1.1.1.1\n")
    assert "nameserver" not in identity.resolver_file(())


def test_a_machine_with_an_address_that_is_never_routed_is_nobodys(tmp_path: Path) -> None:
    assert identity.is_nobodys(configured(tmp_path, guest_ip="192.0.2.3"))
    assert not identity.is_nobodys(configured(tmp_path, guest_ip="10.240.12.4"))


def test_a_mac_address_may_be_missing_and_must_be_one(tmp_path: Path) -> None:
    assert configured(tmp_path).mac is None
    assert configured(tmp_path, mac="02:fc:00:0c:00:04").mac == "02:fc:00:0c:00:04"
    with pytest.raises(ValueError, match="mac"):
        configured(tmp_path, mac="02:fc")


def test_under_the_process_runtime_the_host_stays_who_it_is(tmp_path: Path) -> None:
    name = os.uname().nodename
    assert identity.take(GuestPaths(tmp_path), configured(tmp_path)) is False
    assert os.uname().nodename == name
    assert not (tmp_path / "etc/hosts").exists()


def test_the_netmask_follows_from_the_prefix() -> None:
    for prefix, mask in ((24, "255.255.255.0"), (32, "255.255.255.255"), (12, "255.240.0.0")):
        assert Addresses(mac=None, address="10.0.0.2", prefix=prefix, gateway="10.0.0.1").netmask == mask


def test_the_one_device_is_the_one_with_hardware(tmp_path: Path) -> None:
    for name in ("lo", "dummy0", "eth0"):
        (tmp_path / name).mkdir()
    assert only_device(tmp_path) is None
    (tmp_path / "eth0/device").mkdir()
    assert only_device(tmp_path) == "eth0"
    assert only_device(tmp_path / "nothing") is None


TAKE = """
import json, subprocess
from mvm.guest.network_device import Addresses, NetworkDevice
subprocess.run(["ip", "link", "add", "mvmtest", "type", "veth", "peer", "name", "mvmpeer"], check=True)
subprocess.run(["ip", "link", "set", "mvmpeer", "up"], check=True)
device = NetworkDevice("mvmtest")
first = Addresses(mac="02:fc:00:00:00:03", address="192.0.2.3", prefix=24, gateway="192.0.2.1")
second = Addresses(mac="02:fc:00:0c:00:04", address="10.240.12.4", prefix=24, gateway="10.240.12.1")
said = [device.has(first)]
for wanted in (first, second):
    device.take(wanted)
    said += [device.has(wanted)]
said += [device.has(first)]
device.announce(second.address)
device.take(second)
routes = subprocess.run(["ip", "-j", "route"], check=True, capture_output=True, text=True).stdout
print(json.dumps({"said": said, "gateways": [route.get("gateway") for route in json.loads(routes)]}))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, for a network of its own")
def test_a_device_takes_one_identity_after_the_other() -> None:
    result = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", TAKE], capture_output=True, text=True, timeout=60, check=False
    )
    if "Unknown device type" in result.stderr or "not supported" in result.stderr:
        pytest.skip("this kernel has no veth devices")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"said": [False, True, True, False], "gateways": ["10.240.12.1", None]}
