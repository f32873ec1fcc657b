"""The life of a deployment on whole mvm with the stand-in OpenClaw: made, used, at rest, shared, broken, removed.

Each statement has a deployment (or several) of its own.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.e2e.operator import CommandFailed, Json, Operator, eventually
from tests.e2e.scene import ALICE, SECONDS, STANDIN, TENANT, Scene, scene, standin_operator

from mvm.demo.model_provider import Reply
from mvm.host.client import AgentClient
from mvm.host.locations import locate
from mvm.wire import messages, rpc

pytestmark = [pytest.mark.node, pytest.mark.timeout(180)]

BOB, CAROL = 5002, 5003
AT_ONCE = "min_running_seconds = 0, min_warm_seconds = 0"
"""A policy without guards, so that who is idle may go to rest."""


def policy(fields: str) -> str:
    """What a deploy.toml says of the workers' policy."""
    return f"\n[overrides.workers]\nruntime_policy = {{ {fields} }}\n"


def client(someone: Operator) -> AgentClient:
    return AgentClient(someone.directory / "run/agent.sock")


async def listed(someone: Operator, tenant: str = TENANT) -> dict[str, Json]:
    """The instances by user (`gateway` for the gateway), without the start of a command."""
    answer = await client(someone).call("InstanceList", {"tenant_id": tenant})
    return {i["user"] or i["role"]: i for i in answer["instances"]}


async def in_state(someone: Operator, user: str, state: str, seconds: float = SECONDS) -> Json:
    """A worker, once it is in that state and nothing is under way with it."""

    async def check() -> Json:
        now = (await listed(someone))[user]
        assert (now["state"], now["transition"]) == (state, None), f"{user} after {seconds:g} s: {now}"
        return now

    return await eventually(check, seconds, AssertionError, pause=0.1)


def actions(someone: Operator, tenant: str = TENANT) -> list[str]:
    """The actions in the tenant's audit, in order."""
    path = someone.directory / "state/audit" / f"{tenant}.jsonl"
    return [json.loads(line)["action"] for line in path.read_text().splitlines()]


async def only_the_agent_is_left(someone: Operator) -> None:
    async def check() -> None:
        left = [process.cmdline() for process in someone.processes()]
        assert [line[-2:] for line in left] == [["agent", "serve"]], left

    await eventually(check, 30, AssertionError)


async def nothing_is_left(someone: Operator, ids: list[str], *secrets: str) -> None:
    """No process, no file, no address and no secret of these instances."""
    await only_the_agent_is_left(someone)
    assert (await someone.ask("tenant", "list"))["tenants"] == []
    assert await listed_anywhere(someone) == []
    memory = locate({"state_dir": str(someone.directory / "state"), "run_dir": str(someone.directory / "run")})
    places = [*someone.directory.rglob("*"), *memory.secrets_dir.rglob("*")]
    assert [str(path) for path in places if any(instance in path.name for instance in ids)] == []
    files = [path for path in places if path.is_file() and path.parent.name != "secrets"]
    for secret in secrets:
        assert [str(path) for path in files if secret.encode() in path.read_bytes()] == []


async def listed_anywhere(someone: Operator) -> list[Json]:
    return (await client(someone).call("InstanceList", {}))["instances"]


# Messages


async def test_twenty_messages_at_once_to_a_sleeper_are_answered_in_order_by_twenty_turns() -> None:
    async with scene() as deployment:
        await deployment.sleep()
        assert deployment.operator.processes_of(deployment.worker) == []
        texts = [f"message {number:02}" for number in range(20)]
        sent = [await deployment.telegram.say(ALICE, text) for text in texts]
        assert await deployment.answers(sent[0].number, 20) == [f"You said: {text}" for text in texts]
        await deployment.settled()
        assert len(deployment.telegram.transcript.answers(ALICE, after=sent[0].number)) == 20
        assert [deployment.finished_turns(text) for text in texts] == [1] * 20
        assert deployment.violations() == []


