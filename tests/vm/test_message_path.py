"""A message on its way through virtual machines: gateway and workers each in one of their own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio
from tests.e2e.operator import CommandFailed, Json, eventually
from tests.vm.machines import ALICE, BOB, PATIENCE, TENANT, Machines, overrides, standin_machines
from tests.vm.path import the_whole_path

DORA = 5101

pytestmark = [
    pytest.mark.vm,
    pytest.mark.node,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machines(private_network: None) -> AsyncIterator[Machines]:
    async with standin_machines({"alice": ALICE}) as machines:
        yield machines


async def test_a_message_wakes_a_sleeper_and_its_answer_comes_back(machines: Machines) -> None:
    await the_whole_path(machines)


async def test_twenty_messages_at_once_to_a_sleeper_are_answered_once_each(machines: Machines) -> None:
    await machines.sleep()
    words = [f"number {number}" for number in range(20)]
    telegram = machines.operator.telegram
    sent = [await telegram.say(ALICE, text) for text in words]
    entries = await telegram.wait_for_answers(ALICE, len(words), after=sent[0].number, timeout=PATIENCE)
    assert sorted(entry.text for entry in entries) == sorted(f"You said: {text}" for text in words)


async def test_another_user_gets_a_copy_of_the_base_without_a_boot(machines: Machines) -> None:
    operator = machines.operator
    await operator.mvm("user", "add", TENANT, "bob", "--telegram", str(BOB))
    assert await machines.say(BOB, "hello, I am new") == ["You said: hello, I am new"]
    bob, alice = await machines.worker("bob"), await machines.worker()
    stages = await machines.stages(bob)
    assert "restore" in stages
    assert "boot" not in stages
    hosts = [(await machines.inside(who, "cat", "/etc/hostname", "/etc/machine-id")).split() for who in (bob, alice)]
    assert hosts[0][0] == bob["instance_id"]
    assert hosts[0][1] != hosts[1][1], "each has a machine id of its own"
    numbers = [await machines.inside(who, "head", "-c", "16", "/dev/urandom") for who in (bob, alice)]
    assert numbers[0] != numbers[1]


async def test_the_clock_is_right_after_a_sleep(machines: Machines) -> None:
    worker = await machines.sleep()
    await asyncio.sleep(3)
    await machines.operator.mvm("instance", "wake", machines.operator.address(worker))
    program = "import time; print(time.time())"
    loop = asyncio.get_running_loop()
    before, began = time.time(), loop.time()
    inside = float(await machines.inside(worker, "/usr/bin/python3", "-c", program))
    took = loop.time() - began
    assert before - 1 <= inside <= before + took + 1


async def test_secrets_that_changed_during_a_sleep_are_there_after_it(machines: Machines) -> None:
    operator = machines.operator
    worker = await machines.sleep()
    path = operator.directory / "secrets/extra.key"
    path.write_text("a new value\n")
    path.chmod(0o600)
    await operator.mvm("tenant", "secrets", "set", TENANT, "--file", f"extra/NOTE={path}")
    await operator.mvm("instance", "wake", operator.address(worker))
    assert (await machines.inside(worker, "cat", "/run/secrets/extra/NOTE")).strip() == "a new value"


async def test_what_is_set_while_it_runs_is_there_at_once(machines: Machines) -> None:
    operator, worker = machines.operator, await machines.worker()
    path = operator.directory / "secrets/extra.key"
    path.write_text("a later value\n")
    await operator.mvm("tenant", "secrets", "set", TENANT, "--file", f"extra/NOTE={path}")

    async def look() -> None:
        found = await machines.inside(worker, "cat", "/run/secrets/extra/NOTE")
        assert found.strip() == "a later value"

    await eventually(look, PATIENCE, (AssertionError, CommandFailed))  # type: ignore[arg-type]


async def test_guests_see_nobody_whom_they_may_not_see(machines: Machines) -> None:
    operator = machines.operator
    report = json.loads(await operator.mvm("net", "verify", "--json"))
    assert report["passed"]
    running = {operator.address(i) for i in await operator.instances(TENANT) if i["state"] == "running"}
    gateway, worker = (operator.address(i) for i in (await machines.gateway(), await machines.worker()))
    assert {gateway, worker} <= running
    tried = {(check["from"], check["what"].partition(" (")[0]): check["found"] for check in report["checks"]}
    assert {who for who, _ in tried} == running | {"host"}, "every machine that runs was asked"
    assert tried[gateway, f"delivery to {worker}"] != "closed"
    assert tried[gateway, f"any other port of {worker}"] == "closed"
    assert tried[worker, f"report to {gateway}"] != "closed"
    assert tried[worker, f"any other port of {gateway}"] == "closed"
    for who in (gateway, worker):
        assert tried[who, "metadata of a cloud"] == "closed"


async def test_guests_of_two_tenants_see_nothing_of_each_other(machines: Machines) -> None:
    operator = machines.operator
    bot = operator.telegram.add_bot("club_bot")
    path = operator.write_deploy_toml(
        {"dora": DORA}, telegram_token=bot.token, extra=overrides(operator, gateway_mib=768, worker_mib=1024)
    )
    await operator.mvm("new", "openclaw", "club", "--config", str(path))
    sent = await operator.telegram.say(DORA, "hello, club", bot=bot)
    assert await machines.say(ALICE, "hello, family") == ["You said: hello, family"]
    (answer,) = await operator.telegram.wait_for_answers(DORA, 1, after=sent.number, timeout=PATIENCE, bot=bot)
    assert (answer.text, answer.bot_id) == ("You said: hello, club", bot.id)

    report = json.loads(await operator.mvm("net", "verify", "--json"))
    assert report["passed"]
    family = [operator.address(one) for one in (await machines.gateway(), await machines.worker())]
    club = [operator.address(one) for one in (await operator.gateway("club"), await operator.worker("club"))]
    for own, foreign in ((family, club), (club, family)):
        for who in own:
            across = tries(report, who, foreign)
            assert len(across) == 6, "three ports of each of the other tenant's two"
            assert set(across) == {"closed"}
        gateway, worker = own
        assert "closed" in (own_tries := tries(report, gateway, [worker]))
        assert set(own_tries) != {"closed"}, "what may be reached does answer the same try"


def tries(report: Json, who: str, names: Sequence[str]) -> list[str]:
    """How an instance's tries of others came out."""
    made = [check for check in report["checks"] if check["from"] == who]
    return [check["found"] for check in made if any(name in check["what"] for name in names)]
