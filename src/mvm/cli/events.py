"""`mvm events`: what happened, and what happens."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated, Any

import typer

from mvm.cli import options, session
from mvm.cli.output import AsJson, Format, Output, columns, emit, json_text, plain

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("events")
def events(
    tenant: Annotated[str | None, typer.Option(metavar="TENANT", help="Only those of this tenant.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with each new one until Ctrl-C.")] = False,
    since: Annotated[int | None, typer.Option(metavar="NUMBER", help="Only those after this number.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most this many of the past.")] = 100,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check instead that nobody changed the audit they are kept in.")
    ] = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Show events, oldest first. With --follow and --json, each is a JSON document on a line of its own.

    --verify reads the audit of the tenant, or of all, and names file and line of the first break.
    """
    tenant_id = options.tenant(tenant) if tenant is not None else None
    if verify:
        return _verify(tenant_id, output, as_json)
    lines = follow and (as_json or output is not Format.TABLE)
    past: list[dict[str, Any]] = []

    async def read() -> None:
        client = await session.agent()
        async with aclosing(client.events(tenant_id=tenant_id, since=since, limit=limit, follow=follow)) as stream:
            async for event in stream:
                if lines:
                    print(json_text(event), flush=True)
                elif follow:
                    print(event_line(event), flush=True)
                else:
                    past.append(event)

    session.run(read())
    if not follow:
        emit({"events": past}, lambda: "\n".join(map(event_line, past)), output, as_json)


def _verify(tenant_id: str | None, output: Format, as_json: bool) -> None:
    """Show what became of the audits; one that is broken is a failure."""
    from mvm.model.errors import MvmError

    audits = session.call("AuditVerify", session.given(tenant_id=tenant_id))["audits"]
    emit({"audits": audits}, lambda: _verdicts(audits), output, as_json)
    for audit in audits:
        if not audit["intact"]:
            broken = audit["broken"]
            raise MvmError(
                f"the audit of {audit['tenant_id']} is broken at {broken['file']}:{broken['line']}: "
                f"{broken['problem']}",
                hint="what comes before that line is as it was written; keep a copy of the files before they rotate",
            )


def _verdicts(audits: list[dict[str, Any]]) -> str:
    rows = [
        (
            audit["tenant_id"],
            "ok" if audit["intact"] else "problem",
            audit["lines"],
            audit["head"][:16],
            "{file}:{line}: {problem}".format(**audit["broken"]) if audit["broken"] else None,
        )
        for audit in audits
    ]
    return columns(("tenant", "audit", "lines", "head", "first break"), rows)


def event_line(event: dict[str, Any]) -> str:
    """An event on one line: number, time, kind, what it is about, detail."""
    place = "/".join(event[key] for key in ("tenant_id", "pool_id", "instance_id") if event.get(key))
    user = f"user={event['user_id']}" if event.get("user_id") else ""
    actor = f"by {event['actor']}" if event.get("actor") else ""
    when = str(event["timestamp"])[:19].replace("T", " ")
    parts = [f"{event['number']:>6}", when, f"{event['kind']:<20}", place, user, actor, event.get("detail") or ""]
    return plain(" ".join(part for part in parts if part)).replace("\n", " ")
