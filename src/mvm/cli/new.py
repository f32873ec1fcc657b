"""`mvm new`: creates a deployment, or changes it to what its file says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvm.cli import session
from mvm.cli.manifests import (
    apply_deployment,
    ask_about_keys,
    install_openclaw,
    prepared,
    ready_agent,
    say_on_stderr,
)
from mvm.cli.output import AsJson, Format, Output, emit, sections

if TYPE_CHECKING:
    from mvm.cli.progress import Show
    from mvm.host.client import AgentClient
    from mvm.host.locations import Locations
    from mvm.model.template import Template

app = typer.Typer(rich_markup_mode=None, add_completion=False)

Json = dict[str, Any]


@app.command("new")
def new(
    template: Annotated[str, typer.Argument(metavar="TEMPLATE", help="What to make: openclaw.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Id of the deployment and of its tenant.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="Its deploy.toml.")] = None,
    runtime: Annotated[
        str | None, typer.Option(metavar="RUNTIME", help="How instances run: auto, firecracker, qemu or process.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and show what would be done.")] = False,
    check: Annotated[bool, typer.Option(help="Ask Telegram and the model provider whether they know the keys.")] = True,
    wait: Annotated[
        bool, typer.Option(help="Wait until all of it is ready, not only until its instances have come up.")
    ] = True,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Create a deployment, or change it to what its file says. What is as it should be is left alone.

    Everything is checked before anything is created; what was created is removed again when a step fails.
    """
    from mvm.cli.progress import shown

    async def create() -> Json:
        with shown() as on_progress:
            return await create_deployment(
                name,
                template=template,
                config=config,
                locations=session.locations(runtime=runtime),
                dry_run=dry_run,
                check=check,
                wait=wait,
                on_progress=on_progress,
            )

    answer = session.run(create())
    emit(answer, lambda: _report(answer), output, as_json)


async def create_deployment(
    name: str,
    *,
    locations: Locations,
    template: str = "openclaw",
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    dry_run: bool = False,
    check: bool = True,
    wait: bool = True,
    on_progress: Show,
    say: Callable[[str], None] = say_on_stderr,
) -> Json:
    """Do all that `mvm new TEMPLATE NAME --config FILE` does, and return what it shows.

    In this order: the file, its secrets, whether the services know the keys, the installation of OpenClaw, the agent,
    the deployment, the wait until it is ready. Nothing is created before all that can be checked is right. Raises the
    `MvmError` of the step that failed; the agent has then removed what it created.
    """
    from mvm.model.manifest import load_deploy_toml, new_deployment

    known = _template(template)
    deployment = load_deploy_toml(config, name, template=known) if config else new_deployment(name, template=known)
    what = prepared(deployment, environ)
    if check:
        what.notes.extend(await ask_about_keys(what, on_progress))
    for note in what.notes:
        say(f"note: {note}")
    if not dry_run:
        await install_openclaw(locations, deployment, on_progress)
    client = await ready_agent(locations, deployment, say=say)
    if config is None:
        await _refuse_to_forget(client, name)
    answer = await apply_deployment(client, what, on_progress, dry_run=dry_run)
    if wait and not dry_run:
        answer |= await client.call("DeploymentReady", {"tenant_id": name}, on_progress=on_progress)
    return answer


async def _refuse_to_forget(client: AgentClient, name: str) -> None:
    """Raise `Conflict` where a deployment exists: without a file it would lose what its file said of OpenClaw."""
    from mvm.model.errors import Conflict, NotFound

    try:
        await client.call("TenantInfo", {"tenant_id": name})
    except NotFound:
        return
    raise Conflict(
        f"the deployment {name!r} exists, and no file says what it should be",
        hint=f"give its file with --config; `mvm connect {name}` shows what it is",
    )


def _template(name: str) -> Template:
    from mvm.model.errors import InvalidInput
    from mvm.openclaw.template import OPENCLAW

    if name != OPENCLAW.name:
        raise InvalidInput(f"template {name[:80]!r} is unknown", hint=f"the templates are: {OPENCLAW.name}")
    return OPENCLAW


def _report(answer: Json) -> str:
    """What was done, what runs, and what to type next."""
    from mvm.cli.reports import report_text

    name = answer["deployment"]
    text = report_text(answer, name=name)
    if answer.get("dry_run"):
        return text
    return sections(text, f"`mvm connect {name}` shows how to reach it; `mvm events --tenant {name}` what happens")
