"""Which line of a TOML text a value is on.

`tomllib` says what a document means but not where. This walks over the text of a document that `tomllib` has accepted,
so it needs no errors of its own: it follows headers, keys, arrays and inline tables and skips everything else.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

from mvm.model.validation import Location

_SPACE = re.compile(r"[ \t]*")
_FILLER = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\r\n]*")
_STRINGS = {
    '"""': re.compile(r'"""(?:\\.|[^\\])*?"{3,5}', re.DOTALL),
    "'''": re.compile(r"'''.*?'{3,5}", re.DOTALL),
    '"': re.compile(r'"(?:\\.|[^"\\])*"'),
    "'": re.compile(r"'[^']*'"),
}


def lines_of(text: str) -> dict[Location, int]:
    """The line (from 1) on which each key, table and list entry of a valid TOML text begins.

    A location is the keys and indices from the root, as in `("pools", 0, "role")`.
    """
    return _Walk(text).lines


def line_at(lines: dict[Location, int], location: Location) -> int:
    """The line of a location or of the nearest thing around it that the text has; 1 for the document itself."""
    for length in range(len(location), 0, -1):
        if (line := lines.get(location[:length])) is not None:
            return line
    return 1


class _Walk:
    def __init__(self, text: str) -> None:
        # As tomllib does it, so that positions and values agree.
        self._text = text.replace("\r\n", "\n")
        self._starts = [0, *(match.end() for match in re.finditer("\n", self._text))]
        self._at = 0
        self._array_sizes: dict[Location, int] = {}
        self.lines: dict[Location, int] = {}
        self._document()

    def _document(self) -> None:
        table: Location = ()
        while True:
            self._skip(_FILLER)
            if self._at >= len(self._text):
                return
            if self._text.startswith("[[", self._at):
                table = self._header("[[", "]]")
            elif self._text.startswith("[", self._at):
                table = self._header("[", "]")
            else:
                self._pair(table)

    def _header(self, opening: str, closing: str) -> Location:
        line = self._line()
        self._at += len(opening)
        *parents, last = self._key()
        self._at += len(closing)
        place: Location = ()
        for part in parents:
            place = self._into_array((*place, part), line)
        place = (*place, last)
        if opening == "[[":
            self.lines.setdefault(place, line)
            self._array_sizes[place] = self._array_sizes.get(place, 0) + 1
            place = (*place, self._array_sizes[place] - 1)
        self.lines[place] = line
        return place

    def _into_array(self, place: Location, line: int) -> Location:
        """Note a table on the way to another one; in an array of tables that is its latest entry."""
        self.lines.setdefault(place, line)
        if (size := self._array_sizes.get(place)) is not None:
            place = (*place, size - 1)
        return place

    def _pair(self, table: Location) -> None:
        line = self._line()
        place = table
        for part in self._key():
            place = (*place, part)
            self.lines.setdefault(place, line)
        self.lines[place] = line
        self._at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(place)

    def _key(self) -> list[str]:
        """A dotted key, and the space after it."""
        parts = []
        while True:
            self._skip(_SPACE)
            quote = self._text[self._at]
            if quote in "\"'":
                written = self._take(_STRINGS[quote])
                parts.append(str(tomllib.loads(f"key = {written}")["key"]))
            else:
                parts.append(self._take(_BARE_KEY))
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return parts
            self._at += 1

    def _value(self, place: Location) -> None:
        if self._text.startswith("[", self._at):
            self._array(place)
        elif self._text.startswith("{", self._at):
            self._inline_table(place)
        else:
            for quote, pattern in _STRINGS.items():
                if self._text.startswith(quote, self._at):
                    self._skip(pattern)
                    return
            self._skip(_SCALAR)

    def _array(self, place: Location) -> None:
        self._at += 1
        index = 0
        while True:
            self._skip(_FILLER)
            match self._text[self._at]:
                case "]":
                    self._at += 1
                    return
                case ",":
                    self._at += 1
                case _:
                    self.lines[(*place, index)] = self._line()
                    self._value((*place, index))
                    index += 1

    def _inline_table(self, place: Location) -> None:
        self._at += 1
        while True:
            self._skip(_FILLER)
            match self._text[self._at]:
                case "}":
                    self._at += 1
                    return
                case ",":
                    self._at += 1
                case _:
                    self._pair(place)

    def _line(self) -> int:
        return bisect_right(self._starts, self._at)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        if (match := pattern.match(self._text, self._at)) is not None:
            self._at = match.end()

    def _take(self, pattern: re.Pattern[str]) -> str:
        begin = self._at
        self._skip(pattern)
        return self._text[begin : self._at]
