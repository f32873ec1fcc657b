"""Every command: what it asks of the agent, what it shows to people and to programs."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.cli import samples
from tests.unit.cli.conftest import ScriptedAgent, Type
from typer.main import get_command

from mvm.cli import session
from mvm.cli.main import HINTS
from mvm.cli.root import app
from mvm.image.base import Source
from mvm.model.entities import OpenClawSettings
from mvm.model.errors import ExitStatus, InvalidInput

WORKER = samples.WORKER


WAKE = {"tenant_id": "alice", "pool_id": "workers", "instance_id": "i-0a1b2c3d"}
POOL = {"tenant_id": "alice", "pool_id": "workers"}
T = {"tenant_id": "alice"}
KEY = "anthropic/ANTHROPIC_API_KEY"
REVISION = "0123456789abcdef0123456789abcdef"
I = {"address": WORKER}  # noqa: E741 - an instance


def answers() -> dict[str, Any]:
    """A plausible answer to every request."""
    tenant, pool, instance, user = samples.tenant(), samples.pool(), samples.instance(), samples.user()
    listed = {**pool, "desired": {"running": 2, "warm": 0, "sleeping": 1}, "states": {"running": 1, "stopped": 3}}
    return {
        "TenantCreate": {"tenant": tenant},
        "TenantList": {"tenants": [tenant]},
        "TenantInfo": {"tenant": tenant, "pools": [listed], "users": [user]},
        "TenantUpdate": {"tenant": tenant},
        "TenantDestroy": {},
        "SecretsSet": {"changed": ["x/Y"], "secrets_epoch": 2},
        "SecretsRotate": {"rotated": ["openclaw/OPENCLAW_AUTH_TOKEN"], "secrets_epoch": 3},
        "SecretsList": {"secrets": [KEY], "pools": {KEY: ["workers"]}, "secrets_epoch": 1},
        "PoolCreate": {"pool": pool},
        "PoolList": {"pools": [listed]},
        "PoolInfo": {"pool": pool, "instances": [instance]},
        "PoolScale": {"pool": pool},
        "PoolUpdate": {
            "pool": pool,
            "changed": True,
            "dry_run": False,
            "actions": [{"action": "update pool", "object": "alice/workers", "reason": "mem_mib changed"}],
            "deferred": [],
            "left_alone": [],
            "errors": [],
        },
        "PoolBuild": {"pool": {**pool, "revision": REVISION}, "built": False, "manifest": samples.manifest(REVISION)},
        "PoolRollback": {"pool": {**pool, "revision": REVISION}, "from": "0" * 32},
        "PoolGc": {
            "removed": False,
            "bytes": 3 * 2**20,
            "revisions": [{"revision": REVISION, "bytes": 2**20, "profile": "minimal", "openclaw": "1"}],
            "others": [{"path": "/state/bases/b", "bytes": 2 * 2**20}],
        },
        "PoolDestroy": {},
        "Shutdown": {},
        "DesiredState": {"desired": {"schema_version": 1, "node_id": "local", "tenants": []}},
        "NodeGc": {
            "removed": True,
            "bytes": 2**20,
            "revisions": [],
            "others": [],
            "drives": [{"path": "/state/orphans/i-deadbeef", "bytes": 2**20}],
        },
        "InstanceCreate": {"instance": instance},
        "InstanceList": {"instances": [instance]},
        "InstanceInfo": {"instance": instance},
        "InstanceStart": {"instance": instance},
        "InstanceStop": {"instance": instance},
        "InstanceWarm": {"instance": instance},
        "InstanceSleep": {"instance": instance},
        "InstanceDestroy": {},
        "WakeInstance": {"instance": instance},
        "InstanceLogs": {"logs": {"agent": ["one", "two"], "openclaw": ["three"]}},
        "InstanceStats": {"memory_bytes": 3 * 2**20, "pids": 4},
        "UserAdd": {"user": user, "added": True},
        "UserLink": {"user": user, "changed": True},
        "UserUnlink": {"user": {**user, "telegram": []}},
        "UserList": {"users": [user]},
        "UserRemove": {},
        "UserPair": {"user": user},
        "NodeInfo": {"node_id": "here", "runtimes": {"process": "usable"}},
        "NodeStats": {"memory_bytes": 2**30, "instances": {"running": 1, "sleeping": 2}},
        "NetVerify": {
            "passed": True,
            "asked": 1,
            "skipped": {"alice/workers/i-00000002": "it is sleeping"},
            "checks": [{"from": WORKER, "what": "x", "expected": "closed", "found": "closed", "passed": True}],
        },
        "AuditVerify": {"audits": [{**T, "intact": True, "lines": 7, "head": "f" * 64, "broken": None}]},
        "Connect": samples.connect(),
        "ConsoleLink": {"url": "http://127.0.0.1:9464/?token=t"},
        "Explain": {"tenant": samples.explained_tenant()},
    }


# What CONTRACT 17 lists.
CONTRACT = """
new, deploy, connect, events, explain, usage, doctor, demo,
tenant create, tenant list, tenant info, tenant update, tenant destroy, tenant secrets set, tenant secrets rotate,
pool create, pool list, pool info, pool build, pool scale, pool update, pool rollback, pool gc, pool destroy,
instance create, instance list, instance start, instance stop, instance warm, instance sleep, instance wake,
instance logs, instance stats, instance exec, instance destroy, agent serve, agent reconcile, agent desired,
agent certs init, agent certs rotate, agent certs status,
net verify, node info, node stats, node gc, user add, user list, user remove, user pair
"""
TESTED_BY_THEMSELVES = {
    *("new", "deploy", "demo", "doctor", "usage", "events", "agent serve", "agent reconcile", "agent desired"),
    *("manifest schema", "manifest check", "tenant export", "tenant import", "tenant secrets set", "instance exec"),
    "setup firecracker",
    *(f"agent certs {verb}" for verb in ("init", "rotate", "issue", "revoke", "status")),
}


def typable(command: Any = None, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that can be typed, with what its parser knows of it."""
    command = command or get_command(app)
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
    else:
        for name in inner:
            yield from typable(inner[name], f"{path} {name}".strip())


