"""From a manifest to what the agent is asked: secrets read, keys asked about, OpenClaw installed. All before anything
is created.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mvm.cli.output import hanging

if TYPE_CHECKING:
    from mvm.cli.progress import Show
    from mvm.host.client import AgentClient
    from mvm.host.locations import Locations
    from mvm.model.deployment import Deployment

Json = dict[str, Any]


def say_on_stderr(line: str) -> None:
    """Tell the person, without touching what programs read."""
    print(line, file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the command itself, to be shown like the agent's."""

    text: str
    done: float | None = None
    total: float | None = None


@dataclass(frozen=True)
class Prepared:
    """A deployment with the values of its secrets, and what a person should know of them."""

    deployment: Deployment
    secrets: Mapping[str, str]
    notes: list[str]

    def __repr__(self) -> str:
        return f"Prepared({self.deployment.name}, secrets of {sorted(self.secrets)})"


def prepared(deployment: Deployment, environ: Mapping[str, str] = os.environ) -> Prepared:
    """Read the secrets of a deployment; raises `InvalidInput` with everything that is wrong with them."""
    from mvm.model.deployment import advice
    from mvm.model.secret_files import read_secrets

    secrets = read_secrets(deployment, environ)
    return Prepared(deployment, secrets.values, [*secrets.warnings, *advice(deployment)])


async def ask_about_keys(what: Prepared, on_progress: Show) -> list[str]:
    """Ask the services whether they know the keys; raises for one that says no, notes one that does not answer."""
    from mvm.openclaw.checks import check_keys

    on_progress(Step(text="asking whether the keys are known"))
    return await check_keys(what.deployment.openclaw, what.secrets)


async def install_openclaw(locations: Locations, deployment: Deployment, on_progress: Show) -> None:
    """Get OpenClaw on this host before the agent is asked to run it; nothing when it is there."""
    from mvm.openclaw.install import install_async

    if locations.agent is not None:
        return  # it is that host's, whose agent sees to it
    if os.environ.get("MVM_OPENCLAW_DIR") or not any(pool.role.runs_openclaw for pool in deployment.pools):
        return
    await install_async(locations.programs_dir, on_progress=on_progress)


async def ready_agent(locations: Locations, deployment: Deployment, *, say: Callable[[str], None]) -> AgentClient:
    """The agent, and notes on what its runtime makes of the deployment. Raises `Unavailable` when none can run it."""
    from mvm.host.autostart import ensure_agent
    from mvm.model.deployment import unenforced_limits, unreachable_services
    from mvm.model.errors import Conflict, Unavailable

    client = await ensure_agent(locations, say=say)
    node = await client.call("NodeInfo")
    require_runtime(node, locations.runtime if locations.origins.get("runtime", "").startswith("flag") else None)
    if locations.production and not node.get("production"):
        raise Conflict(
            "the agent that runs is not in production mode, and MVM_PRODUCTION=1 asks for that",
            hint="end that agent (`mvm agent stop`; its instances live on) and type this again",
        )
    if node["runtime"] == "none":
        raise Unavailable(f"no instance can run here: {node['runtime_reason']}", hint="`mvm doctor` says what to do")
    for note in unenforced_limits(deployment, node.get("limits", ())):
        say(f"note: {note}")
    if node["isolated"]:
        for note in unreachable_services(deployment):
            say(f"note: {note}")
        return client
    if any(pool.egress != "internet" for pool in deployment.pools):
        say("note: `egress` is not enforced: this runtime has no network of its own")
    say(hanging("note: ", f"runtime {node['runtime']}: {node['runtime_reason']}"))
    return client


def require_runtime(node: Json, wanted: str | None) -> None:
    """Raise `Conflict` when the agent that runs was told to use another runtime than the wanted one."""
    from mvm.model.errors import Conflict

    if wanted not in (None, "auto", node["runtime"]):
        raise Conflict(
            f"the agent that runs uses the runtime {node['runtime']}, not {wanted}",
            hint="end that agent (`mvm agent stop`; its instances live on) and type this again,"
            " or use directories of its own: --state-dir",
        )


async def apply_deployment(client: AgentClient, what: Prepared, on_progress: Show, **options: bool) -> Json:
    """Have the agent make it so; `options` are those of the request (`dry_run`, `prune`, `whole`)."""
    params = {"deployment": what.deployment.model_dump(mode="json"), "secrets": dict(what.secrets), **options}
    answer = await client.call("ApplyDeployment", params, on_progress=on_progress)
    return {"deployment": what.deployment.name, **answer, "notes": what.notes}
