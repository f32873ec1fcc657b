"""`mvm demo`: a message wakes a sleeping OpenClaw, seen from Telegram, on a machine that has nothing set up."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvm.cli import session
from mvm.cli.output import AsJson, Format, Output, emit, facts, hanging, sections
from mvm.model.errors import InvalidInput, NotFound
from mvm.model.ids import TenantId

if TYPE_CHECKING:
    from mvm.cli.demo_steps import Demo
    from mvm.cli.progress import Show
    from mvm.host.client import AgentClient
    from mvm.host.locations import Locations

app = typer.Typer(rich_markup_mode=None, add_completion=False)

Json = dict[str, Any]


@app.command("demo")
def demo(
    once: Annotated[bool, typer.Option("--once", help="Take everything down again at the end.")] = False,
    runtime: Annotated[
        str | None, typer.Option(metavar="RUNTIME", help="How instances run: auto, firecracker, qemu or process.")
    ] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="Id of the deployment and of its user.")] = "alice",
    words: Annotated[
        str | None, typer.Option("--say", metavar="TEXT", help="Only write this to the running demo, as its user.")
    ] = None,
    listen: Annotated[
        float, typer.Option("--listen", metavar="SECONDS", min=0, max=3600, help="With --say: what comes after, too.")
    ] = 0,
    down: Annotated[bool, typer.Option("--down", help="Only take the demo down.")] = False,
    standins_only: Annotated[
        bool, typer.Option("--standins-only", help="Only run the stand-ins, in the foreground, until Ctrl-C.")
    ] = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Show a message waking a sleeping OpenClaw.

    Telegram and the model provider are stand-ins, part of mvm, on loopback addresses; everything else is real: OpenClaw
    in a gateway and in a worker, made by what `mvm new openclaw NAME --config deploy.toml` does.
    """
    if sum([once, words is not None, down, standins_only]) > 1:
        raise InvalidInput("--once, --say, --down and --standins-only exclude each other", hint="give one of them")
    name = TenantId(name)
    if standins_only:
        from mvm.cli.demo_steps import demo_directory
        from mvm.demo.standins import main

        state_file = demo_directory(session.locations(), name) / "standins.json"
        print(f"addresses and keys are in {state_file}; Ctrl-C ends it", file=sys.stderr, flush=True)
        raise typer.Exit(main(state_file, with_parent=False))
    here = replace(session.locations(runtime=runtime), agent=None)  # its stand-ins are on this machine
    run = _Run(name, here, runtime)
    if down:
        answer = session.run(run.take_down())
        emit(answer, lambda: f"the demo {name} is taken down", output, as_json)
    elif words is not None:
        answer = session.run(run.say(words, listen=listen))
        emit(answer, lambda: "\n".join(answer["answers"]), output, as_json)
    else:
        answer = session.run(run.show_all(once=once))
        emit(answer, lambda: _report(answer), output, as_json)


