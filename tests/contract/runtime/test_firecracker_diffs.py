"""Where sleeps write only what has changed, a guest's memory is the same as if all of it had been written.

On the stand-ins, which write the pages that a guest has written to and nothing else. The file system of the tests may
share no blocks; what is copied then is the same.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.contract.network.world import namespaces_work
from tests.contract.runtime.bench import Subject
from tests.contract.runtime.firecracker_bench import StandinBench
from tests.standins.firecracker.settings import Fault, inject, read_journal
from tests.standins.firecracker.snapshots import Pages, memory_in

from mvm.drives import images
from mvm.model.errors import MvmError
from mvm.runtime import saved
from mvm.runtime.base import Snapshot
from mvm.runtime.firecracker import api, lineage, memory_file
from mvm.runtime.firecracker.client import Client
from mvm.runtime.firecracker.files import Files
from mvm.runtime.firecracker.room import Room
from mvm.runtime.firecracker.runtime import FirecrackerRuntime

REASON = namespaces_work()
pytestmark = [
    pytest.mark.usefixtures("bridged_network"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.skipif(bool(images.missing_programs()), reason="needs e2fsprogs"),
]
NAMES_ASLEEP = {"ram", "devices", "snapshot.json", "made_by.json"}
CHECK = "check.memory"


@pytest.fixture
async def bench(short_directory: Path, bare_image: Path) -> AsyncIterator[StandinBench]:
    bench = StandinBench(short_directory, bare_image, diffs=True)
    yield bench
    await bench.close()


async def started(bench: StandinBench) -> Subject:
    subject = await bench.new()
    subject.process = await bench.runtime.start(subject.machine)
    return subject


async def save(bench: StandinBench, subject: Subject) -> Snapshot:
    await bench.runtime.pause(subject.machine, subject.running)
    snapshot = await bench.runtime.snapshot(subject.machine, subject.running)
    assert snapshot is not None
    return snapshot


async def wake(bench: StandinBench, subject: Subject, snapshot: Snapshot) -> None:
    await subject.stop(grace_seconds=0)
    await bench.before_next_start(subject)
    subject.process = await bench.runtime.restore(subject.machine, snapshot)


async def woken(bench: StandinBench) -> Subject:
    """A machine that slept once."""
    subject = await started(bench)
    await wake(bench, subject, await save(bench, subject))
    return subject


def kinds(bench: StandinBench) -> list[str]:
    """What kind of snapshot was asked for, one after the other."""
    asked = [entry for entry in read_journal(bench.control, "request") if entry["path"] == "/snapshot/create"]
    return [entry["body"]["snapshot_type"] for entry in asked]


async def all_of_it(bench: StandinBench, subject: Subject) -> Pages:
    """The memory of a paused guest, written as a whole."""
    assert isinstance(bench.runtime, FirecrackerRuntime)
    async with bench.runtime._machinery.api(subject.machine) as (client, room):
        body = api.SnapshotCreate(snapshot_type="Full", snapshot_path="check.devices", mem_file_path=CHECK)
        await client.tell(api.CREATE_SNAPSHOT, body)
        return memory_in(room.directory / CHECK)


def names(subject: Subject) -> set[str]:
    return set(os.listdir(Files.of(subject.machine).memory))


async def test_memory_is_the_same_over_many_sleeps_that_write_what_has_changed(bench: StandinBench) -> None:
    subject = await started(bench)
    before: Pages = {}
    for _ in range(4):
        snapshot = await save(bench, subject)
        found = memory_in(Files.of(subject.machine).ram)
        assert found == await all_of_it(bench, subject)
        assert found != before
        assert set(before) <= set(found)
        assert names(subject) == NAMES_ASLEEP
        before = found
        await wake(bench, subject, snapshot)
    assert [kind for kind in kinds(bench)[::2]] == ["Full", "Diff", "Diff", "Diff"]


async def test_only_what_has_changed_is_written(bench: StandinBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not merged is all that Firecracker wrote: a file with holes where nothing was written to."""
    subject = await woken(bench)
    before = memory_in(Files.of(subject.machine).memory / lineage.BEFORE)
    monkeypatch.setattr(lineage, "copy", _nothing)
    monkeypatch.setattr(lineage, "require_merged", lambda ram, before: None)
    monkeypatch.setattr(memory_file, "make_holes", lambda path: None)
    await save(bench, subject)
    ram = Files.of(subject.machine).ram
    changed = memory_in(ram)
    assert 0 < len(changed) < len(before) / 2
    assert ram.stat().st_blocks * 512 <= len(changed) * 4096 * 2
    assert ram.stat().st_size == subject.machine.mem_mib << 20


def _nothing(files: Files, before: int) -> Path:
    path = files.memory / lineage.COPY
    path.write_bytes(b"")
    return path


