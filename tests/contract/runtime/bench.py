"""Instances for the conformance suite: what the host would do around a runtime, as little of it as possible."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from mvm.drives.content import CONFIG_FILE_MODE, SECRET_FILE_MODE, write_tree
from mvm.host import build_place
from mvm.model.entities import ProcessIdentity
from mvm.model.errors import Unavailable
from mvm.model.ids import InstanceRef, instance_id, pool_id, tenant_id
from mvm.model.roles import Role
from mvm.runtime.base import GUEST_AGENT_PORT, HOST_PORT, GuestLayout, Machine, Runtime
from mvm.wire import messages, rpc
from mvm.wire.frames import FrameError
from mvm.wire.messages import WorkStatus
from mvm.wire.tagged import Answer, Request

A = TypeVar("A", bound=Answer)

LIMIT_SECONDS = 60.0


@dataclass
class Subject:
    """One instance of the runtime under test."""

    bench: Bench
    runtime: Runtime
    machine: Machine
    layout: GuestLayout
    process: ProcessIdentity | None = None
    epoch: int = 1
    reports: list[messages.ReportStatus] = field(default_factory=list)
    desk: asyncio.AbstractServer | None = None

    @property
    def running(self) -> ProcessIdentity:
        """Its process; it has one."""
        assert self.process is not None
        return self.process

    async def write_drives(self, *, key: str, epoch: int | None = None, people: int = 0, **config: Any) -> None:
        """Write config and secrets and publish them; `key` is the value of the one secret that its service has.

        Of each of `people` there is a token, as gateways have them.
        """
        self.epoch = self.epoch if epoch is None else epoch
        machine, layout = self.machine, self.layout
        guest = {
            "instance_id": machine.ref.instance_id,
            "pool_id": machine.ref.pool_id,
            "tenant_id": machine.ref.tenant_id,
            "role": machine.role.value,
            "guest_ip": machine.guest_ip,
            "gateway_ip": machine.gateway_ip,
            "prefix": machine.prefix,
            "mac": machine.mac,
            "vcpus": machine.vcpus,
            "mem_mib": machine.mem_mib,
            "allow_exec": True,
            "config_version": self.epoch,
            "secrets_epoch": self.epoch,
            "openclaw": {
                "port": layout.openclaw_port,
                "router_port": layout.router_port,
                "outbox_port": layout.outbox_port,
                "delivery_sources": [self.bench.gateway_address],
                "worker_key": "alice.alice",
                "gateway_url": f"http://{self.bench.gateway_address}:1",
            },
            **config,
        }
        openclaw = {"port": layout.openclaw_port, "control": f"{layout.run}/openclaw/control.sock"}
        write_tree(
            machine.config,
            {"config.json": json.dumps(guest).encode(), "openclaw.json": json.dumps(openclaw).encode()},
            file_mode=CONFIG_FILE_MODE,
        )
        write_tree(
            machine.secrets,
            {
                "anthropic/ANTHROPIC_API_KEY": key.encode(),
                "openclaw/OPENCLAW_AUTH_TOKEN": b"the token",
                **{f"workers/alice.person-{number}": b"a token" for number in range(people)},
            },
            file_mode=SECRET_FILE_MODE,
        )
        await self.runtime.publish_drives(machine)

    async def listen(self) -> None:
        """Be the host's side of port 53 for this instance."""

        async def answer(request: messages.GuestToHost) -> Answer:
            if isinstance(request, messages.ReportStatus):
                self.reports.append(request)
                return messages.Ok()
            if isinstance(request, messages.ReportEvent):
                return messages.Ok()
            raise rpc.Refusal("not here")

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(FrameError, asyncio.CancelledError):
                await rpc.serve_connection(reader, writer, answer, parse=messages.parse_host_request)

        self.desk = await self.runtime.listen(self.machine, HOST_PORT, serve)

    async def start(self) -> ProcessIdentity:
        """Start it and wait until its agent answers."""
        if self.desk is None:
            await self.listen()
        self.process = await self.runtime.start(self.machine)
        await self.until_answering()
        return self.process

    async def start_ready(self) -> ProcessIdentity:
        """Start it and wait until its service is up."""
        process = await self.start()
        await self.until(WorkStatus.IDLE)
        return process

    async def ask(self, request: Request[A], *, seconds: float = 15.0) -> A:
        """One request to the guest agent."""
        reader, writer = await self.runtime.connect(self.machine, GUEST_AGENT_PORT)
        try:
            return await rpc.call(reader, writer, request, timeout=seconds)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def until_answering(self) -> None:
        """Wait for the guest agent."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while True:
                with suppress(Unavailable, FrameError):
                    await self.ask(messages.Ping(), seconds=2.0)
                    return
                await asyncio.sleep(0.02)

    async def until(self, status: WorkStatus) -> messages.WorkerStatus:
        """Wait until the guest says that it is in that status."""
        found: messages.WorkerStatus | None = None
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                while True:
                    found = await self.ask(messages.QueryWorkerStatus())
                    if found.status is status:
                        return found
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"the guest never became {status}; it said {found}") from None

    async def sleep(self, drain_seconds: int = 5) -> messages.SleepPrepAck:
        """Have the guest prepare for its sleep."""
        return await self.ask(messages.SleepPrep(drain_timeout_secs=drain_seconds), seconds=drain_seconds + 10.0)

    async def wake(self, *, epoch: int | None = None) -> messages.WakeAck:
        """Tell the guest that it was woken."""
        number = self.epoch if epoch is None else epoch
        request = messages.Wake(
            host_time=datetime.now(UTC), secrets_epoch=number, config_version=number, entropy=os.urandom(32)
        )
        return await self.ask(request)

    async def refresh(self) -> messages.RefreshAck:
        """Tell the guest that its drives changed."""
        return await self.ask(messages.Refresh(secrets_epoch=self.epoch, config_version=self.epoch))

    async def stop(self, grace_seconds: float = 10.0) -> bool:
        assert self.process is not None
        ended_by_itself = await self.runtime.stop(self.machine, self.process, grace_seconds=grace_seconds)
        self.process = None
        return ended_by_itself

    async def execute(self, *argv: str) -> str:
        """Output of a command run in the guest."""
        result = await self.ask(messages.Exec(argv=argv, timeout_secs=10))
        assert result.status == 0, result
        return result.stdout.decode()

    async def ask_raw(self, *argv: str) -> bytes:
        """What a command printed in the guest, as it is."""
        result = await self.ask(messages.Exec(argv=argv, timeout_secs=10))
        assert result.status == 0, result
        return result.stdout

    async def diary(self) -> list[str]:
        """What the service wrote down, first words of each line: START with its key, END, CHECKPOINT, ..."""
        return [line.split()[0] for line in await self.diary_lines()]

    async def diary_lines(self) -> list[str]:
        return (await self.bench.read_data(self, "openclaw/diary")).splitlines()

    async def until_told(self, key: str) -> None:
        """Wait until the service has been told that value of its secret, at its start or while it runs."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while not any(line.startswith((f"START {key}", f"RELOAD {key}")) for line in await self.diary_lines()):
                await asyncio.sleep(0.02)


