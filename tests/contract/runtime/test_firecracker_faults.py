"""Whatever goes wrong with a Firecracker, nothing half is left, and what was damaged never runs.

On the stand-ins, with machines in which nobody answers: here the host's side alone is looked at.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract.network.world import namespaces_work
from tests.contract.runtime.bench import LIMIT_SECONDS, Subject
from tests.contract.runtime.firecracker_bench import StandinBench
from tests.standins.firecracker.install import install
from tests.standins.firecracker.settings import Fault, inject, read_journal

from mvm.drives import images
from mvm.model.errors import Conflict, MvmError, SnapshotRejected, Unavailable
from mvm.runtime import makeup, saved
from mvm.runtime.base import Limits, Machine, Snapshot
from mvm.runtime.firecracker import api, configuration
from mvm.runtime.firecracker.client import Client
from mvm.runtime.firecracker.files import Files
from mvm.runtime.firecracker.runtime import FirecrackerRuntime
from mvm.runtime.firecracker.taps import tap_name

REASON = namespaces_work()
pytestmark = [
    pytest.mark.usefixtures("bridged_network"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.skipif(bool(images.missing_programs()), reason="needs e2fsprogs"),
]

INJECTED = "an injected fault"


@pytest.fixture
async def bench(short_directory: Path, bare_image: Path) -> AsyncIterator[StandinBench]:
    bench = StandinBench(short_directory, bare_image)
    yield bench
    await bench.close()


async def started(bench: StandinBench) -> Subject:
    subject = await bench.new()
    subject.process = await bench.runtime.start(subject.machine)
    return subject


async def asleep(bench: StandinBench, subject: Subject | None = None) -> tuple[Subject, Snapshot]:
    subject = subject or await started(bench)
    await bench.runtime.pause(subject.machine, subject.running)
    snapshot = await bench.runtime.snapshot(subject.machine, subject.running)
    assert snapshot is not None
    await subject.stop(grace_seconds=0)
    await bench.before_next_start(subject)
    return subject, snapshot


def asked_to_load(bench: StandinBench) -> int:
    """How often a Firecracker was told to load a snapshot."""
    return sum(entry["path"] == "/snapshot/load" for entry in read_journal(bench.control, "request"))


# What is damaged never runs


def flip(path: Path, at: int) -> None:
    """One bit, with the times put back: whoever looks at them alone sees nothing."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


