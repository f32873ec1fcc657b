"""Reading logs that a guest wrote, and finding the line that matters."""

from pathlib import Path

import pytest

from mvm.host.inspection import MAX_LOG_BYTES, MAX_LOGS, read_logs, telling_line
from mvm.telemetry.redaction import SECRETS


def test_each_services_newest_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "agent.log").write_text("one\ntwo\nthree\n")
    (tmp_path / "openclaw.log").write_text("four\n")
    (tmp_path / "notes.txt").write_text("no log")
    assert read_logs(tmp_path, None, 2) == {"agent": "two\nthree", "openclaw": "four"}
    assert read_logs(tmp_path, "openclaw", 2) == {"openclaw": "four"}


def test_what_openclaw_writes_twice_is_shown_once_unless_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "openclaw.log").write_text("ready\n")
    (tmp_path / "openclaw-own.log").write_text('{"message": "ready"}\n')
    assert read_logs(tmp_path, None, 10) == {"openclaw": "ready"}
    assert read_logs(tmp_path, "openclaw-own", 10) == {"openclaw-own": '{"message": "ready"}'}
    (tmp_path / "openclaw.log").unlink()
    assert list(read_logs(tmp_path, None, 10)) == ["openclaw-own"]


def test_a_guests_link_to_a_file_of_the_host_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    logs = tmp_path / "log"
    logs.mkdir()
    (logs / "agent.log").symlink_to(secret)
    assert read_logs(logs, None, 10) == {}
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    assert read_logs(tmp_path / "elsewhere", None, 10) == {}


def test_a_huge_log_is_read_from_its_end_only(tmp_path: Path) -> None:
    (tmp_path / "agent.log").write_bytes(b"x\n" * MAX_LOG_BYTES + b"end\n")
    text = read_logs(tmp_path, None, 10**6)["agent"]
    assert text.endswith("end")
    assert len(text) <= MAX_LOG_BYTES


def test_a_guest_that_makes_many_logs_does_not_fill_the_agents_memory(tmp_path: Path) -> None:
    for number in range(MAX_LOGS + 10):
        (tmp_path / f"log{number}.log").write_text("x\n")
    (tmp_path / "openclaw.log").write_text("it\n")
    assert len(read_logs(tmp_path, None, 10)) == MAX_LOGS
    assert read_logs(tmp_path, "openclaw", 10) == {"openclaw": "it"}


def test_a_secret_in_a_log_is_taken_out(tmp_path: Path) -> None:
    SECRETS.register("test", ["hunter2-hunter2"])
    try:
        (tmp_path / "agent.log").write_text("token is hunter2-hunter2\n")
        assert "hunter2" not in read_logs(tmp_path, None, 10)["agent"]
    finally:
        SECRETS.forget("test")


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", None),
        ("mvm 2026 openclaw started\n", None),
        ("starting\nready\n", "ready"),
        ("Error: no key\n    at main.mjs:3\nmvm 2026 openclaw ended with status 1\n", "Error: no key"),
    ],
)
def test_the_telling_line_is_the_error_without_its_stack(log: str, line: str | None) -> None:
    assert telling_line(log) == line
