"""The guest's root of the process runtime: drives by links, nothing of an earlier start, nothing left."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mvm.model.errors import InvalidInput, MvmError
from mvm.model.ids import InstanceRef, instance_id, pool_id, tenant_id
from mvm.model.roles import Role
from mvm.runtime.base import Machine
from mvm.runtime.process.directories import MAX_SOCKET_BYTES, Directories


def machine(base: Path, run: str = "run") -> Machine:
    made = {name: base / name for name in ("state", "data", "secrets")} | {"run": base / run}
    for directory in made.values():
        directory.mkdir(parents=True)
    return Machine(
        ref=InstanceRef(tenant_id("alice"), pool_id("workers"), instance_id("i-00000001")),
        role=Role.WORKER,
        vcpus=1,
        mem_mib=128,
        guest_ip="127.0.0.2",
        gateway_ip="127.0.0.1",
        prefix=24,
        mac="",
        tap="",
        state_dir=made["state"],
        run_dir=made["run"],
        data=made["data"],
        secrets=made["secrets"],
        config=made["run"] / "config",
    )


def test_drives_appear_where_a_guest_expects_them(tmp_path: Path) -> None:
    directories = Directories.of(machine(tmp_path))
    (tmp_path / "data" / "kept").write_text("mine")
    (tmp_path / "secrets" / "scope").mkdir()
    directories.make_root()
    directories.make_root()
    assert (directories.root / "data" / "kept").read_text() == "mine"
    assert (directories.root / "run/secrets/scope").is_dir()
    assert (directories.root / "etc/mvm-config").readlink() == directories.config
    assert directories.root.stat().st_mode & 0o077 == 0
    assert directories.channel.stat().st_mode & 0o077 == 0


def test_a_start_finds_nothing_of_the_one_before_but_the_supervisors_record(tmp_path: Path) -> None:
    directories = Directories.of(machine(tmp_path))
    directories.make_root()
    (directories.run / "openclaw/secrets.json").write_text("{}")
    (directories.run / "mvm/ready").write_text("")
    directories.supervisor_record.write_text("{}")
    with socket.socket(socket.AF_UNIX) as stale, socket.socket(socket.AF_UNIX) as host:
        stale.bind(str(directories.guest_socket(52)))
        host.bind(str(directories.host_socket(53)))
        directories.make_root()
    assert list((directories.run / "openclaw").iterdir()) == []
    assert [path.name for path in (directories.run / "mvm").iterdir()] == ["supervisor.json"]
    assert not directories.guest_socket(52).exists()
    assert directories.host_socket(53).exists()


def test_removing_leaves_the_drives_alone(tmp_path: Path) -> None:
    directories = Directories.of(machine(tmp_path))
    (tmp_path / "data" / "kept").write_text("mine")
    directories.make_root()
    directories.remove()
    directories.remove()
    assert (tmp_path / "data" / "kept").read_text() == "mine"
    assert list((tmp_path / "run").iterdir()) == []


def test_a_drive_in_the_way_is_refused_and_not_removed(tmp_path: Path) -> None:
    directories = Directories.of(machine(tmp_path))
    (directories.root / "data").mkdir(parents=True)
    with pytest.raises(MvmError, match="should be a link"):
        directories.make_root()


def test_too_long_a_path_names_the_variable_that_shortens_it(tmp_path: Path) -> None:
    directories = Directories.of(machine(tmp_path, run="x" * MAX_SOCKET_BYTES))
    with pytest.raises(InvalidInput, match="107") as refused:
        directories.make_channel()
    assert "MVM_RUN_DIR" in (refused.value.hint or "")
