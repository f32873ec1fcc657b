"""Instances of the Firecracker runtime for the conformance suites: on the stand-ins, or on the real programs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from pyroute2 import IPRoute
from tests.contract.network.world import new_host
from tests.contract.runtime.bench import Bench, Subject
from tests.standins.firecracker.description import description
from tests.standins.firecracker.drives import data_of
from tests.standins.firecracker.images import make_image
from tests.standins.firecracker.install import Installed, install
from tests.standins.firecracker.settings import read_journal

from mvm.host import build_place
from mvm.network.taps import make_lasting_tap, remove_lasting_tap
from mvm.runtime.base import Machine, Runtime
from mvm.runtime.firecracker import launching
from mvm.runtime.firecracker.files import Files
from mvm.runtime.firecracker.jail import control_groups
from mvm.runtime.firecracker.runtime import FirecrackerRuntime

BRIDGE = "br-fcs"
NETWORK = "10.99.0"
VM_UID = 61_018
"""A user that nobody else is."""
SERVICE = Path(__file__).with_name("service.py")


class BridgedTaps:
    """TAPs on a bridge of the tests' own."""

    def make(self, machine: Machine, name: str) -> None:
        make_lasting_tap(name, BRIDGE if machine.tap else "", owner=machine.uid)

    def remove(self, name: str) -> None:
        remove_lasting_tap(name)


@contextmanager
def bridged_host() -> Iterator[None]:
    """A bridge for machines that this process is at, seen by nobody else."""
    with new_host():
        with IPRoute() as route:
            route.link("add", ifname=BRIDGE, kind="bridge")
            index = route.link_lookup(ifname=BRIDGE)[0]
            for host in (FirecrackerBench.gateway_address, FirecrackerBench.stranger_address):
                route.addr("add", index=index, address=host, prefixlen=24)
            route.link("set", index=index, state="up")
        yield


async def nothing_wrong() -> None:
    """KVM is not needed: nothing of the stand-in's is virtual."""


def service_image(directory: Path) -> Path:
    """An image whose OpenClaw is the suites' service."""
    openclaw = directory / "openclaw"
    openclaw.mkdir()
    shutil.copy(SERVICE, openclaw / "openclaw.mjs")
    return make_image(directory, openclaw=openclaw)


class FirecrackerBench(Bench):
    """Small machines on a bridge, in a network namespace of the test's own."""

    gateway_address = f"{NETWORK}.1"
    stranger_address = f"{NETWORK}.2"

    def __init__(self, base: Path, image: Path, programs: Path) -> None:
        self.image = image
        self.programs_dir = programs
        self.jailed = True
        super().__init__(base)

    def make_runtime(self) -> Runtime:
        return FirecrackerRuntime(programs_dir=self.programs_dir, taps=BridgedTaps(), jailed=self.jailed)

    def equip(self, machine: Machine) -> Machine:
        number = len(self.subjects) + 10
        return replace(
            machine,
            vcpus=1,
            mem_mib=256,
            image=self.image,
            uid=VM_UID + number,
            guest_ip=f"{NETWORK}.{number}",
            gateway_ip=self.gateway_address,
            tap=f"tapf{number}",
            mac=f"02:fc:00:63:00:{number:02x}",
            data_mib=64,
        )

    async def agent_ends(self, runtime: Runtime) -> None:
        assert isinstance(runtime, FirecrackerRuntime)
        await runtime.close()

    async def read_data(self, subject: Subject, name: str) -> str:
        if subject.process is not None:
            script = 'if test -e "$0"; then cat "$0"; fi'
            return await subject.execute("sh", "-c", script, f"/data/{name}")
        return self.read_image(Files.of(subject.machine).data, name)

    def read_image(self, image: Path, name: str) -> str:
        """A file on a data drive that no guest has."""
        command = ["debugfs", "-R", f"cat /{name}", str(image)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout

    def leftovers(self, subject: Subject) -> list[str]:
        files = Files.of(subject.machine)
        left = [f"process {process.identity.pid}" for process in launching.members(files)]
        left += [f"process {process.identity.pid}" for process in launching.holders(files.data)]
        left += [str(path) for path in (files.record, files.jail) if path.exists()]
        with suppress(OSError):
            socket.if_nametoindex(subject.machine.tap)
            left.append(subject.machine.tap)
        left += [str(group) for group in control_groups().of(subject.machine.ref.instance_id) if group.exists()]
        return left


class StandinBench(FirecrackerBench):
    """The same on the stand-ins, of which every request must have been one that Firecracker takes."""

    guest_program = ("env", "MVM_CHANNEL_DIR=/run/mvm/ch", os.path.realpath(sys.executable), *build_place.GUEST[1:])

    def __init__(self, base: Path, image: Path, *, version: str = "1.16.1", diffs: bool = False) -> None:
        self.diffs = diffs
        self.installed: Installed = install(base / "programs", base / "control", version)
        self.forgiven: set[str] = set()
        """Faults that a test expects: beginnings of what was answered."""
        super().__init__(base, image, base / "programs")

    def make_runtime(self) -> Runtime:
        return FirecrackerRuntime(
            programs_dir=self.programs_dir,
            taps=BridgedTaps(),
            jailed=self.jailed,
            diffs=self.diffs,
            why_no_kvm=nothing_wrong,
        )

    @property
    def control(self) -> Path:
        return self.installed.settings.control

    def read_image(self, image: Path, name: str) -> str:
        path = data_of(self.control, image) / name
        return path.read_text() if path.exists() else ""

    def refused(self) -> list[str]:
        """Requests that were refused, and what Firecracker would not have noticed."""
        refused = [
            f"{entry['method']} {entry['path']}: {entry['answer']['fault_message']}"
            for entry in read_journal(self.control, "request")
            if entry["status"] >= 400
        ]
        violations = [entry["what"] for entry in read_journal(self.control, "violation")]
        failed = [entry["reason"] for entry in read_journal(self.control, "jailer failed")]
        return [what for what in refused + violations + failed if not any(known in what for known in self.forgiven)]

    def not_described(self) -> list[str]:
        """Requests that Firecracker's own description of its API does not know, where that is there."""
        known = description()
        if known is None:
            return []
        requests = read_journal(self.control, "request")
        return [problem for r in requests for problem in known.problems(r["method"], r["path"], r["body"])]

    async def close(self) -> None:
        await super().close()
        assert (refused := self.refused()) == [], refused
        assert (unknown := self.not_described()) == [], unknown
