"""The steps of `mvm demo`: what a user would do by hand, with stand-ins in place of Telegram and the model provider."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mvm.cli.progress import Show
from mvm.demo import background
from mvm.demo.person import Person
from mvm.demo.standins import StandInState, write_private
from mvm.host.client import AgentClient, Progress
from mvm.host.locations import Locations
from mvm.model.errors import Conflict, MvmError, NotFound, TimedOut

PERSON = 111111111
"""Whom the stand-in Telegram plays: alice's number."""
WORDS = "hello"
START_LIMIT = 1800.0
"""Seconds for the first start of a worker: in an emulated machine that makes its pool's base first, ten minutes."""
SLEEP_LIMIT = 240.0
"""Seconds until a worker that runs must be asleep."""
ANSWER_LIMIT = 240.0
"""Seconds until the answer must have reached Telegram; a cold start on a slow machine is in it."""
_LOOK_AGAIN = 1.0

Json = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Exchange:
    """A message and what Telegram got for it."""

    said: str
    answers: tuple[str, ...]
    milliseconds: float
    """From the message's arrival at Telegram to the last of these answers."""
    wake: Json | None
    """The timeline of the worker's last start or wake, as `mvm instance info` has it."""

    def to_json(self) -> Json:
        return {
            "said": self.said,
            "answers": list(self.answers),
            "milliseconds": round(self.milliseconds, 1),
            "wake": self.wake,
        }


