"""Whatever is killed, at whatever point of a message's way: nothing is lost, one turn is run, one answer is sent.

Every case is a deployment of its own on whole mvm with the stand-in OpenClaw. A *stage* holds the way of a message (or
of a reminder, or of rotated secrets) at one point while the *victim* is killed there. `make test` runs a part that has
every victim and every stage in it, `make test-full` all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import psutil
import pytest
from tests.e2e.operator import CommandFailed
from tests.e2e.scene import ALICE, TENANT, Scene, scene

from mvm.demo.faults import Fault
from mvm.demo.model_provider import Reply
from mvm.model.errors import MvmError

pytestmark = [pytest.mark.node, pytest.mark.timeout(180)]


@dataclass
class Expected:
    """What alice is to get for what was under way when the victim died."""

    sent: int = 0
    """Number in the transcript after which the answers count."""
    answers: list[str] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)
    """Words of the turns, each of which the model finishes once."""
    key_end: str | None = None
    """The end of the model's key that later turns use."""


Stage = Callable[[Scene], AbstractAsyncContextManager[Expected]]


async def ask(scene: Scene, words: str) -> Expected:
    """Alice writes `words` and expects the model's usual answer."""
    sent = await scene.telegram.say(ALICE, words)
    return Expected(sent.number, [f"You said: {words}"], [words])


# Stages: each yields when its point is reached, holds it until the victim is dead, and lets go


@asynccontextmanager
async def accepted(scene: Scene) -> AsyncIterator[Expected]:
    """The gateway has the message; its worker, which runs, has not taken it."""
    async with scene.held(scene.worker, "openclaw"):
        expected = await ask(scene, "are you there")
        await scene.until(lambda: scene.unanswered() == 1, "the message is in the router's journal")
        yield expected


@asynccontextmanager
async def waking(scene: Scene) -> AsyncIterator[Expected]:
    """The message has woken the worker, whose OpenClaw is starting."""
    await scene.sleep()
    delay = scene.setting(scene.worker, "start-delay-ms")
    delay.write_text("2000")
    expected = await ask(scene, "good morning")
    await scene.started(scene.worker, "openclaw")
    delay.unlink()
    yield expected


@asynccontextmanager
async def turn(scene: Scene) -> AsyncIterator[Expected]:
    """The model is thinking."""
    scene.model.script(Reply("done thinking", delay=2.0), contains="think")
    expected = await ask(scene, "think hard")
    await scene.model.wait_for_turns(1, containing="think hard")
    expected.answers = ["done thinking"]
    yield expected


@asynccontextmanager
async def answered(scene: Scene) -> AsyncIterator[Expected]:
    """The answer is in the journal; Telegram wants the gateway to wait before it sends."""
    scene.telegram.faults.add(Fault("error", "sendMessage", code=429, description="Too Many Requests", retry_after=2))
    expected = await ask(scene, "say something")
    refused = ("sendMessage", 429)
    await scene.until(
        lambda: any((call.method, call.status) == refused for call in scene.telegram.calls), "the answer is to be sent"
    )
    yield expected


@asynccontextmanager
async def draining(scene: Scene) -> AsyncIterator[Expected]:
    """The worker is being put to sleep, which waits for the turn that runs."""
    async with turn(scene) as expected, going_to_sleep(scene):
        await scene.until_worker(lambda now: now["transition"] is not None, "the worker is going to sleep")
        yield expected


@asynccontextmanager
async def stopping(scene: Scene) -> AsyncIterator[Expected]:
    """The worker's OpenClaw is on its way out when the message comes."""
    delay = scene.setting(scene.worker, "stop-delay-ms")
    delay.write_text("2000")
    log = scene.data(scene.worker) / "log/openclaw.log"
    async with going_to_sleep(scene):
        await scene.until(lambda: "SIGTERM: draining" in log.read_text(), "the worker's OpenClaw is ending")
        delay.unlink()
        expected = await ask(scene, "wait for me")
        await scene.until(lambda: scene.unanswered() == 1, "the message is in the router's journal")
        yield expected


