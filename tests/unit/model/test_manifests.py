"""The two files that a person writes: what they say, and how wrong ones are refused."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.model.deployment import Deployment, advice
from mvm.model.entities import OPENCLAW_POLICY, DesiredCounts, PoolSpec, RuntimePolicy, UserSpec
from mvm.model.errors import InvalidInput
from mvm.model.manifest import load_deploy_toml, new_deployment, parse_deploy_toml, parse_deployment_toml
from mvm.model.manifest_tables import PoolSettings
from mvm.model.roles import Role
from mvm.model.template import Template
from mvm.model.validation import ValidationProblems, parse

CONTRACT_DEPLOY = """\
[secrets]
anthropic_key  = { file = "./secrets/anthropic.key" }
telegram_token = { file = "./secrets/telegram.token" }

[overrides]
flake = "github:openclaw/nix-openclaw"
[overrides.workers]
mem_mib = 4096
instances = 3
[overrides.gateways]
vcpus = 1
"""
CONTRACT_DEPLOYMENT = """\
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
GATEWAY = '[[pools]]\nid = "gateways"\nrole = "gateway"\n'
WORKERS = '[[pools]]\nid = "workers"\nrole = "capability-openclaw"\n'
TENANT = '[tenant]\nid = "alice"\n'


def pool(deployment: Deployment, pool_id: str) -> PoolSpec:
    found = deployment.pool(pool_id)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("github:openclaw/nix-openclaw", "github:openclaw/nix-openclaw"),
        ("debian:", "debian:"),
        ("path:/there", "path:/there"),
        ("git+file:///there?dir=nix", "git+file:///there?dir=nix"),
        ("path:./images", "path:{here}/images"),
        ("path:images", "path:{here}/images"),
        ("../images", "{above}/images"),
        ("~/images", "{home}/images"),
        (".", "{here}"),
    ],
)
def test_a_flake_that_is_a_directory_is_relative_to_the_file(
    written: str, meant: str, load_deploy, load_deployment, tmp_path: Path
) -> None:
    expected = meant.format(here=tmp_path, above=tmp_path.parent, home=Path.home())
    deployments = [
        load_deploy(f'[overrides]\nflake = "{written}"\n'),
        load_deployment(f'{TENANT}{GATEWAY}flake = "{written}"\n'),
    ]
    assert [pool(deployment, "gateways").flake for deployment in deployments] == [expected, expected]


def test_the_deploy_toml_of_the_contract_overrides_the_template(load_deploy, tmp_path: Path) -> None:
    deployment = load_deploy(CONTRACT_DEPLOY)
    gateways, workers = pool(deployment, "gateways"), pool(deployment, "workers")
    assert (deployment.name, deployment.template) == ("alice", "openclaw")
    assert {gateways.flake, workers.flake} == {"github:openclaw/nix-openclaw"}
    assert (gateways.vcpus, gateways.mem_mib, gateways.desired.running) == (1, 1024, 1)
    assert (workers.vcpus, workers.mem_mib, workers.data_disk_mib, workers.desired.running) == (2, 4096, 2048, 3)
    assert deployment.quotas.max_running == 16
    assert [(source.secret.path, source.file) for source in deployment.secrets] == [
        ("anthropic/ANTHROPIC_API_KEY", str(tmp_path / "secrets/anthropic.key")),
        ("telegram/TELEGRAM_BOT_TOKEN", str(tmp_path / "secrets/telegram.token")),
    ]


def test_the_deployment_toml_of_the_contract_is_read(load_deployment) -> None:
    deployment = load_deployment(CONTRACT_DEPLOYMENT)
    assert (deployment.name, deployment.template, deployment.net_id, deployment.subnet) == ("alice", None, None, None)
    assert [p.role for p in deployment.pools] == [Role.GATEWAY, Role.CAPABILITY_OPENCLAW]
    assert pool(deployment, "workers").mem_mib == 2048


@pytest.mark.parametrize("text", [CONTRACT_DEPLOY, ""])
def test_a_deployment_survives_its_way_to_the_agent(load_deploy, text: str) -> None:
    deployment = load_deploy(text)
    assert parse(Deployment, deployment.model_dump(mode="json"), what="deployment") == deployment


def test_without_a_file_the_template_alone_is_the_deployment(load_deploy, template: Template) -> None:
    assert new_deployment("alice", template=template) == load_deploy("")


def test_a_gateway_pool_that_does_not_say_how_many_has_one(load_deployment) -> None:
    assert pool(load_deployment(TENANT + GATEWAY), "gateways").desired == DesiredCounts(running=1)
    none = load_deployment(TENANT + GATEWAY + "desired_running = 0\n")
    assert pool(none, "gateways").desired == DesiredCounts()


