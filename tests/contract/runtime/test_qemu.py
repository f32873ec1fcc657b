"""The QEMU runtime keeps the rules of every runtime, of those that keep memory, and a few of its own.

Most instances here are copies of one base: emulated, a copy is there in a second and a boot takes six.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from pyroute2 import IPRoute
from tests.contract.network.world import namespaces_work, new_host
from tests.contract.runtime.bench import Bench, Subject
from tests.contract.runtime.snapshot_conformance import SnapshotConformance

from mvm.drives import images
from mvm.guest.kernel import MountFlag, mount, unmount
from mvm.image.base import Manifest, describe_files
from mvm.model.errors import SnapshotRejected, Unavailable
from mvm.model.roles import Role
from mvm.network.taps import open_tap
from mvm.runtime import saved
from mvm.runtime.base import Machine, Runtime
from mvm.runtime.qemu import QemuRuntime, accelerator, halted, launching
from mvm.runtime.qemu.accelerator import Accelerator
from mvm.runtime.qemu.files import Files
from mvm.wire import messages
from mvm.wire.messages import WorkStatus

REASON = namespaces_work()
pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(300),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU"),
]

BRIDGE = "br-vms"
NETWORK = "10.99.0"
VM_UID = 61_017
"""A user that nobody else is."""


def groups_of_machines(used: Accelerator) -> list[str]:
    """None; with hardware the one by which its device is opened, unless everybody may."""
    if used.device is None:
        return []
    device = used.device.stat()
    return [] if device.st_mode & 0o006 == 0o006 else [str(device.st_gid)]


WRITE_MUCH = "head -c 6000000 /dev/urandom | tee /data/much | md5sum && sync"


@contextmanager
def small_disk_for(data: Path, place: Path) -> Iterator[Path]:
    """Put a data drive on a file system of its own that is much smaller; gives the path of a file beside it."""
    place.mkdir()
    mount("tmpfs", place, "tmpfs", MountFlag(0), "size=16m")
    try:
        images.make_ext4(place / "data.img", mib=64)
        data.touch()
        mount(str(place / "data.img"), data, "", MountFlag.BIND)
        try:
            yield place / "ballast"
        finally:
            unmount(data, lazily=True)
    finally:
        unmount(place, lazily=True)


def fill(ballast: Path) -> None:
    """Leave no space beside it."""
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(65536)):
            pass


async def state_of(bench: Bench, subject: Subject) -> str:
    """What QEMU says of its guest."""
    assert isinstance(bench.runtime, QemuRuntime)
    async with bench.runtime._monitor(subject.machine) as monitor:
        return await monitor.status()


class Killed(BaseException):
    """The agent got SIGKILL."""


async def killed(*_: object) -> None:
    raise Killed


async def nobody_does_it(*_: object) -> None:
    """What a killed agent does not get to."""


class QemuBench(Bench):
    """Small machines on a bridge, in a network namespace of the test's own."""

    gateway_address = f"{NETWORK}.1"
    stranger_address = f"{NETWORK}.2"

    def __init__(self, base: Path, image: Path, kept: Path) -> None:
        self.image = image
        self.kept = kept
        super().__init__(base)

    def make_runtime(self) -> Runtime:
        return QemuRuntime(run_dir=self.kept, open_tap=self.open_tap)

    def open_tap(self, machine: Machine) -> int | None:
        return open_tap(machine.tap, BRIDGE) if machine.tap else None

    def equip(self, machine: Machine) -> Machine:
        number = len(self.subjects) + 10
        return replace(
            machine,
            vcpus=1,
            mem_mib=256,
            image=self.image,
            uid=VM_UID,
            guest_ip=f"{NETWORK}.{number}",
            gateway_ip=self.gateway_address,
            tap=f"tap{number}",
            mac=f"02:fc:00:63:00:{number:02x}",
            data_mib=64,
        )

    async def agent_ends(self, runtime: Runtime) -> None:
        assert isinstance(runtime, QemuRuntime)
        await runtime.close()

    async def read_data(self, subject: Subject, name: str) -> str:
        if subject.process is not None:
            script = 'if test -e "$0"; then cat "$0"; fi'
            return await subject.execute("sh", "-c", script, f"/data/{name}")
        image = Files.of(subject.machine).data
        command = ["debugfs", "-R", f"cat /{name}", str(image)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout

    def leftovers(self, subject: Subject) -> list[str]:
        files = Files.of(subject.machine)
        left = [f"process {process.identity.pid}" for process in launching.members(files)]
        left += [str(path) for path in (*files.sockets, files.record) if path.exists()]
        left += [device for device in os.listdir("/proc/self/net/dev_snmp6") if device == subject.machine.tap]
        groups = Path("/sys/fs/cgroup").glob(f"*/**/mvm-{subject.machine.ref.instance_id}-*")
        return left + [str(group) for group in groups]

    async def ready(self, subject: Subject | None = None) -> Subject:
        """A copy of a base that is made once for all tests here."""
        if not self.base_of_all.exists():
            await self.make_base()
        return await self.copy_of_base(subject or await self.new())

    @property
    def base_of_all(self) -> Path:
        return self.kept / "base"

    async def make_base(self) -> None:
        """Boot an instance without a network until its service is up, and keep it."""
        subject = await self.new()
        subject.machine = replace(subject.machine, tap="")
        await subject.start_ready()
        directory = self.kept / "making"
        directory.mkdir()
        await self.runtime.pause(subject.machine, subject.running)
        await self.runtime.keep_as_base(subject.machine, subject.running, directory)
        await self.runtime.destroy(subject.machine)
        subject.process = None
        directory.rename(self.base_of_all)

    async def copy_of_base(self, subject: Subject) -> Subject:
        """The instance runs as a copy of the base, as itself."""
        if subject.desk is None:
            await subject.listen()
        snapshot = await self.runtime.clone(subject.machine, self.base_of_all)
        subject.process = await self.runtime.restore(subject.machine, snapshot)
        await subject.until_answering()
        assert (await subject.wake()).success
        await subject.until(WorkStatus.IDLE)
        return subject


@pytest.fixture(scope="module", autouse=True)
def _network() -> Iterator[None]:
    """A bridge for the machines that this process is at, seen by nobody else."""
    with new_host():
        with IPRoute() as route:
            route.link("add", ifname=BRIDGE, kind="bridge")
            index = route.link_lookup(ifname=BRIDGE)[0]
            for host in (QemuBench.gateway_address, QemuBench.stranger_address):
                route.addr("add", index=index, address=host, prefixlen=24)
            route.link("set", index=index, state="up")
        yield


@pytest.fixture(scope="module")
def kept() -> Iterator[Path]:
    """A directory for what all tests of this module share."""
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def ext4_image(small_image: Path, tmp_path: Path) -> Path:
    """The same image with its root as ext4, as a flake may have made it."""
    image, tree = tmp_path / "image", tmp_path / "root"
    shutil.copytree(small_image, image, ignore=shutil.ignore_patterns("rootfs.erofs"))
    root = str(image / "rootfs.ext4")
    unpack = ["fsck.erofs", f"--extract={tree}", "--preserve", str(small_image / "rootfs.erofs")]
    pack = ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-d", str(tree), root, "512M"]
    for command in (unpack, pack):
        subprocess.run(command, capture_output=True, check=True, timeout=120)
    manifest = Manifest.read(image)
    files = describe_files(image, ("vmlinux", "initrd", "rootfs.ext4"))
    manifest.model_copy(update={"files": files, "kernel_arguments": ("rootfstype=ext4",)}).write(image)
    return image


async def test_a_root_of_ext4_boots_like_any_other(ext4_image: Path, kept: Path, short_directory: Path) -> None:
    bench = QemuBench(short_directory, ext4_image, kept)
    try:
        subject = await bench.new()
        await subject.start_ready()
        assert (await subject.execute("ls", "/proc/fs/ext4")).split() == ["vda", "vdb"]
        assert await subject.execute("sh", "-c", "echo written >/etc/there && cat /etc/there") == "written\n"
    finally:
        await bench.close()


class TestQemuRuntime(SnapshotConformance):
    image: ClassVar[Path]
    kept: ClassVar[Path]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _given(cls, small_image: Path, kept: Path) -> None:
        cls.image, cls.kept = small_image, kept

    def make_bench(self, base: Path) -> Bench:
        return QemuBench(base, self.image, self.kept)

    async def test_it_says_how_it_runs_guests(self, bench: Bench) -> None:
        probe = await bench.runtime.probe()
        assert probe.reason.startswith("QEMU ")
        assert bench.runtime.capabilities.isolated

    async def test_the_machine_has_no_privilege_and_no_file_but_what_it_was_given(self, bench: Bench) -> None:
        subject = await bench.ready()
        pid = subject.running.pid
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert status["Uid"].split() == [str(VM_UID)] * 4
        assert status["Gid"].split() == [str(VM_UID)] * 4
        assert status["Groups"].split() == groups_of_machines((await accelerator.find()).accelerator)
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert "Max core file size        0 " in limits
        assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) > 0

    async def test_no_secret_is_in_its_arguments_or_environment_or_on_a_disk(self, bench: Bench) -> None:
        subject = await bench.ready()
        pid = subject.running.pid
        seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        assert b"first key" not in seen
        files = Files.of(subject.machine)
        assert files.secrets_image.parent == files.secrets.parent
        for path in (files.run_dir, files.state_dir):
            holding = [p for p in path.rglob("*") if p.is_file() and p != files.ram and b"first key" in p.read_bytes()]
            assert [path.name for path in holding if path.name != "data.img"] == []

    async def test_sockets_and_memory_are_private(self, bench: Bench) -> None:
        subject = await bench.ready()
        files = Files.of(subject.machine)
        for path in (*files.sockets, files.ram, files.data, files.secrets_image, files.memory):
            assert path.stat().st_mode & 0o077 == 0, path

    async def test_a_machine_without_an_image_is_refused_before_anything_runs(self, bench: Bench) -> None:
        subject = await bench.new()
        with pytest.raises(Unavailable, match="has no image"):
            await bench.runtime.start(replace(subject.machine, image=None))
        assert bench.leftovers(subject) == []

    async def test_a_qemu_that_ends_at_once_says_why_and_leaves_nothing(self, bench: Bench, tmp_path: Path) -> None:
        subject = await bench.new()
        shutil.copytree(self.image, tmp_path / "image", copy_function=os.link)
        (tmp_path / "image/vmlinux").unlink()
        (tmp_path / "image/vmlinux").write_bytes(b"no kernel")
        with pytest.raises(Unavailable, match=r"ended at once: .*kernel"):
            await bench.runtime.start(replace(subject.machine, image=tmp_path / "image"))
        assert bench.leftovers(subject) == []

    async def test_the_last_words_of_a_guest_that_cannot_start_are_kept(self, bench: Bench, tmp_path: Path) -> None:
        subject = await bench.new(role=Role.WORKER)
        shutil.copytree(self.image, tmp_path / "image", copy_function=os.link)
        root = tmp_path / "image/rootfs.erofs"
        root.unlink()
        root.write_bytes(bytes(1 << 20))
        process = await bench.runtime.start(replace(subject.machine, image=tmp_path / "image"))
        await asyncio.wait_for(bench.runtime.wait(process), 60)
        await bench.runtime.stop(subject.machine, process, grace_seconds=0)
        assert "cannot start" in Files.of(subject.machine).console_log.read_text()

    async def test_a_cancelled_start_leaves_nothing(self, bench: Bench) -> None:
        subject = await bench.new(role=Role.WORKER)
        starting = asyncio.create_task(bench.runtime.start(subject.machine))
        files = Files.of(subject.machine)
        while not files.monitor.exists():
            await asyncio.sleep(0.001)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert bench.leftovers(subject) == []

    async def test_a_machine_without_a_record_is_found_too(self, bench: Bench) -> None:
        subject = await bench.ready()
        record = Files.of(subject.machine).record
        kept = record.rename(record.with_name("kept"))
        assert await bench.make_runtime().find(subject.machine) == subject.process
        kept.rename(record)

    async def test_a_machine_that_lost_all_its_traces_is_ended_before_another_has_its_data(self, bench: Bench) -> None:
        subject = await bench.ready()
        files = Files.of(subject.machine)
        lost = subject.running.pid
        files.forget_process()
        later = bench.make_runtime()
        assert await later.find(subject.machine) is None
        await later.discard_snapshot(subject.machine)
        await bench.before_next_start(subject)
        process = await later.start(subject.machine)
        assert [member.identity.pid for member in launching.members(files)] == [process.pid]
        assert process.pid != lost
        await later.stop(subject.machine, process, grace_seconds=0)
        await bench.agent_ends(later)

    async def test_a_wake_is_taken_back_when_its_agent_ended_before_the_memory_was_used(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        subject = await bench.ready()
        assert not await bench.runtime.retract(subject.machine, subject.running)
        await subject.execute("sh", "-c", "echo in memory > /run/note")
        snapshot = await self.put_to_sleep(subject)
        await bench.before_next_start(subject)
        with monkeypatch.context() as dying:
            dying.setattr(bench.runtime, "_load", killed)
            dying.setattr(bench.runtime, "_end", nobody_does_it)
            with pytest.raises(Killed):
                await bench.runtime.restore(subject.machine, snapshot)
        later = bench.make_runtime()
        process = await later.find(subject.machine)
        assert process is not None
        assert await later.retract(subject.machine, process)
        await bench.agent_ends(later)
        assert bench.leftovers(subject) == []
        await self.wake_up(subject)
        assert await subject.execute("cat", "/run/note") == "in memory\n"

    async def test_two_pieces_of_work_take_turns_at_the_monitor(self, bench: Bench) -> None:
        subject = await bench.ready()
        work = (bench.runtime.pause, bench.runtime.resume) * 4
        await asyncio.gather(*(one(subject.machine, subject.running) for one in work))
        await subject.ask(messages.Ping())

    async def test_a_guest_that_is_stuck_is_ended(self, bench: Bench) -> None:
        subject = await bench.ready()
        os.kill(subject.running.pid, signal.SIGSTOP)
        assert isinstance(bench.runtime, QemuRuntime)
        assert not await subject.stop(grace_seconds=1)
        assert bench.leftovers(subject) == []

    async def test_a_guest_whose_drive_finds_the_hosts_disk_full_goes_on_when_there_is_space(
        self, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(halted, "LOOK_SECONDS", 1.0)
        subject = await bench.new()
        files = Files.of(subject.machine)
        with small_disk_for(files.data, tmp_path / "disk") as ballast:
            await subject.start_ready()
            fill(ballast)
            much = messages.Exec(argv=("sh", "-c", WRITE_MUCH), timeout_secs=120)
            writing = asyncio.create_task(subject.ask(much, seconds=150.0))
            async with asyncio.timeout(60):
                while await state_of(bench, subject) != halted.NO_SPACE:
                    await asyncio.sleep(0.1)
            assert not writing.done()
            ballast.unlink()
            written = await writing
            assert written.status == 0
            assert written.stdout.decode().split()[0] == (await subject.execute("md5sum", "/data/much")).split()[0]
            assert await state_of(bench, subject) == "running"
            await subject.stop()

    async def test_the_data_drive_grows_at_the_next_start(self, bench: Bench) -> None:
        subject = await bench.ready()
        before = int(await subject.execute("sh", "-c", "df -m /data | tail -1 | awk '{print $2}'"))
        await subject.stop()
        subject.machine = replace(subject.machine, data_mib=256)
        await bench.before_next_start(subject)
        await subject.start()
        assert int(await subject.execute("sh", "-c", "df -m /data | tail -1 | awk '{print $2}'")) > before + 100

    async def test_compressed_memory_wakes_like_any_other(self, bench: Bench) -> None:
        subject = await bench.ready()
        assert isinstance(bench.runtime, QemuRuntime)
        files = Files.of(subject.machine)
        await self.put_to_sleep(subject)
        before = files.ram.stat().st_blocks * 512
        after = await bench.runtime.compress_snapshot(subject.machine, lambda: False)
        assert after is not None
        assert after < before / 2
        assert not files.ram.exists()
        assert await bench.runtime.compress_snapshot(subject.machine, lambda: False) is None
        await self.wake_up(subject)
        assert not (files.memory / saved.COMPRESSED).exists()

    @pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
    async def test_damaged_compressed_memory_is_rejected(self, bench: Bench, damage: str) -> None:
        subject = await bench.ready()
        assert isinstance(bench.runtime, QemuRuntime)
        await self.put_to_sleep(subject)
        await bench.runtime.compress_snapshot(subject.machine, lambda: False)
        packed = Files.of(subject.machine).memory / saved.COMPRESSED
        snapshot = await bench.runtime.saved_snapshot(subject.machine)
        if damage == "truncate":
            os.truncate(packed, packed.stat().st_size // 2)
        elif damage == "flip":
            with packed.open("r+b") as file:
                file.seek(packed.stat().st_size // 2)
                file.write(b"\xff\x00\xff\x00")
        else:
            packed.unlink()
        with pytest.raises(SnapshotRejected):
            await bench.runtime.restore(subject.machine, snapshot)
        assert bench.leftovers(subject) == []

    async def test_a_base_is_never_opened_for_writing(self, bench: Bench) -> None:
        subject = await bench.ready()
        assert isinstance(bench, QemuBench)
        opened = {os.path.realpath(path) for path in Path(f"/proc/{subject.running.pid}/fd").iterdir()}
        assert not [path for path in opened if path.startswith(str(bench.kept))]
        for path in bench.base_of_all.iterdir():
            assert path.name == "base.json" or path.stat().st_mode & 0o777 == 0o400

    async def test_the_guest_answers_after_many_wakes(self, bench: Bench) -> None:
        subject = await bench.ready()
        for _ in range(3):
            await self.put_to_sleep(subject)
            await self.wake_up(subject)
        await subject.ask(messages.Ping())