@dataclass(frozen=True)
class Demo:
    """One demo deployment: its directory, its stand-ins, its tenant."""

    name: str
    directory: Path
    client: AgentClient
    show: Show
    say: Say

    @property
    def state_file(self) -> Path:
        return self.directory / "standins.json"

    @property
    def deploy_file(self) -> Path:
        return self.directory / "deploy.toml"

    async def exists(self) -> bool:
        """Whether the deployment is there already."""
        try:
            await self.client.call("TenantInfo", {"tenant_id": self.name})
        except NotFound:
            return False
        return True

    async def prepare(self, *, networks: bool) -> StandInState:
        """The stand-ins, running, and the files that an operator would write, next to them.

        `networks`: instances have networks of their own, from which the stand-ins' ports have to be allowed.
        """
        if not self.directory.exists() and await self.exists():
            raise Conflict(
                f"there is a deployment {self.name!r} that no demo made",
                hint="give the demo another name with --name, it would change that one",
            )
        self.show(Progress("starting the stand-ins for Telegram and the model provider"))
        state = await background.ensure(self.state_file)
        self._write_files(state, networks=networks)
        self.say(f"stand-ins: Telegram at {state.telegram.url}, model provider at {state.model.url}")
        return state

    def _write_files(self, state: StandInState, *, networks: bool) -> None:
        secrets = self.directory / "secrets"
        secrets.mkdir(mode=0o700, exist_ok=True)
        write_private(secrets / "telegram.token", state.telegram.token + "\n")
        write_private(secrets / "anthropic.key", state.model.key + "\n")
        write_private(self.deploy_file, deploy_toml(self.name, state, networks=networks))

    async def worker(self) -> str:
        """Address of the worker that serves the person."""
        found = (await self.client.call("InstanceList", {"tenant_id": self.name}))["instances"]
        for instance in found:
            if instance.get("user") == self.name:
                return "/".join(instance[key] for key in ("tenant_id", "pool_id", "instance_id"))
        raise MvmError(f"{self.name} has no worker", hint=f"see `mvm instance list {self.name}`")

    async def put_to_sleep(self, address: str) -> None:
        """As `mvm instance sleep --force`, after a first start; what it is doing right now is waited for."""
        deadline = time.monotonic() + SLEEP_LIMIT
        problem: Conflict | None = None
        while time.monotonic() < deadline:
            state = (await self.client.call("InstanceInfo", {"address": address}))["instance"]["state"]
            if state == "sleeping":
                return
            try:
                if state in ("created", "ready", "stopped"):
                    self.show(Progress(f"starting {self.name}'s worker for the first time"))
                    await self.client.call("InstanceStart", {"address": address}, timeout=START_LIMIT)
                    await self.client.call(
                        "DeploymentReady", {"tenant_id": self.name}, on_progress=self.show, timeout=START_LIMIT
                    )
                    deadline = time.monotonic() + SLEEP_LIMIT
                self.show(Progress(f"putting {self.name}'s worker to sleep"))
                await self.client.call("InstanceSleep", {"address": address, "force": True}, timeout=SLEEP_LIMIT)
            except Conflict as refusal:  # it is doing something, or on its way to another state
                problem = refusal
                await asyncio.sleep(_LOOK_AGAIN)
        raise TimedOut(
            f"{self.name}'s worker did not go to sleep within {SLEEP_LIMIT:g} s"
            + (f": {problem.message}" if problem else ""),
            hint=f"see `mvm instance info {address}`",
        )

    async def exchange(self, state: StandInState, words: str, address: str, *, listen: float = 0) -> Exchange:
        """Write as the person, wait for the answer at Telegram, then `listen` seconds for more."""
        self.show(Progress(f'{self.name} has written "{words}"; waiting for the answer at Telegram'))
        async with Person(state.telegram, PERSON, self.name.capitalize()) as person:
            began = time.time()
            await person.say(words)
            answers = await person.hear(timeout=ANSWER_LIMIT)
            deadline = time.monotonic() + listen
            while (left := deadline - time.monotonic()) > 0:
                self.show(Progress(f"listening: {len(answers)} so far, the last one: {answers[-1].text}"))
                with contextlib.suppress(TimedOut):
                    answers = await person.hear(count=len(answers) + 1, timeout=left)
        info = await self.client.call("InstanceInfo", {"address": address})
        texts = tuple(answer.text for answer in answers)
        return Exchange(words, texts, 1000 * (answers[-1].at - began), info["instance"].get("last_wake"))

    async def take_down(self) -> None:
        """Remove the tenant, the stand-ins and the files; what is not there is fine.

        Raises `Conflict` when the deployment serves the real Telegram by now: it is somebody's own.
        """
        if await self.exists():
            told = await self.client.call("TenantInfo", {"tenant_id": self.name})
            if told["tenant"]["openclaw"].get("telegram_api_root") is None:
                raise Conflict(
                    f"the deployment {self.name!r} is no demo any more: it does not use the stand-in for Telegram",
                    hint=f"`mvm tenant destroy {self.name}` removes it with its data",
                )
        self.show(Progress(f"taking the demo {self.name} down"))
        with contextlib.suppress(NotFound):
            await self.client.call("TenantDestroy", {"tenant_id": self.name})
        await background.stop(self.state_file)
        shutil.rmtree(self.directory, ignore_errors=True)


def demo_directory(locations: Locations, name: str) -> Path:
    """Where a demo keeps what it writes."""
    return locations.state_dir / "demo" / name


def deploy_toml(name: str, state: StandInState, *, networks: bool) -> str:
    """The file that an operator would write; only `[openclaw]` names what stands in for the real services."""
    text = f"""\
# Written by `mvm demo`. With files of your own below and without [openclaw] this serves real Telegram and Anthropic.
[secrets]
anthropic_key  = {{ file = "./secrets/anthropic.key" }}
telegram_token = {{ file = "./secrets/telegram.token" }}

[openclaw]
model = {json.dumps(f"anthropic/{state.model.model}")}
provider_base_url = {json.dumps(state.model.url)}
telegram_api_root = {json.dumps(state.telegram.url)}

[[users]]
id = {json.dumps(name)}
telegram = [{json.dumps(str(PERSON))}]
"""
    return text + (egress_of(state) if networks else "")


def egress_of(state: StandInState) -> str:
    """Each pool reaches its stand-in on this host, and nothing else of it."""
    telegram, model = urlsplit(state.telegram.url).port, urlsplit(state.model.url).port
    return f"""
[overrides.gateways]
egress = ["host:{telegram}"]
[overrides.workers]
egress = ["host:{model}"]
"""
