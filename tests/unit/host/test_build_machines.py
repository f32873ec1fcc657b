"""Machines to build in: what they are given, when they are refused, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.standins.instant_runtime import InstantRuntime
from tests.unit.image.samples import CONTENTS, QuickBuilder

from mvm.host import build_machines, in_loop
from mvm.host.build_machines import BuildMachines, Size
from mvm.host.builder_image import BuilderImage
from mvm.host.catalog import Catalog
from mvm.host.clock import Clock
from mvm.host.gateways import Gateways
from mvm.host.guests import Guests
from mvm.host.machines import InstanceDirectories
from mvm.host.networks import Networks
from mvm.host.reports import Reports
from mvm.host.runtimes import Runtimes
from mvm.host.slots import Slots
from mvm.image.base import OnProgress
from mvm.image.builders import choose
from mvm.image.nix import NixMachineBuilder
from mvm.model import addresses
from mvm.model.entities import Tenant
from mvm.model.errors import InvalidInput, MvmError, NotFound, Unavailable
from mvm.model.ids import TenantId, TenantNetId
from mvm.model.roles import Role
from mvm.openclaw.install import Progress
from mvm.runtime.base import Machine
from mvm.runtime.machine_files import MachineFiles
from mvm.store.sqlite import SqliteStore

pytestmark = pytest.mark.skipif(
    not all(shutil.which(name, path="/usr/sbin:/sbin:/usr/bin") for name in ("mkfs.ext4", "debugfs")),
    reason="needs e2fsprogs",
)

ALICE = TenantId("alice")
FLAKE = "github:openclaw/nix-openclaw"


class Enough(Exception):
    """What somebody who watches gives up with."""


def quiet(_step: Progress) -> None:
    pass


@dataclass
class World:
    """A host that makes such machines."""

    directory: Path
    runtime: InstantRuntime
    image: QuickBuilder
    machines: BuildMachines

    def inside(self, sources: Mapping[Path, str] | None = None, on_progress: OnProgress = quiet) -> Machine:
        """Make a machine and end it; what it was given. For a thread."""
        with self.machines.machine(ALICE, sources or {}, on_progress):
            (process,) = self.runtime.processes.values()
            self.config = self.read(process.machine, "/build/config.json")
            self.sources = self.read(process.machine, "/build/sources/flake/flake.nix")
            return process.machine

    @staticmethod
    def read(machine: Machine, path: str) -> str:
        """A file on the data drive of a machine; empty when there is none."""
        command = ["debugfs", "-R", f"cat {path}", str(MachineFiles.of(machine).data)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

    def left_over(self) -> list[str]:
        places = ("s/builds/*", "r/b/*", "r/secrets/*")
        found = [str(path) for place in places for path in self.directory.glob(place)]
        return [*found, *map(str, self.runtime.processes), *map(str, self.runtime.listeners)]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(in_loop, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(build_machines, "WAIT_SECONDS", 0.01)
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))
    for name in ("s", "r"):
        (directory / name).mkdir()
    runtime = InstantRuntime()
    runtime.capabilities = dataclasses.replace(runtime.capabilities, images=True)
    clock = Clock()
    store = await SqliteStore.open(tmp_path / "state.db")
    catalog = await Catalog.open(store)
    network = addresses.tenant_network(TenantNetId(7))
    await catalog.save_tenant(Tenant(tenant_id=ALICE, network=network, created_at=datetime(2026, 1, 31, tzinfo=UTC)))
    reports = Reports(clock)
    runtimes = Runtimes({"instant": runtime}, wanted="instant")
    image = QuickBuilder()
    machines = BuildMachines(
        catalog=catalog,
        runtimes=runtimes,
        directories=InstanceDirectories(
            state_dir=directory / "s", run_dir=directory / "r", secrets_dir=directory / "r/secrets"
        ),
        guests=Guests(reports, clock),
        reports=reports,
        slots=Slots(),
        networks=Networks(catalog=catalog, runtimes=runtimes, gateways=Gateways(catalog), owner="test"),
        clock=clock,
        image=BuilderImage(image, lambda: CONTENTS, tmp_path / "cache"),
        size=Size(vcpus=2, mem_mib=512, data_mib=64, free_mib=1),
    )
    yield World(directory, runtime, image, machines)
    await store.close()
    shutil.rmtree(directory)


async def test_a_machine_has_the_builders_place_in_the_tenants_network_and_no_secrets(world: World) -> None:
    machine = await asyncio.to_thread(world.inside)
    assert machine.role is Role.BUILDER
    assert (machine.guest_ip, machine.gateway_ip, machine.prefix) == ("10.240.7.2", "10.240.7.1", 24)
    assert (machine.mac, machine.vcpus, machine.mem_mib) == ("02:fc:00:07:00:02", 2, 512)
    assert not machine.secrets.exists()
    assert machine.image is not None
    assert machine.image.parent.name == "builders"
    assert world.left_over() == []


async def test_it_is_told_on_its_data_drive_who_it_is_and_gets_what_comes_along(world: World, tmp_path: Path) -> None:
    (tmp_path / "flake").mkdir()
    (tmp_path / "flake/flake.nix").write_text("{ }")
    machine = await asyncio.to_thread(world.inside, {tmp_path / "flake": "flake"})
    told: dict[str, Any] = json.loads(world.config)
    assert (told["role"], told["allow_exec"], told["guest_ip"]) == ("builder", True, machine.guest_ip)
    assert world.sources == "{ }"
    assert not machine.state_dir.exists()


async def test_its_image_is_built_once(world: World) -> None:
    await asyncio.to_thread(world.inside)
    await asyncio.to_thread(world.inside)
    assert world.image.builds == 1
    assert world.runtime.starts == 2


async def test_whatever_goes_wrong_in_it_it_is_removed(world: World) -> None:
    def fail() -> None:
        with world.machines.machine(ALICE, {}, quiet):
            raise Enough

    with pytest.raises(Enough):
        await asyncio.to_thread(fail)
    assert world.left_over() == []


async def test_one_that_does_not_start_is_told_and_removed(world: World) -> None:
    world.runtime.fail["start"] = Unavailable("there is no memory")
    with pytest.raises(Unavailable, match="machine to build in did not come up: there is no memory"):
        await asyncio.to_thread(world.inside)
    assert world.left_over() == []


async def test_who_gives_up_while_it_boots_has_it_removed(world: World) -> None:
    world.runtime.gate = asyncio.Event()

    def give_up(step: Progress) -> None:
        if step.text.startswith("booting"):
            raise Enough

    with pytest.raises(Enough):
        await asyncio.to_thread(world.inside, {}, give_up)
    assert world.left_over() == []


def cannot_be_ended(world: World) -> None:
    world.runtime.fail.update(stop=MvmError("it does not stop"), destroy=MvmError("it cannot be ended"))


async def test_a_removal_that_fails_is_told_in_the_log_and_leaves_the_build_its_result(world: World) -> None:
    cannot_be_ended(world)
    with capture_logs() as logs:
        machine = await asyncio.to_thread(world.inside)
    told = [entry["reason"] for entry in logs if entry["log_level"] == "error"]
    assert told == ["it does not stop", "it cannot be ended"]
    assert machine.state_dir.exists(), "it would not be found any more"
    await world.machines.clear_unfinished(world.runtime)
    assert world.left_over() == []


async def test_one_that_does_not_stop_is_destroyed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    destroy = world.runtime.destroy

    async def end_and_destroy(machine: Machine) -> None:  # as those of real machines do
        world.runtime.end(machine.ref.instance_id)
        await destroy(machine)

    monkeypatch.setattr(world.runtime, "destroy", end_and_destroy)
    world.runtime.fail["stop"] = MvmError("it does not stop")
    await asyncio.to_thread(world.inside)
    assert world.left_over() == []


async def test_while_one_cannot_be_ended_no_other_is_made_with_its_address(world: World) -> None:
    cannot_be_ended(world)
    machine = await asyncio.to_thread(world.inside)
    cannot_be_ended(world)
    with pytest.raises(Unavailable, match=f"earlier build, {machine.ref.instance_id}, cannot be ended"):
        await asyncio.to_thread(world.inside)
    assert (world.runtime.starts, len(world.runtime.processes)) == (1, 1)
    await asyncio.to_thread(world.inside)
    assert (world.runtime.starts, world.runtime.most_at_once, world.left_over()) == (2, 1, [])


async def test_one_that_was_left_and_cannot_be_ended_keeps_no_other_from_it(world: World) -> None:
    machines = [await an_abandoned_one(world), await an_abandoned_one(world)]
    cannot_be_ended(world)
    await world.machines.clear_unfinished(world.runtime)
    first = min(machine.ref.instance_id for machine in machines)
    assert list(world.runtime.processes) == [first]
    await asyncio.to_thread(world.inside)
    assert world.left_over() == []


async def test_the_place_in_the_network_of_one_that_was_left_is_given_up_whatever_goes_wrong(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = with_networks(world, monkeypatch)
    await an_abandoned_one(world)
    done.clear()
    world.runtime.fail["admit"] = MvmError("there are no networks")
    await world.machines.clear_unfinished(world.runtime)
    assert (done, world.left_over()) == ([f"admit {ALICE}", f"dismiss {ALICE}"], [])


def with_networks(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Machines have networks, and none of this host's are touched; what would be done there."""
    done: list[str] = []

    async def admit(tenant: TenantId) -> None:
        done.append(f"admit {tenant}")
        if (error := world.runtime.fail.pop("admit", None)) is not None:
            raise error

    async def dismiss(tenant: TenantId) -> None:
        done.append(f"dismiss {tenant}")

    world.runtime.capabilities = dataclasses.replace(world.runtime.capabilities, networks=True)
    monkeypatch.setattr(world.machines._networks, "admit_builder", admit)
    monkeypatch.setattr(world.machines._networks, "dismiss_builder", dismiss)
    return done


