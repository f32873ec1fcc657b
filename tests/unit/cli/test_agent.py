"""`mvm agent reconcile` and `mvm agent desired`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.cli.conftest import ScriptedAgent, Type

STATE = {"schema_version": 1, "node_id": "local", "tenants": []}
REPORT = {"changed": False, "dry_run": False, "actions": [], "deferred": [], "left_alone": [], "errors": []}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "desired.json"
    path.write_text(json.dumps(STATE))
    return path


def test_the_state_is_sent_as_it_is_written(agent: ScriptedAgent, mvm: Type, file: Path) -> None:
    agent.answers["Reconcile"] = REPORT
    typed = mvm("agent", "reconcile", "--desired", str(file), "--dry-run")
    assert (typed.status, agent.asked("Reconcile")) == (0, {"desired": STATE, "dry_run": True})
    assert typed.out == "this host is as it should be: nothing was changed\n"
    assert mvm("agent", "reconcile", "--desired", str(file), "--json").document == REPORT


def test_what_failed_decides_the_exit_status(agent: ScriptedAgent, mvm: Type, file: Path) -> None:
    failure = {"object": "erin/gateways", "code": 503, "message": "it did not start", "hint": "look at the log"}
    agent.answers["Reconcile"] = {**REPORT, "errors": [failure, {**failure, "object": "erin/workers"}]}
    typed = mvm("agent", "reconcile", "--desired", str(file))
    assert typed.status == 1
    assert typed.error == ("erin/gateways: it did not start (and 1 more)", "look at the log")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{\n "schema_version": 1,\n}', "desired.json:3: is not valid JSON"),
        ("[]", "expected an object"),
        ("[" * 100_000, "is not valid JSON"),
        ("\xff", "is not valid JSON"),
    ],
)
def test_what_is_no_state_is_refused_before_the_agent_is_asked(
    agent: ScriptedAgent, mvm: Type, file: Path, text: str, said: str
) -> None:
    file.write_text(text, encoding="latin-1")
    typed = mvm("agent", "reconcile", "--desired", str(file))
    assert typed.status == 2
    assert said in typed.err
    assert agent.requests == []


def test_the_state_that_is_kept_is_shown_as_reconcile_takes_it(agent: ScriptedAgent, mvm: Type) -> None:
    counts = {"running": 1, "warm": 0, "sleeping": 2}
    pool = {"pool_id": "gateways", "role": "gateway", "desired_counts": counts}
    state = {**STATE, "tenants": [{"tenant_id": "erin", "pools": [pool]}]}
    agent.answers["DesiredState"] = {"desired": state}
    assert mvm("agent", "desired").document == state
    table = mvm("agent", "desired", "-o", "table").out.splitlines()
    assert table[1].split() == ["erin/gateways", "gateway", "1", "0", "2"]
