"""What nix tells, in lines that nix-bin 2.8.0 was seen to write, and what becomes of them."""

from __future__ import annotations

import json
import time
from typing import Any

from mvm.image.nix.events import LONGEST_ERROR, LONGEST_NAME, MOST_ERRORS, MOST_RUNNING, TAIL, Lines, Told
from mvm.image.nix.explain import lacks_attribute, reason
from mvm.openclaw.install import Progress

DERIVATION = "/nix/store/bpdyjagq9073hplxww24zf3vxs7rsypr-linux-6.12.1.drv"
LACKS = (
    r'@nix {"action":"msg","column":null,"file":null,"level":0,"line":null,"msg":"\u001b[31;1merror:\u001b[0m flake '
    r"'\u001b[35;1mpath:/x\u001b[0m' does not provide attribute \u001b[35;1m'packages.x.y'\u001b[0m"
    r'","raw_msg":"r"}'
)


def line(**fields: Any) -> str:
    return f"@nix {json.dumps(fields)}"


def told(*lines: str) -> Told:
    so_far = Told("doing something")
    for each in lines:
        so_far.take(each)
    return so_far


def building(done: int, total: int) -> list[str]:
    return [
        line(action="start", id=2, level=0, text="", type=104),
        line(action="start", id=7, level=3, text="building", type=105, fields=[DERIVATION, "", 1, 1], parent=2),
        line(action="result", id=2, type=105, fields=[done, total, 1, 0]),
    ]


def test_before_nix_tells_anything_it_is_what_was_asked_for() -> None:
    assert told().step() == Progress(text="doing something")


def test_builds_are_counted() -> None:
    assert told(*building(3, 7)).step() == Progress(text="building derivations with Nix", done=3, total=7)


def test_the_last_build_is_not_shown_as_one_too_many() -> None:
    assert told(*building(1, 1)).step() == Progress(text="building derivations with Nix", done=1, total=2)


def test_copies_are_counted_with_those_that_are_done_and_to_come() -> None:
    mib = 2**20
    lines = [
        line(action="start", id=1, level=0, text="", type=102),
        line(action="result", id=1, type=106, fields=[100, 100 * mib]),
        line(action="start", id=4, level=3, text="copying path", type=100, fields=["/nix/store/a", "x", "y"]),
        line(action="result", id=4, type=105, fields=[30 * mib, 30 * mib, 0, 0]),
        line(action="stop", id=4),
        line(action="start", id=5, level=3, text="copying path", type=100, fields=["/nix/store/b", "x", "y"]),
        line(action="result", id=5, type=105, fields=[10 * mib, 50 * mib, 0, 0]),
    ]
    assert told(*lines).step() == Progress(text="copying into Nix's store (MiB)", done=40, total=100)


def test_downloads_of_sources_are_counted_when_their_size_is_known() -> None:
    start = line(action="start", id=4, level=3, text="downloading", type=101, fields=["https://x/nixpkgs.tar.gz"])
    assert told(start).step().text == "doing something"
    progress = line(action="result", id=4, type=105, fields=[2**20, 40 * 2**20, 0, 0])
    assert told(start, progress).step() == Progress(text="downloading for Nix (MiB)", done=1, total=40)


def test_what_builders_print_is_in_the_log_with_their_names() -> None:
    so_far = told(*building(0, 1))
    assert so_far.take(line(action="result", id=7, type=101, fields=["\x1b[1mCC\x1b[0m init/main.o\x07"])) == (
        "linux-6.12.1> CC init/main.o\N{REPLACEMENT CHARACTER}"
    )
    for number in range(TAIL + 5):
        so_far.take(line(action="result", id=7, type=101, fields=[f"line {number}"]))
    assert list(so_far.tail) == [f"line {number}" for number in range(5, TAIL + 5)]


def test_errors_are_plain_words_and_warnings_are_none() -> None:
    warning = line(action="msg", level=1, msg="\x1b[35;1mwarning:\x1b[0m not writing modified lock file")
    so_far = told(warning, LACKS)
    assert so_far.errors == ["flake 'path:/x' does not provide attribute 'packages.x.y'"]
    assert lacks_attribute(so_far)
    assert not lacks_attribute(told(warning))


def test_errors_before_nix_knows_how_to_log_count_too() -> None:
    so_far = told("error: unrecognised flag '--x'", "Try 'nix --help' for more information.")
    assert so_far.errors == ["unrecognised flag '--x'"]


