"""`mvm connect`: how to reach a deployment."""

from __future__ import annotations

import typer

from mvm.cli import options, session
from mvm.cli.output import AsJson, Format, Output, emit

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("connect")
def connect(tenant: options.Tenant, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Show how to reach a deployment: its bot, its gateway, its users and their workers."""
    from mvm.cli.node import described

    answer = session.call("Connect", {"tenant_id": options.tenant(tenant)})
    emit(answer, lambda: described(answer), output, as_json)
