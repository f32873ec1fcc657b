"""`mvm deploy`: what the file says is what is asked of the agent, once or for as long as it watches."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli import samples
from tests.unit.cli.conftest import ScriptedAgent, Type

from mvm.cli import deploy_watch
from mvm.cli.deploy_watch import Watch
from mvm.model.errors import InvalidInput, Unavailable

EXAMPLE = """\
[tenant]
id = "alice"              # net_id and subnet are allocated when absent

[[pools]]
id = "gateways"
role = "gateway"
profile = "minimal"
flake = "github:openclaw/nix-openclaw"
vcpus = 2
mem_mib = 1024

[[pools]]
id = "workers"
role = "capability-openclaw"
profile = "minimal"
flake = "github:openclaw/nix-openclaw"
vcpus = 2
mem_mib = 2048
desired_running = 1       # also desired_warm, desired_sleeping, data_disk_mib, runtime_policy, ...

[secrets]
anthropic_key = { file = "./secrets/anthropic.key" }
telegram_token = { file = "./secrets/telegram.token" }
"""
"""The example of CONTRACT 6, unchanged."""
SECRETS = {"anthropic.key": "sk-ant-1", "telegram.token": "123456789:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}
DID = {"action": "create tenant", "object": "alice", "reason": "it does not exist"}


def report(**more: Any) -> dict[str, Any]:
    return {"tenant_id": "alice", "changed": True, "dry_run": False, "actions": [DID], "errors": [], **more}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "deployment"
    (folder / "secrets").mkdir(parents=True)
    for name, value in SECRETS.items():
        (folder / "secrets" / name).write_text(value + "\n")
        (folder / "secrets" / name).chmod(0o600)
    (folder / "deployment.toml").write_text(EXAMPLE)
    return folder / "deployment.toml"


@pytest.fixture
def ready(agent: ScriptedAgent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScriptedAgent:
    monkeypatch.setenv("MVM_OPENCLAW_DIR", str(tmp_path))
    agent.answers["NodeInfo"] = {"isolated": True, "runtime": "firecracker", "runtime_reason": "KVM works"}
    agent.answers["ApplyDeployment"] = lambda params: report(dry_run=params["dry_run"], changed=not params["dry_run"])
    agent.answers["DeploymentReady"] = {"tenant_id": "alice", "instances": [samples.instance()]}
    return agent


def test_the_example_of_the_contract_works_unchanged(ready: ScriptedAgent, mvm: Type, manifest: Path) -> None:
    typed = mvm("deploy", str(manifest), "--no-check")
    assert typed.status == 0, typed.err
    asked = ready.asked("ApplyDeployment")
    assert [pool["desired"]["running"] for pool in asked["deployment"]["pools"]] == [1, 1]
    assert [user["user_id"] for user in asked["deployment"]["users"]] == ["alice"]
    assert asked["secrets"] == {
        "anthropic/ANTHROPIC_API_KEY": SECRETS["anthropic.key"],
        "telegram/TELEGRAM_BOT_TOKEN": SECRETS["telegram.token"],
    }
    assert (asked["whole"], asked["prune"], asked["dry_run"]) == (False, False, False)
    assert "create tenant" in typed.out
    assert "mvm connect alice" in typed.out


def test_programs_get_one_document(ready: ScriptedAgent, mvm: Type, manifest: Path) -> None:
    typed = mvm("deploy", str(manifest), "--no-check", "--json")
    assert typed.document["actions"] == [DID]
    assert typed.document["instances"] == [samples.instance()]
    assert SECRETS["anthropic.key"] not in typed.out + typed.err


def test_a_dry_run_only_asks(ready: ScriptedAgent, mvm: Type, manifest: Path) -> None:
    typed = mvm("deploy", str(manifest), "--no-check", "--dry-run")
    assert ready.asked("ApplyDeployment")["dry_run"] is True
    assert "DeploymentReady" not in [name for name, _ in ready.requests]
    assert typed.out.startswith("WOULD")


def test_leave_to_prune_is_passed_on(ready: ScriptedAgent, mvm: Type, manifest: Path) -> None:
    mvm("deploy", str(manifest), "--no-check", "--prune")
    assert ready.asked("ApplyDeployment")["prune"] is True


def test_what_is_put_off_and_left_alone_is_shown(ready: ScriptedAgent, mvm: Type, manifest: Path) -> None:
    ready.answers["ApplyDeployment"] = report(
        deferred=[{"object": "alice/workers/i-1", "reason": "it is busy"}],
        left_alone=[{"object": "alice/old", "reason": "nobody asks for this pool"}],
    )
    typed = mvm("deploy", str(manifest), "--no-check")
    assert typed.status == 0
    assert "it is busy" in typed.out
    assert "nobody asks for this pool" in typed.out


def test_what_failed_is_shown_and_decides_the_exit_status(ready: ScriptedAgent, mvm: Type, manifest: Path) -> None:
    failure = {"object": "alice/workers", "code": 429, "message": "quota max_pools is full", "hint": "raise it"}
    ready.answers["ApplyDeployment"] = report(errors=[failure])
    typed = mvm("deploy", str(manifest), "--no-check")
    assert typed.status == 4
    assert typed.error == ("alice/workers: quota max_pools is full", "raise it")
    assert "quota max_pools" in typed.out
    assert "DeploymentReady" not in [name for name, _ in ready.requests]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("mem_mib = 1024", "mem_mb = 1024", "deployment.toml:10: pools[0].mem_mb: unknown key"),
        ("./secrets/anthropic.key", "./secrets", "is a directory"),
        ("vcpus = 2", "vcpus = 0", "vcpus: is too small"),
        ('role = "gateway"', 'role = "gatway"', "role 'gatway' is unknown"),
    ],
)
def test_what_is_wrong_with_the_file_is_found_before_the_agent_is_asked(
    ready: ScriptedAgent, mvm: Type, manifest: Path, before: str, after: str, said: str
) -> None:
    manifest.write_text(EXAMPLE.replace(before, after, 1))
    typed = mvm("deploy", str(manifest), "--no-check")
    assert typed.status == 2
    assert said in typed.err
    assert ready.requests == []


@pytest.mark.parametrize("flags", [("--interval", "5"), ("--watch", "--dry-run"), ("--watch", "--interval", "0")])
def test_flags_that_make_no_sense_together_are_a_usage_error(
    ready: ScriptedAgent, mvm: Type, manifest: Path, flags: tuple[str, ...]
) -> None:
    assert mvm("deploy", str(manifest), *flags).status == 2
    assert ready.requests == []


def test_a_missing_file_is_named(ready: ScriptedAgent, mvm: Type, tmp_path: Path) -> None:
    assert "absent.toml: there is no such file" in mvm("deploy", str(tmp_path / "absent.toml")).err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_watch_ends_cleanly_at_a_signal(
    ready: ScriptedAgent, mvm: Type, manifest: Path, number: signal.Signals
) -> None:
    def answer(params: dict[str, Any]) -> dict[str, Any]:
        os.kill(os.getpid(), number)
        return report()

    ready.answers["ApplyDeployment"] = answer
    assert mvm("deploy", str(manifest), "--no-check", "--watch", "--json").status == 0


class Passes:
    """Stands for what applies the files: notes each pass, and answers (or fails) as told."""

    def __init__(self, *files: Path) -> None:
        self._files = list(files)
        self.outcomes: list[Exception] = []
        self.begun: asyncio.Queue[list[str]] = asyncio.Queue()

    def files(self) -> list[Path]:
        return self._files

    async def apply(self, on_progress: object) -> dict[str, Any]:
        self.begun.put_nowait([path.read_text() for path in self._files if path.exists()])
        if self.outcomes:
            raise self.outcomes.pop(0)
        return {"deployment": "alice", **report(changed=False, actions=[])}

    async def next(self) -> list[str]:
        """What the files held at the next pass."""
        return await asyncio.wait_for(self.begun.get(), 20)


async def ended(watch: asyncio.Task[None]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(watch, 10)


async def test_a_change_of_any_file_brings_a_pass_at_once(tmp_path: Path) -> None:
    manifest, secret = tmp_path / "deployment.toml", tmp_path / "secrets/key"
    secret.parent.mkdir()
    manifest.write_text("one")
    secret.write_text("a")
    passes = Passes(manifest, secret)
    watch = asyncio.create_task(Watch(passes, interval=3600, as_lines=True).run())
    assert await passes.next() == ["one", "a"]
    manifest.write_text("two")
    assert await passes.next() == ["two", "a"]
    (secret.parent / "new").write_text("b")
    (secret.parent / "new").replace(secret)  # as editors and secret stores do
    assert await passes.next() == ["two", "b"]
    (secret.parent / "unrelated").write_text("x")
    secret.unlink()
    assert await passes.next() == ["two"]
    await ended(watch)
    assert passes.begun.empty()


async def test_a_pass_comes_at_every_interval(tmp_path: Path) -> None:
    passes = Passes(tmp_path / "deployment.toml")
    watch = asyncio.create_task(Watch(passes, interval=0.01, as_lines=True).run())
    for _ in range(3):
        await passes.next()
    await ended(watch)


async def test_a_change_during_a_pass_is_not_missed(tmp_path: Path) -> None:
    manifest = tmp_path / "deployment.toml"
    manifest.write_text("one")

    class Slow(Passes):
        async def apply(self, on_progress: object) -> dict[str, Any]:
            answer = await super().apply(on_progress)
            if manifest.read_text() == "one":
                manifest.write_text("two")
            return answer

    passes = Slow(manifest)
    watch = asyncio.create_task(Watch(passes, interval=3600, as_lines=True).run())
    assert [await passes.next(), await passes.next()] == [["one"], ["two"]]
    await ended(watch)


async def test_every_error_is_told_and_survived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passes = Passes(tmp_path / "deployment.toml")
    passes.outcomes = [InvalidInput("line 3 is wrong", hint="put it right"), Unavailable("no agent"), ValueError("bug")]
    watch = asyncio.create_task(Watch(passes, interval=0.01, as_lines=True).run())
    for _ in range(5):
        await passes.next()
    await ended(watch)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {"error": {"code": 400, "message": "line 3 is wrong", "hint": "put it right"}}
    assert [line["error"]["code"] for line in lines[1:3]] == [503, 500]
    assert lines[3]["deployment"] == "alice"


async def test_a_watch_whose_reader_has_gone_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(_document: dict[str, Any]) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(deploy_watch, "_line", line)
    with pytest.raises(BrokenPipeError):
        await asyncio.wait_for(Watch(Passes(tmp_path / "x.toml"), interval=0.01, as_lines=True).run(), 10)


async def test_people_are_told_the_same_only_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passes = Passes(tmp_path / "deployment.toml")
    passes.outcomes = [InvalidInput("line 3 is wrong")] * 3
    watch = asyncio.create_task(Watch(passes, interval=0.01, as_lines=False).run())
    for _ in range(6):
        await passes.next()
    await ended(watch)
    captured = capsys.readouterr()
    assert captured.err.count("line 3 is wrong") == 1
    assert captured.out.count("nothing was changed") == 1


async def test_without_a_watch_to_be_had_looking_has_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> Any:
        raise OSError("inotify watch limit reached")

    monkeypatch.setattr("watchfiles.awatch", none)
    monkeypatch.setattr(deploy_watch, "LOOK_SECONDS", 0.01)
    manifest = tmp_path / "deployment.toml"
    passes = Passes(manifest)
    watch = asyncio.create_task(Watch(passes, interval=3600, as_lines=True).run())
    assert await passes.next() == []
    manifest.write_text("one")
    assert await passes.next() == ["one"]
    await ended(watch)
