"""`mvm agent`: the daemon that does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvm.cli import certs, session
from mvm.cli.output import AsJson, Format, Output, columns, emit

app = typer.Typer(
    rich_markup_mode=None, add_completion=False, no_args_is_help=True, help="The daemon that does the work."
)
app.add_typer(certs.app, name="certs")


@app.command("serve")
def serve(
    runtime: Annotated[str | None, typer.Option(help="auto, firecracker, qemu or process (MVM_RUNTIME).")] = None,
    production: Annotated[bool | None, typer.Option("--production", help="Refuse what is not isolated.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error (MVM_LOG).")] = None,
    metrics_port: Annotated[
        str | None, typer.Option(help="Show metrics and health on this loopback port; 0: any, off (MVM_METRICS_PORT).")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Also take requests from the network, by certificates; off (MVM_LISTEN)."
        ),
    ] = None,
) -> None:
    """Run the agent in the foreground until SIGTERM or Ctrl-C; instances live on when it ends."""
    from mvm.host.daemon import serve as serve_host

    session.run(
        serve_host(
            session.locations(
                runtime=runtime,
                production=production,
                log_level=log_level,
                metrics_port=metrics_port,
                listen=listen,
            )
        )
    )


@app.command("status")
def status(output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Show whether an agent runs here, and which; never starts one."""
    from mvm.cli.node import described
    from mvm.host.client import NoAgent
    from mvm.model.errors import Unavailable

    try:
        answer = session.run(_ask_running("NodeInfo"))
    except NoAgent as error:
        how = "the next command starts one" if session.locations().autostart else "`mvm agent serve` starts one"
        raise Unavailable(error.message, hint=f"{how}; instances live on without it") from None
    emit(answer, lambda: described(answer), output, as_json)


@app.command("stop")
def stop(output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """End the agent that runs here, if one does. Instances live on; nobody wakes sleepers until it runs again."""
    from mvm.host.client import NoAgent

    try:
        answer, told = session.run(_ask_running("Shutdown")), "the agent ends; instances live on"
    except NoAgent as error:
        answer, told = {}, f"{error.message}; there is nothing to end"
    emit(answer, lambda: told, output, as_json)


@app.command("reconcile")
def reconcile(
    desired: Annotated[Path, typer.Option("--desired", metavar="FILE", help="The desired state of this host, JSON.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and show what would be done.")] = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Make this host what a desired state says; only what its prune flags allow is destroyed."""
    from mvm.cli.reports import raise_first_error, report_text

    params = {"desired": read_json(desired), "dry_run": dry_run}
    answer = session.call("Reconcile", params)
    emit(answer, lambda: report_text(answer, name="this host"), output, as_json)
    raise_first_error(answer)


@app.command("desired")
def desired(output: Output = Format.JSON, as_json: AsJson = False) -> None:
    """Show the desired state that the agent keeps to, as `reconcile --desired` takes it."""
    state = session.call("DesiredState")["desired"]
    emit(state, lambda: _desired_text(state), output, as_json)


def _desired_text(state: session.Json) -> str:
    rows = [
        (f"{tenant['tenant_id']}/{pool['pool_id']}", pool["role"], *pool["desired_counts"].values())
        for tenant in state["tenants"]
        for pool in tenant["pools"]
    ]
    return columns(("pool", "role", "running", "warm", "sleeping"), rows, empty="nothing: `mvm deploy FILE`")


def read_json(path: Path) -> object:
    """The document in a JSON file; raises `InvalidInput` with its line."""
    import json

    from mvm.model.errors import InvalidInput
    from mvm.model.files import read_limited
    from mvm.wire.frames import API_FRAME_LIMIT

    text = read_limited(path, limit=API_FRAME_LIMIT)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "it cannot be read"
        raise InvalidInput(f"{path}{line}: is not valid JSON: {reason}") from None
    if not isinstance(document, dict):
        raise InvalidInput(f"{path}: is no desired state: expected an object", hint="`mvm agent desired` shows one")
    return document


async def _ask_running(request: str) -> session.Json:
    """Ask the agent that other commands would use, and start none; raises `NoAgent` when nobody listens there."""
    from mvm.cli.checks import agent_client

    return await agent_client(session.locations()).call(request)