class Bench(ABC):
    """A runtime under test and the instances made with it."""

    gateway_address = "127.0.0.11"
    """Whom guests take deliveries from."""
    stranger_address = "127.0.0.12"
    guest_program = build_place.GUEST
    """Beginning of the commands of mvm's own program in a guest."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.runtime = self.make_runtime()
        self.subjects: list[Subject] = []

    @abstractmethod
    def make_runtime(self) -> Runtime:
        """The runtime as a freshly started agent would make it."""

    @abstractmethod
    def leftovers(self, subject: Subject) -> list[str]:
        """What the host still has of an instance that does not run: processes, control groups, devices."""

    @abstractmethod
    async def read_data(self, subject: Subject, name: str) -> str:
        """Content of a file on an instance's data drive; empty when there is none."""

    def equip(self, machine: Machine) -> Machine:
        """The machine as this runtime needs it."""
        return machine

    async def agent_ends(self, runtime: Runtime) -> None:
        """The agent that had this runtime has ended: whatever it held is free for another one."""
        return None

    async def ready(self, subject: Subject | None = None) -> Subject:
        """An instance that runs and whose service is up, by the quickest way there is."""
        subject = subject or await self.new()
        await subject.start_ready()
        return subject

    async def new(self, *, role: Role = Role.CAPABILITY_OPENCLAW) -> Subject:
        """An instance that was never started, with its drives written."""
        number = len(self.subjects) + 1
        name = f"i-{secrets.token_hex(4)}"
        run = self.base / "r" / name
        machine = Machine(
            ref=InstanceRef(tenant_id("alice"), pool_id("workers"), instance_id(name)),
            role=role,
            vcpus=2,
            mem_mib=512,
            guest_ip=await self.runtime.assign_address(f"10.240.{os.getpid() % 200 + 20}.{number + 2}"),
            gateway_ip="10.240.1.1",
            prefix=24,
            mac=f"02:fc:00:01:00:{number + 2:02x}",
            tap=f"tn1i{number + 2}",
            state_dir=self.base / "s" / name,
            run_dir=run,
            data=self.base / "s" / name / "data",
            secrets=self.base / "k" / name,
            config=run / "config",
        )
        for directory in (machine.state_dir, machine.run_dir, machine.data, machine.secrets, machine.config):
            directory.mkdir(parents=True, mode=0o700)
        machine = self.equip(machine)
        subject = Subject(self, self.runtime, machine, await self.runtime.layout(machine))
        await subject.write_drives(key="first key")
        self.subjects.append(subject)
        return subject

    async def before_next_start(self, subject: Subject) -> None:
        """What the host does before each start and wake: an address, ports, drives."""
        address = await self.runtime.assign_address(subject.machine.guest_ip)
        subject.machine = replace(subject.machine, guest_ip=address)
        subject.layout = await self.runtime.layout(subject.machine)
        await subject.write_drives(key="first key")

    async def close(self) -> None:
        """End every instance and make sure that nothing is left of any."""
        left = []
        for subject in self.subjects:
            if subject.desk is not None:
                subject.desk.close()
            await self.runtime.destroy(subject.machine)
            left += self.leftovers(subject)
        assert left == []
