"""`mvm node`: this host."""

from __future__ import annotations

from typing import Any

import typer

from mvm.cli import session
from mvm.cli.output import AsJson, Format, Output, columns, emit, facts, sections

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True, help="This host.")


@app.command("info")
def info(output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Show what this host is and which runtime its instances get."""
    answer = session.call("NodeInfo")
    emit(answer, lambda: described(answer), output, as_json)


@app.command("stats")
def stats(output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Show what runs on this host and what it uses."""
    answer = session.call("NodeStats")
    emit(answer, lambda: described(answer), output, as_json)


def described(answer: dict[str, Any]) -> str:
    """Single values first, then a table for each group of values."""
    from mvm.cli.instance import figure

    plain = [figure(name, value) for name, value in answer.items() if not _group(value)]
    groups = [columns((name.replace("_", " "), ""), value.items()) for name, value in answer.items() if _group(value)]
    return sections(facts(plain), *groups)


def _group(value: object) -> bool:
    return isinstance(value, dict)