def leaves() -> Iterator[str]:
    """Every command that can be typed."""
    return (path for path, _ in typable())


def test_every_command_of_the_contract_exists_and_every_command_has_its_tests() -> None:
    every = set(leaves())
    assert {name.strip() for name in CONTRACT.replace("\n", " ").strip().split(",")} - every == set()
    typed = {leaf for leaf in every for line, *_ in COMMANDS if line == leaf or line.startswith(f"{leaf} ")}
    assert every - typed - TESTED_BY_THEMSELVES == set()


@pytest.fixture
def ready(agent: ScriptedAgent) -> ScriptedAgent:
    agent.answers.update(answers())
    return agent


# command line, request, parameters, what a person reads
COMMANDS: list[tuple[str, str, dict[str, Any], str]] = [
    ("tenant create alice --quota max_warm=2", "TenantCreate", {**T, "quotas": {"max_warm": 2}}, "alice created"),
    ("tenant create alice --net-id 7", "TenantCreate", {**T, "net_id": 7}, "alice created"),
    ("tenant list", "TenantList", {}, "10.240.1.0/24"),
    ("tenant info alice", "TenantInfo", T, "max_running"),
    ("tenant update alice --quota max_warm=1", "TenantUpdate", {**T, "quotas": {"max_warm": 1}}, "alice updated"),
    ("tenant update alice --accept bob", "TenantUpdate", {**T, "accepts": ["bob"]}, "alice updated"),
    ("tenant update alice --accept-none", "TenantUpdate", {**T, "accepts": []}, "alice updated"),
    ("tenant update alice --gateway hub", "TenantUpdate", {**T, "gateway_tenant": "hub"}, "alice updated"),
    ("tenant update alice --own-gateway", "TenantUpdate", {**T, "gateway_tenant": None}, "alice updated"),
    ("tenant destroy alice --force", "TenantDestroy", T, "tenant alice destroyed"),
    (
        "tenant secrets rotate alice --scope openclaw",
        "SecretsRotate",
        {**T, "scope": "openclaw"},
        "OPENCLAW_AUTH_TOKEN",
    ),
    ("tenant secrets list alice", "SecretsList", T, "ANTHROPIC_API_KEY  workers"),
    (
        "pool create alice/workers --role worker --vcpus 1 --mem-mib 512 --running 1",
        "PoolCreate",
        {
            "pool": {
                **POOL,
                "role": "worker",
                "profile": "minimal",
                "flake": "",
                "vcpus": 1,
                "mem_mib": 512,
                "data_disk_mib": 0,
                "desired": {"running": 1},
            }
        },
        "pool alice/workers created",
    ),
    ("pool list alice", "PoolList", T, "capability-openclaw"),
    ("pool info alice/workers", "PoolInfo", POOL, WORKER),
    ("pool scale alice/workers --running 2", "PoolScale", {**POOL, "running": 2}, "scaled"),
    (
        "pool update alice/workers --mem-mib 4096 --policy min_running_seconds=0 --no-pinned --egress none",
        "PoolUpdate",
        {
            **POOL,
            "settings": {
                "mem_mib": 4096,
                "runtime_policy": {"min_running_seconds": 0},
                "pinned": False,
                "egress": "none",
            },
            "dry_run": False,
        },
        "mem_mib changed",
    ),
    (
        "pool update alice/workers --egress internet --egress host:80 --dry-run",
        "PoolUpdate",
        {**POOL, "settings": {"egress": ["internet", "host:80"]}, "dry_run": True},
        "update pool",
    ),
    (
        "pool create alice/workers --role capability-openclaw --network-mib-per-second 8",
        "PoolCreate",
        {
            "pool": {
                **POOL,
                "role": "capability-openclaw",
                "profile": "minimal",
                "flake": "",
                "vcpus": 2,
                "mem_mib": 1024,
                "data_disk_mib": 0,
                "desired": {},
                "network_mib_per_second": 8,
            }
        },
        "pool alice/workers created",
    ),
    (
        "pool update alice/workers --disk-mib-per-second 80 --disk-ops-per-second 0 --network-mib-per-second 8",
        "PoolUpdate",
        {
            **POOL,
            "settings": {"disk_mib_per_second": 80, "disk_ops_per_second": 0, "network_mib_per_second": 8},
            "dry_run": False,
        },
        "update pool",
    ),
    ("pool build alice/workers", "PoolBuild", {**POOL, "force": False}, "0123456789ab, nothing has changed"),
    ("pool build alice/workers --force", "PoolBuild", {**POOL, "force": True}, "6.1.0-1-cloud-amd64"),
    ("pool rollback alice/workers", "PoolRollback", POOL, "back on image 0123456789ab (it had 000000000000)"),
    ("pool gc --dry-run", "PoolGc", {"dry_run": True}, "3 MiB would be freed"),
    ("pool destroy alice/workers --force", "PoolDestroy", POOL, "destroyed"),
    ("instance create alice/workers --user alice", "InstanceCreate", {**POOL, "user": "alice"}, f"{WORKER} created"),
    ("instance list alice/workers", "InstanceList", {**POOL, "limit": 500}, "10.240.1.4"),
    (f"instance info {WORKER}", "InstanceInfo", I, "9000.4"),
    (f"instance start {WORKER}", "InstanceStart", I, f"instance {WORKER} started"),
    (f"instance stop {WORKER} --force", "InstanceStop", {**I, "force": True}, f"instance {WORKER} stopped"),
    (f"instance warm {WORKER}", "InstanceWarm", I, f"instance {WORKER} is warm"),
    (f"instance sleep {WORKER}", "InstanceSleep", I, f"instance {WORKER} sleeping"),
    (f"instance wake {WORKER}", "WakeInstance", WAKE, f"instance {WORKER} is running"),
    (f"instance destroy {WORKER} --force", "InstanceDestroy", I, f"instance {WORKER} destroyed"),
    (f"instance logs {WORKER} -n 5", "InstanceLogs", {**I, "lines": 5}, "== openclaw ==\nthree"),
    (f"instance stats {WORKER}", "InstanceStats", I, "3 MiB"),
    (
        "user add alice carol --telegram 333",
        "UserAdd",
        {**T, "user_id": "carol", "telegram": ["333"]},
        "carol of alice",
    ),
    (
        "user link alice alice --telegram 111",
        "UserLink",
        {**T, "user_id": "alice", "telegram": ["111"]},
        "user alice of alice writes from telegram:111\n",
    ),
    (
        "user unlink alice alice --telegram 111 --discord 5",
        "UserUnlink",
        {**T, "user_id": "alice", "telegram": ["111"], "discord": ["5"]},
        "is not paired any more",
    ),
    ("user list alice", "UserList", T, "telegram:111"),
    ("user remove alice carol --force", "UserRemove", {**T, "user_id": "carol"}, "removed"),
    ("user pair alice k7qf3m", "UserPair", {**T, "code": "K7QF3M"}, "is paired"),
    ("net verify alice", "NetVerify", T, "1 of 1 checks passed"),
    ("node info", "NodeInfo", {}, "usable"),
    ("node stats", "NodeStats", {}, "1.0 GiB"),
    ("node gc --dry-run", "NodeGc", {"dry_run": True}, "/state/orphans/i-deadbeef"),
    ("node gc --force", "NodeGc", {"dry_run": False, "drives": True}, "1 MiB freed"),
    ("agent stop", "Shutdown", {}, "instances live on"),
    ("agent status", "NodeInfo", {}, "here"),
    ("events --verify --tenant alice", "AuditVerify", T, "ffffffffffffffff"),
    ("connect alice", "Connect", T, "mvm user pair alice CODE"),
    ("console", "ConsoleLink", {}, "http://127.0.0.1:9464/?token=t"),
    ("explain alice", "Explain", {"address": "alice"}, "alice/gateways/i-00000001 is running"),
]


