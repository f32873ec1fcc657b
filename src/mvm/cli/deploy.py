"""`mvm deploy`: makes a deployment what its deployment.toml says, once or for as long as it runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvm.cli import session
from mvm.cli.manifests import (
    Prepared,
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
    from mvm.host.locations import Locations

app = typer.Typer(rich_markup_mode=None, add_completion=False)

Json = dict[str, Any]
INTERVAL_SECONDS = 30.0


@app.command("deploy")
def deploy(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The deployment.toml.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on: again whenever a file changes, and at every interval.")
    ] = False,
    interval: Annotated[
        float | None, typer.Option(min=1, max=86400, metavar="SECONDS", help="With --watch; default: 30.")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(metavar="RUNTIME", help="How instances run: auto, firecracker, qemu or process.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and show what would be done.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Destroy its pools and users that the file does not name, with their data.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Ask Telegram and the model provider whether they know the keys.")] = True,
    wait: Annotated[bool, typer.Option(help="Wait until the deployment is ready (not with --watch).")] = True,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Make a deployment what its file says. What is as it should be is left alone.

    With --watch it ends at Ctrl-C or SIGTERM; a file that is wrong meanwhile changes nothing, and is told.
    """
    from mvm.cli.progress import shown
    from mvm.cli.reports import raise_first_error
    from mvm.model.errors import InvalidInput

    if interval is not None and not watch:
        raise InvalidInput("--interval is for --watch", hint="add --watch, or leave --interval out")
    if watch and dry_run:
        raise InvalidInput("--watch and --dry-run exclude each other", hint="leave one of them out")
    if watch and output is Format.YAML:
        raise InvalidInput("--watch has no YAML", hint="use --json: one document a line")
    deployer = Deployer(file, session.locations(runtime=runtime), prune=prune, check=check)
    if watch:
        from mvm.cli.deploy_watch import Watch

        as_lines = as_json or output is Format.JSON
        return session.run(Watch(deployer, interval=interval or INTERVAL_SECONDS, as_lines=as_lines).run())

    async def once() -> Json:
        with shown() as on_progress:
            answer = await deployer.apply(on_progress, dry_run=dry_run)
            if wait and not dry_run and not answer["errors"]:
                answer |= await deployer.wait_until_ready(on_progress)
            return answer

    answer = session.run(once())
    emit(answer, lambda: _told(answer), output, as_json)
    raise_first_error(answer)


class Deployer:
    """Applies one manifest, as often as it is asked; reads everything anew each time."""

    def __init__(
        self,
        file: Path,
        locations: Locations,
        *,
        prune: bool,
        check: bool,
        environ: Mapping[str, str] = os.environ,
        say: Callable[[str], None] = say_on_stderr,
    ) -> None:
        self.file = file
        self._locations = locations
        self._prune = prune
        self._check = check
        self._environ = environ
        self._say = say
        self._said: set[str] = set()
        self._checked: tuple[object, Mapping[str, str]] | None = None
        self._read: Prepared | None = None

    def files(self) -> list[Path]:
        """Files that the deployment was made from when it was read last."""
        secrets = self._read.deployment.secrets if self._read is not None else ()
        return [self.file, *(Path(source.file) for source in secrets if source.file is not None)]

    async def apply(self, on_progress: Show, *, dry_run: bool = False) -> Json:
        """Read the file and its secrets, and have the agent make it so; returns the report.

        Raises what is wrong with any of it, before anything is done.
        """
        from mvm.model.manifest import load_deployment_toml

        deployment = load_deployment_toml(self.file)
        what = self._read = prepared(deployment, self._environ)
        # Asked once for the same keys: nobody's service is asked at every interval.
        if self._check and self._checked != (deployment.openclaw, what.secrets):
            what.notes.extend(await ask_about_keys(what, on_progress))
            self._checked = (deployment.openclaw, what.secrets)
        for note in what.notes:
            self._note(f"note: {note}")
        if not dry_run:
            await install_openclaw(self._locations, deployment, on_progress)
        client = await ready_agent(self._locations, deployment, say=self._note)
        return await apply_deployment(client, what, on_progress, dry_run=dry_run, prune=self._prune, whole=False)

    async def wait_until_ready(self, on_progress: Show) -> Json:
        """Wait until the gateway and the workers that run answer; returns the instances."""
        from mvm.host.autostart import ensure_agent

        assert self._read is not None
        client = await ensure_agent(self._locations, say=self._note)
        tenant = {"tenant_id": self._read.deployment.name}
        return await client.call("DeploymentReady", tenant, on_progress=on_progress)

    def _note(self, line: str) -> None:
        """Say a note once, however often the deployment is applied."""
        if line not in self._said:
            self._said.add(line)
            self._say(line)


def _told(answer: Json) -> str:
    from mvm.cli.reports import report_text

    name = answer["deployment"]
    text = report_text(answer, name=name)
    if answer["dry_run"]:
        return text
    return sections(text, f"`mvm connect {name}` shows how to reach it; `mvm events --tenant {name}` what happens")
