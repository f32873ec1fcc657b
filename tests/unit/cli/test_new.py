"""`mvm new`: all is checked before anything is created, and what is asked for is what the file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli import samples
from tests.unit.cli.conftest import ScriptedAgent, Type

from mvm.cli.manifests import require_runtime
from mvm.model.errors import Conflict, Unavailable

ACTIONS = [{"action": "create tenant", "object": "alice", "reason": "it does not exist"}]
TELEGRAM = "123456789:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a deploy.toml and the secrets it names."""
    (tmp_path / "telegram.token").write_text(TELEGRAM + "\n")
    (tmp_path / "telegram.token").chmod(0o600)
    (tmp_path / "deploy.toml").write_text(
        '[secrets]\ntelegram_token = { file = "telegram.token" }\nanthropic_key = { env = "MY_KEY" }\n'
    )
    return tmp_path


@pytest.fixture
def ready(agent: ScriptedAgent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScriptedAgent:
    monkeypatch.setenv("MY_KEY", "sk-ant-1")
    monkeypatch.setenv("MVM_OPENCLAW_DIR", str(tmp_path))
    agent.answers["NodeInfo"] = {"isolated": True, "runtime": "firecracker", "runtime_reason": "KVM works"}
    agent.answers["ApplyDeployment"] = lambda params: {
        "tenant_id": "alice",
        "changed": not params["dry_run"],
        "dry_run": params["dry_run"],
        "actions": ACTIONS,
    }
    agent.refuse("TenantInfo", 404, "there is no tenant 'alice'", "`mvm tenant list` shows them")
    agent.answers["DeploymentReady"] = {"tenant_id": "alice", "instances": [samples.instance()]}
    return agent


def names(agent: ScriptedAgent) -> list[str]:
    return [name for name, _ in agent.requests]


def test_the_agent_gets_the_deployment_and_the_values_of_its_secrets(
    ready: ScriptedAgent, mvm: Type, folder: Path
) -> None:
    typed = mvm("new", "openclaw", "alice", "--no-check", "--config", str(folder / "deploy.toml"))
    assert typed.status == 0
    asked = ready.asked("ApplyDeployment")
    assert asked["deployment"]["name"] == "alice"
    assert [pool["pool_id"] for pool in asked["deployment"]["pools"]] == ["gateways", "workers"]
    assert asked["secrets"] == {"telegram/TELEGRAM_BOT_TOKEN": TELEGRAM, "anthropic/ANTHROPIC_API_KEY": "sk-ant-1"}
    assert names(ready).index("ApplyDeployment") < names(ready).index("DeploymentReady")
    assert "create tenant" in typed.out
    assert "mvm connect alice" in typed.out


def test_programs_get_one_document_without_any_secret(ready: ScriptedAgent, mvm: Type, folder: Path) -> None:
    typed = mvm("new", "openclaw", "alice", "--no-check", "-c", str(folder / "deploy.toml"), "--json")
    assert typed.document["actions"] == ACTIONS
    assert typed.document["instances"] == [samples.instance()]
    assert "sk-ant-1" not in typed.out + typed.err
    assert TELEGRAM not in typed.out + typed.err


def test_a_runtime_that_isolates_nothing_is_said_aloud(ready: ScriptedAgent, mvm: Type, folder: Path) -> None:
    ready.answers["NodeInfo"] = {"isolated": False, "runtime": "process", "runtime_reason": "NOT isolated; use KVM"}
    typed = mvm("new", "openclaw", "alice", "--no-check", "-c", str(folder / "deploy.toml"))
    assert "note: runtime process: NOT isolated; use KVM" in typed.err


def test_a_long_reason_is_told_in_lines_that_a_terminal_shows_whole(
    ready: ScriptedAgent, mvm: Type, folder: Path
) -> None:
    reason = "; ".join(f"not runtime{number}: it is not installed and nobody wanted it" for number in range(4))
    ready.answers["NodeInfo"] = {"isolated": False, "runtime": "process", "runtime_reason": reason}
    typed = mvm("new", "openclaw", "alice", "--no-check", "-c", str(folder / "deploy.toml"), "--dry-run")
    lines = typed.err.splitlines()
    (begin,) = (number for number, line in enumerate(lines) if line.startswith("note: runtime process: not runtime0"))
    told = [lines[begin], *(line for line in lines[begin + 1 :] if line.startswith("      "))]
    assert " ".join(line.strip() for line in told) == f"note: runtime process: {reason}"
    assert all(len(line) <= 120 for line in told)


def test_a_limit_that_the_runtime_does_not_enforce_is_said(ready: ScriptedAgent, mvm: Type, folder: Path) -> None:
    with (folder / "deploy.toml").open("a") as file:
        file.write("\n[overrides.workers]\nnetwork_mib_per_second = 5\ndisk_mib_per_second = 50\n")
    ready.answers["NodeInfo"] = {"isolated": True, "limits": ["disk"], "runtime": "qemu", "runtime_reason": "KVM"}
    typed = mvm("new", "openclaw", "alice", "--no-check", "-c", str(folder / "deploy.toml"))
    assert "note: `network_mib_per_second` of pool 'workers' is not enforced" in typed.err
    assert "disk_mib_per_second" not in typed.err


def test_a_dry_run_changes_nothing(ready: ScriptedAgent, mvm: Type, folder: Path) -> None:
    typed = mvm("new", "openclaw", "alice", "--no-check", "-c", str(folder / "deploy.toml"), "--dry-run")
    assert ready.asked("ApplyDeployment")["dry_run"] is True
    assert "DeploymentReady" not in names(ready)
    assert typed.out.startswith("WOULD")


def test_without_a_file_it_is_said_what_is_missing(ready: ScriptedAgent, mvm: Type) -> None:
    typed = mvm("new", "openclaw", "alice", "--no-check")
    assert typed.status == 0
    assert typed.err.count("note: ") == 2


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ('[secrts]\nx = { file = "y" }\n', 2, "deploy.toml:1"),
        ('[secrets]\nanthropic_key = { file = "absent" }\n', 2, "absent"),
        ('[secrets]\nanthropic_key = { env = "NOT_SET" }\n', 2, "NOT_SET"),
        ("[overrides.workers]\nmem_mib = 0\n", 2, "mem_mib"),
    ],
)
def test_what_is_wrong_with_the_file_is_found_before_the_agent_is_asked(
    ready: ScriptedAgent, mvm: Type, folder: Path, text: str, status: int, said: str
) -> None:
    (folder / "deploy.toml").write_text(text)
    typed = mvm("new", "openclaw", "alice", "--no-check", "--config", str(folder / "deploy.toml"))
    assert typed.status == status
    assert said in typed.err
    assert ready.requests == []


