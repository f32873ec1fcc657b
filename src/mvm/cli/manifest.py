"""`mvm manifest`: the files that people write, checked without an agent, and their schemas for editors."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mvm.cli.output import AsJson, Format, Output, emit

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True, help="The files that you write.")


class Kind(StrEnum):
    """What is written."""

    DEPLOYMENT = "deployment"
    DEPLOY = "deploy"
    DESIRED = "desired"


@app.command("schema")
def schema(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="deployment, deploy or desired.")] = Kind.DEPLOYMENT,
) -> None:
    """Print the JSON Schema of a deployment.toml, a deploy.toml or a desired state, for editors."""
    from importlib.resources import files

    print((files("mvm.model") / "schemas" / f"{kind}.schema.json").read_text(), end="")


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A deployment.toml, deploy.toml or desired state.")],
    kind: Annotated[
        Kind | None, typer.Option("--as", metavar="KIND", help="deployment, deploy or desired; default: by its name.")
    ] = None,
    secrets: Annotated[bool, typer.Option(help="Read the secrets that it names, too.")] = True,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Say everything that is wrong with a file, by line. Nobody is asked and nothing is changed."""
    kind = kind or _kind_of(file)
    answer = _checked_state(file) if kind is Kind.DESIRED else _checked_manifest(file, kind, secrets=secrets)
    emit(answer, lambda: "\n".join([f"{file} is in order", *(f"note: {n}" for n in answer["notes"])]), output, as_json)


def _kind_of(file: Path) -> Kind:
    if file.suffix == ".json":
        return Kind.DESIRED
    return Kind.DEPLOY if file.name == "deploy.toml" else Kind.DEPLOYMENT


def _checked_manifest(file: Path, kind: Kind, *, secrets: bool) -> dict[str, Any]:
    from mvm.cli.manifests import prepared
    from mvm.model.deployment import advice
    from mvm.model.manifest import load_deploy_toml, load_deployment_toml
    from mvm.openclaw.template import OPENCLAW

    is_whole = kind is Kind.DEPLOYMENT
    deployment = load_deployment_toml(file) if is_whole else load_deploy_toml(file, "any", template=OPENCLAW)
    notes = prepared(deployment).notes if secrets else advice(deployment)
    return {"file": str(file), "kind": str(kind), "notes": notes}


def _checked_state(file: Path) -> dict[str, Any]:
    from mvm.cli.agent import read_json
    from mvm.model.desired import validate_desired

    validate_desired(read_json(file))
    return {"file": str(file), "kind": str(Kind.DESIRED), "notes": []}