def test_a_policy_that_is_given_in_part_keeps_the_rest_of_its_role(load_deployment, load_deploy) -> None:
    part = "runtime_policy = { warm_after_idle_seconds = 5 }\n"
    expected = OPENCLAW_POLICY.model_copy(update={"warm_after_idle_seconds": 5})
    assert pool(load_deployment(TENANT + GATEWAY + WORKERS + part), "workers").runtime_policy == expected
    assert pool(load_deploy("[overrides.workers]\n" + part), "workers").runtime_policy == expected
    assert pool(load_deployment(TENANT + GATEWAY), "gateways").runtime_policy == RuntimePolicy()


def test_everything_that_a_pool_may_say_is_taken(load_deployment) -> None:
    text = """
data_disk_mib = 10
desired_warm = 1
desired_sleeping = 2
seccomp_policy = "strict"
snapshot_compression = "zstd"
pinned = true
critical = true
egress = ["203.0.113.0/24:443", "host:8080"]
peer_traffic = true
disk_mib_per_second = 100
disk_ops_per_second = 2000
network_mib_per_second = 20
allow_exec = false
secret_scopes = { telegram = ["TELEGRAM_BOT_TOKEN"], mail = ["*"] }
integrations = [{ name = "mail", checkpoint_cmd = ["save", "x"], critical = true }]
routing_table = { routes = [{ name = "r", match_rule = { port = 80 }, target = { pool_id = "workers" } }] }
"""
    said = pool(load_deployment(TENANT + GATEWAY + WORKERS + text), "workers")
    assert (said.data_disk_mib, said.desired) == (10, DesiredCounts(warm=1, sleeping=2))
    assert (said.seccomp_policy, said.snapshot_compression) == ("strict", "zstd")
    assert (said.pinned, said.critical, said.peer_traffic, said.allow_exec) == (True, True, True, False)
    assert said.egress == ("203.0.113.0/24:443", "host:8080")
    assert (said.disk_mib_per_second, said.disk_ops_per_second, said.network_mib_per_second) == (100, 2000, 20)
    assert said.secret_scopes == {"telegram": ("TELEGRAM_BOT_TOKEN",), "mail": ("*",)}
    assert said.integrations[0].checkpoint_cmd == ("save", "x")
    assert said.routing_table is not None
    assert said.routing_table.routes[0].target.pool_id == "workers"


# Users and gateways


def test_without_users_there_is_one_called_like_the_deployment_and_not_paired(load_deploy) -> None:
    assert load_deploy("").users == (UserSpec(user_id="alice", pool_id="workers"),)


def test_users_are_who_the_file_says_in_the_only_pool_there_is_for_them(load_deploy) -> None:
    deployment = load_deploy('[[users]]\nid = "kim"\ntelegram = ["111"]\ndiscord = ["9"]\n[[users]]\nid = "lee"\n')
    assert deployment.users == (
        UserSpec(user_id="kim", pool_id="workers", telegram=("111",), discord=("9",)),
        UserSpec(user_id="lee", pool_id="workers"),
    )
    assert deployment.size_of(pool(deployment, "workers")) == 2


def test_a_deployment_may_be_served_by_the_gateway_of_another(load_deploy) -> None:
    deployment = load_deploy('[gateway]\ntenant = "hub"\n')
    assert deployment.gateway_tenant == "hub"
    assert [p.pool_id for p in deployment.pools] == ["workers"]


def test_a_hub_names_whom_it_accepts(load_deploy) -> None:
    assert load_deploy('[gateway]\naccepts = ["bob", "carol"]\n').accepts == ("bob", "carol")


def test_openclaw_settings_and_quotas_are_taken_by_both_files(load_deploy, load_deployment) -> None:
    shared = """
[openclaw]
model = "anthropic/claude-sonnet-4-5"
provider_base_url = "http://127.0.0.1:8080"
telegram_api_root = "https://example.org/bot"
gateway_url = "http://10.240.1.3:18790"
[quotas]
max_running = 3
"""
    for deployment in (load_deploy(shared), load_deployment(TENANT + GATEWAY + shared)):
        assert deployment.openclaw.model == "anthropic/claude-sonnet-4-5"
        assert deployment.openclaw.gateway_url == "http://10.240.1.3:18790"
        assert deployment.quotas.max_running == 3
    assert load_deploy(shared).quotas.max_vcpus == 32
    assert load_deployment(TENANT + GATEWAY + shared).quotas.max_vcpus == 16


