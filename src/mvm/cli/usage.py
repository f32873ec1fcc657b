"""`mvm usage`: what every tenant and user used, for whoever writes a bill."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from mvm.cli import options, session
from mvm.cli.output import AsJson, Format, Output, columns, duration, emit, sections

app = typer.Typer(rich_markup_mode=None, add_completion=False)

FIELDS = (
    "tenant_id",
    "user_id",
    "pool_id",
    "running_seconds",
    "memory_mib_seconds",
    "wakes",
    "messages",
)
"""Columns of the CSV, in order."""


@app.command("usage")
def usage(
    tenant: Annotated[
        str | None, typer.Argument(metavar="[TENANT]", help="Only this tenant; default: all of them.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="DAY", help="From this day (UTC) on, as 2026-01-31, or 7d; default: 30d.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="As comma-separated values with a header.")] = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Show running time, memory held, wakes and answered messages by user, and by pool what is nobody's."""
    from mvm.model.errors import InvalidInput

    if as_csv and (as_json or output is not Format.TABLE):
        raise InvalidInput("--csv and another form of output exclude each other", hint="leave one of them out")
    params = session.given(tenant_id=options.tenant(tenant) if tenant else None, since=_day(since))
    answer = _all_pages(params)
    if as_csv:
        _print_csv(answer["usage"])
    else:
        emit(answer, lambda: _table(answer), output, as_json)


def _all_pages(params: dict[str, Any]) -> dict[str, Any]:
    """Every row, however many pages they fill."""
    answer = session.call("Usage", params)
    rows = page = answer["usage"]
    while page:
        page = session.call("Usage", {**params, "after": page[-1]["key"]})["usage"]
        rows = rows + page
    return {**answer, "usage": [{field: row[field] for field in FIELDS} for row in rows]}


def _day(since: str | None) -> str | None:
    """A day as the agent takes it: today and the days before it count for `7d`."""
    from datetime import UTC, datetime, timedelta

    from mvm.model.errors import InvalidInput

    if since is None:
        return None
    if days := re.fullmatch(r"([1-9][0-9]{0,3})d", since):
        return (datetime.now(UTC).date() - timedelta(days=int(days[1]) - 1)).isoformat()
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", since):
        return since
    raise InvalidInput(f"--since {since[:40]!r} is neither a day nor a number of days", hint="write 2026-01-31 or 7d")


def _print_csv(rows: list[dict[str, Any]]) -> None:
    import csv
    import sys

    writer = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _table(answer: dict[str, Any]) -> str:
    rows = [
        (
            row["tenant_id"],
            row["user_id"] or f"({row['pool_id']})",
            duration(round(row["running_seconds"])),
            f"{row['memory_mib_seconds'] / 1024 / 3600:.2f}",
            row["wakes"],
            row["messages"],
        )
        for row in answer["usage"]
    ]
    headers = ("tenant", "user or pool", "running", "GiB-hours", "wakes", "messages")
    table = columns(headers, rows, empty="nothing was used")
    return sections(table, f"from {answer['since']} to {answer['until'][:19].replace('T', ' ')} UTC")
