"""Reading the values of secrets: every fault is found before anything is created, and no value is ever shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mvm.model.errors import InvalidInput
from mvm.model.manifest import read_secrets
from mvm.model.validation import ValidationProblems

BOTH = """\
[secrets]
anthropic_key = { file = "a.key" }
telegram_token = { file = "sub/t.token" }
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name, text in (("a.key", "hunter-a\n"), ("sub/t.token", "hunter-t")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    return tmp_path


def test_values_come_from_files_beside_the_manifest_without_their_newline(load_deploy, files: Path) -> None:
    values, warnings = read_secrets(load_deploy(BOTH), {})
    assert values == {"anthropic/ANTHROPIC_API_KEY": "hunter-a", "telegram/TELEGRAM_BOT_TOKEN": "hunter-t"}
    assert warnings == ()


def test_values_come_from_variables(load_deploy) -> None:
    deployment = load_deploy('[secrets]\nanthropic_key = { env = "KEY" }\n')
    assert read_secrets(deployment, {"KEY": "hunter"}).values == {"anthropic/ANTHROPIC_API_KEY": "hunter"}


def test_values_are_not_shown_when_they_are_printed(load_deploy, files: Path) -> None:
    assert "hunter" not in repr(read_secrets(load_deploy(BOTH), {}))


def test_a_file_that_others_may_read_is_a_warning_with_a_remedy(load_deploy, files: Path) -> None:
    (files / "a.key").chmod(0o644)
    _, (warning,) = read_secrets(load_deploy(BOTH), {})
    assert f"chmod 600 {files / 'a.key'}" in warning


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_text(""), "is empty"),
        (lambda path: path.write_text(" \n"), "is empty"),
        (lambda path: path.write_bytes(b"hunter\xff"), "not UTF-8"),
        (lambda path: path.write_text("hunter\nhunter"), "more than one line"),
        (lambda path: path.write_text("hunter\0"), "NUL"),
        (lambda path: path.write_text("h" * 70_000), "more than 65536 bytes"),
        (lambda path: (path.unlink(), path.mkdir()), "is a directory"),
        (make_fifo, "not a regular file"),
    ],
)
def test_a_file_that_will_not_do_is_named_with_its_line_and_reason(load_deploy, files: Path, spoil, why) -> None:
    spoil(files / "a.key")
    with pytest.raises(InvalidInput) as refused:
        read_secrets(load_deploy(BOTH), {})
    assert "deploy.toml:2: secrets.anthropic_key" in refused.value.message
    assert why in refused.value.message
    assert "hunter" not in refused.value.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(load_deploy, files: Path) -> None:
    (files / "a.key").chmod(0)
    with pytest.raises(InvalidInput, match="may not be read"):
        read_secrets(load_deploy(BOTH), {})


def test_all_faults_are_found_at_once(load_deploy, files: Path) -> None:
    (files / "a.key").unlink()
    (files / "sub/t.token").write_text("")
    with pytest.raises(ValidationProblems) as refused:
        read_secrets(load_deploy(BOTH + 'openai_key = { env = "ABSENT" }\n'), {})
    assert [problem.path.split("secrets.")[1] for problem in refused.value.problems] == [
        "anthropic_key",
        "telegram_token",
        "openai_key",
    ]


@pytest.mark.parametrize(("environ", "why"), [({}, "KEY is not set"), ({"KEY": ""}, "KEY is empty")])
def test_a_variable_without_a_value_is_an_error(load_deploy, environ, why) -> None:
    with pytest.raises(InvalidInput, match=why):
        read_secrets(load_deploy('[secrets]\nanthropic_key = { env = "KEY" }\n'), environ)


def test_one_key_with_two_values_is_an_error_without_the_values(load_deploy) -> None:
    text = """
[secrets]
one = { env = "A", scope = "a", key = "KEY" }
two = { env = "B", scope = "b", key = "KEY" }
"""
    assert len(read_secrets(load_deploy(text), {"A": "hunter", "B": "hunter"}).values) == 2
    with pytest.raises(InvalidInput, match="different values") as refused:
        read_secrets(load_deploy(text), {"A": "hunter1", "B": "hunter2"})
    assert "hunter" not in refused.value.message


def test_the_home_of_a_user_who_does_not_exist_is_no_crash(load_deploy) -> None:
    deployment = load_deploy('[secrets]\nanthropic_key = { file = "~nobody-of-that-name/key" }')
    with pytest.raises(InvalidInput, match="there is no such file"):
        read_secrets(deployment, {})