DAMAGES: dict[str, Callable[[Files], None]] = {
    "a bit of the memory": lambda files: flip(files.ram, 100 << 20),
    "a bit of its beginning": lambda files: flip(files.ram, 3),
    "half of the memory": lambda files: os.truncate(files.ram, files.ram.stat().st_size // 2),
    "the memory's last page": lambda files: os.truncate(files.ram, files.ram.stat().st_size - 4096),
    "a bit of the devices": lambda files: flip(files.memory / "devices", 200),
    "half of the devices": lambda files: os.truncate(files.memory / "devices", 200),
    "the data drive": lambda files: os.utime(files.data),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_what_is_damaged_is_noticed_before_a_guest_runs_and_a_cold_start_follows(
    bench: StandinBench, damage: str
) -> None:
    subject, snapshot = await asleep(bench)
    DAMAGES[damage](Files.of(subject.machine))
    with pytest.raises(SnapshotRejected):
        await bench.runtime.restore(subject.machine, snapshot)
    assert asked_to_load(bench) == 0
    assert bench.leftovers(subject) == []
    await bench.runtime.discard_snapshot(subject.machine)
    subject.process = await bench.runtime.start(subject.machine)
    assert await bench.runtime.alive(subject.running)


async def test_a_memory_file_that_was_only_moved_is_the_same(bench: StandinBench) -> None:
    subject, snapshot = await asleep(bench)
    ram = Files.of(subject.machine).ram
    copy = ram.with_name("moved")
    shutil.copy2(ram, copy)
    copy.replace(ram)
    subject.process = await bench.runtime.restore(subject.machine, snapshot)
    assert asked_to_load(bench) == 1


async def test_a_snapshot_from_another_processor_or_kernel_is_rejected(
    bench: StandinBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, snapshot = await asleep(bench)
    here = os.uname()
    for change in ("processor", "kernel"):
        with monkeypatch.context() as elsewhere:
            if change == "processor":
                elsewhere.setattr(makeup, "processor", lambda: "another processor")
            else:
                other = os.uname_result((here.sysname, here.nodename, "5.10.1", here.version, here.machine))
                elsewhere.setattr(os, "uname", lambda other=other: other)
            with pytest.raises(SnapshotRejected, match=change):
                await bench.runtime.restore(subject.machine, snapshot)
    assert asked_to_load(bench) == 0
    subject.process = await bench.runtime.restore(subject.machine, snapshot)


async def test_a_snapshot_of_another_firecracker_is_rejected_and_a_cold_start_follows(bench: StandinBench) -> None:
    subject, snapshot = await asleep(bench)
    install(bench.programs_dir, bench.control, "1.17.0")
    later = bench.make_runtime()
    with pytest.raises(SnapshotRejected, match=r"Firecracker's version was 1\.16\.1, is 1\.17\.0"):
        await later.restore(subject.machine, snapshot)
    assert asked_to_load(bench) == 0
    await later.discard_snapshot(subject.machine)
    await bench.agent_ends(bench.runtime)
    bench.runtime = subject.runtime = later
    subject.process = await later.start(subject.machine)


async def test_a_memory_file_that_came_out_short_is_no_snapshot_and_the_guest_goes_on(bench: StandinBench) -> None:
    subject = await started(bench)
    inject(bench.control, Fault(what="truncate", method="PUT", path="/snapshot/create"))
    await bench.runtime.pause(subject.machine, subject.running)
    with pytest.raises(MvmError, match="of a memory of 256 MiB"):
        await bench.runtime.snapshot(subject.machine, subject.running)
    assert await bench.runtime.saved_snapshot(subject.machine) is None
    await bench.runtime.resume(subject.machine, subject.running)
    await asleep(bench, subject)


async def test_a_state_file_that_came_out_short_never_runs(bench: StandinBench) -> None:
    """Only Firecracker, which wrote it, could see that; a load of it fails and ends in a cold start."""
    subject = await started(bench)
    inject(bench.control, Fault(what="truncate_state", method="PUT", path="/snapshot/create"))
    subject, snapshot = await asleep(bench, subject)
    bench.forgiven.add("CRC validation failed")
    with pytest.raises(SnapshotRejected):
        await bench.runtime.restore(subject.machine, snapshot)
    assert bench.leftovers(subject) == []
    await bench.runtime.discard_snapshot(subject.machine)
    subject.process = await bench.runtime.start(subject.machine)


async def test_a_load_that_fails_uses_the_snapshot_up_and_a_cold_start_follows(bench: StandinBench) -> None:
    subject, snapshot = await asleep(bench)
    inject(bench.control, Fault(what="die", method="PUT", path="/snapshot/load"))
    with pytest.raises(SnapshotRejected):
        await bench.runtime.restore(subject.machine, snapshot)
    assert await bench.runtime.saved_snapshot(subject.machine) is None
    assert bench.leftovers(subject) == []
    await bench.runtime.discard_snapshot(subject.machine)
    subject.process = await bench.runtime.start(subject.machine)


# Whatever fails at whatever call

STARTING = (
    "/version", "/logger", "/metrics", "/boot-source", "/machine-config", "/drives/rootfs", "/drives/data",
    "/drives/secrets", "/drives/config", "/network-interfaces/eth0", "/vsock", "/entropy", "/balloon", "/actions",
)  # fmt: skip


async def fails(work: Awaitable[Any]) -> None:
    with pytest.raises(MvmError):
        await work


@pytest.mark.parametrize(
    "what", ["die", pytest.param("error", marks=pytest.mark.slow), pytest.param("die_after", marks=pytest.mark.slow)]
)
async def test_a_start_that_fails_at_any_call_leaves_nothing_and_the_next_one_works(
    bench: StandinBench, what: str
) -> None:
    bench.forgiven.add(INJECTED)
    subject = await bench.new()
    for path in STARTING:
        method = "GET" if path == "/version" else "PUT"
        inject(bench.control, Fault(what=what, method=method, path=path))
        await fails(bench.runtime.start(subject.machine))
        assert bench.leftovers(subject) == [], path
        assert await bench.runtime.find(subject.machine) is None
    subject.process = await bench.runtime.start(subject.machine)


@pytest.mark.parametrize("what", ["error", "die", "die_after"])
@pytest.mark.parametrize(("method", "path"), [("PUT", "/logger"), ("PUT", "/metrics")])
async def test_a_wake_that_fails_before_its_memory_is_touched_can_be_tried_again(
    bench: StandinBench, what: str, method: str, path: str
) -> None:
    bench.forgiven.add(INJECTED)
    subject, snapshot = await asleep(bench)
    inject(bench.control, Fault(what=what, method=method, path=path))
    await fails(bench.runtime.restore(subject.machine, snapshot))
    assert bench.leftovers(subject) == []
    assert await bench.runtime.saved_snapshot(subject.machine) == snapshot
    subject.process = await bench.runtime.restore(subject.machine, snapshot)


@pytest.mark.parametrize("what", ["error", "die", "die_after"])
@pytest.mark.parametrize(("method", "path"), [("PUT", "/snapshot/load"), ("PATCH", "/vm")])
async def test_a_wake_that_fails_later_leaves_nothing_that_could_run_twice(
    bench: StandinBench, what: str, method: str, path: str
) -> None:
    bench.forgiven.add(INJECTED)
    subject, snapshot = await asleep(bench)
    inject(bench.control, Fault(what=what, method=method, path=path))
    with pytest.raises(SnapshotRejected):
        await bench.runtime.restore(subject.machine, snapshot)
    assert bench.leftovers(subject) == []
    assert await bench.runtime.saved_snapshot(subject.machine) is None
    with pytest.raises(SnapshotRejected):
        await bench.runtime.restore(subject.machine, snapshot)


@pytest.mark.parametrize("what", ["error", "die", "die_after"])
async def test_a_sleep_that_fails_leaves_no_snapshot(bench: StandinBench, what: str) -> None:
    bench.forgiven.add(INJECTED)
    subject = await started(bench)
    await bench.runtime.pause(subject.machine, subject.running)
    inject(bench.control, Fault(what=what, method="PUT", path="/snapshot/create"))
    await fails(bench.runtime.snapshot(subject.machine, subject.running))
    assert await bench.runtime.saved_snapshot(subject.machine) is None
    if what == "error":
        await bench.runtime.resume(subject.machine, subject.running)
        assert await bench.runtime.alive(subject.running)
    await subject.stop(grace_seconds=0)
    assert bench.leftovers(subject) == []


async def test_a_slow_answer_is_waited_for(bench: StandinBench) -> None:
    subject = await bench.new()
    inject(bench.control, Fault(what="delay", method="PUT", path="/actions", seconds=1.5))
    subject.process = await bench.runtime.start(subject.machine)
    assert await bench.runtime.alive(subject.running)


# Left-overs


async def test_a_machine_that_is_killed_leaves_nothing_that_is_in_the_way(bench: StandinBench) -> None:
    subject = await started(bench)
    for _ in range(2):
        os.kill(subject.running.pid, signal.SIGKILL)
        await asyncio.wait_for(bench.runtime.wait(subject.running), LIMIT_SECONDS)
        await bench.before_next_start(subject)
        subject.process = await bench.runtime.start(subject.machine)
    await subject.stop(grace_seconds=0)
    assert bench.leftovers(subject) == []


async def test_what_an_earlier_jailer_left_is_cleared_away(bench: StandinBench) -> None:
    subject = await bench.new()
    files = Files.of(subject.machine)
    room = files.room_for(bench.installed.firecracker)
    (room / "dev/net").mkdir(parents=True)
    for name in ("dev/net/tun", "dev/kvm", "firecracker.pid", "v.sock", "api.sock", "v.sock_53"):
        (room / name).write_text("1")
    subject.process = await bench.runtime.start(subject.machine)
    await subject.stop(grace_seconds=0)
    assert bench.leftovers(subject) == []


async def test_the_pid_of_somebody_else_in_a_pid_file_is_never_ended(bench: StandinBench) -> None:
    subject = await bench.new()
    room = Files.of(subject.machine).room_for(bench.installed.firecracker)
    room.mkdir(parents=True)
    stranger = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        (room / "firecracker.pid").write_text(str(stranger.pid))
        assert await bench.runtime.find(subject.machine) is None
        subject.process = await bench.runtime.start(subject.machine)
        await subject.stop(grace_seconds=0)
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()


# Only one


async def test_two_wakes_at_once_start_one_process(bench: StandinBench) -> None:
    subject, snapshot = await asleep(bench)
    before = len(read_journal(bench.control, "start"))
    results = await asyncio.gather(
        *(bench.runtime.restore(subject.machine, snapshot) for _ in range(2)), return_exceptions=True
    )
    woken = [each for each in results if not isinstance(each, BaseException)]
    refused = [each for each in results if isinstance(each, BaseException)]
    assert len(woken) == 1
    assert all(isinstance(each, MvmError) for each in refused), refused
    assert len(read_journal(bench.control, "start")) == before + 1
    subject.process = woken[0]
    assert await bench.runtime.alive(subject.running)


async def test_a_start_beside_one_that_runs_is_refused_and_harms_nobody(bench: StandinBench) -> None:
    subject = await started(bench)
    for runtime in (bench.runtime, bench.make_runtime()):
        with pytest.raises(Conflict):
            await runtime.start(subject.machine)
    assert await bench.runtime.alive(subject.running)


async def test_no_second_machine_gets_a_data_drive_that_one_has(bench: StandinBench) -> None:
    one, two = await started(bench), await bench.new()
    os.link(Files.of(one.machine).data, Files.of(two.machine).data)
    with pytest.raises(Conflict, match="another machine uses"):
        await bench.runtime.start(two.machine)
    assert bench.leftovers(one) != []
    Files.of(two.machine).data.unlink()
    await one.stop(grace_seconds=0)


async def test_no_second_machine_gets_a_tap_that_one_has(bench: StandinBench) -> None:
    one, two = await started(bench), await bench.new()
    with pytest.raises(MvmError, match="TAP"):
        await bench.runtime.start(replace(two.machine, tap=one.machine.tap))
    assert await bench.runtime.alive(one.running)
    two.machine = replace(two.machine, tap="tapf-other")


async def test_a_machine_that_lost_all_its_traces_is_ended_before_another_has_its_data(bench: StandinBench) -> None:
    subject = await started(bench)
    files = Files.of(subject.machine)
    lost = subject.running
    files.record.unlink()
    shutil.rmtree(files.jail)
    later = bench.make_runtime()
    assert await later.find(subject.machine) is None
    await bench.before_next_start(subject)
    subject.process = await later.start(subject.machine)
    assert not await later.alive(lost)
    await later.stop(subject.machine, subject.running, grace_seconds=0)
    await bench.agent_ends(later)


# The agent


class Killed(BaseException):
    """The agent got SIGKILL."""


@pytest.mark.parametrize("loaded", [False, True])
async def test_a_wake_is_taken_back_when_its_agent_ended_before_the_guest_ran(
    bench: StandinBench, monkeypatch: pytest.MonkeyPatch, loaded: bool
) -> None:
    subject, snapshot = await asleep(bench)
    runtime = bench.runtime
    assert isinstance(runtime, FirecrackerRuntime)

    async def killed(machine: Machine, client: Client, _: object) -> None:
        if loaded:
            await client.tell(api.LOAD_SNAPSHOT, configuration.load(tap=tap_name(machine)))
        raise Killed

    async def nobody_does_it(*_: object) -> None:
        """What a killed agent does not get to."""

    with monkeypatch.context() as dying:
        dying.setattr(runtime, "_load", killed)
        dying.setattr(runtime._machinery, "end", nobody_does_it)
        dying.setattr(saved, "give_back", lambda files: None)
        with pytest.raises(Killed):
            await runtime.restore(subject.machine, snapshot)
    await bench.agent_ends(runtime)
    later = bench.runtime = subject.runtime = bench.make_runtime()
    process = await later.find(subject.machine)
    assert process is not None
    assert await later.retract(subject.machine, process)
    assert bench.leftovers(subject) == []
    assert await later.saved_snapshot(subject.machine) == snapshot
    await bench.before_next_start(subject)
    subject.process = await later.restore(subject.machine, snapshot)


async def test_production_does_without_the_jailer_never(bench: StandinBench) -> None:
    bench.installed.jailer.unlink()
    subject = await bench.new()
    with pytest.raises(Unavailable, match="jailer"):
        await bench.make_runtime().start(subject.machine)
    bare = FirecrackerRuntime(programs_dir=bench.programs_dir, jailed=False, production=True)
    with pytest.raises(MvmError, match="production"):
        await bare.start(subject.machine)
    assert read_journal(bench.control, "start") == []


async def test_without_a_jail_it_is_said_aloud(bench: StandinBench, caplog: pytest.LogCaptureFixture) -> None:
    bench.jailed = False
    bench.runtime = bench.make_runtime()
    subject = await bench.new()
    subject.process = await bench.runtime.start(subject.machine)
    assert any("WITHOUT JAILER" in record.message for record in caplog.records)
    snapshot = (await asleep(bench, subject))[1]
    subject.process = await bench.runtime.restore(subject.machine, snapshot)
    assert await bench.runtime.alive(subject.running)


# Limits


def limited(bench: StandinBench) -> dict[str, list[int]]:
    """The buckets that the machine which was told last runs with."""
    return dict(read_journal(bench.control, "limits")[-1]["buckets"])


def buckets(*, disk: int = 0, ops: int = 0, network: int = 0) -> dict[str, list[int]]:
    found = {}
    for drive in ("rootfs", "data", "secrets", "config"):
        found[f"drive.{drive}.rate_limiter.bandwidth"] = disk << 20
        found[f"drive.{drive}.rate_limiter.ops"] = ops
    for way in ("rx", "tx"):
        found[f"network.eth0.{way}_rate_limiter.bandwidth"] = network << 20
    return {name: [rate, 1000] for name, rate in found.items() if rate}


async def test_a_machine_has_the_limits_of_now_whenever_it_starts_or_wakes(bench: StandinBench) -> None:
    subject = await bench.new()
    subject.machine = replace(subject.machine, limits=Limits(disk_mib=40, network_mib=5))
    subject.process = await bench.runtime.start(subject.machine)
    assert limited(bench) == buckets(disk=40, network=5)
    for limits, expected in (
        (Limits(disk_mib=40, network_mib=5), buckets(disk=40, network=5)),
        (Limits(disk_mib=10, disk_ops=300), buckets(disk=10, ops=300)),
        (Limits(), {}),
        (Limits(network_mib=7), buckets(network=7)),
    ):
        _, snapshot = await asleep(bench, subject)
        subject.machine = replace(subject.machine, limits=limits)
        subject.process = await bench.runtime.restore(subject.machine, snapshot)
        assert limited(bench) == expected


async def test_a_wake_with_the_same_limits_says_nothing_of_them(bench: StandinBench) -> None:
    subject, snapshot = await asleep(bench)
    subject.process = await bench.runtime.restore(subject.machine, snapshot)
    changed = [entry["path"] for entry in read_journal(bench.control, "request") if entry["method"] == "PATCH"]
    assert set(changed) == {"/vm"}


async def test_a_copy_has_its_own_limits_and_not_those_of_its_base(bench: StandinBench) -> None:
    base, copy = await bench.new(), await bench.new()
    base.machine = replace(base.machine, limits=Limits(disk_mib=40))
    base.process = await bench.runtime.start(base.machine)
    directory = bench.base / "base"
    directory.mkdir()
    await bench.runtime.keep_as_base(base.machine, base.running, directory)
    snapshot = await bench.runtime.clone(copy.machine, directory)
    copy.process = await bench.runtime.restore(copy.machine, snapshot)
    assert limited(bench) == {}


@pytest.mark.parametrize("path", ["/drives/data", "/network-interfaces/eth0"])
async def test_a_machine_whose_limits_cannot_be_set_never_runs(bench: StandinBench, path: str) -> None:
    bench.forgiven.add(INJECTED)
    subject, snapshot = await asleep(bench)
    subject.machine = replace(subject.machine, limits=Limits(disk_mib=1))
    inject(bench.control, Fault(what="error", method="PATCH", path=path))
    with pytest.raises(SnapshotRejected):
        await bench.runtime.restore(subject.machine, snapshot)
    assert bench.leftovers(subject) == []
