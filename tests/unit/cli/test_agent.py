"""`mvm agent`: status and stop where none runs, reconcile and desired."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
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


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Directories in which no agent runs; returns where its socket would be."""
    monkeypatch.setenv("MVM_STATE_DIR", str(tmp_path / "state"))
    with tempfile.TemporaryDirectory(prefix="mvm-") as run_dir:  # short, for the socket's sake
        monkeypatch.setenv("MVM_RUN_DIR", run_dir)
        yield Path(run_dir) / "agent.sock"


def test_the_status_of_no_agent_is_that_none_runs_and_starts_none(
    nobody: Path, mvm: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MVM_NO_AUTOSTART", raising=False)
    typed = mvm("agent", "status")
    hint = "the next command starts one; instances live on without it"
    assert (typed.status, typed.error) == (1, (f"no agent runs: there is no socket '{nobody}'", hint))
    monkeypatch.setenv("MVM_NO_AUTOSTART", "1")
    assert mvm("agent", "status").error[1] == "`mvm agent serve` starts one; instances live on without it"
    assert not nobody.exists()


def test_an_agent_that_does_not_run_is_as_good_as_ended(nobody: Path, mvm: Type) -> None:
    typed = mvm("agent", "stop")
    assert (typed.status, typed.err) == (0, "")
    assert typed.out == f"no agent runs: there is no socket '{nobody}'; there is nothing to end\n"
    assert mvm("agent", "stop", "--json").document == {}


def test_a_socket_that_an_agent_left_behind_is_no_agent_either(nobody: Path, mvm: Type) -> None:
    nobody.write_text("")
    typed = mvm("agent", "stop")
    assert (typed.status, typed.out) == (
        0,
        f"no agent runs: nobody listens on '{nobody}'; there is nothing to end\n",
    )


def test_an_agent_that_fails_to_end_is_not_taken_for_none(agent: ScriptedAgent, mvm: Type) -> None:
    agent.refuse("Shutdown", 503, "not now", "wait")
    assert (mvm("agent", "stop").status, mvm("agent", "stop").error) == (1, ("not now", "wait"))
