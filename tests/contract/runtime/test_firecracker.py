"""The Firecracker runtime keeps the rules of every runtime, of those that keep memory, and a few of its own.

On the stand-ins for `firecracker` and `jailer`, and, where KVM works and the programs are there, on the real ones.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from tests.contract.network.world import namespaces_work
from tests.contract.runtime.bench import Bench
from tests.contract.runtime.firecracker_bench import FirecrackerBench, StandinBench, bridged_host, service_image
from tests.contract.runtime.snapshot_conformance import SnapshotConformance

from mvm.drives import images
from mvm.host.locations import locate
from mvm.model.errors import MvmError
from mvm.runtime import kvm
from mvm.runtime.firecracker import binaries
from mvm.wire.messages import WorkStatus

REASON = namespaces_work()
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.skipif(bool(images.missing_programs()), reason="needs e2fsprogs"),
]


@pytest.fixture(scope="module", autouse=True)
def _network() -> Iterator[None]:
    with bridged_host():
        yield


@pytest.fixture(scope="module")
def services() -> Iterator[Path]:
    """An image that all tests on the stand-ins share."""
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))
    yield service_image(directory)
    shutil.rmtree(directory)


class TestOnTheStandins(SnapshotConformance):
    """What the stand-ins cannot be asked (their README says what they do not model) is asked of the real ones below."""

    image: ClassVar[Path]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _given(cls, services: Path) -> None:
        cls.image = services

    def make_bench(self, base: Path) -> Bench:
        return StandinBench(base, self.image)

    async def test_memory_survives_a_sleep(self, bench: Bench) -> None:
        """The files of it that the stand-in models; what processes have in memory is asked of the real ones."""
        subject = await bench.ready()
        await subject.execute("sh", "-c", "echo in memory > /run/note")
        await self.put_to_sleep(subject)
        await self.wake_up(subject)
        assert await subject.execute("cat", "/run/note") == "in memory\n"

    async def test_a_copy_sleeps_and_wakes_like_any_other(self, bench: Bench) -> None:
        base, copy = await bench.ready(), await bench.new()
        directory = bench.base / "base"
        directory.mkdir()
        await base.execute("sh", "-c", "echo of the base > /data/note")
        await bench.runtime.pause(base.machine, base.running)
        await bench.runtime.keep_as_base(base.machine, base.running, directory)
        await bench.runtime.destroy(base.machine)
        await copy.listen()
        snapshot = await bench.runtime.clone(copy.machine, directory)
        copy.process = await bench.runtime.restore(copy.machine, snapshot)
        await copy.until_answering()
        assert (await copy.wake()).success
        await copy.until(WorkStatus.IDLE)
        assert (await copy.execute("cat", "/etc/hostname")).strip() == copy.machine.ref.instance_id
        assert await copy.execute("cat", "/data/note") == "of the base\n"
        await copy.execute("sh", "-c", "echo of the copy > /data/note")
        await self.put_to_sleep(copy)
        await self.wake_up(copy)
        assert await copy.execute("cat", "/data/note") == "of the copy\n"

    async def test_the_files_of_secrets_are_gone_before_the_memory_is_saved(self, bench: Bench) -> None:
        pytest.skip("the stand-in's guest does not own its machine and removes no secrets before a sleep")


@pytest.mark.slow
class TestWithDiffs(TestOnTheStandins):
    """Where a sleep writes only what has changed since the last wake, all of it holds as well."""

    def make_bench(self, base: Path) -> Bench:
        return StandinBench(base, self.image, diffs=True)


class TestOnTheRealPrograms(SnapshotConformance):
    """Where they are: `mvm setup firecracker`, and a KVM that runs guests."""

    image: ClassVar[Path]
    programs: ClassVar[Path]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _given(cls, request: pytest.FixtureRequest) -> None:
        cls.programs = locate({}).programs_dir
        try:
            found = binaries.find(cls.programs)
        except MvmError as error:
            pytest.skip(f"{error.message}; {error.hint}")
        if found.jailer is None:
            pytest.skip(found.no_jailer)
        if (why := asyncio.run(kvm.why_not())) is not None:
            pytest.skip(f"KVM does not work here: {why}")
        cls.image = request.getfixturevalue("small_image")

    def make_bench(self, base: Path) -> Bench:
        return FirecrackerBench(base, self.image, self.programs)
