"""`mvm console`: where the web console is."""

from __future__ import annotations

import typer

from mvm.cli import session
from mvm.cli.output import AsJson, Format, Output, emit

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("console")
def console(output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Say the address of the web console, for a browser of this machine. Whoever has it sees all tenants."""
    answer = session.call("ConsoleLink")
    emit(answer, lambda: str(answer["url"]), output, as_json)
