"""`mvm net`: the networks of tenants."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mvm.cli import options, session
from mvm.cli.output import AsJson, Format, Output, columns, emit, sections
from mvm.model.errors import ExitStatus

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True, help="The networks of tenants.")


@app.callback()
def net() -> None:
    """The networks of tenants."""


@app.command("verify")
def verify(
    tenant: Annotated[str | None, typer.Argument(metavar="[TENANT]", help="Only this tenant's instances.")] = None,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Prove by connections from inside running instances who reaches whom. Status 1 when something is not right."""
    params = session.given(tenant_id=None if tenant is None else options.tenant(tenant))
    answer = session.call("NetVerify", params)
    emit(answer, lambda: _report(answer), output, as_json)
    if not answer["passed"]:
        raise typer.Exit(ExitStatus.FAILED)


def _report(answer: dict[str, Any]) -> str:
    checks = answer["checks"]
    rows = [("ok" if c["passed"] else "failed", c["from"], c["what"], c["expected"], c["found"]) for c in checks]
    failed = sum(not check["passed"] for check in checks)
    asked, skipped = answer["asked"], answer["skipped"]
    if not checks:
        return sections(
            columns(("not asked", "because"), skipped.items()),
            "nothing was checked: no running instance has a network of its own (under the runtime process none has)",
        )
    summary = f"{len(checks) - failed} of {len(checks)} checks passed; {asked} running instances were asked"
    left_out = columns(("not asked", "because"), skipped.items())
    return sections(columns(("", "from", "what", "expected", "found"), rows), left_out, summary)
