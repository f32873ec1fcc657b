"""What the Firecracker runtime refuses before anything of an instance is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.runtime.qemu_machines import machine
from tests.unit.runtime.test_firecracker_files import installed

from mvm.model.entities import ProcessIdentity
from mvm.model.errors import Conflict, Refused, Unavailable
from mvm.runtime import makeup
from mvm.runtime.base import GUEST_AGENT_PORT, Machine
from mvm.runtime.firecracker import FirecrackerRuntime
from mvm.runtime.firecracker.taps import tap_name


@pytest.fixture(autouse=True)
def _no_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MVM_FIRECRACKER", "MVM_JAILER"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    installed(tmp_path / "programs", "1.16.1")
    return tmp_path / "programs"


@pytest.fixture
def given(tmp_path: Path) -> Machine:
    return machine(tmp_path)


def touched(given: Machine) -> list[str]:
    """What there is of an instance besides the directories that it was given."""
    return sorted(path.name for path in (*given.state_dir.iterdir(), *given.run_dir.iterdir()))


UNTOUCHED = ["config", "data"]


async def test_in_production_nothing_starts_without_a_jail(programs: Path, given: Machine) -> None:
    runtime = FirecrackerRuntime(programs_dir=programs, jailed=False, production=True)
    with pytest.raises(Refused, match="jailer"):
        await runtime.start(given)
    assert touched(given) == UNTOUCHED


async def test_nobody_is_jailed_without_a_user_of_their_own(programs: Path, given: Machine) -> None:
    runtime = FirecrackerRuntime(programs_dir=programs, jailed=True)
    with pytest.raises(Refused, match="no user id of its own"):
        await runtime.start(given)
    assert touched(given) == UNTOUCHED


async def test_a_jail_needs_its_jailer(programs: Path, tmp_path: Path) -> None:
    (programs / "firecracker/1.16.1/jailer").unlink()
    given = machine(tmp_path, uid=61_001)
    with pytest.raises(Unavailable, match="the jailer is not installed"):
        await FirecrackerRuntime(programs_dir=programs, jailed=True).start(given)
    assert touched(given) == UNTOUCHED


async def test_a_machine_without_an_image_is_not_started(programs: Path, given: Machine) -> None:
    runtime = FirecrackerRuntime(programs_dir=programs, jailed=False)
    with pytest.raises(Unavailable, match="has no image"):
        await runtime.start(given)
    assert touched(given) == UNTOUCHED


async def test_what_does_not_run_is_not_there_for_anything(programs: Path, given: Machine) -> None:
    runtime = FirecrackerRuntime(programs_dir=programs, jailed=False)
    assert await runtime.find(given) is None
    assert await runtime.saved_snapshot(given) is None
    assert await runtime.compress_snapshot(given, lambda: False) is None
    await runtime.discard_snapshot(given)
    with pytest.raises(Unavailable, match="does not run"):
        await runtime.connect(given, GUEST_AGENT_PORT)
    await runtime.destroy(given)
    assert touched(given) == UNTOUCHED


async def test_a_base_is_kept_in_an_empty_directory_only(programs: Path, given: Machine, tmp_path: Path) -> None:
    (given.state_dir / "memory").mkdir()
    makeup.remember(given.state_dir / "memory", {"image": "x"})
    (tmp_path / "base").mkdir()
    (tmp_path / "base/left").touch()
    with pytest.raises(Conflict, match="not empty"):
        await FirecrackerRuntime(programs_dir=programs, jailed=False).keep_as_base(
            given, ProcessIdentity(pid=1, start_time=1), tmp_path / "base"
        )
    assert (tmp_path / "base/left").exists()


def test_a_machine_of_no_tenant_has_a_device_of_its_own_name(tmp_path: Path) -> None:
    assert tap_name(machine(tmp_path)) == "tn1i3"
    nobodys = tap_name(machine(tmp_path, tap=""))
    assert nobodys == "tb0a0b0c0d"
    assert len(nobodys) <= 15
