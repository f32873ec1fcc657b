"""The command line itself: help, usage errors, forms of output."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.cli.conftest import Type

from mvm.cli.main import COMMANDS, OPTIONS, main
from mvm.cli.output import age, columns, duration, mib, plain, size

HELP_LIMIT_SECONDS = 0.15
HELP_RATIO = 5.0


def test_help_names_every_command(mvm: Type) -> None:
    typed = mvm("--help")
    assert typed.status == 0
    for name in COMMANDS:
        assert f"\n  {name} " in typed.out


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_every_command_has_help_and_refuses_unknown_flags(mvm: Type, name: str) -> None:
    assert "Usage: mvm " + name in mvm(name, "--help").out
    typed = mvm(name, "--no-such-flag")
    assert typed.status == 2
    assert typed.out == ""


def cpu_seconds(*arguments: str) -> float:
    """Processor time of a Python with these arguments, the best of some; other work on the machine hardly counts."""
    best = float("inf")
    for _ in range(7):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


def test_help_takes_at_most_five_times_as_long_as_a_python_that_does_nothing() -> None:
    own = cpu_seconds("-m", "mvm.cli.main", "--help")
    assert own <= HELP_LIMIT_SECONDS
    assert own <= HELP_RATIO * cpu_seconds("-c", "pass")


def imported_by(*arguments: str) -> set[str]:
    """Modules that are loaded when that command line has been carried out."""
    probe = f"import sys; from mvm.cli.main import main; main({list(arguments)!r}); print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(answer.stdout.splitlines()[-1].split())


def test_help_imports_nothing_that_it_does_not_show() -> None:
    modules = imported_by("--help")
    assert {m for m in modules if m.startswith("mvm")} == {
        *("mvm", "mvm.cli", "mvm.cli.main", "mvm.model", "mvm.model.errors")
    }
    assert modules & {"typer", "pydantic", "rich", "aiohttp", "yaml", "asyncio", "structlog"} == set()


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_a_command_is_loaded_without_the_others_and_without_what_it_may_never_need(name: str) -> None:
    modules = imported_by(name, "--help")
    assert f"mvm.cli.{name}" in modules
    assert {m for m in modules if m in {f"mvm.cli.{other}" for other in COMMANDS}} == {f"mvm.cli.{name}"}
    heavy = {"asyncio", "rich", "aiohttp", "yaml", "structlog", "psutil", "cryptography", "mvm.model.entities"}
    assert modules & heavy == set()
    assert {m for m in modules if m.startswith("mvm.host")} == set()


def test_the_help_of_the_parser_is_the_same_as_the_one_that_needs_none(mvm: Type) -> None:
    alone = mvm("--help").out
    assert mvm("--run-dir", "/tmp/x", "--help").out == alone
    assert mvm().err == alone
    for option in (*OPTIONS, "tenant"):
        assert f"\n  {option} " in alone


def test_no_arguments_show_the_help(mvm: Type) -> None:
    typed = mvm()
    assert typed.status == 2
    assert typed.err.startswith("Usage: mvm")


def test_a_mistyped_command_is_guessed(mvm: Type) -> None:
    typed = mvm("tenat", "list")
    assert typed.status == 2
    assert "'tenant'" in typed.error[0]


def test_the_version_is_the_package_s(mvm: Type) -> None:
    from importlib.metadata import version

    assert mvm("--version").out == f"mvm {version('mvm-fleet')}\n"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"'{sys.executable}' -m mvm.cli.main --help | true"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert answer.stderr == ""


@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [(">&-", 0, ""), (">/dev/full", 1, "No space left on device"), (">/dev/null", 0, "")],
)
def test_output_that_goes_nowhere_is_no_traceback(redirection: str, status: int, said: str) -> None:
    for arguments in ("--help", "--version", "manifest schema"):
        command = f"'{sys.executable}' -m mvm.cli.main {arguments} {redirection}"
        answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert (answer.returncode, "Traceback" in answer.stderr) == (status, False), answer.stderr
        assert said in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "closed", "status", "said"),
    [
        ("tenant destroy alice", "<&-", 2, "there is no terminal to ask at"),
        ("tenant info Alice", ">&-", 2, "lowercase"),
        ("manifest schema", "2>&-", 0, ""),
    ],
)
def test_a_standard_stream_that_is_closed_is_no_traceback(
    tmp_path: Path, arguments: str, closed: str, status: int, said: str
) -> None:
    command = f"'{sys.executable}' -m mvm.cli.main --state-dir s --run-dir r {arguments} {closed}"
    environment = {**os.environ, "MVM_NO_AUTOSTART": "1"}
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (answer.returncode, "Traceback" in answer.stderr) == (status, False), answer.stderr
    assert said in answer.stderr


def test_a_directory_that_is_gone_is_no_traceback(tmp_path: Path) -> None:
    command = f"mkdir gone && cd gone && rmdir ../gone && '{sys.executable}' -m mvm.cli.main tenant list"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 2
    assert "error: the current directory cannot be found" in answer.stderr


@given(st.lists(st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=12), max_size=4))
def test_whatever_is_typed_ends_with_a_status_and_no_traceback(words: list[str]) -> None:
    noun = [word for word in words if word not in ("doctor", "demo")]
    assert main(["tenant", "frobnicate", *noun]) == 2


@given(st.lists(st.tuples(st.text(), st.text(), st.integers()), min_size=1))
def test_a_table_has_a_line_for_each_row_whatever_is_in_it(rows: list[tuple[str, str, int]]) -> None:
    lines = columns(("a", "b", "c"), rows).split("\n")
    assert len(lines) == len(rows) + 1
    assert all(line.isprintable() for line in lines)


@given(st.text())
def test_text_of_others_cannot_act_on_a_terminal(text: str) -> None:
    assert all(c.isprintable() or c in "\n\t" for c in plain(text))


def test_figures_read_well() -> None:
    assert [duration(s) for s in (0, 59, 60, 3660, 90000)] == ["0s", "59s", "1m", "1h1m", "1d1h"]
    assert [mib(m) for m in (512, 1024, 1536, 1000, 78127)] == ["512 MiB", "1 GiB", "1.5 GiB", "1000 MiB", "76 GiB"]
    assert [size(b) for b in (10, 2048, 5 * 2**30)] == ["10 B", "2 KiB", "5.0 GiB"]
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert age("2025-12-31T23:55:00Z", now) == "5m"
    assert age((now + timedelta(hours=2)).isoformat(), now) == "in 2h0m"
    assert age(None) == "-"
