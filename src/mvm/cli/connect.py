"""`mvm connect`: how to reach a deployment."""

from __future__ import annotations

from typing import Any

import typer

from mvm.cli import options, session
from mvm.cli.output import AsJson, Format, Output, age, columns, emit, facts, sections

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("connect")
def connect(tenant: options.Tenant, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Show how to reach a deployment: its channels, its gateway, its users and their workers."""
    answer = session.call("Connect", {"tenant_id": options.tenant(tenant)})
    emit(answer, lambda: overview(answer), output, as_json)


def overview(answer: dict[str, Any]) -> str:
    """A deployment for people: what it is reached by, and each user's worker."""
    tenant, gateway, served_by = answer["tenant"], answer["gateway"], answer["served_by"]
    to_pair = any(not user["paired"] for user in answer["users"])
    return sections(
        facts(
            [
                ("deployment", tenant),
                ("channels", answer["channels"] or "none: no channel's token is set"),
                ("gateway", f"{gateway['address']} is {gateway['state']}" if gateway else "none"),
                ("last error", gateway["last_error"] if gateway else None),
                ("served by", served_by if served_by != tenant else None),
                ("to pair", f"write to the bot, then: mvm user pair {tenant} CODE" if to_pair else None),
            ]
        ),
        columns(
            ("user", "writes from", "worker", "state", "next alarm", "last error"),
            [_row(user) for user in answer["users"]],
            empty=f"no users: `mvm user add {tenant} NAME` adds one",
        ),
        f"`mvm explain {tenant}` says why things are as they are",
    )


def _row(user: dict[str, Any]) -> tuple[object, ...]:
    worker = user["worker"] or {}
    alarm = worker.get("next_alarm_at")
    return (
        user["user_id"],
        user["peers"] or "not paired yet",
        worker.get("address", "no worker yet"),
        worker.get("state"),
        age(alarm) if alarm else None,
        worker.get("last_error"),
    )
