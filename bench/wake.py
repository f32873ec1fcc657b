#!/usr/bin/env python3
"""What a wake costs, stage by stage, against its bare part in the same run, and mvm's own share of it.

    python bench/wake.py [--runtime process|qemu|firecracker] [--wakes 5] [--standin] [--density] [--json]

A deployment like any other, against the stand-ins for Telegram and the model: its worker is put to sleep and woken by
a message, over and over. Between sleep and message the bare part runs, which is what no runtime can do without:

* qemu: a QEMU started by this program from copies of the very same sleeper's files, exec to the first Pong of its
  guest over the channel (`bench/parts/bare_qemu.py`). It is compared with mvm's wake up to the guest agent's answer.
* firecracker: likewise, a Firecracker without a jail on the sleeper's own memory (`bench/parts/bare_firecracker.py`).
* process: OpenClaw alone, started by hand, until it says that it is ready (`bench/parts/bare_openclaw.py`). No memory
  is kept, so this is compared with the whole wake.

mvm's share is the host agent's own time outside the machine and the guest. It has two parts, printed both:

* own stages: all of the host's timeline but `restore`, `agent` (up to the first Pong), `guest` (the guest's own work
  at a wake: clock, mounts, secrets) and `service` (until OpenClaw answers its health check);
* beyond bare: how much longer `restore` and `agent` together take (median) than the bare restore, if they do. What
  mvm does there and the bare program does not is in it: checks of the snapshot, a user of its own, control groups, a
  TAP, disk flushes, an event loop. So is whatever else the two differed by: from one time to the next an emulated
  guest on a busy machine differs by more than all of mvm's work. `restore` against the bare "exec to running" says
  it without the guest.

The bare part runs twice between each sleep and wake. Medians are of each line by itself: lines need not add up.
`--standin` puts the stand-in for OpenClaw into the machines (tests/standins/openclaw): the same path in less memory,
and a first start in seconds. `--density` asks first what one instance of the same deployment takes in memory and on
disk (`bench/density.py`), for a first start of the real OpenClaw takes minutes. Virtual machines need root, and run in
a network namespace of its own; Firecracker needs a KVM that works and `mvm setup firecracker`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import density
from bench.parts import bare_firecracker, bare_qemu
from bench.parts.bare_openclaw import start_ms
from bench.parts.bare_qemu import Restored, Sleeper
from bench.parts.images import have_image, why_no_machines
from tests.e2e.operator import Operator, operator
from tests.vm.images import STANDIN
from tests.vm.machines import ALICE, TENANT, Machines, openclaw_machines, standin_machines
from tests.vm.namespace import enter_private_network

from mvm.host.locations import locate
from mvm.host.programs import expected_installation
from mvm.openclaw.programs import find_programs

PATIENCE_SECONDS = 600.0
NOT_OURS = frozenset({"restore", "boot", "agent", "guest", "service"})
SHARE_AIM_MS = 20.0
RATIO_AIM = 1.3
BARE_PER_WAKE = 2

Lines = dict[str, float]
"""What is measured in one round -> milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What is measured."""

    operator: Operator
    tenant: str
    bare: Callable[[dict[str, Any]], Awaitable[dict[str, float]]]
    """Runs the bare part for a sleeping worker; returns its lines in milliseconds, `bare` the whole."""
    keeps_memory: bool
    """What bare and wake have in common ends at the first Pong; otherwise at the health check."""
    machines: Machines | None = None
    """The deployment, where it is one of virtual machines."""


@asynccontextmanager
async def processes(standin: bool) -> AsyncIterator[Deployment]:
    """Instances are processes of this host."""
    directory = STANDIN if standin else expected_installation(locate({})).openclaw_dir

    async def bare(_worker: dict[str, Any]) -> dict[str, float]:
        return {"bare": await start_ms(find_programs().node, directory)}

    async with operator(MVM_RUNTIME="process", **({"MVM_OPENCLAW_DIR": str(STANDIN)} if standin else {})) as someone:
        await someone.new("bench", {"alice": ALICE})
        yield Deployment(operator=someone, tenant="bench", bare=bare, keeps_memory=False)


@asynccontextmanager
async def machines(standin: bool, runtime: str, restore: Callable[[Sleeper], Restored]) -> AsyncIterator[Deployment]:
    """Instances are virtual machines; whatever is given to them is also there for a bare one."""
    have_image(standin=standin)
    enter_private_network()

    deployed = standin_machines if standin else openclaw_machines
    async with deployed({"alice": ALICE}, runtime=runtime) as deployment:
        someone = deployment.operator

        async def bare(worker: dict[str, Any]) -> dict[str, float]:
            info = await deployment.info(worker)
            sleeper = Sleeper(instance=info, state_dir=deployment.state_dir, run_dir=someone.directory / "run")
            took = await asyncio.to_thread(restore, sleeper)
            return {"bare running": took.running, "bare pong": took.pong, "bare": took.total}

        yield Deployment(operator=someone, tenant=TENANT, bare=bare, keeps_memory=True, machines=deployment)


def qemu(standin: bool) -> AbstractAsyncContextManager[Deployment]:
    """By QEMU."""
    return machines(standin, "qemu", bare_qemu.restore)


def firecracker(standin: bool) -> AbstractAsyncContextManager[Deployment]:
    """By Firecracker."""
    return machines(standin, "firecracker", bare_firecracker.restore)


RUNTIMES = {"process": processes, "qemu": qemu, "firecracker": firecracker}
NAMES = {"process": "OpenClaw", "qemu": "QEMU", "firecracker": "Firecracker"}
"""What runs alone in the bare part."""


async def one_wake(deployment: Deployment, worker: dict[str, Any], number: int) -> tuple[Lines, list[Lines]]:
    """Sleep, the bare part, message, answer: the lines of that wake, and of each bare part."""
    someone = deployment.operator
    await someone.sleep(worker)
    bare = [await deployment.bare(worker) for _ in range(BARE_PER_WAKE)]
    began = time.perf_counter()
    await someone.say(ALICE, f"wake number {number}", seconds=PATIENCE_SECONDS)
    answered = (time.perf_counter() - began) * 1000
    shown = await someone.ask("instance", "info", someone.address(worker))
    stages = {stage["stage"]: stage["milliseconds"] for stage in shown["instance"]["last_wake"]["stages"]}
    return {**stages, **derived(stages), "message to reply": answered}, bare


def derived(stages: Lines) -> Lines:
    """What is made of the stages of one wake."""
    names = list(stages)
    up_to_agent = names[: names.index("agent") + 1]
    return {
        "restore and agent": stages["restore"] + stages["agent"],
        "wake to agent": sum(stages[name] for name in up_to_agent),
        "wake to health check": sum(stages.values()),
        "own stages": sum(ms for stage, ms in stages.items() if stage not in NOT_OURS),
    }


async def measure(runtime: str, wakes: int, *, standin: bool, takes: bool = False) -> dict[str, Any]:
    """All figures of one run, in milliseconds; with `takes` also what an instance takes, in MiB."""
    async with RUNTIMES[runtime](standin) as deployment:
        someone, taken = deployment.operator, None
        if takes and deployment.machines is not None:
            taken = await density.measure_in(deployment.machines, {"alice": ALICE}, real=not standin)
        await someone.say(ALICE, "warm up", seconds=PATIENCE_SECONDS)
        worker = await someone.worker(deployment.tenant)
        rounds = [await one_wake(deployment, worker, number) for number in range(wakes)]
        keeps_memory = deployment.keeps_memory
    runs = [run for run, _ in rounds]
    bares = [bare for _, each in rounds for bare in each]
    median = over(runs, statistics.median) | over(bares, statistics.median)
    beyond = max(0.0, median["restore and agent"] - median["bare"]) if keeps_memory else 0.0
    return {
        "runtime": runtime,
        "standin": standin,
        "wakes": wakes,
        "compared_up_to": "agent" if keeps_memory else "health check",
        "median_ms": median,
        "worst_ms": over(runs, max) | over(bares, max),
        "beyond_bare_ms": beyond,
        "share_ms": median["own stages"] + beyond,
        "share_aim_ms": SHARE_AIM_MS,
        "ratio": (median["wake to agent"] if keeps_memory else median["wake to health check"]) / median["bare"],
        "ratio_aim": RATIO_AIM,
        "runs": runs,
        "bare_runs": bares,
        "density": taken,
    }


def over(rounds: list[Lines], pick: Callable[[Iterable[float]], float]) -> Lines:
    """One figure for each line of several rounds; a stage that a round did not have took no time."""
    names = dict.fromkeys(name for each in rounds for name in each)
    return {name: pick([each.get(name, 0.0) for each in rounds]) for name in names}


LABELS = {
    "bare running": "bare {name}: exec to running",
    "bare pong": "bare {name}: running to first Pong",
    "wake to agent": "wake to the agent's answer",
    "wake to health check": "wake to OpenClaw's health check",
    "message to reply": "message to delivered reply",
    "own stages": "mvm's share: own stages",
}

BEYOND = "mvm's share: restore, agent beyond bare"


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    median, worst = figures["median_ms"], figures["worst_ms"]
    agent = figures["compared_up_to"] == "agent"
    name = NAMES[figures["runtime"]]
    labels = {"bare": f"bare {name} {'restore to first Pong' if agent else 'start to health check'}"}
    labels |= {line: label.format(name=name) for line, label in LABELS.items()}
    hidden = {"restore and agent"}
    rows = {name: f"stage {name}" for name in median if name not in labels and name not in hidden}
    rows |= {name: label for name, label in labels.items() if name in median}
    kind = "the stand-in for OpenClaw" if figures["standin"] else "OpenClaw"
    lines = [f"{figures['wakes']} wakes on runtime {figures['runtime']} with {kind}"]
    lines.append(f"{'milliseconds':40}{'median':>12}{'worst':>12}")
    lines += [f"{label:40}{median[name]:>12,.1f}{worst[name]:>12,.1f}" for name, label in rows.items()]
    lines.append(f"{BEYOND:40}{figures['beyond_bare_ms']:>12,.1f}")
    side = "the agent's answer" if agent else "OpenClaw's health check"
    lines.append(_against(f"wake to {side} / bare", figures["ratio"], figures["ratio_aim"], "x"))
    lines.append(_against("mvm's share", figures["share_ms"], figures["share_aim_ms"], "ms"))
    if figures["density"] is not None:
        lines += ["", density.table(figures["density"])]
    return "\n".join(lines)


def _against(what: str, value: float, aim: float, unit: str) -> str:
    return f"{what}: {value:,.2f} {unit}, aim at most {aim:g} {unit}: {'met' if value <= aim else 'not met'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=RUNTIMES, default="process")
    parser.add_argument("--wakes", type=int, default=5)
    parser.add_argument("--standin", action="store_true", help="the stand-in for OpenClaw in place of the real one")
    parser.add_argument("--density", action="store_true", help="also what an instance takes (virtual machines)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    if arguments.runtime != "process" and (reason := why_no_machines(arguments.runtime)) is not None:
        raise SystemExit(f"not measured: {reason}")
    if arguments.density and arguments.runtime == "process":
        raise SystemExit("--density is for virtual machines: add --runtime qemu")
    figures = asyncio.run(
        measure(arguments.runtime, arguments.wakes, standin=arguments.standin, takes=arguments.density)
    )
    print(json.dumps(figures, indent=2) if arguments.json else table(figures))


if __name__ == "__main__":
    main()
