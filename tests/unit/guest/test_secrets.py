"""From the secrets drive to OpenClaw's environment and secrets file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.guest import secrets
from mvm.guest.paths import GuestPaths
from mvm.guest.services import openclaw_environment, parse_environment_file, render_environment_file
from mvm.openclaw import render

NAMES = st.from_regex(r"[A-Z_][A-Z0-9_]{0,20}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=("Cs",)))


@pytest.fixture
def paths(tmp_path: Path) -> GuestPaths:
    paths = GuestPaths(tmp_path)
    paths.prepare()
    paths.secrets.mkdir(parents=True)
    return paths


def put(paths: GuestPaths, name: str, value: str | bytes) -> None:
    path = paths.secrets / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(value.encode() if isinstance(value, str) else value)


@given(st.dictionaries(NAMES, VALUES))
def test_the_environment_file_gives_back_every_value(variables: dict[str, str]) -> None:
    assert parse_environment_file(render_environment_file(variables)) == variables


def test_the_environment_file_quotes_as_systemd_reads_it() -> None:
    assert render_environment_file({"KEY": 'a"b\\c$d`e f'}) == 'KEY="a\\"b\\\\c\\$d\\`e f"\n'


@pytest.mark.parametrize("line", ["KEY=value", "KEY", 'KEY="value', '="'])
def test_another_form_is_refused_without_telling_the_value(line: str) -> None:
    with pytest.raises(ValueError, match="line 1 of the environment file") as caught:
        parse_environment_file(line)
    assert "value" not in str(caught.value).replace('NAME="value"', "")


def test_every_scope_is_collected_but_the_workers_tokens(paths: GuestPaths) -> None:
    put(paths, "anthropic/ANTHROPIC_API_KEY", "key\n")
    put(paths, "openclaw/OPENCLAW_AUTH_TOKEN", "token")
    put(paths, "workers/alice.alice", "hers")
    put(paths, "other/.unfinished-X", "half")
    found = secrets.collect(paths.secrets)
    assert found.values == {"ANTHROPIC_API_KEY": "key", "OPENCLAW_AUTH_TOKEN": "token"}
    assert found.problems == ()


def test_what_cannot_be_used_is_told_by_name_and_never_by_value(paths: GuestPaths) -> None:
    put(paths, "a/KEY", "first-value")
    put(paths, "b/KEY", "second-value")
    put(paths, "b/not a name", "third-value")
    put(paths, "b/BINARY", b"\xff\xfe")
    put(paths, "b/HUGE", "x" * (secrets.MAX_VALUE_BYTES + 1))
    found = secrets.collect(paths.secrets)
    assert found.values == {"KEY": "first-value"}
    assert [problem.partition(":")[0] for problem in found.problems] == ["b/BINARY", "b/HUGE", "b/KEY", "b/not a name"]
    assert "value" not in "".join(found.problems).replace("another value", "")


def test_a_secret_that_is_no_variable_is_a_file_only_and_kept_as_it_is(paths: GuestPaths) -> None:
    put(paths, "tls/ca.pem", "one\ntwo\n")
    put(paths, "tls/KEY", "value\n")
    found = secrets.collect(paths.secrets)
    assert found.problems == ()
    assert secrets.install(paths, found.values) == ()
    assert json.loads(paths.secrets_file.read_text()) == {"ca.pem": "one\ntwo\n", "KEY": "value"}
    assert parse_environment_file(paths.environment_file.read_text()) == {"KEY": "value"}


def test_both_files_are_written_for_the_owner_only(paths: GuestPaths) -> None:
    assert secrets.installed(paths) is None
    unfit = secrets.install(paths, {"KEY": "a", "OPENCLAW_AUTH_TOKEN": "t", "PEM": "one\ntwo"})
    assert unfit == ("PEM",)
    assert parse_environment_file(paths.environment_file.read_text()) == {
        "KEY": "a",
        "OPENCLAW_AUTH_TOKEN": "t",
        "OPENCLAW_GATEWAY_TOKEN": "t",
    }
    assert json.loads(paths.secrets_file.read_text())["PEM"] == "one\ntwo"
    assert {path.stat().st_mode & 0o777 for path in (paths.environment_file, paths.secrets_file)} == {0o600}
    assert [path.name for path in paths.openclaw_run.iterdir() if path.name.startswith(".")] == []


def test_changes_are_told_by_name() -> None:
    before, after = {"SAME": "1", "GONE": "2", "OTHER": "3"}, {"SAME": "1", "OTHER": "4", "NEW": "5"}
    assert secrets.changed_keys(before, after) == {"GONE", "OTHER", "NEW"}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"KEY": 5}'])
def test_a_useless_secrets_file_counts_as_none(paths: GuestPaths, content: str) -> None:
    paths.secrets_file.write_text(content)
    assert secrets.installed(paths) is None


def test_openclaw_gets_the_environment_that_its_configuration_is_rendered_for(paths: GuestPaths) -> None:
    place = render.Place(
        port=1,
        plugin_dir="/p",
        state_dir=str(paths.openclaw_state),
        workspace="/w",
        home=str(paths.home),
        config_file=str(paths.openclaw_config),
        secrets_file="/s",
        secrets_dir="/s",
        control_socket="/c",
        log_file="/l",
    )
    assert {"HOME": str(paths.home), **openclaw_environment(paths, place.plugin_dir)} == render.environment(place)


def test_a_key_that_openclaw_reads_by_reference_is_not_in_its_environment(paths: GuestPaths) -> None:
    paths.openclaw_config_source.parent.mkdir(parents=True, exist_ok=True)
    reference = {"source": "file", "provider": "mvm", "id": "/ANTHROPIC_API_KEY"}
    token = {**reference, "id": f"/{secrets.AUTH_TOKEN}"}
    config = {"models": {"providers": {"anthropic": {"apiKey": reference}}}, "gateway": [{"token": token}]}
    paths.openclaw_config_source.write_text(json.dumps(config))
    apart = secrets.referenced(paths.openclaw_config_source)
    assert apart == {"ANTHROPIC_API_KEY", secrets.AUTH_TOKEN}
    values = {"ANTHROPIC_API_KEY": "a", "OPENAI_API_KEY": "o", secrets.AUTH_TOKEN: "t"}
    secrets.install(paths, values, apart=apart)
    assert parse_environment_file(paths.environment_file.read_text()) == {
        "OPENAI_API_KEY": "o",
        secrets.AUTH_TOKEN: "t",
        secrets.GATEWAY_TOKEN: "t",
    }
    assert secrets.installed(paths) == values


def test_a_configuration_that_cannot_be_read_names_no_secret(tmp_path: Path) -> None:
    assert secrets.referenced(tmp_path / "missing") == frozenset()
    (tmp_path / "broken").write_text("{")
    assert secrets.referenced(tmp_path / "broken") == frozenset()