async def an_abandoned_one(world: World) -> Machine:
    """A machine that runs on, for its agent was killed."""

    class Killed(BaseException):
        pass

    def killed(step: str) -> None:
        if step == "before stop":
            raise Killed

    there = set(world.runtime.processes)
    world.runtime.on_step = killed
    with pytest.raises(Killed):
        await asyncio.to_thread(world.inside)
    world.runtime.on_step = lambda _step: None
    world.machines._removals._left.clear()  # the next agent knows nothing of it
    (instance,) = world.runtime.processes.keys() - there
    return world.runtime.processes[instance].machine


async def test_what_an_agent_that_was_killed_has_left_is_removed(world: World) -> None:
    await an_abandoned_one(world)
    assert len(world.runtime.processes) == 1
    another = InstantRuntime(name="another")
    another.capabilities = world.runtime.capabilities
    await world.machines.clear_unfinished(another)
    assert len(list((world.directory / "s/builds").iterdir())) == 1, "its process would never be found"
    await world.machines.clear_unfinished(world.runtime)
    assert world.left_over() == []


@pytest.mark.parametrize(("written", "tap"), [("", "tn7i2"), ("tn7i3", ""), ("eth0", ""), ("../tn7i2", "")])
async def test_the_network_device_of_one_that_was_left_is_removed_with_it(
    world: World, monkeypatch: pytest.MonkeyPatch, written: str, tap: str
) -> None:
    with_networks(world, monkeypatch)
    machine = await an_abandoned_one(world)
    if written:
        about = machine.state_dir.parent / "about.json"
        about.write_text(json.dumps({**json.loads(about.read_text()), "tap": written}))
    destroy, taps = world.runtime.destroy, list[str]()

    async def watched(machine: Machine) -> None:
        taps.append(machine.tap)
        await destroy(machine)

    monkeypatch.setattr(world.runtime, "destroy", watched)
    await world.machines.clear_unfinished(world.runtime)
    assert (taps, world.left_over()) == ([tap], [])


