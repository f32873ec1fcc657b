"""Whole deployments on Firecracker, as an operator makes them, on its stand-ins: a message, a sleep, a wake, a fault.

The agent, the commands, networks, drives, gateway and worker are the real ones, and the guests' programs too; what
stands in is `firecracker`, `jailer`, OpenClaw, Telegram and the model.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from tests.contract.network.world import namespaces_work
from tests.e2e.operator import CommandFailed, Operator, eventually, kill, operator
from tests.standins.firecracker.description import description
from tests.standins.firecracker.install import Installed, install
from tests.standins.firecracker.settings import Fault, inject, read_journal
from tests.vm.images import STANDIN
from tests.vm.machines import ALICE, BOB, PATIENCE, TENANT, Machines, overrides
from tests.vm.namespace import enter_private_network

from mvm.drives import images

REASON = namespaces_work()
pytestmark = [
    pytest.mark.node,
    pytest.mark.timeout(900),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.skipif(bool(images.missing_programs()), reason="needs e2fsprogs"),
    pytest.mark.asyncio(loop_scope="module"),
]
CHECKOUT = Path(__file__).resolve().parents[2]
AGENT = (sys.executable, "-m", "tests.standins.firecracker.agent", "agent", "serve")


class OnFirecracker(Machines):
    """A deployment whose machines are the stand-in's."""

    def __init__(self, someone: Operator, installed: Installed) -> None:
        super().__init__(someone)
        self.installed = installed
        self.control = installed.settings.control

    async def start_agent(self) -> None:
        """An agent runs: the one that is there, or a new one."""
        with suppress(AssertionError):
            self.operator.agent_pid()
            return
        log = (self.state_dir / "agent.log") if self.state_dir.is_dir() else self.operator.directory / "agent.log"
        with log.open("ab") as output:
            agent = subprocess.Popen(
                AGENT,
                cwd=CHECKOUT,
                env=self.operator.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        agent.returncode = 0  # it outlives this object; whoever ends it waits for it
        await eventually(lambda: self.operator.mvm("node", "info"), PATIENCE, CommandFailed)

    def all(self) -> list[tuple[str, psutil.Process]]:
        """Every Firecracker with the instance that it is of."""
        found = []
        for entry in read_journal(self.control, "start"):
            with suppress(psutil.Error):
                process = psutil.Process(entry["pid"])
                if entry["id"] in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((entry["id"], process))
        return found

    def audited(self, action: str) -> list[str]:
        """Lines of the audit about alice's worker with that action."""
        lines = [
            line
            for path in (self.state_dir / "audit").rglob("*")
            if path.is_file()
            for line in path.read_text().splitlines()
        ]
        return [line for line in lines if f'"{action}"' in line and self.known["instance_id"] in line]

    def starts(self) -> int:
        return len(read_journal(self.control, "start"))

    def loads(self) -> int:
        return sum(entry["path"] == "/snapshot/load" for entry in read_journal(self.control, "request"))

    async def rejections(self) -> set[int]:
        """Numbers of the events that tell of a snapshot that was not taken."""
        return {event["number"] for event in await self.events("SnapshotRejected")}

    def memory(self) -> Path:
        """The memory file of alice's worker."""
        return self.state_dir / "instances" / self.known["instance_id"] / "memory/ram"

    async def asleep(self) -> None:
        """Alice's worker sleeps."""
        await self.remember()
        await self.sleep()

    def wrong(self, forgiven: str = "an injected fault") -> list[str]:
        """What Firecracker refused or would not have noticed, and what its description does not know."""
        known = description()
        requests = read_journal(self.control, "request")
        refused = [f"{r['method']} {r['path']}: {r['answer']}" for r in requests if r["status"] >= 400]
        violations = [entry["what"] for entry in read_journal(self.control, "violation")]
        unknown = [p for r in requests for p in known.problems(r["method"], r["path"], r["body"])] if known else []
        return [what for what in refused + violations + unknown if forgiven not in what]

    async def end(self) -> None:
        """Whatever is left ends, by its pid."""
        for _, process in self.all():
            with suppress(psutil.Error):
                await kill(process)


@asynccontextmanager
async def on_firecracker(users: dict[str, int]) -> AsyncIterator[OnFirecracker]:
    """A deployment on the stand-ins, ready."""
    settings = {"MVM_RUNTIME": "firecracker", "MVM_OPENCLAW_DIR": str(STANDIN), "MVM_NO_AUTOSTART": "1"}
    async with operator(**settings) as someone:
        installed = install(someone.directory / "firecracker", someone.directory / "control")
        someone.environment["MVM_FIRECRACKER"] = str(installed.firecracker)
        someone.environment["MVM_JAILER"] = str(installed.jailer)
        machines = OnFirecracker(someone, installed)
        try:
            await machines.start_agent()
            await someone.new(TENANT, users, extra=overrides(someone, gateway_mib=768, worker_mib=1024))
            yield machines
            await someone.mvm("tenant", "destroy", TENANT, "--force")
            assert machines.all() == []
        finally:
            await machines.end()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machines() -> AsyncIterator[OnFirecracker]:
    try:
        enter_private_network()
    except OSError as error:
        pytest.skip(str(error))
    async with on_firecracker({"alice": ALICE}) as machines:
        yield machines
        assert (wrong := machines.wrong()) == [], wrong


async def one_machine_each(machines: OnFirecracker) -> None:
    """One Firecracker for each instance that runs, and nothing at all of one that does not."""

    async def look() -> None:
        instances = await machines.operator.instances(TENANT)
        running = sorted(i["instance_id"] for i in instances if i["state"] in ("running", "warm"))
        assert sorted(machines.owners()) == running
        taps = {i["network"]["tap"] for i in instances if i["instance_id"] in running}
        assert {name for _, name in socket.if_nameindex() if name.startswith("tn")} <= taps
        for instance in instances:
            if instance["instance_id"] not in running:
                assert not (machines.state_dir / "instances" / instance["instance_id"] / "jail").exists()

    await eventually(look, 30, AssertionError)


async def test_a_message_wakes_a_sleeper_and_its_answer_comes_back(machines: OnFirecracker) -> None:
    assert await machines.say(ALICE, "hello") == ["You said: hello"]
    worker = await machines.worker()
    assert worker["runtime"] == "firecracker"
    await machines.asleep()
    assert machines.machine(worker) is None, "a sleeper has no process"
    loads = machines.loads()
    assert await machines.say(ALICE, "are you awake") == ["You said: are you awake"]
    assert machines.loads() == loads + 1
    stages = await machines.stages(worker)
    assert {"queue", "network", "drives", "restore", "agent", "service"} <= set(stages)
    assert "boot" not in stages
    assert not await machines.events("SnapshotRejected")
    await one_machine_each(machines)


async def test_a_new_user_gets_a_copy_of_the_base_without_a_boot(machines: OnFirecracker) -> None:
    assert not [event["detail"] for kind in ("BaseFailed", "CloneFailed") for event in await machines.events(kind)]
    await machines.operator.mvm("user", "add", TENANT, "bob", "--telegram", str(BOB))
    assert await machines.say(BOB, "hello, I am new") == ["You said: hello, I am new"]
    stages = await machines.stages(await machines.worker("bob"))
    assert "restore" in stages
    assert "boot" not in stages
    await one_machine_each(machines)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
async def test_memory_that_was_damaged_is_noticed_and_the_message_answered(
    machines: OnFirecracker, damage: str
) -> None:
    await machines.asleep()
    rejected, loads = await machines.rejections(), machines.loads()
    with machines.memory().open("r+b") as memory:
        if damage == "cut":
            memory.truncate(machines.memory().stat().st_size // 2)
        else:
            memory.seek(3)
            memory.write(b"\xff")
    assert await machines.say(ALICE, f"{damage} off") == [f"You said: {damage} off"]
    assert machines.loads() == loads, "no guest ran from it"
    assert len(await machines.rejections() - rejected) == 1
    assert machines.audited("SnapshotRejected")
    await one_machine_each(machines)


@pytest.mark.parametrize(
    ("what", "method", "path"),
    [
        ("die", "PUT", "/snapshot/load"),
        ("die_after", "PUT", "/snapshot/load"),
        ("error", "PUT", "/snapshot/load"),
        ("die", "PATCH", "/vm"),
        ("die", "PUT", "/logger"),
        ("delay", "PUT", "/snapshot/load"),
    ],
)
async def test_a_wake_in_which_firecracker_fails_ends_in_an_answer(
    machines: OnFirecracker, what: str, method: str, path: str
) -> None:
    await machines.asleep()
    name = machines.known["instance_id"]
    inject(machines.control, Fault(what=what, method=method, path=path, instance=name, seconds=2.0))
    words = f"{what} at {path}"
    assert await machines.say(ALICE, words) == [f"You said: {words}"]
    assert not any((machines.control / "faults").iterdir()), "it happened"
    await one_machine_each(machines)


@pytest.mark.parametrize("what", ["die", "error", "truncate"])
async def test_a_sleep_in_which_firecracker_fails_loses_no_message(machines: OnFirecracker, what: str) -> None:
    await machines.remember()
    assert await machines.say(ALICE, "before") == ["You said: before"]
    name = machines.known["instance_id"]
    inject(machines.control, Fault(what=what, method="PUT", path="/snapshot/create", instance=name))
    with suppress(CommandFailed):
        await machines.operator.mvm("instance", "sleep", machines.operator.address(machines.known), "--force")
    assert await machines.say(ALICE, f"after {what}") == [f"You said: after {what}"]
    await one_machine_each(machines)


async def test_a_firecracker_that_is_killed_is_followed_by_another(machines: OnFirecracker) -> None:
    await machines.remember()
    assert await machines.say(ALICE, "are you there") == ["You said: are you there"]
    await machines.kill_machine(machines.known)
    assert await machines.say(ALICE, "and now") == ["You said: and now"]
    await one_machine_each(machines)


async def test_everybody_who_wakes_a_sleeper_at_once_gets_the_same_machine(machines: OnFirecracker) -> None:
    await machines.asleep()
    before = machines.starts()
    address = machines.operator.address(machines.known)
    wakes = [asyncio.create_task(machines.operator.mvm("instance", "wake", address)) for _ in range(3)]
    assert await machines.say(ALICE, "all at once") == ["You said: all at once"]
    await asyncio.gather(*wakes)
    assert machines.starts() == before + 1
    await one_machine_each(machines)


@pytest.mark.parametrize("moment", ["asleep", "running", "waking"])
async def test_an_agent_that_is_killed_is_followed_by_one_that_goes_on(machines: OnFirecracker, moment: str) -> None:
    await machines.asleep()
    if moment == "running":
        assert await machines.say(ALICE, "wake up") == ["You said: wake up"]
    sent = await machines.operator.telegram.say(ALICE, f"killed while {moment}")
    if moment == "waking":
        name = machines.known["instance_id"]
        before = sum(entry["id"] == name for entry in read_journal(machines.control, "start"))

        async def begun() -> None:
            assert sum(entry["id"] == name for entry in read_journal(machines.control, "start")) > before

        await eventually(begun, PATIENCE, AssertionError, pause=0.005)
    await machines.operator.kill_agent()
    await machines.start_agent()
    (answer,) = await machines.operator.telegram.wait_for_answers(ALICE, 1, after=sent.number, timeout=PATIENCE)
    assert answer.text == f"You said: killed while {moment}"
    await one_machine_each(machines)


async def test_a_snapshot_of_another_firecracker_is_rejected_and_the_message_answered(machines: OnFirecracker) -> None:
    await machines.asleep()
    rejected = await machines.rejections()
    await machines.operator.kill_agent()
    newer = install(machines.operator.directory / "firecracker", machines.control, "1.17.0")
    machines.operator.environment["MVM_FIRECRACKER"] = str(newer.firecracker)
    machines.operator.environment["MVM_JAILER"] = str(newer.jailer)
    await machines.start_agent()
    assert await machines.say(ALICE, "a new version") == ["You said: a new version"]
    assert len(await machines.rejections() - rejected) == 1
    await one_machine_each(machines)
