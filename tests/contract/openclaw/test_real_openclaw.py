"""What mvm relies on in the pinned OpenClaw itself: its configuration, its hooks, its channels, its scheduler.

The same harness as for the stand-in (tests/standins), with the real OpenClaw in it; the first message starts the
worker.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from tests.standins.bad_channel import (
    a_refused_reminder_lets_the_next_one_pass,
    answered_once,
    answered_twice_at_the_most,
    reminders_come_in_spite_of,
)
from tests.standins.deployment import ALICE, STRANGER, Deployment, deployed
from tests.standins.tokens import token_revoked_and_replaced
from tests.standins.waiting import until

from mvm.demo.faults import Fault
from mvm.demo.model_provider import Reply, Trouble
from mvm.host.locations import locate
from mvm.openclaw.install import installed

pytestmark = [pytest.mark.openclaw, pytest.mark.timeout(400), pytest.mark.asyncio(loop_scope="module")]


def real_openclaw() -> Path | None:
    """Directory of the npm package, as installed by `make setup` or named by MVM_TEST_OPENCLAW_DIR."""
    if named := os.environ.get("MVM_TEST_OPENCLAW_DIR"):
        return Path(named)
    installation = installed(locate({}).programs_dir)
    return installation.openclaw_dir if installation else None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    """A gateway and a worker of the real OpenClaw."""
    package = real_openclaw()
    if package is None:
        pytest.skip("OpenClaw is not installed: run `make setup`, or set MVM_TEST_OPENCLAW_DIR")
    async with deployed(tmp_path_factory.mktemp("real"), package=package) as running:
        yield running


async def test_a_message_goes_to_the_worker_and_its_answer_comes_back(real: Deployment) -> None:
    assert await real.say("hello", timeout=120) == ["You said: hello"]
    assert len(real.model.journal.turns(containing="hello")) == 1


async def test_messages_sent_at_once_are_turns_of_their_own_in_order(real: Deployment) -> None:
    sent = [await real.telegram.say(ALICE, f"message {number}") for number in range(5)]
    answers = await real.telegram.wait_for_answers(ALICE, 5, after=sent[0].number, timeout=60)
    assert [answer.text for answer in answers] == [f"You said: message {number}" for number in range(5)]


async def test_a_stranger_costs_no_model_call(real: Deployment) -> None:
    calls = len(real.model.journal.calls)
    (notice,) = await real.say("let me in", person=STRANGER)
    assert "K7QF3M" in notice
    assert len(real.model.journal.calls) == calls


async def test_commands_are_the_workers(real: Deployment) -> None:
    (status,) = await real.say("/status")
    assert "anthropic/" in status
    assert await real.say("/new") == ["✅ New session started."]


async def test_what_is_written_right_after_stop_is_answered(real: Deployment) -> None:
    real.model.script(Trouble(0), contains="think for ever")
    sent = await real.telegram.say(ALICE, "think for ever")
    await real.model.wait_for_turns(1, containing="think for ever")
    await real.telegram.say(ALICE, "/stop")
    await real.telegram.say(ALICE, "go on")
    answers = await real.telegram.wait_for_answers(ALICE, 2, after=sent.number, timeout=60)
    assert [answer.text for answer in answers] == ["⚙️ Agent was aborted.", "You said: go on"]


async def test_a_reminder_asked_for_in_the_chat_reaches_the_outbox(real: Deployment) -> None:
    (told,) = await real.say("remind me in 3 seconds to stretch")
    assert told.startswith("Done.")
    taken = real.outboxes["alice"].taken
    await until(lambda: bool(taken), what="the reminder", seconds=60)
    assert ["stretch" in text for text in taken.values()] == [True]


async def test_a_checkpoint_waits_for_the_turn_and_holds_until_restore(real: Deployment) -> None:
    worker = real.workers["alice"]
    await worker.wait_idle()
    real.model.script(Reply("done", delay=2.0), contains="slow")
    sent = await real.telegram.say(ALICE, "slow")
    await real.model.wait_for_turns(1, containing="slow")
    assert (await worker.control("STATUS"))["in_flight"] == 1
    refused = await worker.control("CHECKPOINT 0")
    assert refused["ok"] is False
    assert "busy" in str(refused["detail"])
    assert (await worker.control("CHECKPOINT 60", seconds=70))["ok"] is True
    await real.telegram.wait_for_answers(ALICE, 1, after=sent.number, timeout=30)
    assert (await worker.control("STATUS"))["suspended"] is True
    assert (await worker.control("RESTORE"))["ok"] is True
    assert await real.say("are you there?") == ["You said: are you there?"]


BAD_MINUTES = {
    "refused": Fault("error", "sendMessage", code=502, times=2),
    "flooded": Fault("error", "sendMessage", code=429, times=4, retry_after=1),
    "broken": Fault("drop", "sendMessage"),
}


@pytest.mark.parametrize("minutes", BAD_MINUTES)
async def test_an_answer_that_the_channel_does_not_take_at_once_is_sent_again(real: Deployment, minutes: str) -> None:
    """OpenClaw itself would never send it again: it keeps the id of what it has begun to send."""
    await answered_once(real, f"while it is {minutes}", replace(BAD_MINUTES[minutes]))


async def test_an_answer_that_may_have_arrived_is_repeated_once(real: Deployment) -> None:
    await answered_twice_at_the_most(real, "did you hear me")


@pytest.mark.parametrize("minutes", BAD_MINUTES)
async def test_a_reminder_that_the_channel_does_not_take_at_once_is_sent_again(real: Deployment, minutes: str) -> None:
    await reminders_come_in_spite_of(real, f"reminder {minutes}", replace(BAD_MINUTES[minutes]))


async def test_a_reminder_that_is_refused_for_good_holds_up_no_other(real: Deployment) -> None:
    await a_refused_reminder_lets_the_next_one_pass(real, "to one who blocks")


async def test_a_rotated_key_counts_at_once(real: Deployment) -> None:
    worker = real.workers["alice"]
    real.model.add_key("sk-ant-rotated-0123456789")
    real.model.revoke(worker.secrets["ANTHROPIC_API_KEY"])
    worker.secrets["ANTHROPIC_API_KEY"] = "sk-ant-rotated-0123456789"
    worker.write_secrets()
    assert (await worker.control("RELOAD_SECRETS"))["ok"] is True
    assert await real.say("with the new key") == ["You said: with the new key"]


async def test_a_revoked_token_closes_the_channel_until_a_new_one_is_taken_over(real: Deployment) -> None:
    await token_revoked_and_replaced(real)


@pytest.mark.slow
async def test_a_worker_killed_in_a_turn_answers_once(real: Deployment) -> None:
    """Also when a reminder went out before: then OpenClaw would send the answer by the worker's channel as well."""
    worker = real.workers["alice"]
    taken = real.outboxes["alice"].taken
    before = dict(taken)
    assert before, "a reminder went out in an earlier test"
    real.model.script(Reply("recovered", delay=3.0), contains="kill the worker")
    sent = await real.telegram.say(ALICE, "kill the worker")
    await real.model.wait_for_turns(1, containing="kill the worker")
    await worker.kill()
    await real.telegram.wait_for_answers(ALICE, 1, after=sent.number, timeout=120)
    await worker.wait_idle(seconds=60)
    assert [answer.text for answer in real.telegram.transcript.answers(ALICE, after=sent.number)] == ["recovered"]
    assert taken == before
    assert len(real.model.journal.turns(containing="kill the worker")) == 2, (
        "the interrupted call, and the one after it"
    )