async def test_two_people_at_once_get_their_own_answers_from_their_own_workers() -> None:
    async with standin_operator() as someone:
        await someone.new(TENANT, {"alice": ALICE, "bob": BOB})
        for round in range(3):
            of_alice, of_bob = f"alice says {round}", f"bob says {round}"
            answers = await asyncio.gather(someone.say(ALICE, of_alice), someone.say(BOB, of_bob))
            assert answers == [[f"You said: {of_alice}"], [f"You said: {of_bob}"]]
        instances = await listed(someone)
        for user, other in (("alice", "bob"), ("bob", "alice")):
            data = someone.directory / "state/instances" / instances[user]["instance_id"]
            said = "".join(path.read_text() for path in data.rglob("*.jsonl"))
            assert f"{user} says" in said
            assert f"{other} says" not in said


# Rest


async def test_who_is_idle_goes_to_sleep_by_itself_and_stays_asleep_and_who_is_busy_is_left() -> None:
    rest = policy(f"warm_after_idle_seconds = 1, sleep_after_idle_seconds = 1, {AT_ONCE}")
    async with standin_operator() as someone:
        await someone.new(TENANT, {"alice": ALICE, "bob": BOB}, extra=rest)
        # Busy until bob, who has nothing to do, has been asleep for a while.
        someone.model.script(Reply("done thinking", delay=25.0), contains="think")
        sent = await someone.telegram.say(ALICE, "think hard")
        await someone.model.wait_for_turns(1, containing="think hard")
        warm_before = (await listed(someone))["alice"]["entered_warm_at"]
        bob = await in_state(someone, "bob", "sleeping", seconds=2 + 30)
        assert someone.processes_of(bob) == []

        before = actions(someone).count("WakeRequested")
        for command in (
            ("instance", "list"),
            ("instance", "info", someone.address(bob)),
            ("instance", "logs", someone.address(bob)),
            ("tenant", "info", TENANT),
            ("node", "stats"),
            ("events",),
        ):
            await someone.mvm(*command)
        entries = await someone.telegram.wait_for_answers(ALICE, 1, after=sent.number, timeout=SECONDS)
        assert [entry.text for entry in entries] == ["done thinking"]
        now = await listed(someone)
        assert (now["bob"]["state"], now["bob"]["slept_at"]) == ("sleeping", bob["slept_at"])
        assert actions(someone).count("WakeRequested") == before
        assert now["alice"]["entered_warm_at"] == warm_before
        assert len(someone.model.journal.turns(containing="think hard")) == 1
        assert await someone.say(BOB, "good morning") == ["You said: good morning"]


async def test_when_places_are_short_the_coldest_goes_to_sleep_and_the_message_is_answered() -> None:
    places = "\n[quotas]\nmax_running = 3\n"  # the gateway and two workers
    people = {"alice": ALICE, "bob": BOB, "carol": CAROL}
    async with standin_operator() as someone:
        await someone.new(TENANT, people, extra=policy(AT_ONCE) + places)
        for user in people:
            worker = (await listed(someone))[user]
            if worker["state"] == "running":
                await someone.sleep(worker)
        assert await someone.say(ALICE, "first") == ["You said: first"]
        assert await someone.say(BOB, "second") == ["You said: second"]
        assert await someone.say(CAROL, "third") == ["You said: third"]
        assert {u: i["state"] for u, i in (await listed(someone)).items() if u in people} == {
            "alice": "sleeping",
            "bob": "running",
            "carol": "running",
        }
        assert await someone.say(ALICE, "fourth") == ["You said: fourth"]
        assert (await listed(someone))["bob"]["state"] == "sleeping"


# Sharing and its limits


def write_served_toml(someone: Operator, users: dict[str, int], hub: str) -> Path:
    """The deploy.toml of a deployment that another one's gateway serves."""
    text = someone.write_deploy_toml(users, extra=f'\n[gateway]\ntenant = "{hub}"\n').read_text()
    path = someone.directory / "served.toml"
    path.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("telegram_token")))
    return path


