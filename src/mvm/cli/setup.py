"""`mvm setup`: what a host needs that is in no package registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvm.cli import session
from mvm.cli.output import AsJson, Format, Output, emit, facts

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True)


@app.callback()
def setup() -> None:
    """What a host needs beside mvm itself."""


@app.command("firecracker")
def firecracker(
    version: Annotated[str | None, typer.Option(metavar="X.Y.Z", help="Release; default: the one mvm knows.")] = None,
    sha256: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="Digest that the tarball must have; default: the one published beside it."),
    ] = None,
    tarball: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="A release's tarball that is here already.")
    ] = None,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Install Firecracker and its jailer from Firecracker's own release, verified, beside mvm's other programs."""
    from mvm.cli.progress import shown
    from mvm.runtime.firecracker_install import DEFAULT_VERSION, Installer, Wanted

    wanted = Wanted(
        version=(version or DEFAULT_VERSION).removeprefix("v"),
        sha256=sha256.lower() if sha256 is not None else None,
        tarball=tarball,
    )
    with shown() as show:
        made = Installer(session.locations().programs_dir, on_progress=show).install(wanted)
    document = {
        "version": made.version,
        "directory": str(made.directory),
        "sha256": made.sha256,
        "source": made.source,
        "installed": made.new,
    }

    def report() -> str:
        done = "Firecracker and its jailer are installed" if made.new else "they were installed already"
        said = facts(
            [("version", made.version), ("directory", made.directory), ("sha256", made.sha256), ("from", made.source)]
        )
        return f"{done}\n{said}\n\n`mvm doctor` says what this host still needs for them"

    emit(document, report, output, as_json)
