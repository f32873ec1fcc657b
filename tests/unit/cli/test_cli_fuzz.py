"""Whatever flags and arguments are typed, there is a status and at most two lines, never a traceback."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.conftest import ScriptedAgent, Type
from tests.unit.cli.test_commands import answers, leaves
from typer.main import get_command

from mvm.cli.root import app
from mvm.model.errors import ExitStatus

# These ask the network, run for ever, or look at the whole machine.
LEFT_OUT = {"agent serve", "demo", "doctor", "new", "deploy"}
LEAVES = sorted(set(leaves()) - LEFT_OUT)
STATUSES = {int(status) for status in ExitStatus}
LINES_EACH = 12
WORDS = [
    *(
        "alice",
        "alice/workers",
        "alice/workers/i-0a1b2c3d",
        "Alice",
        "a/b/c/d",
        "",
        " ",
        "-",
        "--",
        "-1",
        "0",
        "1",
        "99999999999",
    ),
    *(
        "1e3",
        "é",
        "\x1b[2J",
        "x" * 300,
        "a=b",
        "max_running=1",
        "=",
        "=1",
        "x/Y=nowhere",
        "../..",
        "/dev/null",
        "/",
        "\udcff",
    ),
    *("--json", "-o", "yaml", "table", "none", "2026-01-31", "7d", "KIND", "desired"),
]


def parameters(leaf: str) -> list[Any]:
    command: Any = get_command(app)
    for word in leaf.split():
        command = command.commands[word]
    return list(command.params)


def line(leaf: str, chance: random.Random, directory: Path) -> list[str]:
    """Words that might follow a command: some of its own options with some values, some arguments."""
    words = leaf.split()
    own = [name for parameter in parameters(leaf) for name in (*parameter.opts, *parameter.secondary_opts)]
    options = [name for name in own if name.startswith("-")]
    for _ in range(chance.randrange(5)):
        words.append(chance.choice([*options, *WORDS] if options else WORDS))
        if words[-1].startswith("-") and chance.random() < 0.8:
            words.append(chance.choice([*WORDS, str(directory / "file"), str(directory)]))
    return [word for word in words if word not in ("--follow", "-f")]


@pytest.mark.parametrize("leaf", LEAVES)
def test_no_command_line_is_a_traceback(
    agent: ScriptedAgent, mvm: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaf: str
) -> None:
    agent.answers.update(
        {
            **answers(),
            "Events": [{"EventsResult": {"last_number": 0}}],
            "Usage": {"usage": [], "since": "2026-01-01", "until": "2026-01-02T00:00:00Z"},
        }
    )
    agent.answers["InstanceExec"] = {"status": 0, "stdout": "", "stderr": ""}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"\xff\x00 = [")
    chance = random.Random(leaf)
    for _ in range(LINES_EACH):
        words = line(leaf, chance, tmp_path)
        typed = mvm(*words)
        assert typed.status in STATUSES, (words, typed)
        assert "Traceback" not in typed.err, words
        if typed.status:
            errors = [text for text in typed.err.splitlines() if text.startswith(("error: ", "Usage: "))]
            assert len(errors) == 1 or leaf == "events", (words, typed.err)
            assert typed.out == "" or leaf in ("net verify", "events", "pool update", "agent reconcile"), (
                words,
                typed.out,
            )