async def test_a_shared_gateway_serves_both_until_either_ends_it() -> None:
    async with standin_operator() as someone:
        await someone.new("hub", {"hana": BOB}, extra='\n[gateway]\naccepts = ["guest"]\n')
        served = write_served_toml(someone, {"alice": ALICE}, "hub")
        await someone.mvm("new", "openclaw", "guest", "--config", str(served))
        assert [i["role"] for i in await someone.instances("guest")] == ["capability-openclaw"]
        alice, hana = await asyncio.gather(someone.say(ALICE, "I am alice"), someone.say(BOB, "I am hana"))
        assert (alice, hana) == (["You said: I am alice"], ["You said: I am hana"])

        await someone.mvm("tenant", "update", "hub", "--accept-none")
        (refusal,) = await someone.say(ALICE, "are you there")
        assert refusal != "You said: are you there"
        assert await someone.say(BOB, "still here") == ["You said: still here"]
        assert someone.model.journal.turns(containing="are you there") == []

        await someone.mvm("tenant", "update", "hub", "--accept", "guest")
        assert await someone.say(ALICE, "back again") == ["You said: back again"]
        await someone.mvm("tenant", "update", "guest", "--own-gateway")
        # She was told a moment ago that she is a stranger here; nobody is told that time and again.
        hub = Scene(someone, (await listed(someone, "guest"))["alice"], (await listed(someone, "hub"))["gateway"])
        before = len(hub.finished())
        await someone.telegram.say(ALICE, "and now")
        await hub.until(lambda: len(hub.finished()) > before, "the gateway is done with the message")
        assert someone.model.journal.turns(containing="and now") == []
        assert hub.violations() == []


async def test_neither_a_worker_nor_a_foreign_gateway_can_wake_or_query_anything() -> None:
    async with standin_operator() as someone:
        await someone.new("one", {"alice": ALICE, "bob": BOB})
        other = someone.telegram.add_bot("other_bot")
        path = someone.write_deploy_toml({"carol": CAROL}, telegram_token=other.token)
        await someone.mvm("new", "openclaw", "two", "--config", str(path))
        own, foreign = await listed(someone, "one"), await listed(someone, "two")
        target = own["alice"]
        await someone.sleep(target)

        async def ask(caller: Json, request: Any) -> Any:
            socket = someone.directory / "run/i" / caller["instance_id"] / "ch/host_53.sock"
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                return await rpc.call(reader, writer, request)
            except rpc.CallFailed as refused:
                return str(refused)
            finally:
                writer.close()
                await writer.wait_closed()

        names = {name: target[name] for name in ("tenant_id", "pool_id", "instance_id")}
        nobody = {**names, "instance_id": "i-00000000"}
        refusals = set()
        for caller in (own["bob"], foreign["gateway"], foreign["carol"]):
            for where in (names, nobody):
                refusals.add(await ask(caller, messages.WakeInstance(**where)))
                refusals.add(await ask(caller, messages.QueryInstanceStatus(**where)))
        assert refusals == {"refused: not an instance that you may wake or query"}
        assert (await listed(someone, "one"))["alice"]["state"] == "sleeping"
        assert actions(someone, "one").count("WakeRefused") == 4
        assert actions(someone, "two").count("WakeRefused") == 8
        status = await ask(own["gateway"], messages.QueryInstanceStatus(**names))
        assert (status.status, status.guest_ip) == ("sleeping", target["network"]["guest_ip"])


# Keys