def test_the_long_form_names_any_secret_and_env_any_variable(load_deploy) -> None:
    deployment = load_deploy('[secrets]\nmine = { env = "MY_KEY", scope = "mail", key = "PASSWORD" }\n')
    (source,) = deployment.secrets
    assert (source.secret.path, source.env, source.file) == ("mail/PASSWORD", "MY_KEY", None)


# What is wrong


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[overide]\nx = 1", "deploy.toml:1: overide: unknown key 'overide' (did you mean 'overrides'?)"),
        (
            "\n[overrides.workers]\n\nmem_mb = 1",
            "toml:4: overrides.workers.mem_mb: unknown key 'mem_mb' (did you mean 'mem_mib'?)",
        ),
        ("[overrides.worker]\n", "deploy.toml:1: overrides.worker: unknown key 'worker' (did you mean 'workers'?)"),
        ("[overrides]\nfleke = 'x'", "(did you mean 'flake'?)"),
        ("[overrides.workers]\nzzz = 1", "the keys are: allow_exec, critical"),
        (
            "[secrets]\ntelegram = { file = 'x' }",
            "toml:2: secrets.telegram: unknown secret (did you mean 'telegram_token'?",
        ),
        ("[secrets]\ntelegram_token = { fil = 'x' }", "unknown key 'fil' (did you mean 'file'?)"),
        ("[openclaw]\nmodels = 'a/b'", "deploy.toml:2: openclaw.models: unknown key 'models' (did you mean 'model'?)"),
        (
            "[[users]]\nid = 'a'\n[[users]]\nid = 'b'\ntelegrams = []",
            "toml:5: users[1].telegrams: unknown key 'telegrams' (did you mean 'telegram'?)",
        ),
        ("[gateway]\naccept = []", "(did you mean 'accepts'?)"),
        ("[overrides.workers.runtime_policy]\nmin_run = 1", "deploy.toml:2: overrides.workers.runtime_policy.min_run"),
    ],
)
def test_an_unknown_key_is_refused_with_file_line_key_and_the_nearest_valid_one(load_deploy, text, said) -> None:
    with pytest.raises(ValidationProblems) as refused:
        load_deploy(text)
    (problem,) = refused.value.problems
    assert said in str(problem)
    assert refused.value.exit_status == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[overrides.workers]\nvcpus = '2'",
            "deploy.toml:2: overrides.workers.vcpus: expected a whole number, not a string",
        ),
        ("[overrides.workers]\nvcpus = true", "expected a whole number, not true or false"),
        (
            "[overrides.workers]\nvcpus = 2.0",
            "deploy.toml:2: overrides.workers.vcpus: a number with a fraction is not expected",
        ),
        ("[overrides.workers]\nvcpus = 0", "too small: it must be at least 1"),
        ("[overrides.workers]\nmem_mib = 0", "too small"),
        ("[overrides.workers]\ninstances = 101", "too large: it may be at most 100"),
        ("[overrides.workers]\ninstances = 1\ndesired_running = 1", "both instances and desired_running"),
        ("[overrides.workers]\npinned = 1", "expected true or false, not a whole number"),
        ("[overrides]\nworkers = 3", "expected a table of keys and values, not a whole number"),
        (
            "[overrides.workers]\nflake = 1979-05-27",
            "deploy.toml:2: overrides.workers.flake: a date or time is not expected",
        ),
        ("[overrides.workers]\negress = ['host']", "does not name one port of the host"),
        ("[overrides.workers]\negress = 'some'", "is not an egress"),
        ("[overrides.workers]\nseccomp_policy = 'none'", "is none of: 'baseline' or 'strict'"),
        (
            "[[users]]\nid = 'a'\ntelegram = [111]",
            "deploy.toml:3: users[0].telegram[0]: expected a string, not a whole number",
        ),
        ("[[users]]\nid = 'a'\ntelegram = ['@kim']", "not a sender id"),
        ("[[users]]\nid = 'Kim'", "'K' is not allowed"),
        ("[[users]]\ntelegram = []", "users[0].id: is missing"),
        ("users = 1", "expected a list, not a whole number"),
        ("[openclaw]\nmodel = 'claude'", "not a model"),
        ("[openclaw]\nprovider_base_url = 'example.org'", "not an http or https URL"),
        ("[openclaw]\nprovider_base_url = 'https://u:hunter2@example.org'", "holds a user name or password"),
        ("[secrets]\ntelegram_token = { }", "names no source"),
        ("[secrets]\ntelegram_token = { file = 'x', env = 'X' }", "names two sources"),
        ("[secrets]\nmine = { file = 'x', scope = 'x' }", "has one of scope and key"),
        ("[secrets]\nmine = { file = 'x', scope = 'workers', key = 'X' }", "mvm's own"),
        ("[secrets]\nmine = { file = 'x', scope = 'x', key = '../X' }", "not valid"),
        ("[secrets]\ntelegram_token = 'hunter2'", "expected a table that says where the value is"),
        ("[secrets]\ntelegram_token = { env = '123:hunter2' }", "env is not the name of a variable"),
    ],
)
def test_a_wrong_value_is_refused_with_file_line_and_what_was_expected(load_deploy, text, said) -> None:
    with pytest.raises(ValidationProblems) as refused:
        load_deploy(text)
    (problem,) = refused.value.problems
    assert said in str(problem)
    assert re.search(r"deploy\.toml:[0-9]+", problem.path)
    assert "hunter2" not in str(refused.value) + repr(refused.value.__cause__) + str(refused.value.__context__)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GATEWAY, "deployment.toml:1: tenant: is missing"),
        (TENANT, "deployment.toml:1: pools: is missing"),
        ("[tenant]\nid = 'Alice'\n" + GATEWAY, "deployment.toml:2: tenant.id: tenant id 'Alice' is not valid"),
        ("[tenant]\nid = 'a'\nnet_id = 4095\n" + GATEWAY, "deployment.toml:3: tenant.net_id: is too large"),
        ("[tenant]\nid = 'a'\nsubnet = '10.0.0.0/8'\n" + GATEWAY, "deployment.toml:3: subnet '10.0.0.0/8' is a /8"),
        (
            TENANT + "[[pools]]\nid = 'p'\nrole = 'workers'",
            "deployment.toml:5: pools[0].role: role 'workers' is unknown",
        ),
        (TENANT + GATEWAY + GATEWAY, "deployment.toml:6: pool 'gateways' is there twice"),
        (TENANT + WORKERS, "nobody receives its users' messages"),
        (
            TENANT + GATEWAY + WORKERS + "[[users]]\nid = 'a'\n[[users]]\nid = 'a'",
            "deployment.toml:11: user 'a' is there twice",
        ),
        (
            TENANT + GATEWAY + WORKERS + "[[users]]\nid = 'a'\npool = 'gateways'",
            "no pool 'gateways' to have a worker in",
        ),
        (TENANT + GATEWAY + "[[users]]\nid = 'a'", "user 'a' has no pool to have a worker in"),
        (
            TENANT + GATEWAY + WORKERS + "[[users]]\nid = 'a'\ntelegram = ['1']\n[[users]]\nid = 'b'\ntelegram = ['1']",
            "deployment.toml:14: telegram:1 is an address of both 'a' and 'b'",
        ),
        (TENANT + GATEWAY + "[gateway]\ntenant = 'hub'", "is served by 'hub' and has a gateway pool of its own"),
        (TENANT + WORKERS + "[gateway]\ntenant = 'alice'", "cannot be served by itself"),
        (TENANT + WORKERS + "[gateway]\ntenant = 'hub'\naccepts = ['bob']", "accepts others but has no gateway pool"),
        (TENANT + GATEWAY + "[gateway]\naccepts = ['alice']", "its own tenant is among those that it accepts"),
        (
            TENANT + GATEWAY + "[secrets]\ntelegram_token = { env = 'A' }\n"
            "mine = { env = 'B', scope = 'telegram', key = 'TELEGRAM_BOT_TOKEN' }",
            "deployment.toml:8: telegram/TELEGRAM_BOT_TOKEN is given twice",
        ),
        (TENANT + GATEWAY + WORKERS + "desired_running = 17", "quota max_instances_per_pool would be exceeded"),
        (TENANT + GATEWAY + "data_disk_mib = 200000", "quota max_disk_gib would be exceeded"),
    ],
)
def test_a_deployment_that_contradicts_itself_is_refused_with_the_line(load_deployment, text, said) -> None:
    with pytest.raises(ValidationProblems) as refused:
        load_deployment(text)
    assert any(said in str(problem) for problem in refused.value.problems), refused.value.message


