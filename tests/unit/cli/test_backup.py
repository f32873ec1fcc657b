"""`mvm tenant export` and `import`: the file is written whole or not at all, the passphrase is never an argument."""

from __future__ import annotations

import base64
import errno
import io
import os
from pathlib import Path

import pytest
from tests.unit.cli.conftest import ScriptedAgent, Type

from mvm.security.sealed_files import SealedWriter

CONTENT = bytes(range(256)) * 8
SESAME = ("--passphrase-env", "SESAME")


@pytest.fixture(autouse=True)
def passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESAME", "correct horse battery")


@pytest.fixture
def ready(agent: ScriptedAgent) -> ScriptedAgent:
    agent.answers["TenantExport"] = {
        "tenant_id": "alice",
        "instances": 2,
        "notes": ["alice/w/i-1 did not come back: no room"],
        "transfer": "f" * 32,
        "size": len(CONTENT),
    }
    agent.answers["TransferRead"] = lambda params: {
        "data": base64.b64encode(CONTENT[params["offset"] :][:1000]).decode()
    }
    agent.answers["TransferEnd"] = {}
    agent.answers["TransferBegin"] = {"transfer": "e" * 32, "piece": 100}
    agent.answers["TransferWrite"] = {"size": 0}
    agent.answers["TenantImport"] = {"tenant_id": "copy", "instances": 2, "notes": []}
    return agent


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    file = io.BytesIO()
    writer = SealedWriter(file, "correct horse battery")
    writer.write(b"x" * 300)
    writer.close()
    path = tmp_path / "alice.mvm"
    path.write_bytes(file.getvalue())
    return path


def test_a_backup_is_fetched_piece_by_piece(ready: ScriptedAgent, mvm: Type, tmp_path: Path) -> None:
    file = tmp_path / "alice.mvm"
    typed = mvm("tenant", "export", "alice", str(file), *SESAME)
    assert (typed.status, typed.err) == (0, "")
    assert file.read_bytes() == CONTENT
    assert file.stat().st_mode & 0o777 == 0o600
    assert "2 instances" in typed.out
    assert "did not come back" in typed.out
    assert ready.asked("TenantExport")["passphrase"] == "correct horse battery"
    assert ready.requests[-1] == ("TransferEnd", {"transfer": "f" * 32})
    again = mvm("tenant", "export", "alice", str(file), *SESAME)
    assert (again.status, again.error[0]) == (1, f"{file} exists already")
    file.unlink()
    document = mvm("tenant", "export", "alice", str(file), *SESAME, "--json").document
    assert (document["file"], document["size"]) == (str(file), len(CONTENT))


def test_a_backup_that_breaks_off_leaves_no_file(ready: ScriptedAgent, mvm: Type, tmp_path: Path) -> None:
    ready.refuse("TransferRead", 404, "there is no such transfer")
    assert mvm("tenant", "export", "alice", str(tmp_path / "f"), *SESAME).status == 3
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_where_it_cannot_be_written_nobody_is_put_to_rest_for_it(
    ready: ScriptedAgent, mvm: Type, tmp_path: Path
) -> None:
    typed = mvm("tenant", "export", "alice", str(tmp_path / "no/f"), *SESAME)
    assert (typed.status, "cannot be opened" in typed.err) == (3, True)
    assert typed.error[1] == f"there is no directory '{tmp_path / 'no'}'"
    assert "TenantExport" not in [name for name, _ in ready.requests]


@pytest.mark.parametrize("appears", [False, True])
def test_a_file_system_without_hard_links_takes_a_backup_too(
    ready: ScriptedAgent, mvm: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, appears: bool
) -> None:
    file = tmp_path / "alice.mvm"

    def link(_source: Path, target: Path) -> None:
        if appears:
            target.write_text("somebody else's")
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    typed = mvm("tenant", "export", "alice", str(file), *SESAME)
    assert (typed.status, file.read_bytes()) == ((1, b"somebody else's") if appears else (0, CONTENT))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["alice.mvm"]


def test_a_backup_is_handed_over_and_imported(ready: ScriptedAgent, mvm: Type, backup: Path, tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse battery\n")
    typed = mvm("tenant", "import", str(backup), "--as", "copy", "--no-start", "--passphrase-file", str(secret))
    assert (typed.status, typed.out) == (0, "tenant copy is here again: 2 instances\n")
    asked = {"transfer": "e" * 32, "passphrase": "correct horse battery", "tenant_id": "copy", "start": False}
    assert ready.asked("TenantImport") == asked
    written = [params for name, params in ready.requests if name == "TransferWrite"]
    assert b"".join(base64.b64decode(params["data"]) for params in written) == backup.read_bytes()
    document = mvm("tenant", "import", str(backup), *SESAME, "--json").document
    assert document == ready.answers["TenantImport"]


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("export alice FILE", 2, "--passphrase-file"),
        ("export Alice FILE --passphrase-env SESAME", 2, "lowercase"),
        ("export alice FILE --passphrase-env NOT_SET", 2, "8 characters"),
        ("export alice FILE --passphrase-env A --passphrase-file b", 2, "a file or a variable"),
        ("export alice FILE --passphrase-file /no/such", 2, "/no/such"),
        ("import FILE --passphrase-env SESAME", 3, "cannot be opened"),
        ("import /etc/passwd --passphrase-env SESAME", 2, "mvm tenant export"),
    ],
)
def test_what_is_wrong_is_found_before_the_agent_is_asked(
    agent: ScriptedAgent, mvm: Type, tmp_path: Path, line: str, status: int, said: str
) -> None:
    typed = mvm("tenant", *line.replace("FILE", str(tmp_path / "f")).split())
    assert typed.status == status
    assert said in typed.err
    assert agent.requests == []


def test_an_error_of_the_agent_is_the_command_s(ready: ScriptedAgent, mvm: Type, backup: Path, tmp_path: Path) -> None:
    ready.refuse("TenantImport", 403, "the passphrase is not the one of this file", "try another one")
    ready.refuse("TenantExport", 404, "tenant 'alice' does not exist")
    assert mvm("tenant", "import", str(backup), *SESAME, "--json").status == 4
    assert mvm("tenant", "export", "alice", str(tmp_path / "f"), *SESAME).status == 3


def test_what_is_no_file_is_not_waited_for(ready: ScriptedAgent, mvm: Type, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        typed = mvm("tenant", "import", str(tmp_path / name), *SESAME)
        assert (typed.status, "is not a regular file" in typed.error[0]) == (2, True)