def test_advice_on_options_that_nobody_here_can_give_is_left_out() -> None:
    advice = "(use '--show-trace' to show detailed location information)"
    lines = [line(action="msg", level=0, msg=f"error: no such file\n{advice}"), line(action="msg", level=0, msg=advice)]
    assert told(*lines).errors == ["no such file"]


def test_newer_versions_tell_where_they_were_before_what_is_wrong() -> None:
    message = "error:\n       … while calling the 'map' builtin\n         at /x:9:12:\n       error: it is Monday"
    assert reason(told(line(action="msg", level=0, msg=message)), 1) == "it is Monday"


def test_the_builder_that_failed_first_is_the_reason_without_its_log() -> None:
    failed = (
        "error: Cannot build '/nix/store/x-bad.drv'.\n       Reason: builder failed with exit code 3.\n"
        "       Last 2 log lines:\n       > one\n       > two\n       For full logs, run: nix log x"
    )
    lines = [line(action="msg", level=0, msg=text) for text in (failed, "error: 1 dependency failed to build")]
    said = reason(told(*lines), 1)
    assert said == "Cannot build '/nix/store/x-bad.drv'. Reason: builder failed with exit code 3"


def test_a_nix_that_ends_without_a_word_is_told_as_such() -> None:
    assert reason(told(), 137) == "nix ended with status 137 and said nothing"


def test_what_is_not_known_is_passed_over() -> None:
    odd = [
        "@nix {",
        "@nix []",
        "@nix null",
        line(action="new"),
        line(action="start", id=1),
        line(action="start", id=1, type="new", text="", level=1),
        line(action="result", id=1, type=105, fields=["x"]),
        line(action="result", id=99, type=105, fields=[1, 2]),
        line(action="start", id=2, level=0, text="", type=105),
        line(action="stop", id=77),
        line(action="msg", level="x", msg=1),
    ]
    so_far = told(*odd)
    assert so_far.step() == Progress(text="doing something")
    assert so_far.errors == []


def test_however_much_is_told_only_so_much_is_kept() -> None:
    so_far = Told("doing something")
    for number in range(MOST_RUNNING + 10):
        so_far.take(line(action="start", id=number, level=3, text="x" * 2 * LONGEST_NAME, type=112))
        so_far.take(line(action="msg", level=0, msg=f"error: {'x' * 2 * LONGEST_ERROR} {number}"))
        so_far.take(line(action="result", id=0, type=106, fields=[number, 1]))
    assert len(so_far._running) == MOST_RUNNING
    assert len(so_far.step().text) == LONGEST_NAME
    assert len(so_far.errors) == MOST_ERRORS
    assert {len(error) for error in so_far.errors} == {LONGEST_ERROR}
    assert [so_far.errors[0][-2:], so_far.errors[-1][-5:]] == [" 0", f" {MOST_RUNNING + 9}"]
    assert len(so_far._expected) <= 2
    for number in range(MOST_RUNNING + 10):
        so_far.take(line(action="stop", id=number))
    so_far.take(line(action="start", id="1" * 9000, level=3, text="", type=112))
    assert (so_far._running, len(so_far._ended)) == ({}, 0)


def test_numbers_and_nesting_without_end_are_passed_over() -> None:
    begun = line(action="start", id=4, level=3, text="copying path", type=100)
    endless = ["9" * 4000, 10**4000]
    so_far = told(begun, line(action="result", id=4, type=105, fields=endless), "@nix " + "[" * 100_000)
    so_far.take('@nix {"action": "start", "id": Infinity, "type": 100, "text": "", "level": 0}')
    total = so_far.step().total
    assert total is not None
    assert len(str(total)) < 20


def test_advice_without_an_end_takes_no_time() -> None:
    began = time.process_time()
    told("(use '--show-trace'" * 60_000)
    assert time.process_time() - began < 5


def test_lines_come_whole_however_they_are_written() -> None:
    lines = Lines()
    assert list(lines.take(b"one\ntw")) == ["one"]
    assert list(lines.take(b"o\nthree")) == ["two"]
    assert list(lines.rest()) == ["three"]
    assert list(lines.rest()) == []


def test_a_line_without_an_end_does_not_pile_up() -> None:
    lines = Lines()
    pieces = [text for _ in range(10) for text in lines.take(b"x" * 50_000)]
    assert sum(map(len, pieces)) >= 400_000
