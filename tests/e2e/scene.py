"""One person served by whole mvm on the stand-in OpenClaw: what a test can hold, kill and look at."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import psutil
from tests.e2e.operator import Json, Operator, eventually, operator, with_suppressed

from mvm.demo.telegram import Entry
from mvm.host.client import AgentClient
from mvm.model.errors import MvmError

STANDIN = Path(__file__).resolve().parents[1] / "standins/openclaw"
TENANT, ALICE = "fam", 5001
SECONDS = 60.0
"""The longest wait for something that takes a second or two on an idle machine."""


class Scene:
    """A deployment of alice's, ready, with a look into everything that it keeps."""

    def __init__(self, operator: Operator, worker: Json, gateway: Json) -> None:
        self.operator = operator
        self.telegram = operator.telegram
        self.model = operator.model
        self.worker = worker
        self.gateway = gateway
        self.agent = AgentClient(operator.directory / "run/agent.sock")

    # Conditions

    async def until(self, holds: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
        """Return as soon as `holds()`; fails with `what`, and all that mvm logged, after `seconds`."""

        async def check() -> None:
            assert holds(), f"{what}: not within {seconds:g} s\n{self.logs()}"

        await eventually(check, seconds, AssertionError, pause=0.02)

    async def instances(self) -> list[Json]:
        """What the agent says of the instances, without the start of a command."""
        return (await self.agent.call("InstanceList", {"tenant_id": TENANT}))["instances"]

    async def until_worker(self, holds: Callable[[Json], bool], what: str) -> None:
        """Return as soon as `holds(the worker as the agent shows it)`."""

        async def check() -> None:
            (now,) = [i for i in await self.instances() if i["instance_id"] == self.worker["instance_id"]]
            assert holds(now), f"{what}: not within {SECONDS:g} s\n{now}\n{self.logs()}"

        await eventually(check, SECONDS, (AssertionError, MvmError), pause=0.02)

    # What instances keep

    def data(self, instance: Json) -> Path:
        """The data drive of an instance."""
        return self.operator.directory / "state/instances" / instance["instance_id"] / "data"

    def guest_root(self, instance: Json) -> Path:
        """The guest's `/`."""
        return self.operator.directory / "run/i" / instance["instance_id"] / "root"

    def setting(self, instance: Json, name: str) -> Path:
        """A file by which the stand-in of an instance is told what to do (`kill-at`, `start-delay-ms`, ...)."""
        return self.data(instance) / "openclaw/standin" / name

    def query(self, instance: Json, database: str, statement: str) -> list[Any]:
        """First column of what a guest's database answers; nothing while there is no such database."""
        path = self.data(instance) / "mvm" / database
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
                return [row[0] for row in connection.execute(statement)]
        except sqlite3.OperationalError:
            return []

    def unanswered(self) -> int:
        """Messages that the router has accepted and that have no answer yet."""
        return len(self.query(self.gateway, "journal.db", "SELECT 1 FROM deliveries WHERE state IN ('new', 'open')"))

    def spooled(self) -> list[Json]:
        """Updates that the gateway's OpenClaw has and is not done with."""
        done = self.finished()
        return [put for record in self._ingress() if (put := record.get("put")) and put["update_id"] not in done]

    def finished(self) -> set[int]:
        """Updates that the gateway's OpenClaw is done with."""
        return {record["done"] for record in self._ingress() if "done" in record}

    def _ingress(self) -> list[Json]:
        path = self.data(self.gateway) / "openclaw/telegram/ingress.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]  # a kill leaves half a line behind

    def queued(self, instance: Json, database: str) -> int:
        """Messages that wait in an outbox (`outbox.db` of a worker, `outbound.db` of a gateway)."""
        return len(self.query(instance, database, "SELECT 1 FROM messages WHERE state = 'queued'"))

    def violations(self) -> list[str]:
        """Rules of the real OpenClaw that were broken."""
        files = [self.setting(instance, "violations.jsonl") for instance in (self.worker, self.gateway)]
        return [line for path in files if path.exists() for line in path.read_text().splitlines()]

    def logs(self) -> str:
        """The ends of all logs, for whoever has to find out why a test failed."""
        texts = [self.operator.agent_log()]
        for instance in (self.gateway, self.worker):
            for path in sorted((self.data(instance) / "log").glob("*.log")):
                texts.append(f"--- {instance['role']} {path.name}\n{path.read_text(errors='replace')[-3000:]}")
        return "\n".join(texts)

    # What a test does to them

    def service(self, instance: Json, service: str) -> psutil.Process:
        """A running service of an instance, or its `supervisor`. KeyError or OSError while there is none."""
        return self.operator.service_of(instance, service)

    async def started(self, instance: Json, service: str) -> psutil.Process:
        """As `service`, once it runs."""
        found: list[psutil.Process] = []

        def look() -> bool:
            try:
                process = self.service(instance, service)
                found[:] = [process] if process.is_running() else []
            except (OSError, KeyError, TypeError, ValueError, psutil.Error):
                return False
            return bool(found)

        await self.until(look, f"{service} of {self.operator.address(instance)} runs")
        return found[0]

    @asynccontextmanager
    async def held(self, instance: Json, service: str) -> AsyncIterator[None]:
        """A service that stands still meanwhile, as on a machine that has no time for it."""
        process = self.service(instance, service)
        process.suspend()
        try:
            yield
        finally:
            with_suppressed(process.resume)

    async def kill(self, processes: Iterable[psutil.Process]) -> None:
        """SIGKILL them, all at once."""
        victims = list(processes)
        for process in victims:
            with_suppressed(process.send_signal, signal.SIGKILL)
        _, alive = await asyncio.to_thread(psutil.wait_procs, victims, 10)
        assert not alive

    async def revive_agent(self) -> None:
        """What an operator or their service manager does when the agent is gone; nothing when it runs."""
        await self.operator.mvm("node", "info")

    async def sleep(self) -> None:
        """Put the worker to sleep; tried again while it is still busy with what it just did."""
        call = {"address": self.operator.address(self.worker), "force": True}
        await eventually(lambda: self.agent.call("InstanceSleep", call), SECONDS, MvmError)

    # Conversation

    async def answers(self, sent: int, count: int) -> list[str]:
        """The bot's answers to alice since transcript number `sent`, once there are `count`."""
        try:
            entries: list[Entry] = await self.telegram.wait_for_answers(ALICE, count, after=sent, timeout=SECONDS)
        except TimeoutError:
            got = [entry.text for entry in self.telegram.transcript.answers(ALICE, after=sent)]
            raise AssertionError(f"{len(got)} of {count} answers: {got}\n{self.logs()}") from None
        return [entry.text or "" for entry in entries]

    async def say(self, text: str) -> list[str]:
        """Alice writes; returns the answers that she gets until there is one."""
        sent = await self.telegram.say(ALICE, text)
        return await self.answers(sent.number, 1)

    def finished_turns(self, words: str) -> int:
        """Turns about these words that the model has answered to the end."""
        return len([call for call in self.model.journal.turns(containing=words) if call.status == 200])

    async def settled(self) -> list[Json]:
        """Wait until nothing is under way anywhere, so that nothing more can come; returns the instances as listed."""

        async def check() -> list[Json]:
            listed = await self.instances()
            under_way = {
                "transitions": [i["transition"] for i in listed if i["transition"]],
                "unanswered": self.unanswered(),
                "spooled": self.spooled(),
                "outbox": self.queued(self.worker, "outbox.db"),
                "outbound": self.queued(self.gateway, "outbound.db"),
                "turns": [call.words for call in self.model.journal.calls if call.status is None],
            }
            assert not any(under_way.values()), f"still under way: {under_way}\n{self.logs()}"
            return listed

        return await eventually(check, SECONDS, AssertionError, pause=0.05)


@asynccontextmanager
async def scene(*, extra: str = "") -> AsyncIterator[Scene]:
    """A fresh deployment that has answered alice once and is done with that."""
    async with standin_operator() as someone:
        await someone.new(TENANT, {"alice": ALICE}, extra=extra)
        ready = Scene(someone, await someone.worker(TENANT), await someone.gateway(TENANT))
        assert await ready.say("hello") == ["You said: hello"]
        await ready.settled()
        yield ready


@asynccontextmanager
async def standin_operator(openclaw: Path = STANDIN) -> AsyncIterator[Operator]:
    """An operator whose instances run the stand-in OpenClaw."""
    async with operator(MVM_OPENCLAW_DIR=str(openclaw)) as someone:
        yield someone