@asynccontextmanager
async def going_to_sleep(scene: Scene) -> AsyncIterator[None]:
    """Somebody puts the worker to sleep meanwhile; whether that succeeds is another question."""
    call = {"address": scene.operator.address(scene.worker), "force": True}
    sleep = asyncio.create_task(scene.agent.call("InstanceSleep", call))
    try:
        yield
    finally:
        (outcome,) = await asyncio.gather(sleep, return_exceptions=True)
        assert isinstance(outcome, dict | MvmError), outcome


@asynccontextmanager
async def firing(scene: Scene) -> AsyncIterator[Expected]:
    """The model is asked for a reminder that is due."""
    scene.model.script(Reply("Time to stretch", delay=2.0), contains="[cron:")
    expected = await ask(scene, "remind me in 1 second to stretch")
    await scene.model.wait_for_turns(1, containing="[cron:")
    expected.answers = ["Done. I will remind you in 1 second: stretch", "Time to stretch"]
    expected.turns = ["[cron:"]
    yield expected


@asynccontextmanager
async def outbox(scene: Scene) -> AsyncIterator[Expected]:
    """The reminder is in the worker's outbox; the gateway does not take it yet."""
    async with firing(scene) as expected, scene.held(scene.gateway, "router"):
        await scene.until(lambda: scene.queued(scene.worker, "outbox.db") == 1, "the reminder is in the outbox")
        yield expected


@asynccontextmanager
async def refresh(scene: Scene) -> AsyncIterator[Expected]:
    """The model's key is rotated; the guest has the new one, OpenClaw has not read it yet."""
    fresh = f"sk-ant-api03-fresh-{'x' * 30}-NEW1"
    scene.model.add_key(fresh)
    key = scene.operator.directory / "secrets/anthropic.key"
    key.write_text(fresh)
    secrets = scene.guest_root(scene.worker) / "run/openclaw/secrets.json"
    async with scene.held(scene.worker, "openclaw"):
        command = asyncio.create_task(
            scene.operator.mvm("tenant", "secrets", "set", TENANT, "--file", f"anthropic_key={key}")
        )
        await scene.until(lambda: secrets.exists() and fresh in secrets.read_text(), "the new key is in the guest")
        yield Expected(key_end=fresh[-4:])
    (outcome,) = await asyncio.gather(command, return_exceptions=True)
    assert isinstance(outcome, str | CommandFailed), outcome


STAGES: dict[str, Stage] = {
    "accepted": accepted,
    "waking": waking,
    "turn": turn,
    "answered": answered,
    "draining": draining,
    "stopping": stopping,
    "firing": firing,
    "outbox": outbox,
    "refresh": refresh,
}


# Victims

VICTIMS: dict[str, Callable[[Scene], list[psutil.Process]]] = {
    "worker-openclaw": lambda scene: [scene.service(scene.worker, "openclaw")],
    "worker-supervisor": lambda scene: [scene.service(scene.worker, "supervisor")],
    "worker-agent": lambda scene: [scene.service(scene.worker, "agent")],
    "gateway-openclaw": lambda scene: [scene.service(scene.gateway, "openclaw")],
    "gateway-supervisor": lambda scene: [scene.service(scene.gateway, "supervisor")],
    "router": lambda scene: [scene.service(scene.gateway, "router")],
    "host-agent": lambda scene: [psutil.Process(scene.operator.agent_pid())],
    "host-agent-and-worker": lambda scene: [
        psutil.Process(scene.operator.agent_pid()),
        scene.service(scene.worker, "supervisor"),
    ],
}


def cases() -> list[object]:
    """Every victim at every stage; one in four of them in `make test`, spread over all victims and stages."""
    return [
        pytest.param(victim, stage, id=f"{victim}-{stage}", marks=() if (3 * v + s) % 4 == 0 else pytest.mark.slow)
        for v, victim in enumerate(VICTIMS)
        for s, stage in enumerate(STAGES)
    ]


