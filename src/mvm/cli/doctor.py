"""`mvm doctor`: checks this machine, and says what to do about what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mvm.cli import session
from mvm.cli.output import AsJson, Format, Output, columns, emit, hanging, sections
from mvm.model.errors import ExitStatus

if TYPE_CHECKING:
    from mvm.cli.checks import Finding
    from mvm.host.locations import Locations

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("doctor")
def doctor(
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Have the agent clear away what belongs to no instance; drives are put aside."),
    ] = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Check this machine, and say what to do about what is missing. Status 1 when something keeps mvm from working."""
    from mvm.cli import checks
    from mvm.cli.certificate_checks import agent_certificates
    from mvm.cli.firecracker_checks import firecracker_checks
    from mvm.cli.host_checks import host_checks
    from mvm.cli.image_checks import image_checks
    from mvm.cli.machine_checks import machine_checks
    from mvm.cli.network_checks import network_checks

    locations = session.locations()
    findings = [
        *checks.local_checks(locations),
        *host_checks(locations),
        *session.run(machine_checks(locations)),
        *session.run(firecracker_checks(locations)),
        *image_checks(locations),
        *session.run(network_checks()),
        agent_certificates(locations),
        session.run(checks.agent(locations)),
        session.run(_orphans(locations, fix=fix)),
    ]
    healthy = all(finding.verdict is not checks.Verdict.PROBLEM for finding in findings)
    document = {
        "healthy": healthy,
        "checks": [finding.as_json() for finding in findings],
        "settings": [
            {"name": name, "value": _value(getattr(locations, name)), "origin": origin}
            for name, origin in locations.origins.items()
        ],
    }
    emit(document, lambda: _report(findings, locations), output, as_json)
    if not healthy:
        raise typer.Exit(ExitStatus.FAILED)


async def _orphans(locations: Locations, *, fix: bool) -> Finding:
    """What belongs to nobody. Only to clear it away an agent is started."""
    from mvm.cli import checks
    from mvm.cli.orphan_checks import orphans

    client = await session.agent() if fix else checks.agent_client(locations)
    return await orphans(client, fix=fix)


def _report(findings: list[Finding], locations: Locations) -> str:
    """A line for each check; for what is not well, why it matters and what to type below it."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(hanging(f"{finding.verdict:<8} {finding.name.ljust(width)}  ", finding.found))
        if finding.remedy is not None:
            indent = " " * (width + 11)
            lines += [hanging(f"{indent}why: ", finding.matters), hanging(f"{indent}do:  ", finding.remedy)]
    settings = [(name, _value(getattr(locations, name)), origin) for name, origin in locations.origins.items()]
    return sections("\n".join(lines), columns(("setting", "value", "from"), settings))


def _value(value: object) -> str | bool:
    """A setting as it is shown; a table has words for yes and no."""
    if isinstance(value, bool):
        return value
    return "off" if value is None else str(value)
