#!/usr/bin/env python3
"""What an instance costs in memory and on disk: asleep, idle, and just copied from its base.

    python bench/density.py [--runtime qemu] [--instances 3] [--real] [--json]

A deployment in virtual machines whose workers are copies of one base: each worker is looked at right after it came up
(clone), after it has answered a message and had nothing to do for a while (idle), and asleep. Memory is the PSS of its
QEMU: what is mapped, shared pages counted by their share; the guest's memory is a mapped file, what is left is QEMU's
own. Disk is what is allocated, not how long files are. A sleeper has no process at all, which is checked; its memory
is on disk, and what the kernel still caches of it goes when somebody needs the room.

The machines run the stand-in for OpenClaw (512 MiB) unless `--real` asks for one worker of the real one (2048 MiB).
Needs root, and runs in a network namespace of its own. A host that cannot run it is told why, which is no failure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.parts.images import have_image, why_no_machines
from tests.vm.machines import TENANT, Machines, openclaw_machines, standin_machines
from tests.vm.namespace import enter_private_network

MOST_WORKERS = 5
"""With their gateway six machines."""
FIRST_SENDER = 5001
IDLE_SECONDS = 20.0
MIB = 1024 * 1024

Figures = dict[str, float]


def on_disk(paths: Iterable[Path]) -> float:
    """MiB that are allocated for files and for all files below directories."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    return sum(file.lstat().st_blocks * 512 for file in files) / MIB


def of_instance(machines: Machines, instance: dict[str, Any]) -> Figures:
    """What an instance takes now, in MiB."""
    own = machines.state_dir / "instances" / instance["instance_id"]
    run = machines.operator.directory / "run/i" / instance["instance_id"]
    figures = {
        "memory on disk": on_disk([own / "memory"]),
        "data on disk": on_disk([own / "data.img"]),
        "all on disk": on_disk([own, run]),
    }
    process = machines.machine(instance)
    return figures if process is None else of_process(process.pid) | figures


def of_process(pid: int) -> Figures:
    """What a QEMU has in memory, in MiB."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, kib, _ = line.split()
        found[name] = int(kib) / 1024
    return {"PSS": found["Pss:"], "QEMU's own": found["Pss_Anon:"]}


def agent_memory(machines: Machines) -> float:
    """MiB that only the agent has."""
    return float(psutil.Process(machines.operator.agent_pid()).memory_full_info().uss) / MIB


async def look(machines: Machines, user: str, sender: int) -> dict[str, Figures]:
    """One worker in its three conditions."""
    worker = await machines.worker(user)
    address = machines.operator.address(worker)
    await machines.operator.mvm("instance", "start", address)
    came_up = await machines.stages(worker)
    looks = {"clone": of_instance(machines, worker)}
    await machines.say(sender, "hello")
    await asyncio.sleep(IDLE_SECONDS)
    looks["idle"] = of_instance(machines, worker)
    await machines.sleep(user)
    if machines.machine(worker) is not None:
        raise RuntimeError(f"{address} is asleep and has a process")
    looks["asleep"] = of_instance(machines, worker)
    return looks | {"came up": came_up}  # milliseconds


async def measure(workers: int, *, real: bool) -> dict[str, Any]:
    """All figures of one run, memory and disk in MiB."""
    have_image(standin=not real)
    enter_private_network()
    users = {f"user{number}": FIRST_SENDER + number for number in range(workers)}
    first = next(iter(users))
    async with (openclaw_machines if real else standin_machines)({first: users[first]}) as machines:
        return await measure_in(machines, users, real=real)


async def measure_in(machines: Machines, users: dict[str, int], *, real: bool) -> dict[str, Any]:
    """The figures of a deployment that has the first of these users; the others are added here."""
    first, *others = users.items()
    looks = [await look(machines, *first)]
    before = agent_memory(machines)
    for user, sender in others:
        await machines.operator.mvm("user", "add", TENANT, user, "--telegram", str(sender))
        looks.append(await look(machines, user, sender))
    grown = agent_memory(machines) - before
    bases = [path for path in (machines.state_dir / "bases").iterdir() if not path.name.startswith(".")]
    size = {"base": on_disk(bases), "image": on_disk((machines.state_dir / "images").iterdir())}
    gateway = of_instance(machines, await machines.gateway())
    conditions = ("clone", "idle", "asleep")
    return {
        "openclaw": "real" if real else "stand-in",
        "workers": len(users),
        "mib": {condition: middle([each[condition] for each in looks]) for condition in conditions}
        | {"gateway, idle": gateway},
        "shared_mib": size,
        "agent_growth_per_worker_mib": grown / len(others) if others else None,
        "clone_came_up_ms": statistics.median(sum(each["came up"].values()) for each in looks[1:] or looks),
        "workers_each": looks,
    }


def middle(each: list[Figures]) -> Figures:
    """The median of every figure."""
    return {name: statistics.median(figures[name] for figures in each) for name in each[0]}


COLUMNS = ("PSS", "QEMU's own", "memory on disk", "data on disk", "all on disk")


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{figures['workers']} workers with OpenClaw's {figures['openclaw']}; medians, MiB"]
    lines.append(f"{'':16}" + "".join(f"{column:>16}" for column in COLUMNS))
    for condition, found in figures["mib"].items():
        lines.append(f"{condition:16}" + "".join(f"{found.get(column, 0.0):>16,.1f}" for column in COLUMNS))
    lines += [f"{name}, shared by all: {mib:,.1f} MiB on disk" for name, mib in figures["shared_mib"].items()]
    lines.append(f"a clone answered its health check after {figures['clone_came_up_ms'] / 1000:,.1f} s")
    if (growth := figures["agent_growth_per_worker_mib"]) is not None:
        lines.append(f"the agent's own memory grew by {growth:,.2f} MiB per worker")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=["qemu"], default="qemu")
    parser.add_argument("--instances", type=int, default=3, help=f"workers, at most {MOST_WORKERS}")
    parser.add_argument("--real", action="store_true", help="one worker of the real OpenClaw")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    if (reason := why_no_machines()) is not None:
        print(f"not measured: {reason}")
        return
    workers = 1 if arguments.real else max(1, min(arguments.instances, MOST_WORKERS))
    figures = asyncio.run(measure(workers, real=arguments.real))
    print(json.dumps(figures, indent=2) if arguments.json else table(figures))


if __name__ == "__main__":
    main()
