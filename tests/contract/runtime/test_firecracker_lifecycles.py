"""Whatever is done to machines in whatever order, Firecracker is never asked for anything that it refuses.

Hypothesis makes up lives of up to three machines; the stand-in is strict. It refuses nothing, sees nothing that
Firecracker would not have noticed (two machines on one drive, memory that changes under its guest), and every request
is one of Firecracker's description where that is there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.contract.network.world import namespaces_work
from tests.contract.runtime.bench import LIMIT_SECONDS, Subject
from tests.contract.runtime.firecracker_bench import StandinBench
from tests.standins.firecracker.settings import Fault, inject, read_journal

from mvm.drives import images
from mvm.model.errors import MvmError, SnapshotRejected
from mvm.runtime.base import Limits
from mvm.runtime.firecracker.files import Files

REASON = namespaces_work()
pytestmark = [
    pytest.mark.usefixtures("bridged_network"),
    pytest.mark.timeout(1800),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.skipif(bool(images.missing_programs()), reason="needs e2fsprogs"),
]
VERSIONS = ("1.15.0", "1.16.1", "1.17.0")


class Step(StrEnum):
    """What can be done to a machine."""

    START = "start"
    WARM = "warm"
    RESUME = "resume"
    SLEEP = "sleep"
    ABANDON = "snapshot and go on"
    WAKE = "wake"
    DISCARD = "discard the snapshot"
    COMPRESS = "compress the snapshot"
    STOP = "stop"
    CRASH = "kill -9"
    AGENT = "agent restart"
    BASE = "keep as a base"
    CLONE = "clone"
    DAMAGE = "damage the memory"
    DRIVES = "write the drives"
    LIMITS = "other limits"


class Is(StrEnum):
    """What a machine is, as the host would know it."""

    NEW = "new"
    RUNNING = "running"
    WARM = "warm"
    ASLEEP = "asleep"
    STOPPED = "stopped"


POSSIBLE: dict[Step, set[Is]] = {
    Step.START: {Is.NEW, Is.STOPPED},
    Step.WARM: {Is.RUNNING},
    Step.RESUME: {Is.WARM},
    Step.SLEEP: {Is.RUNNING, Is.WARM},
    Step.ABANDON: {Is.RUNNING, Is.WARM},
    Step.WAKE: {Is.ASLEEP},
    Step.DISCARD: {Is.ASLEEP},
    Step.COMPRESS: {Is.ASLEEP},
    Step.STOP: {Is.RUNNING, Is.WARM},
    Step.CRASH: {Is.RUNNING, Is.WARM},
    Step.AGENT: set(Is),
    Step.BASE: {Is.RUNNING, Is.WARM},
    Step.CLONE: {Is.NEW},
    Step.DAMAGE: {Is.ASLEEP},
    Step.DRIVES: set(Is),
    Step.LIMITS: set(Is),
}


@dataclass
class Life:
    """One machine."""

    subject: Subject
    now: Is = Is.NEW
    damaged: bool = False
    compressed: bool = False


@dataclass
class Play:
    """Up to three machines and what happens to them."""

    bench: StandinBench
    lives: list[Life] = field(default_factory=list)
    base: Path | None = None
    bases: int = 0
    refused_wakes: int = 0

    async def do(self, who: int, step: Step) -> None:
        """Do it, where it is possible; else nothing happens."""
        if who >= len(self.lives):
            self.lives.append(Life(await self.bench.new()))
        life = self.lives[min(who, len(self.lives) - 1)]
        if life.now in POSSIBLE[step]:
            await getattr(self, f"_{step.name.lower()}")(life)

    async def _start(self, life: Life) -> None:
        await self.bench.before_next_start(life.subject)
        life.subject.process = await self.bench.runtime.start(life.subject.machine)
        life.now = Is.RUNNING

    async def _warm(self, life: Life) -> None:
        await self.bench.runtime.pause(life.subject.machine, life.subject.running)
        life.now = Is.WARM

    async def _resume(self, life: Life) -> None:
        await self.bench.runtime.resume(life.subject.machine, life.subject.running)
        life.now = Is.RUNNING

    async def _sleep(self, life: Life) -> None:
        await self.bench.runtime.pause(life.subject.machine, life.subject.running)
        assert await self.bench.runtime.snapshot(life.subject.machine, life.subject.running) is not None
        await self._end(life, Is.ASLEEP)
        life.damaged = life.compressed = False

    async def _abandon(self, life: Life) -> None:
        await self.bench.runtime.pause(life.subject.machine, life.subject.running)
        await self.bench.runtime.snapshot(life.subject.machine, life.subject.running)
        await self._resume(life)
        assert await self.bench.runtime.saved_snapshot(life.subject.machine) is None

    async def _wake(self, life: Life) -> None:
        await self.bench.before_next_start(life.subject)
        snapshot = await self.bench.runtime.saved_snapshot(life.subject.machine)
        assert snapshot is not None
        loads = self._loads()
        try:
            life.subject.process = await self.bench.runtime.restore(life.subject.machine, snapshot)
            assert not life.damaged
            life.now = Is.RUNNING
        except SnapshotRejected:
            assert life.damaged
            assert self._loads() == loads, "no guest was to run from it"
            self.refused_wakes += 1
            await self.bench.runtime.discard_snapshot(life.subject.machine)
            life.now = Is.STOPPED

    def _loads(self) -> int:
        return sum(entry["path"] == "/snapshot/load" for entry in read_journal(self.bench.control, "request"))

    async def _discard(self, life: Life) -> None:
        await self.bench.runtime.discard_snapshot(life.subject.machine)
        life.now = Is.STOPPED

    async def _compress(self, life: Life) -> None:
        if not life.damaged:
            packed = await self.bench.runtime.compress_snapshot(life.subject.machine, lambda: False)
            assert (packed is None) == life.compressed
            life.compressed = True

    async def _stop(self, life: Life) -> None:
        await self._end(life, Is.STOPPED)

    async def _end(self, life: Life, then: Is) -> None:
        await self.bench.runtime.stop(life.subject.machine, life.subject.running, grace_seconds=0)
        life.subject.process = None
        assert self.bench.leftovers(life.subject) == []
        life.now = then

    async def _crash(self, life: Life) -> None:
        process = life.subject.running
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.wait_for(self.bench.runtime.wait(process), LIMIT_SECONDS)
        assert await self.bench.runtime.find(life.subject.machine) is None
        life.subject.process = None
        life.now = Is.STOPPED

    async def _agent(self, _: Life) -> None:
        """The agent ends, and another one finds what runs."""
        await self.bench.agent_ends(self.bench.runtime)
        self.bench.runtime = self.bench.make_runtime()
        for life in self.lives:
            life.subject.runtime = self.bench.runtime
            found = await self.bench.runtime.find(life.subject.machine)
            assert found == (life.subject.process if life.now in (Is.RUNNING, Is.WARM) else None)

    async def _base(self, life: Life) -> None:
        self.bases += 1
        directory = self.bench.base / f"base-{self.bases}"
        directory.mkdir()
        await self.bench.runtime.pause(life.subject.machine, life.subject.running)
        await self.bench.runtime.keep_as_base(life.subject.machine, life.subject.running, directory)
        self.base = directory
        await self._resume(life)

    async def _clone(self, life: Life) -> None:
        if self.base is not None:
            snapshot = await self.bench.runtime.clone(life.subject.machine, self.base)
            life.subject.process = await self.bench.runtime.restore(life.subject.machine, snapshot)
            life.now = Is.RUNNING

    async def _damage(self, life: Life) -> None:
        memory = Files.of(life.subject.machine).memory
        path = memory / ("ram.zst" if life.compressed else "ram")
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(b"damage")
        life.damaged = True

    async def _drives(self, life: Life) -> None:
        await life.subject.write_drives(key=os.urandom(4).hex())

    async def _limits(self, life: Life) -> None:
        """For the next start or wake: none, or others than before."""
        had = life.subject.machine.limits
        life.subject.machine = replace(
            life.subject.machine, limits=Limits(disk_mib=(had.disk_mib + 7) % 21, network_mib=(had.network_mib + 3) % 6)
        )

    async def close(self) -> None:
        """End all; nothing was refused, and nothing is left."""
        await self.bench.close()


STEPS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(Step)), min_size=4, max_size=14)
COPIES = [(0, Step.START), (0, Step.BASE), (1, Step.CLONE), (2, Step.CLONE), (1, Step.SLEEP), (0, Step.CRASH)]
WARM_LIFE = [(0, Step.START), (0, Step.WARM), (0, Step.RESUME), (0, Step.WARM), (0, Step.SLEEP), (0, Step.WAKE)]
DAMAGED = [(0, Step.START), (0, Step.SLEEP), (0, Step.DAMAGE), (0, Step.WAKE), (0, Step.START), (0, Step.SLEEP)]
LIMITED = [(0, Step.LIMITS), (0, Step.START), (0, Step.SLEEP), (0, Step.LIMITS), (0, Step.WAKE), (0, Step.SLEEP)]
AGAIN = [(0, Step.START), *[(0, Step.SLEEP), (0, Step.WAKE)] * 3, (0, Step.BASE), (0, Step.SLEEP), (0, Step.WAKE)]
PACKED = [(0, Step.START), (0, Step.ABANDON), (0, Step.SLEEP), (0, Step.COMPRESS), (0, Step.AGENT), (0, Step.WAKE)]


async def play(bare_image: Path, steps: list[tuple[int, Step]], version: str, *, diffs: bool = False) -> Play:
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))
    try:
        played = Play(StandinBench(directory, bare_image, version=version, diffs=diffs))
        try:
            for who, step in steps:
                await played.do(who, step)
        finally:
            await played.close()
        return played
    finally:
        shutil.rmtree(directory)


@example(steps=COPIES, version="1.16.1", diffs=True)
@example(steps=WARM_LIFE, version="1.16.1", diffs=True)
@example(steps=DAMAGED, version="1.15.0", diffs=False)
@example(steps=PACKED, version="1.17.0", diffs=False)
@example(steps=AGAIN, version="1.16.1", diffs=True)
@example(steps=LIMITED, version="1.17.0", diffs=True)
@given(steps=STEPS, version=st.sampled_from(VERSIONS), diffs=st.booleans())
@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
async def test_no_life_asks_for_what_firecracker_refuses(
    bare_image: Path, steps: list[tuple[int, Step]], version: str, diffs: bool
) -> None:
    await play(bare_image, steps, version, diffs=diffs)


@pytest.mark.slow
@given(steps=STEPS, version=st.sampled_from(VERSIONS), diffs=st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
async def test_no_life_of_many_does(bare_image: Path, steps: list[tuple[int, Step]], version: str, diffs: bool) -> None:
    await play(bare_image, steps, version, diffs=diffs)


async def test_a_life_in_which_memory_is_damaged_has_a_wake_that_is_refused(bare_image: Path) -> None:
    """The play itself notices what it is there to notice."""
    assert (await play(bare_image, DAMAGED, "1.16.1")).refused_wakes == 1


async def test_a_request_that_is_refused_fails_a_play(short_directory: Path, bare_image: Path) -> None:
    bench = StandinBench(short_directory, bare_image)
    subject = await bench.new()
    inject(bench.control, Fault(what="error", method="PUT", path="/entropy"))
    with pytest.raises(MvmError):
        await bench.runtime.start(subject.machine)
    with pytest.raises(AssertionError, match="an injected fault"):
        await bench.close()