def test_an_unknown_template_and_a_bad_name_are_refused(ready: ScriptedAgent, mvm: Type) -> None:
    assert "openclaw" in mvm("new", "opnclaw", "alice").error[1]
    assert mvm("new", "openclaw", "Alice", "--no-check").status == 2
    assert ready.requests == []


def test_a_failure_of_the_agent_is_the_command_s(ready: ScriptedAgent, mvm: Type) -> None:
    ready.refuse("ApplyDeployment", 429, "quota max_running is full", "stop one")
    typed = mvm("new", "openclaw", "alice", "--no-check", "--json")
    assert (typed.status, typed.out) == (4, "")
    assert typed.error == ("quota max_running is full", "stop one")


def test_no_deployment_is_begun_when_openclaw_cannot_be_installed(
    ready: ScriptedAgent, mvm: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise Unavailable("npm could not install OpenClaw", hint="check the network")

    monkeypatch.delenv("MVM_OPENCLAW_DIR")
    monkeypatch.setattr("mvm.openclaw.install.install_async", fail)
    typed = mvm("new", "openclaw", "alice", "--no-check")
    assert typed.error == ("npm could not install OpenClaw", "check the network")
    assert ready.requests == []


@pytest.mark.parametrize("wanted", [None, "auto", "qemu"])
def test_the_runtime_of_the_agent_that_runs_is_fine_when_it_is_the_wanted_one(wanted: str | None) -> None:
    require_runtime({"runtime": "qemu"}, wanted)


def test_another_runtime_than_the_agent_s_is_refused_with_the_way_to_it() -> None:
    with pytest.raises(Conflict, match="uses the runtime process, not qemu") as refused:
        require_runtime({"runtime": "process"}, "qemu")
    assert "mvm agent stop" in (refused.value.hint or "")


def test_a_deployment_that_exists_is_not_made_to_forget_what_its_file_said(ready: ScriptedAgent, mvm: Type) -> None:
    ready.answers["TenantInfo"] = {"tenant": {"tenant_id": "alice"}}
    typed = mvm("new", "openclaw", "alice", "--no-check")
    assert typed.status != 0
    assert "no file says what it should be" in typed.err
    assert "--config" in typed.error[1]
    assert "ApplyDeployment" not in names(ready)


def test_production_is_not_asked_of_an_agent_that_is_not_in_it(
    ready: ScriptedAgent, mvm: Type, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MVM_PRODUCTION", "1")
    typed = mvm("new", "openclaw", "alice", "--no-check", "-c", str(folder / "deploy.toml"))
    assert typed.status != 0
    assert "not in production mode" in typed.error[0]
    assert "ApplyDeployment" not in names(ready)
    ready.answers["NodeInfo"] |= {"production": True}
    assert mvm("new", "openclaw", "alice", "--no-check", "-c", str(folder / "deploy.toml")).status == 0
