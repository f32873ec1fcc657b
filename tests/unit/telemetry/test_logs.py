"""Logs: one line per event, ids bound to tasks, no secret."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import structlog

from mvm.telemetry import logs
from mvm.telemetry.logs import LogStyle, bound, configure
from mvm.telemetry.redaction import REDACTED, SECRETS

Capture: TypeAlias = pytest.CaptureFixture[str]

SECRET = 'correct-"horse"-battery'


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    SECRETS.register("test-logs", [SECRET])
    yield
    SECRETS.forget("test-logs")
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(capsys: Capture) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_the_agent_writes_one_json_object_per_line(capsys: Capture) -> None:
    configure(LogStyle.JSON, level=logging.INFO)
    structlog.get_logger("mvm.host").info("woken", instance="alice/workers/i-00000001", ms=12.5, text="a\nb ü")
    [line] = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "woken",
        "level": "info",
        "logger": "mvm.host",
        "instance": "alice/workers/i-00000001",
        "ms": 12.5,
        "text": "a\nb ü",
    }


def test_the_standard_librarys_loggers_end_in_the_same_place(capsys: Capture) -> None:
    configure(LogStyle.JSON, level=logging.INFO)
    logging.getLogger("mvm.wire.rpc").warning("a %s frame", "bad")
    [line] = lines(capsys)
    assert (line["event"], line["level"], line["logger"]) == ("a bad frame", "warning", "mvm.wire.rpc")


async def test_ids_are_bound_to_the_task(capsys: Capture) -> None:
    configure(LogStyle.JSON, level=logging.INFO)
    log = structlog.get_logger("x")
    meet = asyncio.Barrier(2)

    async def work(name: str) -> None:
        with bound(instance=name):
            await meet.wait()
            log.info("inside")
        log.info("outside")

    await asyncio.gather(work("a"), work("b"))
    found = lines(capsys)
    assert sorted(line["instance"] for line in found if line["event"] == "inside") == ["a", "b"]
    assert all("instance" not in line for line in found if line["event"] == "outside")


@pytest.mark.parametrize("style", LogStyle)
def test_secrets_are_in_no_line(capsys: Capture, style: LogStyle) -> None:
    configure(style, level=logging.DEBUG)

    class Holder:
        def __str__(self) -> str:
            return f"holder of {SECRET}"

        __repr__ = __str__

    log = structlog.get_logger("x")
    log.info(f"got {SECRET}", value=SECRET, nested={"a": [SECRET, {SECRET: Holder()}]}, raw=SECRET.encode())
    try:
        raise RuntimeError(f"cannot use {SECRET}")
    except RuntimeError:
        log.exception("failed")
        logging.getLogger("y").exception("failed with %s", SECRET)
    text = capsys.readouterr().err
    assert text.count(REDACTED) >= 7
    assert "horse" not in text
    assert "RuntimeError" in text


def test_what_is_below_the_level_is_left_out(capsys: Capture) -> None:
    configure(LogStyle.JSON, level=logging.WARNING)
    structlog.get_logger("x").info("quiet")
    structlog.get_logger("x").warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]


def test_a_file_is_private_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_FILE_BYTES", 2000)
    configure(LogStyle.JSON, level=logging.INFO, file=tmp_path / "agent.log")
    for number in range(200):
        structlog.get_logger("x").info("tick", number=number)
    files = list(tmp_path.iterdir())
    assert 1 < len(files) <= 1 + logs.KEPT_FILES
    assert all(file.stat().st_size <= 2000 for file in files)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert json.loads((tmp_path / "agent.log").read_text().splitlines()[-1])["number"] == 199


def test_configuring_again_replaces_the_first(capsys: Capture, tmp_path: Path) -> None:
    configure(LogStyle.JSON, level=logging.INFO)
    configure(LogStyle.JSON, level=logging.INFO, file=tmp_path / "agent.log")
    structlog.get_logger("x").info("where")
    assert capsys.readouterr().err == ""
    assert "where" in (tmp_path / "agent.log").read_text()


@pytest.mark.parametrize("style", list(LogStyle))
def test_a_guests_words_do_not_act_on_the_terminal_that_shows_the_log(capsys: Capture, style: LogStyle) -> None:
    configure(style, level=logging.INFO)
    evil = "x\x1b[2J\x9b31mx"
    structlog.get_logger("mvm.host").info("policy could not act", reason=evil)
    logging.getLogger("mvm.wire").warning("the peer said %s", evil)
    try:
        raise RuntimeError(evil)
    except RuntimeError:
        structlog.get_logger("mvm.host").exception("failed")
    shown = capsys.readouterr().err
    assert shown.count("31mx") == 3
    assert not {"\x1b", "\x9b"} & set(shown)