def test_a_number_of_thousands_of_digits_is_refused(load_deployment) -> None:
    with pytest.raises(InvalidInput, match=r"deployment\.toml: has a number that is too long"):
        load_deployment(f"[tenant]\nid = 'a'\nnet_id = {'1' * 5000}\n{GATEWAY}")


def test_a_misspelt_role_is_the_only_problem_of_a_file_whose_only_pool_has_it(load_deployment) -> None:
    with pytest.raises(ValidationProblems) as refused:
        load_deployment(TENANT + "[[pools]]\nid = 'gateways'\nrole = 'gatway'\n")
    (only,) = refused.value.problems
    assert only.message == "role 'gatway' is unknown"


def test_every_problem_is_said_at_once_in_the_order_of_the_file(load_deploy) -> None:
    with pytest.raises(ValidationProblems) as refused:
        load_deploy("[secrets]\nanthropic = {}\n[overrides.workers]\nvcpus = 0\nzzz = 1\n[openclaw]\nmodel = 1\n")
    lines = [int(problem.path.split(":")[1]) for problem in refused.value.problems]
    assert lines == [2, 2, 4, 5, 7]
    assert all(str(problem) in refused.value.message for problem in refused.value.problems)


@pytest.mark.parametrize(
    ("text", "line"), [("a = ", 1), ("\n\na = 1\na = 2", 4), ("[secrets]\nx = hunter2", 2), ("[a", 1), ("a = 'x\n", 1)]
)
def test_a_text_that_is_not_toml_is_refused_with_its_line(load_deploy, text: str, line: int) -> None:
    with pytest.raises(InvalidInput, match=rf"deploy\.toml:{line}: is not valid TOML") as refused:
        load_deploy(text)
    assert "hunter2" not in refused.value.message


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, template: Template) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "huge").write_bytes(b"#" * (1024 * 1024 + 1))
    for name, why in (("absent", "no such file"), (".", "is a directory"), ("binary", "UTF-8"), ("huge", "more than")):
        with pytest.raises(InvalidInput, match=why):
            load_deploy_toml(tmp_path / name, "alice", template=template)