@pytest.mark.parametrize(("line", "request_name", "params", "shown"), COMMANDS, ids=[c[0] for c in COMMANDS])
def test_a_command_asks_the_agent_and_shows_the_answer(
    ready: ScriptedAgent, mvm: Type, line: str, request_name: str, params: dict[str, Any], shown: str
) -> None:
    typed = mvm(*line.split())
    assert (typed.status, typed.err) == (0, "")
    assert ready.asked(request_name) == params
    assert shown in typed.out


@pytest.mark.parametrize(("line", "request_name"), [(c[0], c[1]) for c in COMMANDS], ids=[c[0] for c in COMMANDS])
def test_programs_get_one_document_and_nothing_else(
    ready: ScriptedAgent, mvm: Type, line: str, request_name: str
) -> None:
    wanted = answers()[request_name]
    for form in ("--json", "--output=json"):
        assert mvm(*line.split(), form).document == wanted
    assert yaml.safe_load(mvm(*line.split(), "-o", "yaml").out) == wanted


@pytest.mark.parametrize(("line", "request_name"), [(c[0], c[1]) for c in COMMANDS], ids=[c[0] for c in COMMANDS])
def test_an_error_is_two_lines_on_stderr(ready: ScriptedAgent, mvm: Type, line: str, request_name: str) -> None:
    ready.refuse(request_name, 404, "it is not there", "do that")
    typed = mvm(*line.split(), "--json")
    assert (typed.status, typed.out, typed.err) == (3, "", "error: it is not there\nhint: do that\n")