@pytest.mark.slow
async def test_a_gateway_killed_while_the_worker_answers_costs_one_turn(real: Deployment) -> None:
    real.model.script(Reply("late", delay=5.0), contains="kill the gateway")
    sent = await real.telegram.say(ALICE, "kill the gateway")
    await real.model.wait_for_turns(1, containing="kill the gateway")
    await real.gateway.kill()
    await real.gateway.start(seconds=120)
    await real.telegram.wait_for_answers(ALICE, 1, after=sent.number, timeout=60)
    await real.gateway.wait_idle()
    assert [answer.text for answer in real.telegram.transcript.answers(ALICE, after=sent.number)] == ["late"]
    assert len(real.model.journal.turns(containing="kill the gateway")) == 1


@pytest.mark.slow
async def test_channels_held_back_after_unclean_starts_are_started_again(real: Deployment) -> None:
    for _ in range(3):
        await real.gateway.kill()
        await real.gateway.start(seconds=120)
    assert (await real.gateway.control("CHANNELS"))["suppressed"] == ["telegram"]
    assert (await real.gateway.control("CHANNELS_START"))["ok"] is True
    assert await real.say("are you back?", timeout=60) == ["You said: are you back?"]
    assert (await real.gateway.control("CHANNELS"))["suppressed"] == []
