"""`mvm agent`: the daemon that does the work."""

from __future__ import annotations

from typing import Annotated

import typer

from mvm.cli import session
from mvm.cli.output import AsJson, Format, Output, emit

app = typer.Typer(
    rich_markup_mode=None, add_completion=False, no_args_is_help=True, help="The daemon that does the work."
)


@app.command("serve")
def serve(
    runtime: Annotated[str | None, typer.Option(help="auto, firecracker, qemu or process (MVM_RUNTIME).")] = None,
    production: Annotated[bool | None, typer.Option("--production", help="Refuse what is not isolated.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error (MVM_LOG).")] = None,
    metrics_port: Annotated[
        str | None, typer.Option(help="Show metrics and health on this loopback port; 0: any, off (MVM_METRICS_PORT).")
    ] = None,
) -> None:
    """Run the agent in the foreground until SIGTERM or Ctrl-C; instances live on when it ends."""
    from mvm.host.app import serve as serve_host

    session.run(
        serve_host(
            session.locations(runtime=runtime, production=production, log_level=log_level, metrics_port=metrics_port)
        )
    )


@app.command("status")
def status(output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """Show whether an agent runs here, and which; never starts one."""
    from mvm.cli.node import described

    answer = session.run(_ask_running("NodeInfo"))
    emit(answer, lambda: described(answer), output, as_json)


@app.command("stop")
def stop(output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """End the agent that runs here. Instances live on; nobody wakes sleepers until it runs again."""
    answer = session.run(_ask_running("Shutdown"))
    emit(answer, lambda: "the agent ends; instances live on", output, as_json)


async def _ask_running(request: str) -> session.Json:
    """Ask the agent that runs; raises `Unavailable` when none does."""
    from dataclasses import replace

    from mvm.host.autostart import ensure_agent

    locations = session.locations()
    origins = {**locations.origins, "autostart": "this command starts none"}
    client = await ensure_agent(replace(locations, autostart=False, origins=origins))
    return await client.call(request)