@pytest.mark.parametrize(
    ("code", "status"), [(400, 2), (403, 4), (404, 3), (409, 1), (429, 4), (500, 1), (503, 1), (504, 1)]
)
def test_the_exit_status_tells_the_kind_of_error(ready: ScriptedAgent, mvm: Type, code: int, status: int) -> None:
    ready.refuse("TenantList", code, "it is so")
    typed = mvm("tenant", "list")
    assert (typed.status, typed.error) == (status, ("it is so", HINTS[ExitStatus(status)]))


@pytest.mark.parametrize("line", [c[0] for c in COMMANDS])
def test_an_unknown_flag_is_a_usage_error(mvm: Type, line: str) -> None:
    typed = mvm(*line.split(), "--no-such-flag")
    assert typed.status == 2
    assert "--no-such-flag" in typed.error[0]
    assert "--help" in typed.error[1]


@pytest.mark.parametrize(
    "line",
    ["tenant destroy alice", "pool destroy alice/workers", f"instance destroy {WORKER}", "user remove alice bob"],
)
def test_what_destroys_asks_first(ready: ScriptedAgent, mvm: Type, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = mvm(*line.split())
    assert typed.status == 2
    assert typed.error[1] == "add --force"
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: "n\n", raising=False)
    assert mvm(*line.split()).status == 4
    assert not [name for name, _ in ready.requests if name.endswith(("Destroy", "Remove"))]
    monkeypatch.setattr("sys.stdin.readline", lambda: "y\n", raising=False)
    assert mvm(*line.split()).status == 0


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("tenant info Alice", "lowercase"),
        ("tenant info alice/workers", "write 'alice'"),
        ("pool info alice", "tenant/pool"),
        ("instance info alice/workers", "tenant/pool/instance"),
        ("instance info a/b/c/d", "tenant/pool/instance"),
        (f"instance list {WORKER}", f"mvm instance info {WORKER}"),
        ("pool scale alice/workers", "--running"),
        ("pool update alice/workers", "pool update --help"),
        ("pool update alice/workers --policy fast=very", "warm_after_idle_seconds=120"),
        ("tenant create alice --quota many", "max_running=4"),
        ("tenant create alice --quota max_running=" + "1" * 5000, "max_running=4"),
        ("tenant update alice --accept-none --accept bob", "leave --accept or --accept-none out"),
        ("tenant update alice --own-gateway --gateway hub", "leave --gateway or --own-gateway out"),
        ("tenant update alice", "tenant update --help"),
        ("user link alice bob", "--telegram"),
        ("user unlink alice bob", "--telegram"),
        ("explain alice/workers/nobody", "i-"),
        ("usage Alice", "lowercase"),
        ("usage --since yesterday", "7d"),
        ("usage --csv --json", "leave one"),
    ],
)
def test_a_wrong_argument_is_found_before_the_agent_is_asked(
    agent: ScriptedAgent, mvm: Type, line: str, hint: str
) -> None:
    typed = mvm(*line.split())
    assert typed.status == 2
    assert hint in typed.error[1]
    assert agent.requests == []


