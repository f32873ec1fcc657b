"""What an operator is told of a message on whole mvm with the stand-in OpenClaw: its trace, its place on the bill.

And a tenant that is saved, destroyed and made again remembers what was said.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.e2e.operator import Operator, eventually
from tests.e2e.scene import ALICE, TENANT, standin_operator

pytestmark = [pytest.mark.node, pytest.mark.timeout(180)]


async def answers_of(someone: Operator) -> int:
    rows = (await someone.ask("usage", TENANT))["usage"]
    return sum(row["messages"] for row in rows if row["user_id"] == "alice")


async def test_one_trace_follows_a_message_and_its_answer_is_on_the_bill() -> None:
    async with standin_operator() as someone:
        await someone.new(TENANT, {"alice": ALICE})
        worker, gateway = await someone.worker(TENANT, "alice"), await someone.gateway(TENANT)
        await someone.sleep(worker)
        assert await someone.say(ALICE, "good morning") == ["You said: good morning"]

        async def counted() -> None:
            assert await answers_of(someone) == 1

        await eventually(counted, 30, AssertionError)
        audit = Path(someone.directory / "state/audit" / f"{TENANT}.jsonl").read_text().splitlines()
        details = [json.loads(line).get("detail") or "" for line in audit]
        (trace,) = {match[1] for detail in details if (match := re.fullmatch(r"trace (mvm-telegram:\S+)", detail))}
        router = await someone.mvm("instance", "logs", someone.address(gateway), "--service", "router", "-n", "2000")
        for step in ("a message for", "asking for", "is connected", "is sent"):
            assert any(trace in line and step in line for line in router.splitlines()), step
        assert trace in someone.agent_log()
        guest = await someone.mvm("instance", "logs", someone.address(worker), "--service", "openclaw", "-n", "2000")
        assert f"trace {trace}: the turn begins" in guest
        events = (await someone.ask("events", "--tenant", TENANT))["events"]
        (sent,) = [event for event in events if event["kind"] == "AnswerSent"]
        assert (sent["user_id"], sent["instance_id"]) == ("alice", worker["instance_id"])
        used = (await someone.ask("usage", TENANT))["usage"]
        (alice,) = [row for row in used if row["user_id"] == "alice"]
        assert alice["wakes"] == 1
        assert alice["running_seconds"] > 1
        explained = (await someone.ask("explain", someone.address(worker)))["instance"]
        assert explained["state"] == "running"
        assert any(line.get("detail") == f"trace {trace}" for line in explained["last_transitions"])
        assert (await someone.ask("events", "--verify"))["audits"][0]["intact"]


async def test_a_tenant_that_was_saved_destroyed_and_made_again_answers_and_remembers(tmp_path: Path) -> None:
    passphrase, backup = tmp_path / "passphrase", tmp_path / "backup"
    passphrase.write_text("correct horse battery\n")
    async with standin_operator() as someone:
        await someone.new(TENANT, {"alice": ALICE})
        assert await someone.say(ALICE, "the cat is called Minka") == ["You said: the cat is called Minka"]
        await someone.mvm("tenant", "export", TENANT, str(backup), "--passphrase-file", str(passphrase))
        assert await someone.say(ALICE, "after the export") == ["You said: after the export"]
        await someone.mvm("tenant", "destroy", TENANT, "--force")
        await someone.mvm("tenant", "import", str(backup), "--passphrase-file", str(passphrase))
        assert await someone.say(ALICE, "after the import") == ["You said: after the import"]
        worker = await someone.worker(TENANT, "alice")
        data = someone.directory / "state/instances" / worker["instance_id"]
        said = "".join(path.read_text() for path in data.rglob("*.jsonl"))
        assert "Minka" in said
        assert "after the import" in said
        assert "after the export" not in said
