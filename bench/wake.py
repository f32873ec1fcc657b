#!/usr/bin/env python3
"""What a wake costs, stage by stage, and mvm's own share of it.

    python bench/wake.py [--runtime process] [--wakes 5] [--json]

A deployment like any other, against the stand-ins for Telegram and the model: its worker is put to sleep and woken by
a message, over and over. Printed are the stages of the host's own timeline (milliseconds, median), the time from the
message to its answer, and in the same run the bare part: OpenClaw alone, started by hand, until it says it is ready.

mvm's share is the host agent's own time: everything but `restore` (the runtime), `agent` (the guest's programs coming
up) and `service` (OpenClaw itself).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.e2e.operator import Operator, operator

from mvm.host.locations import locate
from mvm.host.programs import expected_installation
from mvm.openclaw.programs import find_programs
from mvm.runtime.process.claims import LOWEST_PORT

ALICE = 5001
NOT_OURS = frozenset({"restore", "boot", "agent", "guest", "service"})
READY_LIMIT_SECONDS = 120.0


async def bare_openclaw_ms() -> float:
    """OpenClaw with the smallest configuration it accepts: exec to /readyz 200, in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="mvm-bench-") as text:
        directory = Path(text)
        port = LOWEST_PORT - 500
        config = directory / "openclaw.json"
        gateway = {"mode": "local", "port": port, "bind": "loopback", "auth": {"mode": "token", "token": "bench"}}
        config.write_text(json.dumps({"gateway": gateway, "discovery": {"mdns": {"mode": "off"}}}))
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": text,
            "OPENCLAW_STATE_DIR": text,
            "OPENCLAW_CONFIG_PATH": str(config),
            "OPENCLAW_NO_RESPAWN": "1",
            "OPENCLAW_NO_AUTO_UPDATE": "1",
        }
        entry = expected_installation(locate({})).openclaw_dir / "openclaw.mjs"
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            str(find_programs().node),
            str(entry),
            "gateway",
            "run",
            env=environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await asyncio.wait_for(_until_ready(f"http://127.0.0.1:{port}/readyz"), READY_LIMIT_SECONDS)
            return (time.perf_counter() - began) * 1000
        finally:
            process.terminate()
            await process.wait()


async def _until_ready(url: str) -> None:
    while True:
        try:
            await asyncio.to_thread(urllib.request.urlopen, url, None, 2)
            return
        except (urllib.error.URLError, OSError):
            await asyncio.sleep(0.05)


async def one_wake(someone: Operator, worker: dict[str, Any], number: int) -> dict[str, float]:
    """Sleep, message, answer: the stages of that wake, and the message's own time."""
    await someone.sleep(worker)
    began = time.perf_counter()
    await someone.say(ALICE, f"wake number {number}")
    answered = (time.perf_counter() - began) * 1000
    shown = await someone.ask("instance", "info", someone.address(worker))
    timeline = shown["instance"]["last_wake"]
    stages = {stage["stage"]: stage["milliseconds"] for stage in timeline["stages"]}
    total = sum(stages.values())
    share = sum(ms for stage, ms in stages.items() if stage not in NOT_OURS)
    return {**stages, "wake total": total, "mvm's share": share, "message to answer": answered}


async def measure(runtime: str, wakes: int) -> dict[str, Any]:
    """All figures of one run, in milliseconds."""
    async with operator(MVM_RUNTIME=runtime) as someone:
        await someone.new("bench", {"alice": ALICE})
        await someone.say(ALICE, "warm up")
        worker = await someone.worker("bench")
        runs = [await one_wake(someone, worker, number) for number in range(wakes)]
        gateway = await someone.gateway("bench")
        await someone.mvm("instance", "stop", someone.address(gateway), "--force")
        await someone.sleep(worker)
        bare = [await bare_openclaw_ms() for _ in range(max(2, wakes // 2))]
    names = list(runs[0])
    medians = {name: statistics.median(run.get(name, 0.0) for run in runs) for name in names}
    bare_ms = statistics.median(bare)
    return {
        "runtime": runtime,
        "wakes": wakes,
        "median_ms": {**medians, "bare OpenClaw start": bare_ms},
        "worst_ms": {name: max(run.get(name, 0.0) for run in runs) for name in names},
        "wake_to_bare_ratio": medians["wake total"] / bare_ms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", default="process")
    parser.add_argument("--wakes", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.runtime, arguments.wakes))
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{figures['wakes']} wakes on runtime {figures['runtime']}, milliseconds")
    for name, median in figures["median_ms"].items():
        worst = figures["worst_ms"].get(name)
        print(f"  {name:22}{median:>12,.1f}" + (f"   worst {worst:>10,.1f}" if worst is not None else ""))
    print(f"  wake against bare OpenClaw: {figures['wake_to_bare_ratio']:.2f} x")


if __name__ == "__main__":
    main()
