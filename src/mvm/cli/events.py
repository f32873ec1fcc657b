"""`mvm events`: what happened, and what happens."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mvm.cli import options, session
from mvm.cli.output import AsJson, Format, Output, emit, json_text, plain

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("events")
def events(
    tenant: Annotated[str | None, typer.Option(metavar="TENANT", help="Only those of this tenant.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with each new one until Ctrl-C.")] = False,
    since: Annotated[int | None, typer.Option(metavar="NUMBER", help="Only those after this number.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most this many of the past.")] = 100,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Show events, oldest first. With --follow and --json, each is a JSON document on a line of its own."""
    tenant_id = options.tenant(tenant) if tenant is not None else None
    lines = follow and (as_json or output is not Format.TABLE)
    past: list[dict[str, Any]] = []

    async def read() -> None:
        client = await session.agent()
        stream = client.events(tenant_id=tenant_id, since=since, limit=limit, follow=follow)
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


def event_line(event: dict[str, Any]) -> str:
    """An event on one line: number, time, kind, what it is about, detail."""
    place = "/".join(event[key] for key in ("tenant_id", "pool_id", "instance_id") if event.get(key))
    user = f"user={event['user_id']}" if event.get("user_id") else ""
    actor = f"by {event['actor']}" if event.get("actor") else ""
    when = str(event["timestamp"])[:19].replace("T", " ")
    parts = [f"{event['number']:>6}", when, f"{event['kind']:<20}", place, user, actor, event.get("detail") or ""]
    return plain(" ".join(part for part in parts if part)).replace("\n", " ")
