"""The process runtime keeps the rules of every runtime, and a few of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest
from tests.contract.runtime.bench import Bench, Subject
from tests.contract.runtime.conformance import RuntimeConformance

from mvm.guest import processes
from mvm.image.guest_zipapp import build_zipapp
from mvm.model.errors import Unavailable
from mvm.model.roles import Role
from mvm.runtime.base import Runtime
from mvm.runtime.process import HostPrograms, ProcessRuntime
from mvm.runtime.process.claims import FORWARDER_PORT
from mvm.runtime.process.directories import Directories
from mvm.runtime.process.ending import members


class ProcessBench(Bench):
    """Instances as processes, with a small script in OpenClaw's place."""

    def __init__(self, base: Path) -> None:
        self.zipapp = base / "programs/guest.pyz"
        build_zipapp(self.zipapp)
        openclaw = base / "programs/openclaw"
        openclaw.mkdir()
        shutil.copy(Path(__file__).with_name("service.py"), openclaw / "openclaw.mjs")
        self.plugin = base / "programs/plugin"
        self.plugin.mkdir()
        (self.plugin / "openclaw.plugin.json").write_text("{}")
        super().__init__(base)

    def make_runtime(self) -> Runtime:
        return ProcessRuntime(self.programs())

    def programs(self) -> HostPrograms:
        return HostPrograms(
            node=Path(sys.executable),
            openclaw_dir=self.base / "programs/openclaw",
            python=Path(sys.executable),
            zipapp=self.zipapp,
            plugin_dir=self.plugin,
        )

    async def read_data(self, subject: Subject, name: str) -> str:
        path = subject.machine.data / name
        return path.read_text() if path.exists() else ""

    def leftovers(self, subject: Subject) -> list[str]:
        root = Directories.of(subject.machine).root
        left = [f"process {process.identity.pid}" for process in members(root, [])]
        helper = subject.machine.data / "openclaw/helper"
        if helper.exists() and (found := processes.read(int(helper.read_text()))) is not None and not found.ended:
            left.append(f"helper {found.identity.pid}")
        groups = Path("/sys/fs/cgroup").glob(f"*/**/mvm-{subject.machine.ref.instance_id}-*")
        return left + [str(group) for group in groups]


class TestProcessRuntime(RuntimeConformance):
    def make_bench(self, base: Path) -> Bench:
        return ProcessBench(base)

    async def test_it_says_that_nothing_is_isolated(self, bench: Bench) -> None:
        probe = await bench.runtime.probe()
        assert "NOT isolated" in probe.reason
        assert "virtual machines" in (probe.remedy or "")
        assert not bench.runtime.capabilities.isolated

    async def test_no_secret_is_in_an_environment_or_argument_but_openclaws(self, bench: Bench) -> None:
        subject = await bench.new()
        await subject.start_ready()
        for process in members(Directories.of(subject.machine).root, []):
            pid = process.identity.pid
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"first key" not in arguments
            if b"openclaw.mjs" not in arguments:
                assert b"first key" not in environment

    async def test_a_missing_program_is_named_before_anything_starts(self, bench: Bench) -> None:
        subject = await bench.new()
        Path(bench.base / "programs/openclaw/openclaw.mjs").unlink()
        with pytest.raises(Unavailable, match="OpenClaw is not at") as refused:
            await bench.runtime.start(subject.machine)
        assert refused.value.hint
        assert bench.leftovers(subject) == []

    async def test_a_supervisor_that_cannot_start_says_why_and_leaves_nothing(self, bench: Bench) -> None:
        subject = await bench.new(role=Role.WORKER)
        Path(bench.base / "programs/broken.pyz").write_text("raise SystemExit('the disk is upside down')")
        assert isinstance(bench, ProcessBench)
        bench.zipapp = bench.base / "programs/broken.pyz"
        with pytest.raises(Unavailable, match="the disk is upside down"):
            await bench.make_runtime().start(subject.machine)
        assert bench.leftovers(subject) == []

    async def test_a_cancelled_start_leaves_nothing(self, bench: Bench) -> None:
        subject = await bench.new(role=Role.WORKER)
        starting = asyncio.create_task(bench.runtime.start(subject.machine))
        await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert bench.leftovers(subject) == []

    async def test_an_address_is_kept_while_the_instance_runs_and_moved_when_taken(self, bench: Bench) -> None:
        subject = await bench.new()
        await subject.start_ready()
        address = subject.machine.guest_ip
        assert await bench.make_runtime().assign_address(address) != address
        await subject.stop()
        assert await bench.make_runtime().assign_address(address) == address
        with socket.create_server((address, FORWARDER_PORT)):
            await bench.before_next_start(subject)
        assert subject.machine.guest_ip != address
        await subject.start_ready()

    async def test_the_files_of_an_instance_are_private(self, bench: Bench) -> None:
        subject = await bench.new()
        await subject.start_ready()
        directories = Directories.of(subject.machine)
        for path in (directories.root, directories.channel, directories.run / "openclaw"):
            assert path.stat().st_mode & 0o077 == 0
        for path in (directories.guest_socket(52), directories.host_socket(53), directories.supervisor_socket):
            assert path.stat().st_mode & 0o077 == 0

    async def test_a_supervisor_that_is_stuck_does_not_keep_its_services_from_ending(self, bench: Bench) -> None:
        subject = await bench.new()
        process = await subject.start_ready()
        os.kill(process.pid, signal.SIGSTOP)
        assert isinstance(bench.runtime, ProcessRuntime)
        assert not await subject.stop(grace_seconds=2)
        assert bench.leftovers(subject) == []

    async def test_processes_outlive_the_agent(self, bench: Bench) -> None:
        subject = await bench.new()
        process = await subject.start()
        found = processes.read(process.pid)
        assert found is not None
        assert found.session == process.pid != os.getsid(0)
