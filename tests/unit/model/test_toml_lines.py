"""Which line of a TOML text a value is on."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.model.toml_lines import line_at, lines_of

EXAMPLE = '''\
# a comment with [brackets] and = signs
title = "first"   # line 2

[tenant]
id = "alice"
"quoted key" = { inner = 1, "other.one" = [1, 2] }
dotted.key.deep = true

[[pools]]
id = "a"
text = """
[not a table]
x = 1
"""
[[pools]]  # the second
id = 'b'
[pools.policy]
list = [
  1,
  # a comment ]
  "two ]",
  { three = 3 },
]
[[pools.rules]]
name = 1
[[pools.rules]]
name = 2
'''


@pytest.mark.parametrize(
    ("location", "line"),
    [
        (("title",), 2),
        (("tenant",), 4),
        (("tenant", "id"), 5),
        (("tenant", "quoted key"), 6),
        (("tenant", "quoted key", "inner"), 6),
        (("tenant", "quoted key", "other.one", 1), 6),
        (("tenant", "dotted", "key", "deep"), 7),
        (("pools", 0), 9),
        (("pools", 0, "text"), 11),
        (("pools", 1), 15),
        (("pools", 1, "id"), 16),
        (("pools", 1, "policy"), 17),
        (("pools", 1, "policy", "list"), 18),
        (("pools", 1, "policy", "list", 0), 19),
        (("pools", 1, "policy", "list", 1), 21),
        (("pools", 1, "policy", "list", 2, "three"), 22),
        (("pools", 1, "rules", 0, "name"), 25),
        (("pools", 1, "rules", 1), 26),
        (("pools", 1, "rules", 1, "name"), 27),
    ],
)
def test_a_value_is_on_the_line_where_it_is_written(location: tuple[str | int, ...], line: int) -> None:
    assert lines_of(EXAMPLE)[location] == line


def test_what_is_not_there_is_on_the_line_of_what_is_around_it() -> None:
    lines = lines_of(EXAMPLE)
    assert line_at(lines, ("pools", 1, "role")) == 15
    assert line_at(lines, ("users", 0)) == 1
    assert line_at(lines, ()) == 1


def test_lines_are_counted_the_same_with_windows_line_ends() -> None:
    assert lines_of(EXAMPLE.replace("\n", "\r\n")) == lines_of(EXAMPLE)


@pytest.mark.parametrize(
    "text",
    [
        'a = """x"""""\nb = 1',
        "a = ''''x'''''\nb = 1",
        'a = """\\""" """\nb = 1',
        'a = "\\"#"\nb = 1',
        "a = 'it#s'\nb = 1",
        "a = [ [ ], [ [ ] ] , ]\nb = 1",
        "a = { }\nb = 1",
        "a = 1979-05-27T07:32:00Z\nb = 1",
        "a = 1979-05-27 07:32:00\nb = 1",
        "a = -inf\nb = 1",
    ],
)
def test_no_kind_of_value_hides_the_next_line(text: str) -> None:
    tomllib.loads(text)
    assert lines_of(text)["b",] == 2


keys = st.text(st.characters(codec="utf-8", exclude_characters="\x7f", exclude_categories=["Cc", "Cs"]), max_size=6)
scalars = st.one_of(
    st.integers(-99, 99).map(str),
    st.booleans().map(lambda b: str(b).lower()),
    st.text(st.sampled_from("ab#[]{}=,'\n "), max_size=8).map(lambda t: f'"""{t}"""'),
    st.text(st.sampled_from("ab#[]{}=,' "), max_size=8).map(lambda t: f'"{t}"'),
    st.text(st.sampled_from('ab#[]{}=," '), max_size=8).map(lambda t: f"'{t}'"),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(lambda vs: "[ # c ]\n" + "".join(f"  {v},\n" for v in vs) + "]"),
    max_leaves=6,
)


def quoted(key: str) -> str:
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


def places(value: Any, at: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Every location of a parsed document."""
    found = {at} if at else set()
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found.union(*(places(inner, (*at, key)) for key, inner in entries))


@given(st.lists(st.tuples(keys, st.lists(st.tuples(keys, values), max_size=3, unique_by=lambda p: p[0])), max_size=4))
def test_every_place_of_a_document_has_a_line_and_keys_are_found_on_theirs(tables) -> None:
    text = ""
    written: list[tuple[str, int, str, int]] = []
    counts: dict[str, int] = {}
    for name, pairs in tables:
        text += f"[[{quoted(name)}]]\n"
        index = counts[name] = counts.get(name, -1) + 1
        for key, value in pairs:
            written.append((name, index, key, text.count("\n") + 1))
            text += f"{quoted(key)} = {value} # end\n"
    document = tomllib.loads(text)
    lines = lines_of(text)
    assert set(lines) == places(document)
    for name, index, key, line in written:
        assert lines[name, index, key] == line
