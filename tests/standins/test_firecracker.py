"""The stand-in for Firecracker keeps Firecracker's rules: what the real one refuses, it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.contract.network.world import namespaces_work
from tests.standins.firecracker.install import Installed, install
from tests.standins.firecracker.machine import Machine
from tests.standins.firecracker.settings import Fault, inject, read_journal
from tests.standins.firecracker.snapshots import memory_in
from tests.standins.firecracker.vsock import stale_socket
from tests.standins.waiting import until

REASON = namespaces_work()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

AFTER_START = "not supported after starting"
BEFORE_START = "not supported before starting"
NOBODY = 53
"""A port at which no program of a guest listens."""
BUCKET = {"size": 1000, "refill_time": 100}


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in which sockets fit."""
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def programs(place: Path) -> Installed:
    return install(place / "programs", place / "control")


@pytest.fixture
async def machine(programs: Installed, place: Path) -> AsyncIterator[Machine]:
    machine = await Machine(programs, place / "m").start()
    yield machine
    await machine.close()


def with_version(place: Path, version: str) -> Machine:
    return Machine(install(place / "programs", place / "control", version), place / "m")


# When a call is taken


def calls_before(machine: Machine) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("/boot-source", machine.boot_source),
        ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 128}),
        ("/drives/other", machine.drive("other", "root.img")),
        ("/vsock", machine.vsock),
        ("/entropy", {}),
        ("/balloon", {"amount_mib": 0, "deflate_on_oom": True}),
        ("/serial", {}),
        ("/logger", {"level": "Info"}),
        ("/metrics", {"metrics_path": str(machine.path("metrics"))}),
        ("/cpu-config", {}),
        ("/hotplug/memory", {"total_size_mib": 256}),
        ("/snapshot/load", machine.load()),
    ]


CALLS_AFTER: list[tuple[str, str, dict[str, Any]]] = [
    ("PATCH", "/vm", {"state": "Paused"}),
    ("PATCH", "/drives/rootfs", {"drive_id": "rootfs"}),
    ("PATCH", "/network-interfaces/eth0", {"iface_id": "eth0"}),
    ("PATCH", "/balloon", {"amount_mib": 1}),
    ("PUT", "/snapshot/create", {"snapshot_path": "s", "mem_file_path": "m"}),
    ("PUT", "/actions", {"action_type": "FlushMetrics"}),
    ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}),
]


async def test_what_configures_is_taken_before_the_start_only(machine: Machine) -> None:
    await machine.boot()
    for path, body in calls_before(machine):
        answer = await machine.put(path, body)
        assert (answer.status, AFTER_START in answer.fault) == (400, True), path
    changed = await machine.patch("/machine-config", {"vcpu_count": 2})
    assert AFTER_START in changed.fault


@pytest.mark.parametrize(("method", "path", "body"), CALLS_AFTER)
async def test_what_acts_on_a_guest_is_taken_after_the_start_only(
    machine: Machine, method: str, path: str, body: dict[str, Any]
) -> None:
    await machine.configure()
    answer = await machine.call(method, path, body)
    assert (answer.status, BEFORE_START in answer.fault) == (400, True)


async def test_what_only_asks_is_always_taken(machine: Machine) -> None:
    for _ in ("before", "after"):
        for path in ("/", "/version", "/machine-config", "/vm/config"):
            assert (await machine.get(path)).status == 200
        if (await machine.get("/")).body["state"] == "Not started":
            await machine.boot()


async def test_it_starts_once_and_not_without_a_kernel(machine: Machine) -> None:
    start = {"action_type": "InstanceStart"}
    assert "without kernel" in (await machine.put("/actions", start)).fault
    await machine.boot()
    assert AFTER_START in (await machine.put("/actions", start)).fault


# The form of requests