def test_what_was_so_already_is_told_as_unchanged(ready: ScriptedAgent, mvm: Type) -> None:
    ready.answers |= {"UserAdd": {"user": samples.user(), "added": False}}
    ready.answers |= {"UserLink": {"user": samples.user(), "changed": False}}
    assert "nothing was changed" in mvm("user", "add", "alice", "alice", "--telegram", "111").out
    assert "nothing was changed" in mvm("user", "link", "alice", "alice", "--telegram", "111").out


def test_a_list_of_pools_tells_what_there_is_from_what_is_desired(ready: ScriptedAgent, mvm: Type) -> None:
    head, row = mvm("pool", "list", "alice").out.splitlines()
    assert head.split()[-5:] == ["INSTANCES", "RUNNING", "WARM", "SLEEPING", "DESIRED"]
    assert " ".join(row.split()[-8:]) == "4 1 0 0 2 running, 1 sleeping"
    assert row in mvm("tenant", "info", "alice").out


def test_the_column_of_ip_addresses_is_not_called_like_the_addresses_that_are_typed(
    ready: ScriptedAgent, mvm: Type
) -> None:
    head, row = mvm("instance", "list").out.splitlines()
    assert row[head.index(" IP ") + 1 :].startswith("10.240.1.4")
    assert "ADDRESS" not in head


def test_drives_that_were_put_aside_are_not_destroyed_without_a_yes(ready: ScriptedAgent, mvm: Type) -> None:
    typed = mvm("node", "gc")
    assert (typed.status, typed.error[1]) == (2, "add --force")
    assert [params for name, params in ready.requests if name == "NodeGc"] == [{"dry_run": True}]
    nothing = {"removed": True, "bytes": 0, "revisions": [], "others": [], "drives": []}
    ready.answers["NodeGc"] = nothing
    assert mvm("node", "gc").out == "nothing to remove\n"
    assert ready.asked("NodeGc") == {"dry_run": False, "drives": False}