async def test_one_is_there_at_a_time_and_who_waits_may_give_up(world: World) -> None:
    there, may_end = threading.Event(), threading.Event()

    def first() -> None:
        with world.machines.machine(ALICE, {}, quiet):
            there.set()
            assert may_end.wait(20)

    def give_up(step: Progress) -> None:
        assert step.text.startswith("waiting for another image")
        raise Enough

    one = asyncio.create_task(asyncio.to_thread(first))
    assert await asyncio.to_thread(there.wait, 20)
    with pytest.raises(Enough):
        await asyncio.to_thread(world.inside, {}, give_up)
    assert len(world.runtime.processes) == 1
    may_end.set()
    await one
    await asyncio.to_thread(world.inside)
    assert (world.runtime.most_at_once, world.left_over()) == (1, [])


async def test_where_instances_are_processes_it_is_refused_and_nothing_else_is_built_instead(
    world: World, tmp_path: Path
) -> None:
    world.runtime.capabilities = dataclasses.replace(world.runtime.capabilities, images=False)
    nix = NixMachineBuilder(tmp_path / "cache", world.machines)
    with pytest.raises(Unavailable, match="nix_build is 'machine', and instances run as runtime 'instant'") as refused:
        await asyncio.to_thread(choose, FLAKE, [QuickBuilder(), nix])
    assert "MVM_RUNTIME=qemu" in (refused.value.hint or "")
    assert (await asyncio.to_thread(choose, "", [QuickBuilder(), nix])).builder.name == "debian"
    with pytest.raises(Unavailable, match="has no machines"):
        await asyncio.to_thread(world.inside)
    assert world.left_over() == []


