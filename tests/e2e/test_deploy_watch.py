"""`mvm deploy --watch` on whole mvm with the stand-in OpenClaw: a file is edited while messages flow."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.e2e.operator import MVM, Json, Operator, eventually
from tests.e2e.scene import ALICE, SECONDS, TENANT, standin_operator

from mvm.host.client import AgentClient

pytestmark = [pytest.mark.node, pytest.mark.timeout(240)]

BOB = 5002


def write_manifest(someone: Operator, users: dict[str, int], *, workers: str = "", extra: str = "") -> Path:
    """A deployment.toml with these users; `workers` is added to their pool, `extra` at the end."""
    someone.write_deploy_toml(users)  # for the secret files beside it
    tables = "".join(f'\n[[users]]\nid = "{user}"\ntelegram = ["{sender}"]\n' for user, sender in users.items())
    path = someone.directory / "deployment.toml"
    unready = path.with_suffix(".new")
    unready.write_text(
        f"""\
[tenant]
id = "{TENANT}"

[[pools]]
id = "gateways"
role = "gateway"

[[pools]]
id = "workers"
role = "capability-openclaw"
runtime_policy = {{ min_running_seconds = 0, min_warm_seconds = 0 }}
{workers}

[openclaw]
provider_base_url = "{someone.model.url}"
telegram_api_root = "{someone.telegram.url}"
{tables}
[secrets]
anthropic_key = {{ file = "./secrets/anthropic.key" }}
telegram_token = {{ file = "./secrets/telegram.token" }}
{extra}
"""
    )
    unready.replace(path)
    return path


class Watched:
    """A running `mvm deploy --watch --json`, and the documents that it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[Json] = []
        self._seen = 0
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(json.loads(line))

    async def next(self, what: str) -> Json:
        """The next document that tells of a change, or of an error; those of quiet intervals are passed over."""

        async def find() -> Json:
            while self._seen < len(self.lines):
                line = self.lines[self._seen]
                self._seen += 1
                if "error" in line or line["changed"] or line["errors"]:
                    return line
            raise AssertionError(f"{what}: nothing but {self.lines[-3:]}")

        return await eventually(find, SECONDS, AssertionError, pause=0.05)

    async def quiet(self) -> None:
        """Return after a pass that begins from now on and finds nothing to do."""
        self._seen = len(self.lines)
        await eventually(self._two_more, SECONDS, AssertionError, pause=0.05)
        assert [line.get("actions") for line in self.lines[self._seen :]][-1] == []
        self._seen = len(self.lines)

    async def _two_more(self) -> None:
        assert len(self.lines) >= self._seen + 2