def test_secrets_are_read_from_files_and_variables(
    ready: ScriptedAgent, mvm: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.write_text("sk-1\n")
    key.chmod(0o600)
    monkeypatch.setenv("MY_TOKEN", "123:abc")
    monkeypatch.setenv("EMPTY", "")
    typed = mvm(
        *("tenant", "secrets", "set", "alice", "--file", f"anthropic_key={key}", "--env", "telegram_token=MY_TOKEN"),
        *("--file", f"x/Y={key}", "--prune", "--no-check"),
    )
    assert typed.out == "secrets of alice changed: x/Y\n"
    assert ready.asked("SecretsSet") == {
        "tenant_id": "alice",
        "secrets": {"anthropic/ANTHROPIC_API_KEY": "sk-1", "telegram/TELEGRAM_BOT_TOKEN": "123:abc", "x/Y": "sk-1"},
        "prune": True,
    }
    for wrong in ("anthropic_key=EMPTY", "nonsense=MY_TOKEN", "sk-very-secret"):
        typed = mvm("tenant", "secrets", "set", "alice", "--env", wrong)
        assert typed.status == 2
        assert "sk-very-secret" not in typed.err
    assert mvm("tenant", "secrets", "set", "alice").status == 2


@pytest.mark.parametrize(("held", "base"), [([], "http://127.0.0.1:9"), ([KEY], None)])
def test_keys_are_checked_as_for_a_new_deployment_before_they_are_set(
    ready: ScriptedAgent,
    mvm: Type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    held: list[str],
    base: str | None,
) -> None:
    asked: list[tuple[str | None, dict[str, str]]] = []

    async def check(settings: OpenClawSettings, values: dict[str, str]) -> list[str]:
        asked.append((settings.provider_base_url, values))
        if values["openai/OPENAI_API_KEY"] == "wrong":
            raise InvalidInput("OpenAI does not know the key openai/OPENAI_API_KEY (HTTP 401)", hint="look again")
        return ["OpenAI cannot be reached"]

    monkeypatch.setattr("mvm.openclaw.checks.check_keys", check)
    settings = {"provider_base_url": "http://127.0.0.1:9"}
    ready.answers["TenantInfo"] = {"tenant": {**samples.tenant(), "openclaw": settings}, "pools": [], "users": []}
    ready.answers["SecretsList"] = {"secrets": held}
    key = tmp_path / "key"
    key.write_text("right\n")
    key.chmod(0o644)
    typed = mvm("tenant", "secrets", "set", "alice", "--file", f"openai_key={key}", "--json")
    assert typed.status == 0
    assert typed.err == (
        f"note: {key} can be read by others on this machine: chmod 600 {key}\nnote: OpenAI cannot be reached\n"
    )
    assert asked == [(base, {"openai/OPENAI_API_KEY": "right"})]
    key.write_text("wrong\n")
    ready.requests.clear()
    assert mvm("tenant", "secrets", "set", "alice", "--file", f"openai_key={key}").status == 2
    assert "SecretsSet" not in [name for name, _ in ready.requests]


def test_an_image_of_a_flake_is_shown_with_what_it_was_built_from(ready: ScriptedAgent, mvm: Type) -> None:
    locked = {"url": "github:a/b/0123", "application": "github:c/d/4567", "lock_hash": "0"}
    source = Source(flake="github:a/b", attribute="x", derivation="y", **locked)
    pool = {**samples.pool(), "revision": REVISION}
    manifest = samples.manifest(REVISION, source)
    ready.answers["PoolBuild"] = {"pool": pool, "built": True, "manifest": manifest}
    shown = mvm("pool", "build", "alice/workers").out
    assert [line.split() for line in shown.splitlines()[2:5]] == [
        ["builder", "nix"],
        ["flake", "github:a/b/0123"],
        ["application", "github:c/d/4567"],
    ]


def test_a_long_list_of_instances_is_fetched_in_pages(
    agent: ScriptedAgent, mvm: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvm.cli.instance.PAGE", 2)
    every = [samples.instance(number) for number in range(1, 6)]

    def page(params: dict[str, Any]) -> dict[str, Any]:
        later = [i for i in every if i["instance_id"] > params.get("after", "")]
        return {"instances": later[: params["limit"]]}

    agent.answers["InstanceList"] = page
    assert mvm("instance", "list", "--json").document == {"instances": every}


def test_exec_shows_the_output_and_ends_with_the_program_s_status(agent: ScriptedAgent, mvm: Type) -> None:
    agent.answers["InstanceExec"] = {
        "status": 3,
        "stdout": base64.b64encode(b"out\n\x1b[31mred").decode(),
        "stderr": base64.b64encode(b"err\n").decode(),
        "truncated": True,
    }
    typed = mvm("instance", "exec", WORKER, "--", "ls", "-l", "--all")
    assert agent.asked("InstanceExec") == {"address": WORKER, "argv": ["ls", "-l", "--all"], "timeout_secs": 30}
    assert typed.status == 3
    assert typed.out.startswith("out\n")
    assert "\x1b" not in typed.out
    assert typed.err.startswith("err\n")
    assert mvm("instance", "exec", WORKER, "--json", "--", "ls").document["status"] == 3


def event(number: int, **fields: str) -> dict[str, Any]:
    return {"number": number, "timestamp": "2026-11-22T18:00:00Z", "kind": "InstanceWoken", **fields}


def test_events_of_the_past_and_those_that_follow(agent: ScriptedAgent, mvm: Type) -> None:
    events = [event(1, tenant_id="alice", detail="a\x1bb\nc"), event(2, user_id="alice", actor="root")]
    agent.answers["Events"] = [*({"Event": each} for each in events), {"EventsResult": {}}]
    typed = mvm("events", "--tenant", "alice")
    assert agent.asked("Events") == {"tenant_id": "alice", "limit": 100, "follow": False}
    assert len(typed.out.splitlines()) == 2
    assert "\x1b" not in typed.out
    assert "by root" in typed.out
    assert mvm("events", "--json").document == {"events": events}
    followed = mvm("events", "--follow", "--json", "--since", "5").out.splitlines()
    assert len(followed) == 2
    assert agent.asked("Events") == {"since": 5, "limit": 100, "follow": True}


def test_a_broken_audit_is_a_failure_that_names_the_line(agent: ScriptedAgent, mvm: Type) -> None:
    broken = {"file": "/state/audit/alice.jsonl.1", "line": 12, "problem": "this is not a line of an audit"}
    audits = [{**T, "intact": False, "lines": 11, "head": "f" * 64, "broken": broken}]
    agent.answers["AuditVerify"] = {"audits": audits}
    typed = mvm("events", "--verify", "--json")
    assert (typed.status, typed.document) == (1, {"audits": audits})
    assert "/state/audit/alice.jsonl.1:12: this is not a line of an audit" in typed.error[0]
    assert "alice.jsonl.1:12" in mvm("events", "--verify").out


def test_progress_goes_to_stderr_and_each_step_is_said_once(agent: ScriptedAgent, mvm: Type) -> None:
    steps = [{"text": "starting"}, {"text": "starting"}, {"text": "packages", "done": 5, "total": 10}]
    agent.answers["InstanceStart"] = [*({"Progress": s} for s in steps), {"InstanceStartResult": {}}]
    typed = mvm("instance", "start", WORKER, "--json")
    assert typed.document == {}
    assert typed.err == "starting\npackages: 5 of 10\n"


def test_no_agent_is_an_error_that_says_how_to_start_one(
    mvm: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MVM_NO_AUTOSTART", "1")
    with tempfile.TemporaryDirectory(prefix="mvm-") as run_dir:
        typed = mvm("--run-dir", run_dir, "--state-dir", str(tmp_path / "s"), "tenant", "list")
    assert typed.status == 1
    assert "mvm agent serve" in typed.error[1]
    assert not (tmp_path / "s").exists()


def test_parameters_that_were_not_given_are_not_sent() -> None:
    assert session.given(a=1, b=None, c=[], d=False, e=0) == {"a": 1, "d": False, "e": 0}


EVIL = "name\x1b[2J\x9b31m\u202eevil"


def test_what_guests_say_does_not_act_on_the_terminal(agent: ScriptedAgent, mvm: Type) -> None:
    event = {"number": 1, "timestamp": "2026-11-22T12:00:00Z", "kind": "DeliveryFailed", "detail": EVIL}
    agent.answers["Events"] = [{"Event": event}, {"EventsResult": {"last_number": 1}}]
    agent.answers["InstanceSleep"] = [
        {"Progress": {"text": f"waiting: {EVIL}"}},
        {"Error": {"code": 403, "message": f"stays awake: {EVIL}", "hint": EVIL}},
    ]
    for arguments in (("events",), ("events", "--json"), ("instance", "sleep", "alice/workers/i-00000001")):
        typed = mvm(*arguments)
        assert "evil" in typed.out + typed.err
        assert not {"\x1b", "\x9b", "\u202e"} & set(typed.out + typed.err)
    assert mvm("events", "--json").document["events"][0]["detail"] == EVIL, "programs get every character"


def test_a_network_of_which_nothing_was_checked_is_not_called_good(agent: ScriptedAgent, mvm: Type) -> None:
    agent.answers["NetVerify"] = {"passed": False, "asked": 0, "skipped": {}, "checks": []}
    typed = mvm("net", "verify")
    assert typed.status == 1
    assert "nothing was checked" in typed.out