def test_a_bad_name_is_refused_before_the_file_is_looked_at(tmp_path: Path, template: Template) -> None:
    with pytest.raises(InvalidInput, match="tenant id 'Alice'"):
        parse_deploy_toml("x", "Alice", template=template, path=tmp_path)


def test_hundreds_of_levels_are_refused(load_deploy) -> None:
    for text in ("a = " + "[" * 300 + "]" * 300, "a = " + "[" * 100_000, "a" + ".a" * 5000 + " = 1"):
        with pytest.raises(InvalidInput):
            load_deploy(text)


KEYS = ["secrets", "overrides", "workers", "users", "id", "gateway", "tenant", "pools", "role", "file", "x"]
lines = st.one_of(
    st.sampled_from(KEYS).map(lambda key: f"[{key}]"),
    st.sampled_from(KEYS).map(lambda key: f"[[{key}]]"),
    st.builds(
        "{} = {}".format,
        st.sampled_from(KEYS),
        st.sampled_from(["1", "'a'", "[]", "{}", "{ file = 'x' }", "true", "['a']", "nan", "07:32:00"]),
    ),
)


@given(st.lists(lines, max_size=6).map("\n".join) | st.text())
def test_any_text_is_a_deployment_or_refused(template: Template, text: str) -> None:
    with contextlib.suppress(InvalidInput):
        parse_deploy_toml(text, "alice", template=template, path=Path("deploy.toml"))
    with contextlib.suppress(InvalidInput):
        parse_deployment_toml(text, path=Path("deployment.toml"))


def test_a_deployment_sent_to_the_agent_is_checked_there_too() -> None:
    document = {"name": "a", "users": [{"user_id": "u", "pool_id": "nowhere"}]}
    with pytest.raises(InvalidInput, match="no pool 'nowhere'"):
        parse(Deployment, document, what="deployment")


def test_advice_says_what_is_probably_forgotten(load_deploy) -> None:
    bare = advice(load_deploy(""))
    assert any("telegram_token" in line for line in bare)
    assert any("model provider" in line for line in bare)
    assert advice(load_deploy(CONTRACT_DEPLOY)) == []


DOCS = Path(__file__).parents[3] / "docs" / "manifests.md"


def test_the_examples_in_the_docs_are_valid(template: Template) -> None:
    examples = re.findall(r"```toml\n# (\S+)\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert [name for name, _ in examples] == ["deploy.toml", "deployment.toml"]
    (_, deploy), (_, deployment) = examples
    assert parse_deploy_toml(deploy, "alice", template=template, path=Path("deploy.toml")).users
    assert parse_deployment_toml(deployment, path=Path("deployment.toml")).quotas.max_running == 4


def test_what_the_docs_say_of_keys_of_a_pool_is_said_of_keys_that_there_are() -> None:
    _, _, table = DOCS.read_text().partition("| worth knowing about | |\n|---|---|\n")
    lines = table.partition("\n\n")[0].splitlines()
    named = {key for line in lines for key in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named - PoolSettings.model_fields.keys() == set()
    assert {"egress", "runtime_policy"} <= named