@pytest.mark.parametrize(("victim", "stage"), cases())
async def test_a_kill_loses_nothing_and_answers_once(victim: str, stage: str) -> None:
    async with scene() as deployment:
        async with STAGES[stage](deployment) as expected:
            await deployment.kill(VICTIMS[victim](deployment))
        if victim.startswith("host-agent"):
            await deployment.revive_agent()
        await goes_on(deployment, expected)


async def goes_on(scene: Scene, expected: Expected) -> None:
    """What was under way is answered once, by one turn, and the conversation goes on."""
    if expected.key_end:
        scene.model.revoke()
    await scene.answers(expected.sent, len(expected.answers))
    sent = await scene.telegram.say(ALICE, "and then")
    await scene.answers(sent.number, 1)
    listed = await scene.settled()
    answers = [entry.text for entry in scene.telegram.transcript.answers(ALICE, after=expected.sent)]
    if not expected.sent:
        answers = answers[1:]  # the answer to the first hello
    assert answers == [*expected.answers, "You said: and then"], scene.logs()
    turns = [*expected.turns, "and then"]
    assert {words: scene.finished_turns(words) for words in turns} == dict.fromkeys(turns, 1)
    if expected.key_end:
        (call,) = scene.model.journal.turns(containing="and then")
        assert call.key_end == expected.key_end
    assert scene.violations() == []
    assert {(i["role"], i["state"]) for i in listed} == {("gateway", "running"), ("capability-openclaw", "running")}
    shown = await scene.operator.instances(TENANT)
    assert [i["transition"] for i in shown] == [None, None]


# Exact points inside OpenClaw

GATEWAY_POINTS = {
    "update-spooled": 1,
    "dispatching": 1,
    "sending": 1,
    # Nobody can know whether Telegram took it: the one case in which an answer comes twice.
    "sent": 2,
    "send-recorded": 1,
    "dispatched": 1,
}
WORKER_POINTS = {
    "turn-accepted": 1,
    "turn-started": 1,
    # What the model said was in that process only: it is asked again.
    "model-answered": 2,
    "turn-recorded": 1,
}
QUICK = ("sent", "turn-recorded")


def points(which: dict[str, int]) -> list[object]:
    return [
        pytest.param(point, times, id=point, marks=() if point in QUICK else pytest.mark.slow)
        for point, times in which.items()
    ]


@pytest.mark.parametrize(("point", "answers"), points(GATEWAY_POINTS))
async def test_a_gateway_that_dies_between_two_steps_answers_after_its_start(point: str, answers: int) -> None:
    async with scene() as deployment:
        kill_at = deployment.setting(deployment.gateway, "kill-at")
        kill_at.write_text(point)
        expected = await ask(deployment, "at that very moment")
        expected.answers *= answers
        await deployment.until(lambda: not kill_at.exists(), f"the gateway's OpenClaw gets to {point}")
        await goes_on(deployment, expected)


@pytest.mark.parametrize(("point", "turns"), points(WORKER_POINTS))
async def test_a_worker_that_dies_between_two_steps_answers_after_its_start(point: str, turns: int) -> None:
    async with scene() as deployment:
        kill_at = deployment.setting(deployment.worker, "kill-at")
        kill_at.write_text(point)
        expected = await ask(deployment, "at that very moment")
        await deployment.until(lambda: not kill_at.exists(), f"the worker's OpenClaw gets to {point}")
        await deployment.answers(expected.sent, 1)
        assert deployment.finished_turns("at that very moment") == turns
        expected.turns = []
        await goes_on(deployment, expected)


async def test_a_worker_that_dies_when_it_is_held_for_its_sleep_answers_the_next_message() -> None:
    async with scene() as deployment:
        kill_at = deployment.setting(deployment.worker, "kill-at")
        kill_at.write_text("suspended")
        async with going_to_sleep(deployment):
            await deployment.until(lambda: not kill_at.exists(), "the worker's OpenClaw is held")
            expected = await ask(deployment, "not yet asleep")
        await goes_on(deployment, expected)