MALFORMED: list[tuple[str, dict[str, Any], str]] = [
    ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 128, "numa": 1}, "unknown field `numa`"),
    ("/machine-config", {"vcpu_count": 1}, "missing field `mem_size_mib`"),
    ("/machine-config", {"vcpu_count": "1", "mem_size_mib": 128}, "invalid type"),
    ("/machine-config", {"vcpu_count": True, "mem_size_mib": 128}, "invalid type"),
    ("/machine-config", {"vcpu_count": 0, "mem_size_mib": 128}, "vCPU"),
    ("/machine-config", {"vcpu_count": 33, "mem_size_mib": 128}, "vCPU"),
    ("/machine-config", {"vcpu_count": 3, "mem_size_mib": 128, "smt": True}, "vCPU"),
    ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 0}, "memory size"),
    ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 129, "huge_pages": "2M"}, "memory size"),
    ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 128, "huge_pages": "1G"}, "unknown variant `1G`"),
    ("/entropy", {"rate_limiter": {"bandwidth": {"size": 1}}}, "missing field `refill_time`"),
    ("/entropy", {"rate_limiter": {"bandwidth": {**BUCKET, "burst": 1}}}, "unknown field `burst`"),
    ("/vsock", {"guest_cid": 2, "uds_path": "v"}, "guest_cid"),
    ("/drives/a-b", {"drive_id": "a-b", "is_root_device": False}, "alphanumeric"),
    ("/drives/a", {"drive_id": "b", "is_root_device": False}, "does not match"),
    ("/network-interfaces/eth-0", {"iface_id": "eth-0", "host_dev_name": "t"}, "alphanumeric"),
    ("/actions", {"action_type": "InstanceStop"}, "unknown variant"),
    ("/nothing", {}, "Invalid request method and/or path"),
]


async def test_structures_are_closed_and_checked(machine: Machine) -> None:
    for path, body, fault in MALFORMED:
        answer = await machine.put(path, body)
        assert answer.status == 400, (path, body)
        assert fault in answer.fault


async def test_three_processors_are_fine_without_smt(machine: Machine) -> None:
    await machine.must("PUT", "/machine-config", {"vcpu_count": 3, "mem_size_mib": 129})
    await machine.must("PATCH", "/machine-config", {"mem_size_mib": 200})
    found = (await machine.get("/machine-config")).body
    assert (found["vcpu_count"], found["mem_size_mib"]) == (3, 200)


async def test_bodies_are_where_they_belong(machine: Machine) -> None:
    assert "cannot have a body" in (await machine.call("GET", "/version", {})).fault
    assert (await machine.call("PUT", "/entropy")).fault == "Empty PUT request."
    assert (await machine.call("PATCH", "/vm")).fault == "Empty PATCH request."
    assert "deserializing" in (await machine.call("PUT", "/entropy", raw=b"{")).fault
    assert (await machine.call("DELETE", "/drives/rootfs", {})).status == 400


async def test_a_body_has_a_limit(machine: Machine) -> None:
    answer = await machine.call("PUT", "/mmds", raw=json.dumps({"k": "x" * 51_200}).encode())
    assert answer.status == 413
    assert "51200" in answer.fault


async def test_the_programs_say_their_version(programs: Installed) -> None:
    for program, name in ((programs.firecracker, "Firecracker"), (programs.jailer, "Jailer")):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        assert said.splitlines()[0] == f"{name} v1.16.1"


@pytest.mark.parametrize("identity", ["with_underscore", "x" * 65, ""])
def test_an_instance_has_no_underscore_in_its_id(programs: Installed, place: Path, identity: str) -> None:
    for words in (
        [programs.firecracker, "--api-sock", place / "s", "--id", identity],
        [programs.jailer, "--id", identity, "--exec-file", programs.firecracker, "--uid", "1", "--gid", "1"],
    ):
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
        assert done.returncode != 0
        assert "Invalid instance ID" in done.stderr


