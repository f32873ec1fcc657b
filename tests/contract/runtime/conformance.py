"""What every runtime must do. A test module makes a subclass of `RuntimeConformance` and says how its bench is made."""

from __future__ import annotations

import asyncio
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
from tests.contract.runtime.bench import LIMIT_SECONDS, Bench, Subject
from tests.standins.waiting import until

from mvm.host import build_place
from mvm.host.build_place import MachinePlace
from mvm.host.in_loop import InLoop
from mvm.model.errors import MvmError, Unavailable
from mvm.runtime.base import GUEST_AGENT_PORT, HOST_PORT, SLEEP_PREP_PORT, Connection
from mvm.wire import messages
from mvm.wire.frames import FrameError
from mvm.wire.messages import WorkStatus


@dataclass(frozen=True)
class Builder:
    """An instance as a machine to build in (`mvm.host.build_place.BuildGuest`)."""

    subject: Subject

    async def execute(self, argv: Sequence[str], *, seconds: int) -> messages.ExecResult:
        return await self.subject.ask(messages.Exec(argv=tuple(argv), timeout_secs=seconds), seconds=seconds)

    async def connect(self, port: int) -> Connection:
        return await self.subject.runtime.connect(self.subject.machine, port)


class RuntimeConformance(ABC):
    """Statements about any runtime; each begins with a bench that has no instance yet."""

    @abstractmethod
    def make_bench(self, base: Path) -> Bench:
        """A bench whose files are all under `base`, a directory with a short path."""

    @pytest.fixture
    async def bench(self, short_directory: Path) -> AsyncIterator[Bench]:
        bench = self.make_bench(short_directory)
        yield bench
        await bench.close()

    # Start and stop

    async def test_it_works_here(self, bench: Bench) -> None:
        probe = await bench.runtime.probe()
        assert probe.usable, probe
        assert probe.reason

    async def test_a_started_instance_answers_and_its_service_comes_up(self, bench: Bench) -> None:
        subject = await bench.new()
        process = await subject.start_ready()
        assert await bench.runtime.alive(process)
        assert await bench.runtime.find(subject.machine) == process
        assert await subject.diary() == ["START"]

    async def test_an_instance_is_not_started_twice(self, bench: Bench) -> None:
        subject = await bench.ready()
        with pytest.raises(MvmError, match="runs already"):
            await bench.runtime.start(subject.machine)
        await subject.ask(messages.Ping())

    async def test_a_stopped_instance_ended_its_service_and_left_nothing(self, bench: Bench) -> None:
        subject = await bench.ready()
        process = subject.running
        assert await subject.stop()
        assert (await subject.diary())[0] == "START"
        assert (await subject.diary())[-1] == "END"
        assert not await bench.runtime.alive(process)
        assert await bench.runtime.find(subject.machine) is None
        assert bench.leftovers(subject) == []
        with pytest.raises(Unavailable):
            await bench.runtime.connect(subject.machine, GUEST_AGENT_PORT)

    async def test_data_is_kept_over_a_stop_and_a_start(self, bench: Bench) -> None:
        subject = await bench.ready()
        await subject.execute("sh", "-c", "echo kept > note")
        await subject.stop()
        await bench.before_next_start(subject)
        await subject.start_ready()
        assert await subject.execute("cat", "note") == "kept\n"

    async def test_an_instance_that_does_not_end_is_ended(self, bench: Bench) -> None:
        subject = await bench.ready()
        process = subject.running
        await bench.runtime.pause(subject.machine, process)
        await subject.stop(grace_seconds=0)
        assert not await bench.runtime.alive(process)
        assert bench.leftovers(subject) == []

    async def test_stopping_what_has_ended_is_fine(self, bench: Bench) -> None:
        subject = await bench.ready()
        process = subject.running
        await subject.stop()
        await bench.runtime.stop(subject.machine, process, grace_seconds=1)

    async def test_the_end_of_a_process_is_noticed(self, bench: Bench) -> None:
        subject = await bench.ready()
        process = subject.running
        watching = asyncio.create_task(bench.runtime.wait(process))
        await asyncio.sleep(0)
        assert not watching.done()
        await subject.stop()
        await asyncio.wait_for(watching, LIMIT_SECONDS)
        await asyncio.wait_for(bench.runtime.wait(process), LIMIT_SECONDS)

    async def test_a_destroyed_instance_leaves_nothing(self, bench: Bench) -> None:
        subject = await bench.ready()
        await bench.runtime.destroy(subject.machine)
        await bench.runtime.destroy(subject.machine)
        assert await bench.runtime.find(subject.machine) is None
        assert bench.leftovers(subject) == []
        assert sorted(path.name for path in subject.machine.run_dir.iterdir()) == ["config"]

    # Crash and adoption

    async def test_a_crash_leaves_nothing_that_the_next_start_would_meet(self, bench: Bench) -> None:
        subject = await bench.ready()
        process = subject.running
        await subject.execute("sync")
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.wait_for(bench.runtime.wait(process), LIMIT_SECONDS)
        assert not await bench.runtime.alive(process)
        assert await bench.runtime.find(subject.machine) is None
        await bench.before_next_start(subject)
        again = await subject.start_ready()
        assert again != process
        starts = [line for line in await subject.diary() if line == "START"]
        assert len(starts) == 2
        assert await subject.stop()
        assert bench.leftovers(subject) == []

    async def test_another_agent_finds_and_serves_what_runs(self, bench: Bench) -> None:
        subject = await bench.ready()
        process = subject.running
        await bench.agent_ends(bench.runtime)
        other = bench.make_runtime()
        assert await other.find(subject.machine) == process
        assert await other.alive(process)
        assert subject.desk is not None
        subject.desk.close()
        subject.runtime = other
        await subject.listen()
        await subject.ask(messages.Ping())
        watching = asyncio.create_task(other.wait(process))
        assert await other.stop(subject.machine, process, grace_seconds=10)
        await asyncio.wait_for(watching, LIMIT_SECONDS)
        assert bench.leftovers(subject) == []

    async def test_a_pid_that_belongs_to_somebody_else_is_not_the_instance(self, bench: Bench) -> None:
        subject = await bench.ready()
        process = subject.running
        assert not await bench.runtime.alive(process.model_copy(update={"start_time": process.start_time + 1}))

    # Warm

    async def test_a_paused_instance_does_nothing_and_goes_on_where_it_was(self, bench: Bench) -> None:
        subject = await bench.ready()
        process = subject.running
        before = await subject.execute("sh", "-c", "echo $PPID")
        await bench.runtime.pause(subject.machine, process)
        assert await bench.runtime.alive(process)
        assert await bench.runtime.find(subject.machine) == process
        with pytest.raises((Unavailable, FrameError)):
            await subject.ask(messages.Ping(), seconds=0.3)
        await bench.runtime.resume(subject.machine, process)
        assert (await subject.wake()).success
        await subject.until(WorkStatus.IDLE)
        assert await subject.execute("sh", "-c", "echo $PPID") == before
        assert (await subject.diary()).count("START") == 1

    async def test_a_paused_instance_can_be_stopped(self, bench: Bench) -> None:
        subject = await bench.ready()
        process = subject.running
        await bench.runtime.pause(subject.machine, process)
        await subject.stop()
        assert bench.leftovers(subject) == []

    # Sleep and wake

    async def test_a_sleeper_has_no_process_and_wakes_with_its_data(self, bench: Bench) -> None:
        subject = await bench.ready()
        process = subject.running
        await subject.execute("sh", "-c", "echo dream > note")
        assert (await subject.sleep()).success
        await bench.runtime.pause(subject.machine, process)
        snapshot = await bench.runtime.snapshot(subject.machine, process)
        assert (snapshot is not None) is bench.runtime.capabilities.memory_snapshot
        await subject.stop()
        assert bench.leftovers(subject) == []
        assert await bench.runtime.saved_snapshot(subject.machine) == snapshot
        await bench.before_next_start(subject)
        subject.process = await bench.runtime.restore(subject.machine, snapshot)
        await subject.until_answering()
        assert (await subject.wake()).success
        await subject.until(WorkStatus.IDLE)
        assert await subject.execute("cat", "note") == "dream\n"
        assert await bench.runtime.saved_snapshot(subject.machine) is None

    async def test_an_abandoned_sleep_is_undone_by_a_wake(self, bench: Bench) -> None:
        subject = await bench.ready()
        assert (await subject.sleep()).success
        assert (await subject.wake()).success
        await subject.until(WorkStatus.IDLE)
        assert (await subject.diary())[-2:] == ["CHECKPOINT", "RESTORE"]

    async def test_an_instance_in_a_turn_refuses_to_sleep_and_goes_on(self, bench: Bench) -> None:
        subject = await bench.ready()
        reader, writer = await _deliver(subject)
        await subject.until(WorkStatus.BUSY)
        refused = await subject.sleep(drain_seconds=0)
        assert not refused.success
        assert refused.detail
        writer.write(b"still here\n")
        assert await asyncio.wait_for(reader.readline(), 10) == b"STILL HERE\n"
        writer.close()
        await writer.wait_closed()
        await subject.until(WorkStatus.IDLE)
        assert (await subject.sleep()).success

    async def test_the_one_line_form_of_sleep_works_too(self, bench: Bench) -> None:
        subject = await bench.ready()
        reader, writer = await bench.runtime.connect(subject.machine, SLEEP_PREP_PORT)
        writer.write(b"SLEEP_PREP\n")
        assert (await asyncio.wait_for(reader.readline(), 60)).strip() == b"ACK"
        writer.close()
        await writer.wait_closed()

    # Drives

    async def test_new_secrets_reach_a_running_instance(self, bench: Bench) -> None:
        if not bench.runtime.capabilities.hot_drive_change:
            pytest.skip("its drives cannot be changed while it runs")
        subject = await bench.ready()
        assert "START first key" in (await subject.diary_lines())[0]
        await subject.write_drives(key="second key", epoch=2)
        assert (await subject.refresh()).success
        await subject.until_told("second key")
        await subject.until(WorkStatus.IDLE)

    async def test_new_secrets_are_there_after_a_wake(self, bench: Bench) -> None:
        subject = await bench.ready()
        process = subject.running
        assert (await subject.sleep()).success
        snapshot = await bench.runtime.snapshot(subject.machine, process)
        await subject.stop()
        await bench.before_next_start(subject)
        await subject.write_drives(key="third key", epoch=3)
        subject.process = await bench.runtime.restore(subject.machine, snapshot)
        await subject.until_answering()
        assert (await subject.wake()).success
        await subject.until_told("third key")

    # Channel

    async def test_who_connects_to_a_host_port_is_that_instance(self, bench: Bench) -> None:
        one, two = await bench.new(), await bench.new()
        await bench.ready(one)
        await until(lambda: bool(one.reports), what="a report", seconds=LIMIT_SECONDS)
        assert two.reports == []
        await bench.ready(two)
        await until(lambda: bool(two.reports), what="a report", seconds=LIMIT_SECONDS)

    async def test_a_host_port_can_be_listened_on_again(self, bench: Bench) -> None:
        subject = await bench.new()
        await subject.listen()
        first = subject.desk
        assert first is not None
        first.close()
        await subject.listen()
        await bench.ready(subject)
        await until(lambda: bool(subject.reports), what="a report", seconds=LIMIT_SECONDS)

    async def test_a_port_that_nobody_listens_on_says_so(self, bench: Bench) -> None:
        subject = await bench.new()
        for port in (GUEST_AGENT_PORT, HOST_PORT, 9):
            with pytest.raises(Unavailable, match=f"port {port}"):
                await bench.runtime.connect(subject.machine, port)

    async def test_files_that_a_guest_offers_reach_the_host_at_a_port_of_their_own(
        self, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not bench.runtime.capabilities.images:
            pytest.skip("nothing is built in its instances")
        monkeypatch.setattr(build_place, "GUEST", bench.guest_program)
        subject = await bench.ready()
        await subject.execute("sh", "-c", "mkdir /data/built && echo whole >/data/built/image")
        place = MachinePlace(Builder(subject), InLoop(), sources={}, environment={})
        fetching = asyncio.to_thread(place.fetch, PurePosixPath("/data/built"), ("image",), tmp_path, lambda _: None)
        output = await asyncio.wait_for(fetching, LIMIT_SECONDS)
        assert (output / "image").read_text() == "whole\n"

    async def test_deliveries_are_taken_from_the_gateway_only(self, bench: Bench) -> None:
        subject = await bench.ready()
        reader, writer = await _deliver(subject)
        writer.write(b"hello\n")
        assert await asyncio.wait_for(reader.readline(), 10) == b"HELLO\n"
        writer.close()
        await writer.wait_closed()
        await subject.until(WorkStatus.IDLE)
        other_reader, other_writer = await asyncio.open_connection(
            subject.machine.guest_ip, 18789, local_addr=(subject.bench.stranger_address, 0)
        )
        other_writer.write(b"hello\n")
        with suppress(ConnectionError):
            assert await asyncio.wait_for(other_reader.readline(), 10) == b""
        other_writer.close()

    # Two at once

    async def test_instances_have_their_own_addresses_ports_and_files(self, bench: Bench) -> None:
        one, two = await bench.new(), await bench.new()
        await asyncio.gather(bench.ready(one), bench.ready(two))
        assert one.machine.guest_ip != two.machine.guest_ip
        await one.execute("sh", "-c", "echo mine > note")
        assert "note" not in (await two.execute("ls")).split()
        await one.stop()
        await two.ask(messages.Ping())
        assert bench.leftovers(one) == []

    # Commands

    async def test_a_command_runs_with_its_input_and_its_status(self, bench: Bench) -> None:
        subject = await bench.ready()
        result = await subject.ask(
            messages.Exec(argv=("sh", "-c", "cat; echo oops >&2; exit 3"), stdin="given", timeout_secs=10)
        )
        assert (result.status, result.stdout, result.stderr) == (3, b"given", b"oops\n")


async def _deliver(subject: Subject) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A delivery connection as the gateway opens it."""
    reader, writer = await asyncio.open_connection(
        subject.machine.guest_ip, 18789, local_addr=(subject.bench.gateway_address, 0)
    )
    writer.write(b"begin\n")
    assert await asyncio.wait_for(reader.readline(), 10) == b"BEGIN\n"
    return reader, writer
