"""`mvm new`: creates a deployment, or changes it to what its file says."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvm.cli import session
from mvm.cli.output import AsJson, Format, Output, columns, emit, sections

if TYPE_CHECKING:
    from mvm.cli.progress import Show
    from mvm.host.locations import Locations
    from mvm.model.deployment import Deployment
    from mvm.model.template import Template

app = typer.Typer(rich_markup_mode=None, add_completion=False)

Json = dict[str, Any]


@app.command("new")
def new(
    template: Annotated[str, typer.Argument(metavar="TEMPLATE", help="What to make: openclaw.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Id of the deployment and of its tenant.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="Its deploy.toml.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and show what would be done.")] = False,
    check: Annotated[bool, typer.Option(help="Ask Telegram and the model provider whether they know the keys.")] = True,
    wait: Annotated[bool, typer.Option(help="Wait until the deployment is ready.")] = True,
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
                locations=session.locations(),
                dry_run=dry_run,
                check=check,
                wait=wait,
                on_progress=on_progress,
            )

    answer = session.run(create())
    emit(answer, lambda: _report(answer), output, as_json)


def say_on_stderr(line: str) -> None:
    """Tell the person, without touching what programs read."""
    print(line, file=sys.stderr)


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
    from mvm.host.autostart import ensure_agent
    from mvm.model.deployment import advice, unreachable_services
    from mvm.model.errors import Unavailable
    from mvm.model.manifest import load_deploy_toml, new_deployment
    from mvm.model.secret_files import read_secrets

    known = _template(template)
    deployment = load_deploy_toml(config, name, template=known) if config else new_deployment(name, template=known)
    secrets = read_secrets(deployment, environ)
    notes = [*secrets.warnings, *advice(deployment)]
    if check:
        from mvm.openclaw.checks import check_keys

        on_progress(_Step("asking whether the keys are known"))
        notes += await check_keys(deployment.openclaw, secrets.values)
    for note in notes:
        say(f"note: {note}")
    if not dry_run:
        await _install_openclaw(locations, deployment, on_progress)
    client = await ensure_agent(locations, say=say)
    node = await client.call("NodeInfo")
    if node["runtime"] == "none":
        raise Unavailable(f"no instance can run here: {node['runtime_reason']}", hint="`mvm doctor` says what to do")
    if not node["isolated"] and any(pool.egress != "internet" for pool in deployment.pools):
        say("note: `egress` is not enforced: this runtime has no network of its own")
    if node["isolated"]:
        for note in unreachable_services(deployment):
            say(f"note: {note}")
    else:
        say(f"note: runtime {node['runtime']}: {node['runtime_reason']}")
    params = {
        "deployment": deployment.model_dump(mode="json"),
        "secrets": secrets.values,
        "dry_run": dry_run,
    }
    answer = {
        "deployment": name,
        **await client.call("ApplyDeployment", params, on_progress=on_progress),
        "notes": notes,
    }
    if wait and not dry_run:
        answer |= await client.call("DeploymentReady", {"tenant_id": name}, on_progress=on_progress)
    return answer


async def _install_openclaw(locations: Locations, deployment: Deployment, on_progress: Show) -> None:
    """Get OpenClaw on this host before the agent is asked to run it; nothing when it is there."""
    from mvm.openclaw.install import install_async

    if os.environ.get("MVM_OPENCLAW_DIR") or not any(pool.role.runs_openclaw for pool in deployment.pools):
        return
    await install_async(locations.programs_dir, on_progress=on_progress)


def _template(name: str) -> Template:
    from mvm.model.errors import InvalidInput
    from mvm.openclaw.template import OPENCLAW

    if name != OPENCLAW.name:
        raise InvalidInput(f"template {name[:80]!r} is unknown", hint=f"the templates are: {OPENCLAW.name}")
    return OPENCLAW


class _Step:
    """A step of this command itself, to be shown like the agent's."""

    done: float | None = None
    total: float | None = None

    def __init__(self, text: str) -> None:
        self.text = text


def _report(answer: Json) -> str:
    """What was done, what runs, and what to type next."""
    name = answer["deployment"]
    actions = [(action["action"], action["object"], action["reason"]) for action in answer["actions"]]
    if answer.get("dry_run"):
        return columns(("would", "object", "because"), actions, empty=f"{name} is as it should be: nothing to do")
    done = columns(("done", "object", "because"), actions, empty=f"{name} is as it should be: nothing was changed")
    return sections(done, f"`mvm connect {name}` shows how to reach it; `mvm events --tenant {name}` what happens")
