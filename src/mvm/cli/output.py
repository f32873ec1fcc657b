"""What commands print on stdout: a table for people, or exactly one JSON or YAML document for programs."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from mvm.telemetry.printable import printable

WIDTH = 120
"""Characters of a line of text; what is to be copied out of it may be longer."""
MISSING = "-"
"""Shown where there is no value."""


class Format(StrEnum):
    """Forms of output."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[Format, typer.Option("--output", "-o", help="Form of the output.")]
AsJson = Annotated[bool, typer.Option("--json", help="The same as -o json.")]

_COLOURS = {
    "running": "32",
    "ok": "32",
    "warm": "33",
    "warning": "33",
    "note": "36",
    "sleeping": "34",
    "stopped": "2",
    "failed": "31",
    "problem": "31",
}


def emit(document: Any, table: Callable[[], str], output: Format, as_json: bool) -> None:
    """Print `document` for programs, or what `table` makes of it for people."""
    if as_json or output is Format.JSON:
        text = json_text(document, indent=2)
    elif output is Format.YAML:
        import yaml

        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip("\n")
    else:
        text = table()
    if text:
        print(text)


def json_text(document: Any, *, indent: int | None = None) -> str:
    """A document as JSON that cannot act on a terminal: what cannot be printed is escaped, so nothing is lost."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def columns(headers: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> str:
    """Aligned columns; `empty` instead when there are no rows."""
    cells = [[_text(cell) for cell in row] for row in rows]
    if not cells:
        return empty
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    head = "  ".join(header.upper().ljust(width) for header, width in zip(headers, widths, strict=True))
    lines = [_style(head.rstrip(), "1")]
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        padded[-1] = row[-1]
        lines.append("  ".join(_coloured(cell) for cell in padded).rstrip())
    return "\n".join(lines)


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """One `name  value` a line, aligned; a value that is missing is left out."""
    shown = [(name, _text(value)) for name, value in pairs if value not in (None, "", [], {}, ())]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name.ljust(width)}  {_coloured(value)}" for name, value in shown)


def counts(of: Mapping[str, int]) -> str:
    """`1 running, 2 sleeping`: what there is some of."""
    return ", ".join(f"{count} {name}" for name, count in of.items() if count)


def hanging(head: str, text: str) -> str:
    """Text after `head`, in lines that a terminal shows whole; those that follow are indented as far as `head` goes."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def limits(pool: Mapping[str, Any]) -> str | None:
    """What the machines of a pool may do in a second; None where there is no limit."""
    words = (
        ("disk_mib_per_second", "MiB by each drive"),
        ("disk_ops_per_second", "requests to each drive"),
        ("network_mib_per_second", "MiB of network each way"),
    )
    said = [f"{pool[name]} {what}" for name, what in words if pool.get(name)]
    return f"{', '.join(said)} in a second" if said else None


def sections(*parts: str) -> str:
    """Parts with an empty line between them; empty parts are left out."""
    return "\n\n".join(part for part in parts if part)


def age(timestamp: str | None, now: datetime | None = None) -> str:
    """How long ago an RFC 3339 time was, or how far ahead (`in 5m`), in its two largest units at most."""
    if not timestamp:
        return MISSING
    seconds = int(((now or datetime.now(UTC)) - datetime.fromisoformat(timestamp)).total_seconds())
    text = duration(abs(seconds))
    return f"in {text}" if seconds < 0 else text


def duration(seconds: int) -> str:
    """`45s`, `3m`, `2h5m`, `4d3h`."""
    if seconds < 60:
        return f"{seconds}s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if hours < 1:
        return f"{minutes}m"
    if days < 1:
        return f"{hours}h{minutes % 60}m"
    return f"{days}d{hours % 24}h"


def mib(value: int | None) -> str:
    """Mebibytes in the unit that people would use."""
    if value is None:
        return MISSING
    if value >= 10 * 1024:
        return f"{value / 1024:.0f} GiB"
    return f"{value / 1024:g} GiB" if value >= 1024 and value % 512 == 0 else f"{value} MiB"


def size(value: float | None) -> str:
    """Bytes in the unit that people would use."""
    if value is None:
        return MISSING
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _text(value: object) -> str:
    """A cell: what guests and files say is shown without control characters, so that it cannot act on a terminal."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value) or MISSING
    return "".join(c if c.isprintable() else " " for c in str(value))


def plain(value: str) -> str:
    """Text of any number of lines without control characters but tab and newline."""
    return printable(value)


def _coloured(cell: str) -> str:
    colour = _COLOURS.get(cell.strip())
    return _style(cell, colour) if colour else cell


def _style(text: str, code: str) -> str:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return text
    return f"\x1b[{code}m{text}\x1b[0m"