async def test_what_was_not_merged_is_no_snapshot(bench: StandinBench, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = await woken(bench)
    with monkeypatch.context() as patched:
        patched.setattr(lineage, "copy", _nothing)
        with pytest.raises(MvmError, match="did not keep the rest"):
            await save(bench, subject)
    assert await bench.runtime.saved_snapshot(subject.machine) is None
    await goes_on_and_sleeps_whole(bench, subject)


async def goes_on_and_sleeps_whole(bench: StandinBench, subject: Subject) -> None:
    """The guest is there with all of its memory, and the next sleep writes all of it."""
    await bench.runtime.resume(subject.machine, subject.running)
    snapshot = await save(bench, subject)
    assert kinds(bench)[-1] == "Full"
    assert names(subject) == NAMES_ASLEEP
    await wake(bench, subject, snapshot)
    await save(bench, subject)
    assert kinds(bench)[-1] == "Diff"


async def test_a_diff_that_came_out_short_is_no_snapshot(bench: StandinBench) -> None:
    subject = await woken(bench)
    inject(bench.control, Fault(what="truncate", method="PUT", path="/snapshot/create"))
    with pytest.raises(MvmError):
        await save(bench, subject)
    assert kinds(bench)[-1] == "Diff"
    assert await bench.runtime.saved_snapshot(subject.machine) is None
    await goes_on_and_sleeps_whole(bench, subject)


@pytest.mark.parametrize("what", ["error", "die", "die_after"])
async def test_a_diff_that_fails_leaves_no_snapshot(bench: StandinBench, what: str) -> None:
    bench.forgiven.add("an injected fault")
    subject = await woken(bench)
    inject(bench.control, Fault(what=what, method="PUT", path="/snapshot/create"))
    with pytest.raises(MvmError):
        await save(bench, subject)
    assert await bench.runtime.saved_snapshot(subject.machine) is None
    if what == "error":
        await goes_on_and_sleeps_whole(bench, subject)
        return
    await subject.stop(grace_seconds=0)
    assert bench.leftovers(subject) == []
    await bench.before_next_start(subject)
    subject.process = await bench.runtime.start(subject.machine)
    assert names(subject) == {"made_by.json"}


# An agent that is killed in the middle


class Killed(BaseException):
    """The agent got SIGKILL."""


class Death:
    """From some moment on the agent does nothing any more: neither does it tidy up."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.dead = False
        for owner, name in ((saved, "discard"), (Room, "clear")):
            self._silence(owner, name)

    def _silence(self, owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)
        self._patch.setattr(owner, name, lambda *args, **more: None if self.dead else real(*args, **more))

    def at(self, owner: Any, name: str, *, after: bool) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def killed(*args: Any, **more: Any) -> Any:
            if after:
                real(*args, **more)
            self.dead = True
            raise Killed

        async def killed_later(client: Client, command: api.Command, *args: Any, **more: Any) -> None:
            if command is not api.CREATE_SNAPSHOT:
                return await real(client, command, *args, **more)
            if after:
                await real(client, command, *args, **more)
            self.dead = True
            raise Killed

        self._patch.setattr(owner, name, killed_later if owner is Client else killed)


POINTS: dict[str, tuple[Any, str]] = {
    "copying": (lineage, "copy"),
    "giving the copy": (Room, "give"),
    "writing": (Client, "tell"),
    "taking": (Room, "take"),
    "looking whether it was merged": (lineage, "require_merged"),
    "making holes": (memory_file, "make_holes"),
    "naming it": (saved, "write_metadata"),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("point", POINTS)
async def test_an_agent_that_is_killed_while_it_merges_leaves_all_or_nothing(
    bench: StandinBench, monkeypatch: pytest.MonkeyPatch, point: str, after: bool
) -> None:
    subject = await woken(bench)
    with monkeypatch.context() as patched:
        Death(patched).at(*POINTS[point], after=after)
        with pytest.raises(Killed):
            await save(bench, subject)
    await bench.agent_ends(bench.runtime)
    bench.runtime = subject.runtime = bench.make_runtime()
    assert await bench.runtime.find(subject.machine) == subject.process
    snapshot = await bench.runtime.saved_snapshot(subject.machine)
    if (point, after) == ("naming it", True):
        assert snapshot is not None
        assert memory_in(Files.of(subject.machine).ram) == await all_of_it(bench, subject)
        await wake(bench, subject, snapshot)
        return
    assert snapshot is None
    await goes_on_and_sleeps_whole(bench, subject)


async def test_a_full_disk_after_a_wake_costs_the_next_diff_and_nothing_else(
    bench: StandinBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = await started(bench)
    snapshot = await save(bench, subject)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(lineage, "_named", full)
        await wake(bench, subject, snapshot)
    await save(bench, subject)
    assert kinds(bench) == ["Full", "Full"]


async def test_a_machine_that_is_killed_leaves_nothing_to_build_upon(bench: StandinBench) -> None:
    subject = await woken(bench)
    assert lineage.BEFORE in names(subject)
    os.kill(subject.running.pid, signal.SIGKILL)
    await bench.runtime.wait(subject.running)
    await bench.before_next_start(subject)
    subject.process = await bench.runtime.start(subject.machine)
    assert names(subject) == {"made_by.json"}
    await save(bench, subject)
    assert kinds(bench)[-1] == "Full"


# What may be built upon


async def test_another_agent_goes_on_with_what_the_first_one_knew(bench: StandinBench) -> None:
    subject = await woken(bench)
    await bench.agent_ends(bench.runtime)
    bench.runtime = subject.runtime = bench.make_runtime()
    await save(bench, subject)
    assert kinds(bench)[-1] == "Diff"
    assert memory_in(Files.of(subject.machine).ram) == await all_of_it(bench, subject)


async def test_who_does_not_want_them_writes_all_and_keeps_nothing(bench: StandinBench) -> None:
    subject = await woken(bench)
    await bench.agent_ends(bench.runtime)
    bench.diffs = False
    bench.runtime = subject.runtime = bench.make_runtime()
    snapshot = await save(bench, subject)
    assert kinds(bench)[-1] == "Full"
    assert names(subject) == NAMES_ASLEEP
    await wake(bench, subject, snapshot)
    assert lineage.BEFORE not in names(subject)
    loads = [entry for entry in read_journal(bench.control, "request") if entry["path"] == "/snapshot/load"]
    assert [entry["body"]["track_dirty_pages"] for entry in loads] == [True, False]


@pytest.mark.parametrize("gone", [False, True])
async def test_memory_that_somebody_exchanged_or_removed_is_not_built_upon(bench: StandinBench, gone: bool) -> None:
    subject = await woken(bench)
    before = Files.of(subject.machine).memory / lineage.BEFORE
    shutil.copy2(before, before.with_name("copy"))
    before.with_name("copy").replace(before)
    if gone:
        before.unlink()
    await save(bench, subject)
    assert kinds(bench)[-1] == "Full"
    assert names(subject) == NAMES_ASLEEP


async def test_a_sleep_that_was_given_up_and_a_base_are_followed_by_a_whole_one(bench: StandinBench) -> None:
    subject = await woken(bench)
    await save(bench, subject)
    assert kinds(bench)[-1] == "Diff"
    await goes_on_and_sleeps_whole(bench, subject)
    other = await woken(bench)
    directory = bench.base / "base"
    directory.mkdir()
    await bench.runtime.pause(other.machine, other.running)
    await bench.runtime.keep_as_base(other.machine, other.running, directory)
    await goes_on_and_sleeps_whole(bench, other)


async def test_a_pause_that_a_snapshot_ended_is_followed_by_a_whole_sleep(bench: StandinBench) -> None:
    """In this version going on from a pause takes one that nobody keeps."""
    subject = await woken(bench)
    await bench.runtime.pause(subject.machine, subject.running)
    await goes_on_and_sleeps_whole(bench, subject)


async def test_a_copy_builds_upon_its_base_which_stays_as_it_is(bench: StandinBench) -> None:
    base, copy = await started(bench), await bench.new()
    directory = bench.base / "base"
    directory.mkdir()
    await bench.runtime.pause(base.machine, base.running)
    await bench.runtime.keep_as_base(base.machine, base.running, directory)
    whole = memory_in(directory / "ram")
    snapshot = await bench.runtime.clone(copy.machine, directory)
    copy.process = await bench.runtime.restore(copy.machine, snapshot)
    snapshot = await save(bench, copy)
    assert kinds(bench)[-1] == "Diff"
    assert memory_in(Files.of(copy.machine).ram) != whole
    assert memory_in(directory / "ram") == whole
    await wake(bench, copy, snapshot)


async def test_a_compressed_sleeper_is_built_upon_as_any_other(bench: StandinBench) -> None:
    subject = await started(bench)
    await save(bench, subject)
    await subject.stop(grace_seconds=0)
    assert await bench.runtime.compress_snapshot(subject.machine, lambda: False) is not None
    snapshot = await bench.runtime.saved_snapshot(subject.machine)
    assert snapshot is not None
    await bench.before_next_start(subject)
    subject.process = await bench.runtime.restore(subject.machine, snapshot)
    await save(bench, subject)
    assert kinds(bench)[-1] == "Diff"
    assert memory_in(Files.of(subject.machine).ram) == await all_of_it(bench, subject)
