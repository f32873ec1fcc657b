"""The whole path of a message with real OpenClaw at both ends, as a user has it. One deployment serves all of it.

The statements are told in the order of a deployment's life, because a fresh pair of OpenClaws for each would take an
hour; each of them fails for its own reason.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from tests.e2e.operator import Operator, eventually, kill, operator

from mvm.demo.model_provider.script import Reply

pytestmark = [pytest.mark.openclaw, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

ALICE, BOB, STRANGER = 5001, 5002, 6666


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def family() -> AsyncIterator[Operator]:
    """alice and bob served by one deployment, ready."""
    async with operator() as someone:
        await someone.new("family", {"alice": ALICE, "bob": BOB})
        yield someone


async def test_a_person_writes_and_gets_an_answer(family: Operator) -> None:
    assert await family.say(ALICE, "hello") == ["You said: hello"]
    assert len(family.model.journal.turns(containing="hello")) == 1


async def test_two_people_at_once_get_their_own_answers_from_their_own_workers(family: Operator) -> None:
    alice, bob = await asyncio.gather(family.say(ALICE, "I am alice"), family.say(BOB, "I am bob"))
    assert (alice, bob) == (["You said: I am alice"], ["You said: I am bob"])
    bobs_worker = (await family.worker("family", "bob"))["instance_id"]
    state = family.directory / "state/instances" / bobs_worker
    assert not any("I am alice" in path.read_text(errors="replace") for path in state.rglob("*.jsonl"))


async def test_a_stranger_gets_a_pairing_code_and_costs_no_model_call(family: Operator) -> None:
    calls = len(family.model.journal.calls)
    (answer,) = await family.say(STRANGER, "let me in")
    assert re.search(r"[A-Z0-9]{6}", answer)
    assert len(family.model.journal.calls) == calls


async def test_a_message_to_a_sleeper_wakes_it_with_a_timeline(family: Operator) -> None:
    worker = await family.worker("family", "alice")
    await family.sleep(worker)
    assert family.processes_of(worker) == [], "a sleeping worker has no process"
    assert await family.say(ALICE, "good morning") == ["You said: good morning"]
    woken = await family.ask("instance", "info", family.address(worker))
    stages = [stage["stage"] for stage in woken["instance"]["last_wake"]["stages"]]
    assert {"queue", "drives", "network", "restore", "agent", "guest", "service"} <= set(stages)


async def test_twenty_messages_at_once_to_a_sleeper_are_all_answered_in_order(family: Operator) -> None:
    worker = await family.worker("family", "alice")
    await family.sleep(worker)
    texts = [f"message {number:02}" for number in range(20)]
    first = await family.telegram.say(ALICE, texts[0])
    for text in texts[1:]:
        await family.telegram.say(ALICE, text)
    entries = await family.telegram.wait_for_answers(ALICE, 20, after=first.number, timeout=240)
    assert [entry.text for entry in entries] == [f"You said: {text}" for text in texts]
    assert [len(family.model.journal.turns(containing=text)) for text in texts] == [1] * 20


async def test_a_message_in_the_middle_of_going_to_sleep_is_answered_once(family: Operator) -> None:
    worker = await family.worker("family", "alice")
    going = asyncio.create_task(family.mvm("instance", "sleep", family.address(worker), "--force", expect=0))
    await asyncio.sleep(0)
    answers = await family.say(ALICE, "are you asleep")
    await asyncio.gather(going, return_exceptions=True)
    assert answers == ["You said: are you asleep"]
    assert len(family.model.journal.turns(containing="are you asleep")) == 1


async def test_a_worker_in_a_turn_is_not_put_to_sleep(family: Operator) -> None:
    family.model.script(Reply("done thinking", delay=8.0), contains="think hard")
    worker = await family.worker("family", "alice")
    asked = asyncio.create_task(family.say(ALICE, "think hard"))
    await family.model.wait_for_turns(1, containing="think hard")
    pool_drain_is_longer = asyncio.create_task(family.mvm("instance", "sleep", family.address(worker), "--force"))
    assert await asked == ["done thinking"]
    await asyncio.gather(pool_drain_is_longer, return_exceptions=True)
    assert len(family.model.journal.turns(containing="think hard")) == 1


@pytest.mark.parametrize("victim", ["worker", "gateway", "router", "agent"])
async def test_a_kill_in_the_middle_of_a_turn_loses_nothing_and_runs_one_turn(family: Operator, victim: str) -> None:
    words = f"survive the {victim}"
    family.model.script(Reply(f"answer to {victim}", delay=6.0), contains=words)
    worker, gateway = await family.worker("family", "alice"), await family.gateway("family")
    asked = asyncio.create_task(family.say(ALICE, words, seconds=240))
    await family.model.wait_for_turns(1, containing=words, timeout=120)
    process = {
        "worker": lambda: family.service_of(worker, "openclaw"),
        "gateway": lambda: family.service_of(gateway, "openclaw"),
        "router": lambda: family.service_of(gateway, "router"),
        "agent": lambda: psutil.Process(family.agent_pid()),
    }[victim]()
    await kill(process)
    assert await asked == [f"answer to {victim}"]
    # A worker that died in the middle of the model's answer has to ask again; that is the same turn.
    finished = [call for call in family.model.journal.turns(containing=words) if call.status == 200]
    assert len(finished) == 1
    await family.mvm("node", "info")  # starts the agent again where it was the victim


async def test_a_reminder_wakes_the_sleeper_and_reaches_the_person(family: Operator) -> None:
    worker = await family.worker("family", "alice")
    sent = await family.telegram.say(ALICE, "remind me in 75 seconds to stretch")
    await family.telegram.wait_for_answers(ALICE, 1, after=sent.number, timeout=120)
    await family.sleep(worker)
    assert (await family.worker("family", "alice"))["next_alarm_at"]
    entries = await family.telegram.wait_for_answers(ALICE, 2, after=sent.number, timeout=240)
    assert "stretch" in entries[1].text


async def test_secrets_rotated_asleep_are_there_after_the_wake_and_awake_at_once(family: Operator) -> None:
    worker = await family.worker("family", "bob")
    await family.sleep(worker)
    for number, words in enumerate(("after the wake", "at once")):
        fresh = f"sk-ant-api03-rotated-{number}-{'x' * 24}"
        family.model.add_key(fresh)
        key = family.directory / "secrets/anthropic.key"
        key.write_text(fresh)
        await family.mvm("tenant", "secrets", "set", "family", "--file", f"anthropic_key={key}")
        assert await family.say(BOB, words) == [f"You said: {words}"]
        (turn,) = family.model.journal.turns(containing=words)
        assert fresh.endswith(turn.key_end)


async def test_no_secret_is_in_any_log_file_audit_line_or_process_argument(family: Operator) -> None:
    await family.mvm("events", "--json")
    secrets = {family.telegram.token, family.model.key, *family.model.keys}
    places = [
        *(family.directory / "state").glob("*.log"),
        *(family.directory / "state").rglob("log/*.log"),
        *(family.directory / "state/audit").glob("*"),
        *(family.directory / "state/events").rglob("*"),
        *(family.directory / "run").rglob("*.json"),
    ]
    texts = {
        str(path): path.read_text(errors="replace")
        for path in places
        if path.is_file() and "/run/openclaw/" not in str(path)
    }
    for process in family.processes():
        texts[f"arguments of {process.pid}"] = " ".join(process.cmdline())
    assert len(texts) > 10
    assert [(where, secret[:8]) for where, text in texts.items() for secret in secrets if secret in text] == []


async def test_a_user_who_is_paired_is_served_without_a_restart(family: Operator) -> None:
    gateway = family.service_of(await family.gateway("family"), "openclaw")
    (answer,) = await family.say(7007, "may I come in")
    code = re.search(r"\b([A-Z2-9]{6})\b", answer)
    assert code, answer
    await family.mvm("user", "add", "family", "carol")
    await family.mvm("user", "pair", "family", code.group(1), "--user", "carol")
    assert await family.say(7007, "hello again", seconds=240) == ["You said: hello again"]
    assert gateway.is_running()
    await family.mvm("user", "remove", "family", "carol", "--force")
    await family.telegram.say(7007, "still there")
    assert await family.say(ALICE, "is carol gone") == ["You said: is carol gone"]
    assert family.model.journal.turns(containing="still there") == []
    assert gateway.is_running()


async def test_destroying_the_tenant_leaves_nothing_behind(family: Operator) -> None:
    ids = [i["instance_id"] for i in await family.instances("family")]
    await family.mvm("tenant", "destroy", "family", "--force")

    async def only_the_agent() -> None:
        assert len(family.processes()) == 1

    await eventually(only_the_agent, 20, AssertionError)
    left = [str(p) for p in family.directory.rglob("*") if any(i in p.name for i in ids)]
    assert left == []
    secret = family.telegram.token.encode()
    files = [p for p in (family.directory / "state").rglob("*") if p.is_file()]
    assert [str(p) for p in files if secret in Path(p).read_bytes()] == []
