"""`mvm node`: this host."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mvm.cli import options, session
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


@app.command("gc")
def collect_garbage(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    force: options.Force = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Remove what nobody uses: images, their bases, and data drives that `mvm doctor --fix` has put aside."""
    from mvm.cli.pool import garbage_table

    answer = session.call("NodeGc", {"dry_run": True})
    if not dry_run:
        if drives := answer["drives"]:
            options.confirm(f"destroy {len(drives)} data drives of instances that nobody knows", force=force)
        answer = session.call("NodeGc", {"dry_run": False, "drives": bool(drives)})
    emit(answer, lambda: garbage_table(answer), output, as_json)


def described(answer: dict[str, Any]) -> str:
    """Single values first, then a table for each group of values."""
    from mvm.cli.instance import figure

    plain = [figure(name, value) for name, value in answer.items() if not _group(value)]
    groups = [columns((name.replace("_", " "), ""), value.items()) for name, value in answer.items() if _group(value)]
    return sections(facts(plain), *groups)


def _group(value: object) -> bool:
    return isinstance(value, dict)