async def test_wrong_keys_are_named_within_seconds_and_nothing_is_created() -> None:
    async with standin_operator() as someone:
        telegram, model = someone.telegram, someone.model
        good = telegram.token
        gone = telegram.add_bot("revoked_bot")
        revoked = gone.token
        telegram.revoke(gone)
        model.add_key("sk-ant-api03-revoked-key-of-somebody")
        model.revoke("sk-ant-api03-revoked-key-of-somebody")
        of_telegram, of_model = "telegram/TELEGRAM_BOT_TOKEN", "anthropic/ANTHROPIC_API_KEY"
        for token, key, named, why in (
            ("not-a-token", model.key, [of_telegram], "not of the form"),
            (f"{good.partition(':')[0]}:{'A' * 35}", model.key, [of_telegram], "Telegram does not know"),
            (revoked, model.key, [of_telegram], "Telegram does not know"),
            (good, "not a key", [of_model], "Anthropic does not know"),
            (good, "sk-ant-api03-never-was-a-key-of-anybody", [of_model], "Anthropic does not know"),
            (good, "sk-ant-api03-revoked-key-of-somebody", [of_model], "Anthropic does not know"),
            (revoked, "sk-ant-api03-never-was-a-key", [of_telegram, of_model], "does not know"),
        ):
            path = someone.write_deploy_toml({"alice": ALICE}, telegram_token=token)
            (someone.directory / "secrets/anthropic.key").write_text(key)
            began = time.monotonic()
            with pytest.raises(CommandFailed) as failed:
                await someone.mvm("new", "openclaw", TENANT, "--config", str(path))
            assert time.monotonic() - began < 15
            told = failed.value.stderr
            assert [place for place in (of_telegram, of_model) if place in told] == named, told
            assert why in told
            assert "hint:" in told
            assert token not in told
            assert key not in told
            assert "Traceback" not in told
        assert someone.processes() == []
        assert (await someone.ask("tenant", "list"))["tenants"] == []


async def test_a_token_that_nobody_asked_about_and_telegram_does_not_know_is_told_by_the_gateway() -> None:
    async with standin_operator() as someone:
        bot = someone.telegram.add_bot("revoked_bot")
        revoked = bot.token
        someone.telegram.revoke(bot)
        path = someone.write_deploy_toml({"alice": ALICE}, telegram_token=revoked)
        began = time.monotonic()
        with pytest.raises(CommandFailed) as failed:
            await someone.mvm("new", "openclaw", TENANT, "--config", str(path), "--no-check")
        assert time.monotonic() - began < 60
        assert "Telegram does not let the gateway" in failed.value.stderr
        assert "telegram_token=FILE" in failed.value.stderr
        assert revoked not in failed.value.stderr


async def test_a_model_key_revoked_later_is_told_to_the_person_and_to_the_operator() -> None:
    async with scene() as deployment:
        deployment.model.revoke()
        (answer,) = await deployment.say("are you well")
        assert "could not answer" in answer
        events = (await deployment.operator.ask("events", "--tenant", TENANT))["events"]
        (failure,) = [event for event in events if event["kind"] == "DeliveryFailed"]
        assert failure["detail"].startswith("alice: ")
        assert "401" in failure["detail"]
        assert deployment.model.key not in json.dumps(events)
        deployment.model.add_key(deployment.model.key)
        assert await deployment.say("and now") == ["You said: and now"]


# Changes


async def test_a_second_new_changes_nothing_and_one_more_user_only_that() -> None:
    async with scene() as deployment:
        someone = deployment.operator

        async def new(users: dict[str, int]) -> Json:
            path = someone.write_deploy_toml(users)
            return await someone.ask("new", "openclaw", TENANT, "--config", str(path))

        def unchanging(instance: Json) -> Json:
            return {name: instance[name] for name in ("instance_id", "process", "created_at", "entered_running_at")}

        before = {role: unchanging(i) for role, i in (await listed(someone)).items()}
        again = await new({"alice": ALICE})
        assert (again["changed"], again["actions"]) == (False, [])
        more = await new({"alice": ALICE, "bob": BOB})
        assert more["changed"]
        assert all("bob" in action["object"] for action in more["actions"]), more["actions"]
        after = {role: unchanging(i) for role, i in (await listed(someone)).items()}
        assert {role: after[role] for role in before} == before
        assert set(after) - set(before) == {"bob"}
        assert await someone.say(BOB, "I am new here") == ["You said: I am new here"]
        assert await deployment.say("I am not") == ["You said: I am not"]


