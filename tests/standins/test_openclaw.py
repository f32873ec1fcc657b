"""The stand-in OpenClaw with mvm's real plugin and router: what the simulations and the fault matrix stand on."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.standins.bad_channel import (
    a_refused_reminder_lets_the_next_one_pass,
    answered_once,
    answered_twice_at_the_most,
    reminders_come_in_spite_of,
)
from tests.standins.deployment import ALICE, BOB, STRANGER, Deployment, deployed
from tests.standins.tokens import token_revoked_and_replaced
from tests.standins.waiting import until

from mvm.demo.faults import Fault
from mvm.demo.model_provider import Reply, Trouble

PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

pytestmark = pytest.mark.node


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(tmp_path) as running:
        yield running
        assert running.violations() == []


async def test_a_message_wakes_the_worker_and_is_answered(deployment: Deployment) -> None:
    assert await deployment.say("hello") == ["You said: hello"]
    assert deployment.host.wakes[:1] == ["alice"]
    assert len(deployment.model.journal.turns(containing="hello")) == 1
    assert not deployment.workers["bob"].alive


async def test_many_at_once_are_answered_in_order(deployment: Deployment) -> None:
    sent = [await deployment.telegram.say(ALICE, f"message {number}") for number in range(10)]
    answers = await deployment.telegram.wait_for_answers(ALICE, 10, after=sent[0].number, timeout=60)
    assert [answer.text for answer in answers] == [f"You said: message {number}" for number in range(10)]
    assert len(deployment.model.journal.turns(containing="message")) == 10


async def test_two_people_get_their_own_answers(deployment: Deployment) -> None:
    first, second = await asyncio.gather(deployment.say("I am alice"), deployment.say("I am bob", person=BOB))
    assert (first, second) == (["You said: I am alice"], ["You said: I am bob"])
    (of_bob,) = deployment.model.journal.turns(containing="bob")
    assert str(deployment.workers["bob"].root) in of_bob.system


async def test_a_stranger_costs_no_model_call(deployment: Deployment) -> None:
    (notice,) = await deployment.say("let me in", person=STRANGER)
    assert "K7QF3M" in notice
    assert deployment.model.journal.calls == []


async def test_a_picture_reaches_the_worker_and_is_not_kept_in_the_gateway(deployment: Deployment) -> None:
    for person in (ALICE, STRANGER):
        sent = await deployment.telegram.say(person, "look", photo=PICTURE)
        (answer,) = await deployment.telegram.wait_for_answers(person, 1, after=sent.number, timeout=60)
        assert ("1 picture" in str(answer.text)) == (person == ALICE)
    await until(lambda: not deployment.files_in_gateway("media"), what="the pictures' removal")


async def test_commands_are_the_workers(deployment: Deployment) -> None:
    (status,) = await deployment.say("/status")
    assert "Session: agent:main:main" in status
    assert await deployment.say("/new") == ["✅ New session started."]
    assert deployment.model.journal.calls == []


async def test_stop_aborts_the_turn_and_passes_the_queue(deployment: Deployment) -> None:
    deployment.model.script(Trouble(0), contains="think for ever")
    sent = await deployment.telegram.say(ALICE, "think for ever")
    await deployment.model.wait_for_turns(1, containing="think for ever")
    await deployment.telegram.say(ALICE, "/stop")
    answers = await deployment.telegram.wait_for_answers(ALICE, 1, after=sent.number, timeout=10)
    assert [answer.text for answer in answers] == ["⚙️ Agent was aborted."]
    await deployment.model.journal.wait(lambda: deployment.model.journal.calls[0].status == 0, timeout=10)
    assert await deployment.say("hello again") == ["You said: hello again"]


async def test_a_checkpoint_waits_for_the_turn_and_holds_until_restore(deployment: Deployment) -> None:
    deployment.model.script(Reply("done", delay=0.5), contains="slow")
    sent = await deployment.telegram.say(ALICE, "slow")
    await deployment.model.wait_for_turns(1, containing="slow")
    worker = deployment.workers["alice"]
    assert (await worker.control("CHECKPOINT 0"))["ok"] is False
    assert (await worker.control("CHECKPOINT 20"))["ok"] is True
    await deployment.telegram.wait_for_answers(ALICE, 1, after=sent.number, timeout=20)
    assert (await worker.control("STATUS"))["suspended"] is True
    waiting = asyncio.create_task(deployment.say("are you there?"))
    await worker.control("RESTORE")
    assert await waiting == ["You said: are you there?"]


async def test_a_reminder_goes_through_the_outbox(deployment: Deployment) -> None:
    (told,) = await deployment.say("remind me in 1 second to stretch")
    assert told.startswith("Done.")
    assert (await deployment.workers["alice"].control("STATUS"))["next_alarm_at"] is not None
    taken = deployment.outboxes["alice"].taken
    await until(lambda: bool(taken), what="the reminder", seconds=20)
    assert list(taken.values()) == ["Reminder: stretch"]


async def test_a_reminder_that_the_outbox_cannot_take_now_comes_later(deployment: Deployment) -> None:
    outbox = deployment.outboxes["alice"]
    outbox.statuses = [503, 500, 429]
    await deployment.say("remind me in 1 second to stretch")
    await until(lambda: bool(outbox.taken), what="the reminder", seconds=30)
    assert list(outbox.taken.values()) == ["Reminder: stretch"]


async def test_a_model_that_fails_is_told_honestly(deployment: Deployment) -> None:
    deployment.model.revoke()
    (notice,) = await deployment.say("hello")
    assert "could not answer" in notice
    await until(lambda: bool(deployment.host.events), what="an event for the operator")
    assert deployment.host.events[0].kind == "DeliveryFailed"


BAD_MINUTES = {
    "refused": [Fault("error", "sendMessage", code=502, times=2)],
    "flooded": [Fault("error", "sendMessage", code=429, times=3, retry_after=1)],
    "broken": [Fault("drop", "sendMessage")],
}


@pytest.mark.parametrize("minutes", BAD_MINUTES)
async def test_an_answer_that_the_channel_does_not_take_at_once_is_sent_again(
    deployment: Deployment, minutes: str
) -> None:
    await answered_once(deployment, "hello", *map(replace, BAD_MINUTES[minutes]))


async def test_an_answer_that_may_have_arrived_is_repeated_once(deployment: Deployment) -> None:
    await answered_twice_at_the_most(deployment, "hello")


async def test_a_long_answer_of_which_a_part_was_shown_comes_whole(deployment: Deployment) -> None:
    long = "".join(f"{number:03} {'x' * 100}\n" for number in range(80)).strip()
    deployment.model.script(Reply(long), contains="tell me all")
    deployment.telegram.faults.add(Fault("delay", "sendMessage"))
    deployment.telegram.faults.add(Fault("error", "sendMessage", code=500))
    texts = await deployment.say("tell me all", count=4)
    assert long in "".join(texts)


async def test_an_answer_to_one_who_blocks_the_bot_is_told_to_the_operator(deployment: Deployment) -> None:
    deployment.telegram.faults.add(Fault("error", "sendMessage", code=403, description="Forbidden: bot was blocked"))
    await deployment.telegram.say(ALICE, "hello")
    await until(lambda: bool(deployment.host.events), what="an event for the operator")
    assert deployment.host.events[0].kind == "DeliveryFailed"
    assert "bot was blocked" in str(deployment.host.events[0].detail)
    assert await deployment.say("hello again") == ["You said: hello again"]


@pytest.mark.parametrize("minutes", BAD_MINUTES)
async def test_a_reminder_that_the_channel_does_not_take_at_once_is_sent_again(
    deployment: Deployment, minutes: str
) -> None:
    await deployment.say("hello")
    await reminders_come_in_spite_of(deployment, "stretch", *map(replace, BAD_MINUTES[minutes]))


async def test_a_reminder_that_is_refused_for_good_holds_up_no_other(deployment: Deployment) -> None:
    await deployment.say("hello")
    await a_refused_reminder_lets_the_next_one_pass(deployment, "stretch")


GATEWAY_STAGES = ["update-spooled", "dispatching", "sending", "sent", "send-recorded", "dispatched"]
WORKER_STAGES = ["turn-accepted", "turn-started", "model-answered", "turn-recorded"]


@pytest.mark.parametrize("stage", GATEWAY_STAGES)
async def test_a_gateway_killed_anywhere_answers_after_its_start(deployment: Deployment, stage: str) -> None:
    await deployment.say("before")
    gateway = deployment.gateway
    gateway.kill_at(stage)
    sent = await deployment.telegram.say(ALICE, "hello")
    await gateway.wait_dead()
    await gateway.start()
    await deployment.telegram.wait_for_answers(ALICE, 1, after=sent.number, timeout=30)
    await gateway.wait_idle()
    assert await deployment.say("after") == ["You said: after"]
    answers = [entry.text for entry in deployment.telegram.transcript.answers(ALICE, after=sent.number)]
    # Where it dies between Telegram's acceptance and its own record nobody can know whether it was sent.
    most = 2 if stage == "sent" else 1
    assert 1 <= answers.count("You said: hello") <= most
    assert len(deployment.model.journal.turns(containing="hello")) == 1


@pytest.mark.parametrize("stage", WORKER_STAGES)
async def test_a_worker_killed_anywhere_answers_after_its_start(deployment: Deployment, stage: str) -> None:
    await deployment.say("before")
    worker = deployment.workers["alice"]
    worker.kill_at(stage)
    sent = await deployment.telegram.say(ALICE, "hello")
    await worker.wait_dead()
    answers = await deployment.telegram.wait_for_answers(ALICE, 1, after=sent.number, timeout=60)
    assert [answer.text for answer in answers] == ["You said: hello"]
    assert await deployment.say("after") == ["You said: after"]


async def test_a_router_that_restarts_loses_nothing(deployment: Deployment) -> None:
    deployment.model.script(Reply("here", delay=0.5), contains="hello", times=1)
    sent = await deployment.telegram.say(ALICE, "hello")
    await deployment.model.wait_for_turns(1, containing="hello")
    await deployment.stop_router()
    await deployment.start_router()
    answers = await deployment.telegram.wait_for_answers(ALICE, 1, after=sent.number, timeout=30)
    assert [answer.text for answer in answers] == ["here"]
    assert len(deployment.model.journal.turns(containing="hello")) == 1


async def test_unclean_starts_suppress_the_channel_until_it_is_repaired(deployment: Deployment) -> None:
    gateway = deployment.gateway
    for _ in range(3):
        await gateway.kill()
        await gateway.start()
    assert (await gateway.control("CHANNELS"))["suppressed"] == ["telegram"]
    assert (await gateway.control("CHANNELS_START"))["ok"] is True
    assert await deployment.say("hello") == ["You said: hello"]


async def test_a_revoked_token_closes_the_channel_until_a_new_one_is_taken_over(deployment: Deployment) -> None:
    await deployment.say("hello")
    await token_revoked_and_replaced(deployment)


async def test_an_orderly_end_is_clean(deployment: Deployment) -> None:
    await deployment.say("hello")
    for _ in range(4):
        assert await deployment.gateway.stop() == 0
        await deployment.gateway.start()
    assert (await deployment.gateway.control("CHANNELS"))["suppressed"] == []


async def test_a_wrong_configuration_ends_with_78(deployment: Deployment) -> None:
    bob = deployment.workers["bob"]
    bob.secrets.pop("ANTHROPIC_API_KEY")
    bob.write_secrets()
    await bob.launch()
    assert await bob.wait_ended() == 78
    assert "ANTHROPIC_API_KEY" in bob.output()