@asynccontextmanager
async def watched(someone: Operator, path: Path) -> AsyncIterator[Watched]:
    with (someone.directory / "watch.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *MVM,
            *("deploy", str(path), "--watch", "--interval", "2", "--json"),
            cwd=someone.directory,
            env=someone.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    try:
        yield Watched(process)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0, (someone.directory / "watch.log").read_text()


def did(line: Json) -> list[str]:
    return [action["action"] for action in line["actions"]]


async def instances(someone: Operator) -> dict[str, Json]:
    """Instances by user, or role."""
    listed = await AgentClient(someone.directory / "run/agent.sock").call("InstanceList", {"tenant_id": TENANT})
    return {i["user"] or i["role"]: i for i in listed["instances"]}


async def test_a_file_that_is_edited_while_messages_flow_changes_exactly_what_differs_and_no_message_is_lost() -> None:
    async with standin_operator() as someone:
        path = write_manifest(someone, {"alice": ALICE})
        async with watched(someone, path) as watch:
            first = await watch.next("the deployment is made")
            assert first["errors"] == []
            assert (first["tenants"]["created"], len(first["pools"]["created"])) == ([TENANT], 2)
            assert await someone.say(ALICE, "hello") == ["You said: hello"]
            await watch.quiet()

            # Somebody writes all the time.
            sent: list[str] = []
            start = (await someone.telegram.say(ALICE, "message 000")).number
            sent.append("message 000")
            editing = True

            async def chatter() -> None:
                while editing:
                    sent.append(f"message {len(sent):03}")
                    await someone.telegram.say(ALICE, sent[-1])
                    await asyncio.sleep(0.5)

            writer = asyncio.create_task(chatter())
            try:
                # A user is added.
                write_manifest(someone, {"alice": ALICE, "bob": BOB})
                added = await watch.next("bob is added")
                assert did(added) == ["add user", "start worker"]
                assert added["users"]["added"] == [f"{TENANT}/users/bob"]
                assert await someone.say(BOB, "hi") == ["You said: hi"]

                # A secret is added, and another one changes in its file alone.
                (someone.directory / "secrets/mail").write_text("first\n")
                (someone.directory / "secrets/mail").chmod(0o600)
                mail = 'mail = { file = "./secrets/mail", scope = "mail", key = "MAIL_PASSWORD" }'
                write_manifest(someone, {"alice": ALICE, "bob": BOB}, extra=mail)
                assert (await watch.next("a secret is added"))["secrets"]["set"] == ["mail/MAIL_PASSWORD"]
                (someone.directory / "secrets/mail").write_text("second\n")
                changed = await watch.next("a secret changes")
                assert (did(changed), changed["secrets"]["set"]) == (["set secrets"], ["mail/MAIL_PASSWORD"])

                # A file that is wrong changes nothing, and is told by its line.
                good = path.read_text()
                path.write_text(good.replace("[openclaw]", "[opneclaw]"))
                wrong = await watch.next("the file is wrong")
                assert "deployment.toml:" in wrong["error"]["message"]
                assert "opneclaw" in wrong["error"]["message"]

                # More memory for the workers: each is restarted once, and only while it is idle.
                before = {user: i["entered_running_at"] for user, i in (await instances(someone)).items()}
                write_manifest(someone, {"alice": ALICE, "bob": BOB}, workers="mem_mib = 1536", extra=mail)
                resized = await watch.next("the workers are resized")
                assert did(resized)[0] == "update pool"
                assert resized["pools"]["updated"] == [f"{TENANT}/workers"]
            finally:
                editing = False
                await writer

            async def all_resized() -> dict[str, Json]:
                now = await instances(someone)
                assert [now[user]["mem_mib"] for user in ("alice", "bob")] == [1536, 1536], now
                return now

            now = await eventually(all_resized, SECONDS, AssertionError)
            assert now["gateway"]["entered_running_at"] == before["gateway"], "nothing of it was changed"
            assert now["alice"]["instance_id"] != now["bob"]["instance_id"]

            entries = await someone.telegram.wait_for_answers(ALICE, len(sent), after=start - 1, timeout=SECONDS)
            assert [entry.text for entry in entries] == [f"You said: {text}" for text in sent]

            # Without leave nobody is removed; the file says so, the worker stays.
            write_manifest(someone, {"alice": ALICE}, workers="mem_mib = 1536", extra=mail)
            await watch.quiet()
            assert watch.lines[-1]["left_alone"][0]["object"] == f"{TENANT}/users/bob"
            assert await someone.say(BOB, "still there?") == ["You said: still there?"]


async def test_a_second_deploy_does_nothing_and_prune_removes_what_the_file_does_not_name() -> None:
    async with standin_operator() as someone:
        path = write_manifest(someone, {"alice": ALICE, "bob": BOB})
        planned = await someone.ask("deploy", str(path), "--dry-run")
        made = await someone.ask("deploy", str(path))
        assert planned["actions"] == made["actions"]
        assert await someone.say(BOB, "hi") == ["You said: hi"]
        again = await someone.ask("deploy", str(path))
        assert (again["changed"], again["actions"], again["deferred"]) == (False, [], [])
        assert "nothing was changed" in await someone.mvm("deploy", str(path))

        write_manifest(someone, {"alice": ALICE})
        assert (await someone.ask("deploy", str(path)))["changed"] is False
        pruned = await someone.ask("deploy", str(path), "--prune")
        assert pruned["users"]["removed"] == [f"{TENANT}/users/bob"]
        assert set(await instances(someone)) == {"alice", "gateway"}

        # What the agent keeps can be given back to it, and changes nothing.
        kept = someone.directory / "desired.json"
        kept.write_text(await someone.mvm("agent", "desired"))
        report = await someone.ask("agent", "reconcile", "--desired", str(kept))
        assert (report["changed"], report["errors"]) == (False, [])


async def test_a_gateway_that_dies_while_no_agent_runs_is_back_when_one_does() -> None:
    async with standin_operator() as someone:
        path = write_manifest(someone, {"alice": ALICE})
        await someone.mvm("deploy", str(path))
        gateway = (await instances(someone))["gateway"]
        await someone.kill_agent()
        for process in someone.processes_of(gateway):
            process.kill()
        assert await someone.ask("node", "info")

        async def answered() -> None:
            assert (await instances(someone))["gateway"]["state"] == "running"

        await eventually(answered, SECONDS, AssertionError)
        assert await someone.say(ALICE, "hello again") == ["You said: hello again"]


async def test_a_person_who_has_used_up_their_budget_is_told_so_and_served_again_when_it_is_raised() -> None:
    async with standin_operator() as someone:
        path = write_manifest(someone, {"alice": ALICE})
        unlimited = path.read_text()
        path.write_text(unlimited.replace('id = "alice"\n', 'id = "alice"\nbudget = { wakes_per_hour = 1 }\n'))
        await someone.mvm("deploy", str(path))
        await someone.sleep((await instances(someone))["alice"])
        assert await someone.say(ALICE, "one") == ["You said: one"]
        await someone.sleep((await instances(someone))["alice"])
        (told,) = await someone.say(ALICE, "two")
        assert "used up what it may use for now: it may be woken once an hour" in told
        assert (await instances(someone))["alice"]["state"] == "sleeping"
        path.write_text(unlimited)
        assert did(await someone.ask("deploy", str(path))) == ["update user"]
        assert await someone.say(ALICE, "three") == ["You said: three"]