async def test_a_new_that_fails_half_way_leaves_nothing_and_can_be_done_again(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "package.json").write_text((STANDIN / "package.json").read_text())
    (broken / "openclaw.mjs").write_text('console.error("no such thing as a gateway"); process.exit(1);\n')
    openclaw = tmp_path / "openclaw"
    openclaw.symlink_to(broken)
    async with standin_operator(openclaw) as someone:
        path = someone.write_deploy_toml({"alice": ALICE})
        with pytest.raises(CommandFailed) as failed:
            await someone.mvm("new", "openclaw", TENANT, "--config", str(path))
        assert "no such thing as a gateway" in failed.value.stderr
        ids = [p.name for p in (someone.directory / "state").rglob("i-*")]
        assert ids == []
        await nothing_is_left(someone, ids, someone.telegram.token, someone.model.key)
        openclaw.unlink()
        openclaw.symlink_to(STANDIN)
        await someone.new(TENANT, {"alice": ALICE})
        assert await someone.say(ALICE, "hello") == ["You said: hello"]


async def test_destroying_a_tenant_leaves_nothing_and_its_name_can_be_used_again() -> None:
    async with scene() as deployment:
        someone = deployment.operator
        ids = [i["instance_id"] for i in (await listed(someone)).values()]
        await deployment.sleep()
        await someone.mvm("tenant", "destroy", TENANT, "--force")
        await nothing_is_left(someone, ids, someone.telegram.token, someone.model.key)
        turns = len(someone.model.journal.calls)
        await someone.new(TENANT, {"alice": ALICE})
        assert len(someone.model.journal.calls) == turns
        assert await someone.say(ALICE, "who am I") == ["You said: who am I"]
        (call,) = someone.model.journal.turns(containing="who am I")
        alice = (await listed(someone))["alice"]
        transcript = someone.directory / "state/instances" / alice["instance_id"]
        assert not any("hello" in path.read_text() for path in transcript.rglob("*sessions/*.jsonl"))
        assert call.status == 200


# Ends and starts of the agent and of the machine


async def test_an_agent_that_is_stopped_and_started_finds_its_sleepers_and_its_gateway() -> None:
    async with standin_operator() as someone:
        await someone.new(TENANT, {"alice": ALICE, "bob": BOB})
        before = await listed(someone)
        await someone.sleep(before["alice"])
        assert await someone.say(BOB, "hello") == ["You said: hello"]
        openclaw = someone.service_of(before["gateway"], "openclaw")
        agent = psutil.Process(someone.agent_pid())
        await client(someone).call("Shutdown", {})
        await asyncio.to_thread(agent.wait, 20)

        # Who is awake, and was written to before, is served without the agent; who sleeps as soon as there is one.
        assert await someone.say(BOB, "is anybody there") == ["You said: is anybody there"]
        sent = await someone.telegram.say(ALICE, "wake up")
        await someone.mvm("node", "info")
        entries = await someone.telegram.wait_for_answers(ALICE, 1, after=sent.number, timeout=SECONDS)
        assert [entry.text for entry in entries] == ["You said: wake up"]
        assert len(someone.model.journal.turns(containing="wake up")) == 1
        after = await listed(someone)
        assert openclaw.is_running()
        assert [after[who]["process"] == before[who]["process"] for who in ("gateway", "bob")] == [True, True]
        assert {i["state"] for i in after.values()} == {"running"}


async def test_after_a_reboot_the_gateway_answers_by_itself_and_sleepers_wake() -> None:
    async with standin_operator() as someone:
        await someone.new(TENANT, {"alice": ALICE, "bob": BOB})
        await someone.sleep((await listed(someone))["alice"])
        memory = locate({"state_dir": str(someone.directory / "state"), "run_dir": str(someone.directory / "run")})
        processes = someone.processes()
        for process in processes:
            process.kill()
        await asyncio.to_thread(psutil.wait_procs, processes, 20)
        shutil.rmtree(someone.directory / "run")
        shutil.rmtree(memory.secrets_dir)

        sent = await someone.telegram.say(ALICE, "are you up")
        await someone.mvm("node", "info")
        entries = await someone.telegram.wait_for_answers(ALICE, 1, after=sent.number, timeout=SECONDS)
        assert [entry.text for entry in entries] == ["You said: are you up"]
        assert await someone.say(BOB, "and you") == ["You said: and you"]
        now = await in_state(someone, "alice", "running")
        assert Scene(someone, now, (await listed(someone))["gateway"]).violations() == []
