"""Whole deployments in virtual machines, as an operator makes them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from tests.e2e.operator import CommandFailed, Json, Operator, eventually, kill, operator
from tests.vm.images import STANDIN, cache

from mvm.host.locations import locate
from mvm.runtime.qemu import accelerator

TENANT, ALICE, BOB = "fam", 5001, 5002
PATIENCE = 240.0
"""The longest wait for something that takes seconds on an idle machine with nothing but emulation."""

TURN_SECONDS = 900.0
"""The longest wait for an answer of the real OpenClaw, which takes minutes on an idle machine."""

FIRST_START_SECONDS = 2400.0
"""The longest wait for the real OpenClaw: two boots, one after the other, of minutes each on an idle machine."""

WHOLE = bool(os.environ.get("MVM_TEST_WHOLE"))
"""Long conversations are had whole where machines are emulated, too; that takes hours."""

LONGEST_SECONDS = 20_000 if WHOLE else 4000
"""When a test with the real OpenClaw in machines is given up."""


async def as_many(full: int, emulated: int) -> int:
    """How often something is done with the real OpenClaw: `emulated` where each of its turns takes minutes."""
    return full if WHOLE or (await accelerator.find()).accelerator.is_hardware else emulated


class Machines:
    """A deployment with a worker for each user, all of it in virtual machines."""

    def __init__(self, someone: Operator, *, patience: float = PATIENCE) -> None:
        self.operator = someone
        self.patience = patience
        self.known: Json = {}
        """Alice's worker as it was last looked at, for when no agent can be asked."""

    async def remember(self) -> None:
        """Look at alice's worker."""
        self.known = await self.worker()

    @property
    def state_dir(self) -> Path:
        return self.operator.directory / "state"

    async def worker(self, user: str = "alice") -> Json:
        """A user's worker as it is now."""
        return await self.operator.worker(TENANT, user)

    async def gateway(self) -> Json:
        return await self.operator.gateway(TENANT)

    async def info(self, instance: Json) -> Json:
        """What `mvm instance info` says of an instance."""
        return (await self.operator.ask("instance", "info", self.operator.address(instance)))["instance"]

    async def stages(self, instance: Json) -> dict[str, float]:
        """Stages of the instance's last start or wake, in milliseconds."""
        timeline = (await self.info(instance))["last_wake"]
        return {stage["stage"]: stage["milliseconds"] for stage in timeline["stages"]}

    async def say(self, sender: int, text: str) -> list[str]:
        """A person writes; what they get for it."""
        return await self.operator.say(sender, text, seconds=self.patience)

    async def sleep(self, user: str = "alice") -> Json:
        """Put a user's worker to sleep; returns it."""
        worker = await self.worker(user)
        await self.operator.sleep(worker)
        return worker

    async def inside(self, instance: Json, *argv: str) -> str:
        """Output of a command run in an instance."""
        return await self.operator.mvm("instance", "exec", self.operator.address(instance), "--", *argv)

    async def until_state(self, instance: Json, state: str) -> None:
        await self.operator.wait_for_state(instance, state, PATIENCE)

    def machine(self, instance: Json) -> psutil.Process | None:
        """The QEMU of an instance; None while there is none."""
        return next((process for owner, process in self.all() if owner == instance["instance_id"]), None)

    def owners(self) -> list[str]:
        """The instance (or the name of a base) of each QEMU that runs."""
        return [owner for owner, _ in self.all()]

    def all(self) -> list[tuple[str, psutil.Process]]:
        """Every QEMU with the instance that it is of."""
        found = []
        for process in self.operator.processes():
            try:
                mark = process.environ().get("MVM_MACHINE")
                if mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((Path(mark).name, process))
            except psutil.Error:
                continue
        return found

    def base(self) -> psutil.Process | None:
        """The QEMU of a base that is being made."""
        known = {path.name for path in (self.state_dir / "instances").iterdir()}
        return next((process for owner, process in self.all() if owner not in known), None)

    async def kill_machine(self, instance: Json) -> None:
        """`kill -9` of an instance's QEMU, if it has one."""
        if (process := self.machine(instance)) is not None:
            await kill(process)

    async def events(self, kind: str) -> list[Any]:
        """Events of a kind so far."""
        found = await self.operator.mvm("events", "--tenant", TENANT, "--json")
        listed = json.loads(found)
        listed = listed["events"] if isinstance(listed, dict) else listed
        return [event for event in listed if event["kind"] == kind]

    async def start_agent(self) -> None:
        """An agent runs; the first command starts one."""
        await eventually(lambda: self.operator.mvm("node", "info"), PATIENCE, CommandFailed)

    async def lose_power(self) -> None:
        """Everything stops at once, and what is in memory is gone: the agent, all machines, run-time files, secrets."""
        await self.operator.kill_agent()
        for process in self.operator.processes():
            await kill(process)
        run = self.operator.directory / "run"
        secrets = locate({"state_dir": str(self.state_dir), "run_dir": str(run)}).secrets_dir
        for directory in (run, secrets):
            shutil.rmtree(directory, ignore_errors=True)


def overrides(someone: Operator, *, gateway_mib: int, worker_mib: int) -> str:
    """Sizes, and the stand-ins' ports on this host that each pool may reach."""
    telegram, model = urlsplit(someone.telegram.url).port, urlsplit(someone.model.url).port
    return (
        f'\n[overrides.gateways]\negress = ["host:{telegram}"]\nvcpus = 1\nmem_mib = {gateway_mib}\n'
        f'\n[overrides.workers]\negress = ["host:{model}"]\nvcpus = 1\nmem_mib = {worker_mib}\n'
    )


@asynccontextmanager
async def standin_machines(
    users: dict[str, int], *, runtime: str = "qemu", **environment: str
) -> AsyncIterator[Machines]:
    """A deployment on the stand-in for OpenClaw, ready."""
    settings = {"MVM_RUNTIME": runtime, "MVM_IMAGE_CACHE": str(cache()), "MVM_OPENCLAW_DIR": str(STANDIN)}
    async with operator(**settings, **environment) as someone:
        await someone.new(TENANT, users, extra=overrides(someone, gateway_mib=768, worker_mib=1024))
        yield Machines(someone)


@asynccontextmanager
async def openclaw_machines(users: dict[str, int], *, runtime: str = "qemu") -> AsyncIterator[Machines]:
    """A deployment on the real OpenClaw, ready, with the sizes of the example manifest."""
    async with operator(MVM_RUNTIME=runtime, MVM_IMAGE_CACHE=str(cache())) as someone:
        sizes = overrides(someone, gateway_mib=1024, worker_mib=2048).replace("vcpus = 1", "vcpus = 2")
        await someone.new(TENANT, users, extra=sizes, seconds=FIRST_START_SECONDS)
        yield Machines(someone, patience=TURN_SECONDS)
