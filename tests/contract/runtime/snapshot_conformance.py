"""What every runtime must do that keeps the memory of sleepers and copies guests, besides `RuntimeConformance`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.contract.runtime.bench import LIMIT_SECONDS, Bench, Subject
from tests.contract.runtime.conformance import RuntimeConformance

from mvm.model.errors import Conflict, MvmError, SnapshotRejected
from mvm.model.roles import Role
from mvm.runtime.base import Snapshot
from mvm.wire.messages import WorkStatus

CLOCK_TOLERANCE_SECONDS = 1.0
KEY = "/run/secrets/anthropic/ANTHROPIC_API_KEY"
OUTGROWN = 100
"""People whose tokens do not fit on the secrets drive of a worker."""


async def tokens(subject: Subject) -> int:
    """Of how many people the guest has a token."""
    return int(await subject.execute("sh", "-c", "ls /run/secrets/workers 2>/dev/null | wc -l"))


class SnapshotConformance(RuntimeConformance):
    """Statements about a runtime with memory snapshots and clones."""

    async def put_to_sleep(self, subject: Subject) -> Snapshot:
        """As the host does it: the guest prepares, then its memory is saved and its process ended."""
        assert (await subject.sleep()).success
        await subject.runtime.pause(subject.machine, subject.running)
        snapshot = await subject.runtime.snapshot(subject.machine, subject.running)
        assert snapshot is not None
        await subject.stop()
        return snapshot

    async def wake_up(self, subject: Subject) -> None:
        """As the host does it: fresh drives, the saved snapshot, and the guest is told."""
        await subject.bench.before_next_start(subject)
        snapshot = await subject.runtime.saved_snapshot(subject.machine)
        assert snapshot is not None
        subject.process = await subject.runtime.restore(subject.machine, snapshot)
        await subject.until_answering()
        assert (await subject.wake()).success
        await subject.until(WorkStatus.IDLE)

    # Memory

    async def test_memory_survives_a_sleep(self, bench: Bench) -> None:
        subject = await bench.ready()
        await subject.execute("sh", "-c", "echo in memory > /run/note; cat /proc/sys/kernel/random/boot_id > /run/boot")
        await self.put_to_sleep(subject)
        await self.wake_up(subject)
        assert await subject.execute("cat", "/run/note") == "in memory\n"
        boot = await subject.execute("cat", "/run/boot")
        assert await subject.execute("cat", "/proc/sys/kernel/random/boot_id") == boot
        assert (await subject.diary()).count("START") == 1

    async def test_the_clock_is_right_after_a_sleep(self, bench: Bench) -> None:
        subject = await bench.ready()
        await self.put_to_sleep(subject)
        await asyncio.sleep(2.0)  # time must pass, or there is nothing to be wrong about
        await self.wake_up(subject)
        asked = time.time()
        guest = float(await subject.execute("date", "+%s.%N"))
        assert asked - CLOCK_TOLERANCE_SECONDS < guest < time.time() + CLOCK_TOLERANCE_SECONDS, datetime.now(UTC)

    async def test_drives_are_fresh_after_a_wake(self, bench: Bench) -> None:
        subject = await bench.ready()
        await self.put_to_sleep(subject)
        await bench.before_next_start(subject)
        await subject.write_drives(key="rotated key", epoch=5, worker_note="fresh")
        snapshot = await bench.runtime.saved_snapshot(subject.machine)
        subject.process = await bench.runtime.restore(subject.machine, snapshot)
        await subject.until_answering()
        assert (await subject.wake()).success
        secret = await subject.execute("cat", "/run/secrets/anthropic/ANTHROPIC_API_KEY")
        config = json.loads(await subject.execute("cat", "/etc/mvm-config/config.json"))
        assert (secret, config["worker_note"]) == ("rotated key", "fresh")

    async def test_the_files_of_secrets_are_gone_before_the_memory_is_saved(self, bench: Bench) -> None:
        subject = await bench.new()
        await subject.write_drives(key="a key that no page may hold")
        await bench.ready(subject)
        path = "/run/secrets/anthropic/ANTHROPIC_API_KEY"
        assert await subject.execute("cat", path) == "a key that no page may hold"
        assert (await subject.sleep()).success
        assert await subject.execute("sh", "-c", f"test -e {path} || echo gone") == "gone\n"

    async def test_a_snapshot_is_used_once(self, bench: Bench) -> None:
        subject = await bench.ready()
        snapshot = await self.put_to_sleep(subject)
        await self.wake_up(subject)
        await subject.stop()
        with pytest.raises(SnapshotRejected):
            await bench.runtime.restore(subject.machine, snapshot)
        assert await bench.runtime.saved_snapshot(subject.machine) is None
        assert bench.leftovers(subject) == []

    async def test_going_on_voids_the_snapshot(self, bench: Bench) -> None:
        subject = await bench.ready()
        await bench.runtime.pause(subject.machine, subject.running)
        await bench.runtime.snapshot(subject.machine, subject.running)
        await bench.runtime.resume(subject.machine, subject.running)
        assert await bench.runtime.saved_snapshot(subject.machine) is None
        assert (await subject.wake()).success
        await subject.until(WorkStatus.IDLE)
        await self.put_to_sleep(subject)
        await self.wake_up(subject)

    async def test_a_later_agent_wakes_what_an_earlier_one_put_to_sleep(self, bench: Bench) -> None:
        subject = await bench.ready()
        snapshot = await self.put_to_sleep(subject)
        await bench.agent_ends(bench.runtime)
        subject.runtime = bench.make_runtime()
        await subject.listen()
        assert await subject.runtime.saved_snapshot(subject.machine) == snapshot
        await self.wake_up(subject)
        await subject.runtime.destroy(subject.machine)

    async def test_a_discarded_snapshot_is_gone(self, bench: Bench) -> None:
        subject = await bench.ready()
        await self.put_to_sleep(subject)
        await bench.runtime.discard_snapshot(subject.machine)
        await bench.runtime.discard_snapshot(subject.machine)
        assert await bench.runtime.saved_snapshot(subject.machine) is None

    # What does not fit

    async def test_secrets_that_outgrow_the_drive_of_a_running_instance_are_refused_until_it_is_started_again(
        self, bench: Bench
    ) -> None:
        subject = await bench.ready()
        with pytest.raises(Conflict, match="on its drive 'secrets' takes") as refused:
            await subject.write_drives(key="second key", epoch=2, people=OUTGROWN, note="not to be seen")
        assert "mvm instance stop" in (refused.value.hint or "")
        # Nothing of it was written: the guest goes on reading what it had, and takes what fits.
        assert (await subject.refresh()).success
        assert await subject.execute("cat", KEY) == "first key"
        assert "not to be seen" not in await subject.execute("cat", "/etc/mvm-config/config.json")
        await subject.write_drives(key="third key", epoch=3)
        assert (await subject.refresh()).success
        assert await subject.execute("cat", KEY) == "third key"
        await subject.stop()
        await subject.write_drives(key="fourth key", epoch=4, people=OUTGROWN)
        await subject.start_ready()
        assert await tokens(subject) == OUTGROWN

    async def test_a_sleeper_whose_secrets_outgrew_its_drive_boots_with_all_of_them(self, bench: Bench) -> None:
        subject = await bench.ready()
        await subject.execute("sh", "-c", "echo kept > note")
        snapshot = await self.put_to_sleep(subject)
        await subject.write_drives(key="second key", epoch=2, people=OUTGROWN)
        with pytest.raises(SnapshotRejected, match="the sizes of the config and secrets drives"):
            await bench.runtime.restore(subject.machine, snapshot)
        assert bench.leftovers(subject) == []
        await bench.runtime.discard_snapshot(subject.machine)
        await subject.start_ready()
        assert await tokens(subject) == OUTGROWN
        assert await subject.execute("cat", "note") == "kept\n"

    async def test_a_gateway_that_runs_takes_in_the_tokens_of_a_thousand_people(self, bench: Bench) -> None:
        subject = await bench.new(role=Role.GATEWAY)
        await subject.start()
        await subject.write_drives(key="second key", epoch=2, people=1000)
        assert (await subject.refresh()).success
        assert await tokens(subject) == 1000
        await subject.write_drives(key="third key", epoch=3)
        assert (await subject.refresh()).success
        assert await tokens(subject) == 0
        await subject.stop()

    async def test_every_file_of_a_snapshot_is_missed(self, bench: Bench) -> None:
        subject = await bench.ready()
        snapshot = await self.put_to_sleep(subject)
        await bench.before_next_start(subject)
        for path in sorted(path for path in snapshot.directory.iterdir() if path.name not in ("made_by.json",)):
            aside = path.rename(path.with_name("aside"))
            with pytest.raises(SnapshotRejected):
                await bench.runtime.restore(subject.machine, snapshot)
            aside.rename(path)
            assert bench.leftovers(subject) == []
        await self.wake_up(subject)

    async def test_what_was_changed_since_is_noticed_before_the_guest_runs(self, bench: Bench) -> None:
        subject = await bench.ready()
        snapshot = await self.put_to_sleep(subject)
        await bench.before_next_start(subject)
        for name in ("devices", "ram"):
            path = snapshot.directory / name
            kept = path.read_bytes()[:100]
            with path.open("r+b") as file:
                file.write(bytes(100))
            with pytest.raises(SnapshotRejected):
                await bench.runtime.restore(subject.machine, snapshot)
            with path.open("r+b") as file:
                file.write(kept)
        assert bench.leftovers(subject) == []

    async def test_a_snapshot_of_another_make_is_rejected_and_a_cold_start_follows(self, bench: Bench) -> None:
        subject = await bench.ready()
        await subject.execute("sh", "-c", "echo kept > note")
        snapshot = await self.put_to_sleep(subject)
        await bench.before_next_start(subject)
        for name, value in snapshot.metadata.items():
            if name in ("ram", "data", "devices", "limits"):  # files; and what is set anew at each wake
                continue
            other = Snapshot(directory=snapshot.directory, metadata={**snapshot.metadata, name: f"not {value}"})
            with pytest.raises(SnapshotRejected):
                await bench.runtime.restore(subject.machine, other)
        await bench.runtime.discard_snapshot(subject.machine)
        await subject.start_ready()
        assert await subject.execute("cat", "note") == "kept\n"

    # Killed at every stage

    async def test_a_guest_killed_before_its_snapshot_is_complete_starts_cold(self, bench: Bench) -> None:
        subject = await bench.ready()
        await subject.execute("sh", "-c", "echo kept > note; sync")
        assert (await subject.sleep()).success
        await bench.runtime.pause(subject.machine, subject.running)
        os.kill(subject.running.pid, signal.SIGKILL)
        with pytest.raises(MvmError):
            await bench.runtime.snapshot(subject.machine, subject.running)
        assert await bench.runtime.saved_snapshot(subject.machine) is None
        await subject.stop()
        await bench.before_next_start(subject)
        await subject.start_ready()
        assert await subject.execute("cat", "note") == "kept\n"

    async def test_a_guest_killed_after_its_snapshot_wakes(self, bench: Bench) -> None:
        subject = await bench.ready()
        await subject.execute("sh", "-c", "echo kept > note")
        assert (await subject.sleep()).success
        await bench.runtime.pause(subject.machine, subject.running)
        await bench.runtime.snapshot(subject.machine, subject.running)
        os.kill(subject.running.pid, signal.SIGKILL)
        await asyncio.wait_for(bench.runtime.wait(subject.running), LIMIT_SECONDS)
        await subject.stop()
        await self.wake_up(subject)
        assert await subject.execute("cat", "note") == "kept\n"

    async def test_a_guest_killed_while_it_wakes_starts_cold_with_its_data(self, bench: Bench) -> None:
        subject = await bench.ready()
        await subject.execute("sh", "-c", "echo kept > note")
        snapshot = await self.put_to_sleep(subject)
        await bench.before_next_start(subject)
        waking = asyncio.create_task(bench.runtime.restore(subject.machine, snapshot))
        process = None
        while process is None and not waking.done():
            process = await bench.runtime.find(subject.machine)
            await asyncio.sleep(0)
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        try:
            subject.process = await waking
        except MvmError:
            assert bench.leftovers(subject) == []
        else:
            await subject.stop(grace_seconds=0)
        await bench.runtime.discard_snapshot(subject.machine)
        await bench.before_next_start(subject)
        await subject.start_ready()
        assert await subject.execute("cat", "note") == "kept\n"

    async def test_what_was_synced_survives_a_kill(self, bench: Bench) -> None:
        subject = await bench.ready()
        await subject.execute("sh", "-c", "echo kept > note; sync")
        os.kill(subject.running.pid, signal.SIGKILL)
        await asyncio.wait_for(bench.runtime.wait(subject.running), LIMIT_SECONDS)
        await subject.stop()
        await bench.before_next_start(subject)
        await subject.start_ready()
        assert await subject.execute("cat", "note") == "kept\n"

    # Copies

    async def test_copies_are_different_instances(self, bench: Bench) -> None:
        one, two = await bench.ready(), await bench.ready()
        for question in (
            ("cat", "/etc/hostname"),
            ("cat", "/etc/machine-id"),
            ("cat", "/sys/class/net/eth0/address"),
            ("cat", "/proc/sys/kernel/random/uuid"),
            ("head", "-c", "16", "/dev/urandom"),
        ):
            answers = [(await subject.ask_raw(*question)) for subject in (one, two)]
            assert answers[0] != answers[1], question
        assert (await one.execute("cat", "/etc/hostname")).strip() == one.machine.ref.instance_id
        assert (await one.execute("cat", "/sys/class/net/eth0/address")).strip() == one.machine.mac

    async def test_what_a_copy_does_reaches_neither_its_base_nor_the_next_copy(self, bench: Bench) -> None:
        one = await bench.ready()
        await one.execute("sh", "-c", "echo mine > /data/note; echo mine > /run/note")
        await one.execute("sh", "-c", "head -c 50000000 /dev/urandom > /run/much; rm /run/much")
        await one.execute("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches || true")
        digest = "sha256sum /usr/bin/git /usr/bin/python3 /opt/mvm/guest.pyz | sha256sum"
        before = await one.execute("sh", "-c", digest)
        two = await bench.ready()
        assert await two.execute("sh", "-c", "ls /data/note /run/note 2>/dev/null || echo none") == "none\n"
        assert await two.execute("sh", "-c", digest) == before

    async def test_a_copy_sleeps_and_wakes_like_any_other(self, bench: Bench) -> None:
        subject = await bench.ready()
        await self.put_to_sleep(subject)
        await self.wake_up(subject)
        assert (await subject.diary()).count("START") == 1

    async def test_an_instance_that_ran_does_not_become_a_copy(self, bench: Bench) -> None:
        subject = await bench.ready()
        await subject.stop()
        with pytest.raises(Conflict):
            await bench.runtime.clone(subject.machine, subject.machine.state_dir)

    async def test_a_copy_that_fails_leaves_neither_snapshot_nor_data(self, bench: Bench, tmp_path: Path) -> None:
        subject = await bench.new()
        with pytest.raises(SnapshotRejected):
            await bench.runtime.clone(subject.machine, tmp_path)
        assert await bench.runtime.saved_snapshot(subject.machine) is None
        assert list(subject.machine.data.iterdir()) == []

    async def test_machines_of_one_make_have_one_base(self, bench: Bench) -> None:
        one, two = await bench.new(), await bench.new()
        assert await bench.runtime.base_key(one.machine) == await bench.runtime.base_key(two.machine)