async def test_where_its_image_cannot_be_made_it_is_refused(world: World, tmp_path: Path) -> None:
    world.image.usable = False
    nix = NixMachineBuilder(tmp_path / "cache", world.machines)
    with pytest.raises(Unavailable, match="no image for one can be made: it is not installed"):
        await asyncio.to_thread(choose, FLAKE, [QuickBuilder(), nix])


async def test_where_it_can_be_made_flakes_are_built_in_it(world: World, tmp_path: Path) -> None:
    nix = NixMachineBuilder(tmp_path / "cache", world.machines)
    choice = await asyncio.to_thread(choose, FLAKE, [QuickBuilder(), nix])
    assert choice.builder is nix
    assert choice.reason.endswith("it is built in a machine (instant)")


async def test_too_much_does_not_come_along(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_machines, "MOST_SOURCES", 1000)
    (tmp_path / "flake").mkdir()
    (tmp_path / "flake/big").write_bytes(bytes(2000))
    with pytest.raises(InvalidInput, match="come along"):
        await asyncio.to_thread(world.inside, {tmp_path / "flake": "flake"})
    assert world.left_over() == []


async def test_without_room_it_does_not_begin(world: World) -> None:
    world.machines._size = dataclasses.replace(world.machines._size, free_mib=2**40)
    with pytest.raises(Unavailable, match="MiB free and a build in a machine needs"):
        await asyncio.to_thread(world.inside)
    assert (world.runtime.starts, world.left_over()) == (0, [])


def with_free(mib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=mib * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)


async def test_its_drive_leaves_room_for_what_is_copied_and_for_the_host(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(1024 + 2 * 1100, monkeypatch)
    world.machines._size = dataclasses.replace(world.machines._size, data_mib=32 * 1024)
    machine = await asyncio.to_thread(world.inside)
    assert machine.data_mib == 1100


async def test_a_host_that_can_spare_no_drive_to_build_on_builds_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(1024 + 2 * 1000, monkeypatch)
    world.machines._size = dataclasses.replace(world.machines._size, data_mib=32 * 1024)
    with pytest.raises(Unavailable, match="has 3024 MiB free and a build in a machine needs 3072"):
        await asyncio.to_thread(world.inside)
    assert world.left_over() == []


async def test_it_is_made_for_a_tenant_that_there_is(world: World) -> None:
    def nobody() -> None:
        with world.machines.machine("nobody", {}, quiet):
            pass

    with pytest.raises(NotFound, match="nobody"):
        await asyncio.to_thread(nobody)
