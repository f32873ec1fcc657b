"""`mvm manifest`: files are checked where no agent is, and editors get their schemas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.cli.conftest import Type

MANIFEST = """\
[tenant]
id = "alice"

[[pools]]
id = "gateways"
role = "gateway"

[[pools]]
id = "workers"
role = "capability-openclaw"
mem_mib = 2048

[secrets]
anthropic_key = { file = "key" }
"""


@pytest.fixture(autouse=True)
def nobody_to_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MVM_NO_AUTOSTART", "1")
    monkeypatch.setenv("MVM_STATE_DIR", str(tmp_path / "no-state"))
    monkeypatch.setenv("MVM_RUN_DIR", "/tmp/mvm-nobody-there")


def written(directory: Path, name: str, text: str) -> str:
    path = directory / name
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


@pytest.mark.parametrize("kind", ["deployment", "deploy", "desired"])
def test_the_schema_is_one_document(mvm: Type, kind: str) -> None:
    typed = mvm("manifest", "schema", kind)
    assert (typed.status, typed.err) == (0, "")
    assert typed.document["type"] == "object"
    assert typed.document["additionalProperties"] is False


def test_a_file_in_order_is_said_to_be_with_what_is_to_be_known(mvm: Type, tmp_path: Path) -> None:
    written(tmp_path, "key", "sk-1\n")
    file = written(tmp_path, "deployment.toml", MANIFEST)
    typed = mvm("manifest", "check", file)
    assert typed.status == 0
    assert typed.out.splitlines()[0] == f"{file} is in order"
    assert "note: " in typed.out
    document = mvm("manifest", "check", file, "--json").document
    assert (document["kind"], bool(document["notes"])) == ("deployment", True)


def test_the_kind_follows_from_the_name_and_can_be_said(mvm: Type, tmp_path: Path) -> None:
    deploy = written(tmp_path, "deploy.toml", "[overrides.workers]\nmem_mib = 4096\n")
    assert mvm("manifest", "check", deploy, "--json").document["kind"] == "deploy"
    assert mvm("manifest", "check", deploy, "--as", "deployment").status == 2
    state = written(tmp_path, "x.json", json.dumps({"schema_version": 1, "node_id": "local"}))
    assert mvm("manifest", "check", state, "--json").document == {"file": state, "kind": "desired", "notes": []}
    assert mvm("manifest", "check", written(tmp_path, "y.json", "{}")).status == 2


def test_everything_that_is_wrong_is_said_by_line(mvm: Type, tmp_path: Path) -> None:
    file = written(tmp_path, "deployment.toml", MANIFEST.replace("mem_mib", "mem_mb").replace('"gateway"', '"gatway"'))
    typed = mvm("manifest", "check", file, "--json")
    assert (typed.status, typed.out) == (2, "")
    assert "deployment.toml:6" in typed.err
    assert "deployment.toml:11" in typed.err
    assert "did you mean 'mem_mib'?" in typed.err


def test_secrets_are_read_unless_told_otherwise(mvm: Type, tmp_path: Path) -> None:
    file = written(tmp_path, "deployment.toml", MANIFEST)
    typed = mvm("manifest", "check", file)
    assert (typed.status, "there is no such file" in typed.error[0]) == (2, True)
    assert mvm("manifest", "check", file, "--no-secrets").status == 0
