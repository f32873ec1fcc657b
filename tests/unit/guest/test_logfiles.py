"""Logs that cannot fill a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvm.guest import logfiles
from mvm.guest.logfiles import LogFile, Tail, predecessor, tail


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def log_file(path: Path, clock: Clock, **changes: int) -> LogFile:
    values = {"limit": 1000, "rate": 100, "burst": 100_000, **changes}
    return LogFile(path, limit=values["limit"], rate=values["rate"], burst=values["burst"], clock=clock, now=clock)


def test_two_files_of_the_given_size_are_all_there_ever_is(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "a.log"
    log = log_file(path, clock)
    for number in range(100):
        log.write(f"line {number:04}\n".encode() * 5)
    log.close()
    assert path.stat().st_size <= 1000
    assert predecessor(path).stat().st_size == 1000
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.log", "a.log.1"]
    assert tail(path, lines=1, limit=100).text == "line 0099\n"
    assert (path.stat().st_mode & 0o777) == 0o600


def test_a_flood_is_dropped_and_its_size_is_told(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "a.log"
    log = log_file(path, clock, burst=200)
    log.write(b"x" * 150 + b"\n")
    log.write(b"y" * 150 + b"\n")
    clock.seconds = 2.0
    log.write(b"after\n")
    log.close()
    text = path.read_text()
    assert "yyy" not in text
    assert "mvm 1970-01-01T00:00:02Z 151 bytes were dropped here" in text
    assert text.endswith("after\n")


def test_a_note_begins_a_line_of_its_own(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "a.log"
    log = log_file(path, clock)
    log.write(b"unfinished")
    log.note("ended")
    log.close()
    assert path.read_text() == "unfinished\nmvm 1970-01-01T00:00:00Z ended\n"


def test_what_cannot_be_written_costs_lines_and_nothing_else(tmp_path: Path, clock: Clock) -> None:
    place = tmp_path / "logs"
    place.write_text("a file where the directory should be")
    log = log_file(place / "a.log", clock)
    log.write(b"lost\n")
    place.unlink()
    log.write(b"kept\n")
    log.close()
    text = (place / "a.log").read_text()
    assert "5 bytes were dropped here" in text
    assert text.endswith("kept\n")


def test_a_link_in_the_place_of_a_log_is_not_followed(tmp_path: Path, clock: Clock) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a.log").symlink_to(victim)
    log = log_file(tmp_path / "a.log", clock)
    log.write(b"words\n")
    log.close()
    assert victim.read_text() == "precious"


def test_a_tail_is_whole_lines_over_both_files_within_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    assert tail(path, lines=5, limit=100) == Tail("", False)
    predecessor(path).write_text("one\ntwo\n")
    path.write_text("three\nfour\n")
    assert tail(path, lines=3, limit=100).text == "two\nthree\nfour\n"
    assert tail(path, lines=3, limit=100).truncated
    everything = tail(path, lines=9, limit=100)
    assert (everything.text, everything.truncated) == ("one\ntwo\nthree\nfour\n", False)
    short = tail(path, lines=9, limit=8)
    assert (short.text, short.truncated) == ("four\n", True)


def test_a_log_that_others_append_to_is_cut_when_it_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    with path.open("ab", buffering=0) as appending:
        appending.write(b"a" * 100)
        assert not logfiles.cut(path, 100)
        appending.write(b"b")
        assert logfiles.cut(path, 100)
        assert logfiles.predecessor(path).read_bytes() == b"a" * 99 + b"b"
        appending.write(b"c")
    assert path.read_bytes() == b"c"


def test_a_log_is_made_in_place_of_a_link_and_an_own_one_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("not to be touched")
    path = tmp_path / "agent.log"
    path.symlink_to(elsewhere)
    logfiles.make(path)
    assert not path.is_symlink()
    path.write_text("said")
    logfiles.make(path)
    assert path.read_text() == "said"
    assert elsewhere.read_text() == "not to be touched"
    path.unlink()
    path.hardlink_to(elsewhere)
    logfiles.make(path)
    assert path.read_text() == ""