def test_an_unknown_option_is_refused(programs: Installed) -> None:
    done = subprocess.run([programs.firecracker, "--api-socket", "x"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 153


# Files


async def test_a_kernel_has_to_be_there_and_an_elf(machine: Machine) -> None:
    missing = await machine.put("/boot-source", {"kernel_image_path": str(machine.path("none"))})
    assert "No such file" in missing.fault
    no_initrd = machine.boot_source | {"initrd_path": str(machine.path("none"))}
    assert "No such file" in (await machine.put("/boot-source", no_initrd)).fault
    machine.path("vmlinux").write_bytes(b"MZ, a bzImage")
    await machine.configure()
    assert "no ELF" in (await machine.put("/actions", {"action_type": "InstanceStart"})).fault


async def test_a_drive_is_a_file_that_is_there(machine: Machine) -> None:
    gone = await machine.put("/drives/a", machine.drive("a", "none"))
    assert "No such file" in gone.fault
    half = machine.drive("a", "root.img")
    del half["is_read_only"]
    assert (await machine.put("/drives/a", half)).status == 400
    await machine.must("PUT", "/drives/a", machine.drive("a", "root.img", root=True))
    second = await machine.put("/drives/b", machine.drive("b", "root.img", root=True))
    assert "root block device already exists" in second.fault


async def test_two_machines_on_one_data_drive_are_noticed(machine: Machine, programs: Installed, place: Path) -> None:
    machine.make_data()
    await machine.boot(data=True)
    other = await Machine(programs, place / "n").start()
    drive = other.drive("data", "data.img", read_only=False) | {"path_on_host": str(machine.path("data.img"))}
    await other.must("PUT", "/drives/data", drive)
    await other.close()
    assert len(machine.violations) == 1
    assert "two machines write" in machine.violations[0]


async def test_a_tap_has_to_be_there(machine: Machine) -> None:
    answer = await machine.put("/network-interfaces/eth0", {"iface_id": "eth0", "host_dev_name": "tap-nowhere"})
    assert "TAP device tap-nowhere" in answer.fault


# Snapshots


async def test_a_snapshot_needs_a_pause(machine: Machine) -> None:
    await machine.boot()
    assert "not paused" in (await machine.put("/snapshot/create", machine.snapshot)).fault
    await machine.save()
    assert machine.path("mem").stat().st_size == 128 << 20
    assert machine.path("mem").stat().st_blocks * 512 < 32 << 20, "as sparse as a guest's memory is"
    await machine.resume()


async def test_a_snapshot_is_loaded_once_and_nothing_before_it(machine: Machine) -> None:
    await machine.boot()
    await machine.save()
    await machine.again()
    await machine.must("PUT", "/logger", {"log_path": str(machine.path("log")), "level": "info"})
    await machine.must("PUT", "/metrics", {"metrics_path": str(machine.path("metrics"))})
    await machine.must("PUT", "/serial", {"serial_out_path": str(machine.path("serial"))})
    await machine.must("PUT", "/snapshot/load", machine.load())
    assert (await machine.get("/")).body["state"] == "Paused"
    await machine.resume()
    assert AFTER_START in (await machine.put("/snapshot/load", machine.load())).fault


@pytest.mark.parametrize("path", ["/machine-config", "/boot-source", "/drives/other", "/vsock", "/entropy", "/balloon"])
async def test_what_is_for_a_boot_rules_a_load_out(machine: Machine, path: str) -> None:
    await machine.boot()
    await machine.save()
    await machine.again()
    await machine.must("PUT", path, dict(calls_before(machine))[path])
    answer = await machine.put("/snapshot/load", machine.load())
    assert "not allowed after configuring boot-specific resources" in answer.fault
    assert (await machine.get("/")).status == 200, "nothing was loaded, so it goes on"


DAMAGES = ["no memory", "short memory", "no state", "flipped state", "changed memory", "no drive"]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_load_that_fails_ends_the_process(machine: Machine, damage: str) -> None:
    await machine.boot()
    await machine.save()
    mem, state = machine.path("mem"), machine.path("state")
    match damage:
        case "no memory":
            mem.unlink()
        case "short memory":
            os.truncate(mem, 64 << 20)
        case "no state":
            state.unlink()
        case "flipped state":
            flip(state, 40)
        case "changed memory":
            flip(mem, 8 << 20)
        case "no drive":
            machine.path("root.img").rename(machine.path("elsewhere"))
    await machine.again()
    assert (await machine.put("/snapshot/load", machine.load(resume_vm=True))).status == 400
    assert await machine.until_ended() == 1
    noticed = "changed memory" if machine.violations else "Firecracker notices this itself"
    assert (noticed == "changed memory") == (damage == "changed memory")


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


async def test_a_snapshot_of_another_version_is_not_loaded(machine: Machine, place: Path) -> None:
    await machine.boot()
    await machine.save()
    await machine.close()
    newer = with_version(place, "1.17.0")
    machine.path("v.sock").unlink()
    await newer.start()
    assert "version" in (await newer.put("/snapshot/load", newer.load())).fault
    assert await newer.until_ended() == 1
    await newer.close()


async def test_exactly_one_memory_is_named(machine: Machine) -> None:
    both = machine.load(mem_file_path="m")
    for body in (both, {"snapshot_path": "s"}):
        assert "exactly one" in (await machine.put("/snapshot/load", body)).fault


async def test_what_came_with_a_version_is_unknown_before(place: Path) -> None:
    old = await with_version(place, "1.15.0").start()
    for field in ("vsock_override", "clock_realtime"):
        answer = await old.put("/snapshot/load", old.load(**{field: {"uds_path": "x"}}))
        assert f"unknown field `{field}`" in answer.fault
    await old.close()


async def test_a_vsock_is_overridden_at_a_load(machine: Machine) -> None:
    await machine.boot()
    await machine.save()
    await machine.close()
    await machine.start()  # the socket of the former process is still there
    other = str(machine.path("w.sock"))
    await machine.must("PUT", "/snapshot/load", machine.load(vsock_override={"uds_path": other}, resume_vm=True))
    assert Path(other).is_socket()


async def test_memory_that_changes_under_a_guest_is_noticed(machine: Machine) -> None:
    await machine.boot()
    await machine.save()
    await machine.again()
    await machine.must("PUT", "/snapshot/load", machine.load(resume_vm=True))
    flip(machine.path("mem"), 100)
    await until(lambda: bool(machine.violations), what="a violation")
    os.truncate(machine.path("mem"), 1 << 20)
    assert await machine.until_ended() == -signal.SIGABRT


async def test_a_memory_file_is_not_written_over_by_the_guest_that_runs_from_it(machine: Machine) -> None:
    await machine.boot()
    await machine.save()
    await machine.again()
    await machine.must("PUT", "/snapshot/load", machine.load(resume_vm=True))
    await machine.pause()
    await machine.put("/snapshot/create", machine.snapshot)
    assert any("was to be overwritten" in what for what in machine.violations)


async def test_removing_the_name_of_a_memory_file_is_fine(machine: Machine) -> None:
    await machine.boot()
    await machine.save()
    await machine.again()
    await machine.must("PUT", "/snapshot/load", machine.load(resume_vm=True))
    machine.path("mem").unlink()
    await machine.save()
    assert machine.violations == []


# vsock


async def test_a_stale_socket_is_in_the_way(machine: Machine) -> None:
    stale_socket(machine.path("v.sock"))
    assert "Address in use" in (await machine.put("/vsock", machine.vsock)).fault


async def test_an_api_socket_that_is_there_already_ends_the_process(programs: Installed, place: Path) -> None:
    stale_socket(place / "api.sock")
    words = [programs.firecracker, "--api-sock", place / "api.sock", "--id", "x"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "Address in use" in done.stderr


async def test_a_port_that_nobody_listens_on_hangs_up(machine: Machine) -> None:
    await machine.boot()
    said, _, writer = await machine.connect(NOBODY)
    writer.close()
    assert said == ""


@pytest.mark.parametrize(("version", "hangs"), [("1.16.0", False), ("1.16.1", True), ("1.17.0", False)])
async def test_a_bare_pause_breaks_connections_of_the_host_in_one_version(
    place: Path, version: str, hangs: bool
) -> None:
    machine = await with_version(place, version).start()
    await machine.boot()
    await machine.pause()
    await machine.resume()
    reader, writer = await asyncio.open_unix_connection(str(machine.path("v.sock")))
    writer.write(b"CONNECT 52\n")
    asked = asyncio.create_task(reader.readline())
    done, _ = await asyncio.wait({asked}, timeout=1.0)
    asked.cancel()
    writer.close()
    await machine.close()
    assert bool(done) != hangs


async def test_a_snapshot_between_pause_and_resume_breaks_nothing(machine: Machine) -> None:
    await machine.boot()
    await machine.save()
    await machine.resume()
    said, _, writer = await machine.connect(NOBODY)
    writer.close()
    assert said == ""


# Faults and the journal


async def test_every_request_is_in_the_journal(machine: Machine) -> None:
    await machine.put("/entropy", {"rate_limiter": {"ops": BUCKET}})
    (entry,) = [e for e in read_journal(machine.programs.settings.control, "request") if e["path"] == "/entropy"]
    assert entry["body"] == {"rate_limiter": {"ops": BUCKET}}
    assert (entry["method"], entry["status"], entry["state"], entry["id"]) == ("PUT", 204, "Not started", "vm-1")


async def test_a_fault_happens_once_at_its_call(machine: Machine) -> None:
    control = machine.programs.settings.control
    inject(control, Fault(what="error", method="PUT", path="/entropy", nth=2))
    statuses = [(await machine.put("/entropy", {})).status for _ in range(3)]
    assert statuses == [204, 400, 204]
    inject(control, Fault(what="die", method="PUT", path="/vsock"))
    with pytest.raises(aiohttp.ClientConnectionError):
        await machine.put("/vsock", machine.vsock)
    assert await machine.until_ended() == -signal.SIGKILL
    assert not machine.path("v.sock").exists()


async def test_a_process_dies_after_it_did_what_it_was_told(machine: Machine) -> None:
    inject(machine.programs.settings.control, Fault(what="die_after", method="PUT", path="/vsock"))
    with pytest.raises(aiohttp.ClientConnectionError):
        await machine.put("/vsock", machine.vsock)
    await machine.until_ended()
    assert machine.path("v.sock").is_socket(), "a stale one is left behind"


async def restored(machine: Machine, **how: Any) -> Machine:
    """A machine that slept and runs again."""
    await machine.boot()
    await machine.save()
    await machine.again()
    await machine.must("PUT", "/snapshot/load", machine.load(resume_vm=True, **how))
    await machine.pause()
    return machine


def diff(machine: Machine, file: str) -> dict[str, str]:
    return {
        "snapshot_type": "Diff",
        "snapshot_path": str(machine.path("diff.state")),
        "mem_file_path": str(machine.path(file)),
    }


async def test_a_diff_has_holes_where_nothing_was_written_to(machine: Machine) -> None:
    await restored(machine, track_dirty_pages=True)
    await machine.must("PUT", "/snapshot/create", diff(machine, "diff"))
    before, changed = memory_in(machine.path("mem")), memory_in(machine.path("diff"))
    assert machine.path("diff").stat().st_size == machine.path("mem").stat().st_size
    assert 0 < len(changed) < len(before)
    await machine.must("PUT", "/snapshot/create", machine.snapshot | {"mem_file_path": str(machine.path("whole"))})
    assert memory_in(machine.path("whole")) == before | changed
    await machine.must("PUT", "/snapshot/create", diff(machine, "next"))
    assert memory_in(machine.path("next")) == {}, "nothing has run since"
    assert machine.violations == []


@pytest.mark.parametrize("right_size", [True, False])
async def test_a_diff_goes_into_a_memory_file_of_the_right_size_only(machine: Machine, right_size: bool) -> None:
    await restored(machine, track_dirty_pages=True)
    before = memory_in(machine.path("mem"))
    shutil.copyfile(machine.path("mem"), machine.path("copy"))
    if not right_size:
        os.truncate(machine.path("copy"), 64 << 20)
    await machine.must("PUT", "/snapshot/create", diff(machine, "copy"))
    assert (set(before) <= set(memory_in(machine.path("copy")))) == right_size
    await machine.again()
    body = {"backend_type": "File", "backend_path": str(machine.path("copy"))}
    answer = await machine.put(
        "/snapshot/load", {"snapshot_path": str(machine.path("diff.state")), "mem_backend": body}
    )
    assert (answer.status == 204) == right_size
    assert (machine.violations == []) == right_size


async def test_a_diff_of_a_guest_whose_writes_nobody_noted_is_a_violation(machine: Machine) -> None:
    await restored(machine)
    await machine.must("PUT", "/snapshot/create", diff(machine, "diff"))
    assert any("nothing notes what is written" in violation for violation in machine.violations)


async def test_a_diff_over_the_memory_that_the_guest_runs_from_is_a_violation(machine: Machine) -> None:
    await restored(machine, track_dirty_pages=True)
    await machine.must("PUT", "/snapshot/create", diff(machine, "mem"))
    assert machine.violations


async def limits_of(machine: Machine) -> dict[str, Any]:
    return dict(read_journal(machine.programs.settings.control, "limits")[-1]["buckets"])


async def test_limits_are_saved_and_changed_bucket_by_bucket(machine: Machine) -> None:
    await machine.configure()
    bucket, other, none = ({"size": n, "refill_time": n} for n in (1000, 7, 0))
    limiter = {"bandwidth": bucket, "ops": bucket}
    await machine.must(
        "PUT", "/drives/rootfs", machine.drive("rootfs", "root.img", root=True) | {"rate_limiter": limiter}
    )
    await machine.must("PUT", "/actions", {"action_type": "InstanceStart"})
    await machine.save()
    await machine.again()
    await machine.must("PUT", "/snapshot/load", machine.load())
    change = {"drive_id": "rootfs", "rate_limiter": {"ops": other}}
    await machine.must("PATCH", "/drives/rootfs", change)
    assert await limits_of(machine) == {
        "drive.rootfs.rate_limiter.bandwidth": [1000, 1000],
        "drive.rootfs.rate_limiter.ops": [7, 7],
    }
    change = {"drive_id": "rootfs", "rate_limiter": {"bandwidth": none}}
    await machine.must("PATCH", "/drives/rootfs", change)
    assert await limits_of(machine) == {"drive.rootfs.rate_limiter.ops": [7, 7]}
    assert machine.violations == []


@pytest.mark.parametrize(
    "limiter",
    [
        {"bandwidth": {"size": 1}},
        {"bandwidth": {"size": -1, "refill_time": 1}},
        {"bandwidth": {"size": 1, "refill_time": 1, "burst": 1}},
        {"bytes": {"size": 1, "refill_time": 1}},
    ],
)
async def test_a_limiter_has_the_form_that_is_described(machine: Machine, limiter: dict[str, Any]) -> None:
    await machine.configure()
    body = machine.drive("rootfs", "root.img", root=True) | {"rate_limiter": limiter}
    assert (await machine.put("/drives/rootfs", body)).status == 400


async def test_a_bucket_of_nothing_at_boot_is_a_violation(machine: Machine) -> None:
    await machine.configure()
    limiter = {"bandwidth": {"size": 0, "refill_time": 1000}}
    await machine.must(
        "PUT", "/drives/rootfs", machine.drive("rootfs", "root.img", root=True) | {"rate_limiter": limiter}
    )
    assert any("limits nothing" in violation for violation in machine.violations)


async def test_a_snapshot_can_come_out_short(machine: Machine) -> None:
    await machine.boot()
    inject(machine.programs.settings.control, Fault(what="truncate", method="PUT", path="/snapshot/create"))
    await machine.save()
    assert machine.path("mem").stat().st_size == 64 << 20


async def test_nothing_of_a_guest_outlives_its_process(machine: Machine) -> None:
    await machine.boot()
    assert machine.process is not None
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(machine.process.pid)], capture_output=True, text=True
    ).stdout.split()
    assert children
    await machine.close()
    await until(lambda: not any(running(int(pid)) for pid in children), what="the guest's end")


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