class _Run:
    """One invocation of the demo."""

    def __init__(self, name: str, locations: Locations, runtime: str | None) -> None:
        self._name = name
        self._locations = locations
        self._runtime = runtime
        self._began = time.monotonic()
        self._started_agent = False

    async def show_all(self, *, once: bool) -> Json:
        """The whole of it; takes down what it made when it fails or is interrupted, or with `once`."""
        from mvm.cli.progress import shown

        with shown() as show:
            demo = await self._demo(show)
            existed = await demo.exists()
            try:
                answer = await self._perform(demo)
            except BaseException:
                if once or not existed:
                    self._say("taking down what was made")
                    await self._end(demo)
                raise
            if once:
                await self._end(demo)
        return {**answer, "kept": not once}

    async def _perform(self, demo: Demo) -> Json:
        from mvm.cli.new import create_deployment

        node = await demo.client.call("NodeInfo")
        self._check_runtime(node)
        state = await demo.prepare(networks=node["isolated"])
        made = await create_deployment(
            self._name, locations=self._locations, config=demo.deploy_file, on_progress=demo.show, say=self._say
        )
        changed = "made" if made.get("changed") else "is as it was"
        self._say(f"deployment {self._name} {changed} (`mvm new openclaw {self._name} --config {demo.deploy_file}`)")
        worker = await demo.worker()
        await demo.put_to_sleep(worker)
        self._say(f"{self._name}'s worker {worker} sleeps")
        exchange = await demo.exchange(state, "hello", worker)
        self._say(f"{self._name} has the answer")
        connect = await demo.client.call("Connect", {"tenant_id": self._name})
        return {
            "deployment": self._name,
            "runtime": node["runtime"],
            "runtime_reason": node["runtime_reason"],
            "isolated": node["isolated"],
            "deploy_file": str(demo.deploy_file),
            "standins": {"telegram": state.telegram.url, "model_provider": state.model.url},
            **exchange.to_json(),
            "connect": connect,
        }

    async def say(self, words: str, *, listen: float) -> Json:
        """Write to the demo that runs, and hear what comes back; go on listening for `listen` seconds."""
        from mvm.cli.progress import shown
        from mvm.demo import background

        with shown() as show:
            demo = await self._demo(show)
            if not demo.deploy_file.exists() or not await demo.exists():
                raise NotFound(f"no demo {self._name} runs", hint=f"start it with `mvm demo --name {self._name}`")
            state = await background.ensure(demo.state_file)
            return (await demo.exchange(state, words, await demo.worker(), listen=listen)).to_json()

    async def take_down(self) -> Json:
        """Remove what the demo made, whatever is left of it."""
        from mvm.cli.progress import shown

        with shown() as show:
            demo = await self._demo(show)
            if not demo.directory.exists():
                raise NotFound(f"there is no demo {self._name}", hint=f"{demo.directory} does not exist")
            await self._end(demo)
        return {"deployment": self._name, "kept": False}

    async def _demo(self, show: Show) -> Demo:
        from mvm.cli.demo_steps import Demo, demo_directory

        return Demo(
            name=self._name,
            directory=demo_directory(self._locations, self._name),
            client=await self._agent(),
            show=show,
            say=self._say,
        )

    async def _agent(self) -> AgentClient:
        from mvm.host.autostart import ensure_agent

        def started(line: str) -> None:
            self._started_agent = True
            self._say(line.removeprefix("mvm: "))

        return await ensure_agent(self._locations, say=started)

    async def _end(self, demo: Demo) -> None:
        """Take the demo down, and the agent too when this run started it for nothing else."""
        await demo.take_down()
        if self._started_agent and not (await demo.client.call("NodeInfo"))["tenants"]:
            await demo.client.call("Shutdown")

    def _check_runtime(self, node: Json) -> None:
        """Say how instances run; refuse when the agent that runs was told otherwise."""
        from mvm.cli.manifests import require_runtime

        require_runtime(node, self._runtime)
        if node["isolated"]:  # otherwise `mvm new` says so
            self._say(hanging("", f"runtime {node['runtime']}: {node['runtime_reason']}"))

    def _say(self, line: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f} s] {line}", file=sys.stderr, flush=True)


def _report(answer: Json) -> str:
    """What Telegram saw, how long what took, and what to do next."""
    from mvm.cli.connect import overview
    from mvm.cli.instance import timeline

    name = answer["deployment"]
    talk = facts(
        [
            (f"{name} wrote", answer["said"]),
            ("Telegram got", " / ".join(answer["answers"])),
            ("together", f"{answer['milliseconds']:.0f} ms from the message to the answer, wake and turn included"),
        ]
    )
    if not answer["kept"]:
        return sections(talk, timeline(answer["wake"]), overview(answer["connect"]), "everything is taken down again")
    option = "" if name == "alice" else f" --name {name}"
    tries = [
        (f'mvm demo{option} --say "remind me in 30 seconds to stretch" --listen 60', "it would wake a sleeper, too"),
        (f"mvm events --tenant {name} --follow", "in another terminal, while you write"),
        ("mvm new openclaw NAME --config FILE", f"with your own keys; {answer['deploy_file']} shows how"),
        (f"mvm demo{option} --down", "ends it"),
    ]
    first = "" if shutil.which("mvm") else f" (after `export PATH={Path(sys.argv[0]).absolute().parent}:$PATH`)"
    following = f"It goes on running. Try{first}:\n" + columns_of(tries)
    return sections(talk, timeline(answer["wake"]), overview(answer["connect"]), following)


def columns_of(rows: list[tuple[str, str]]) -> str:
    """Commands with what they are good for behind them."""
    width = max(len(command) for command, _ in rows)
    return "\n".join(f"  {command.ljust(width)}  # {purpose}" for command, purpose in rows)
