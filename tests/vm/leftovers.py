"""What must not be left of machines that ended, looked for where it would be."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil
from tests.e2e.operator import Json, eventually
from tests.vm.machines import TENANT, Machines

from mvm.host.locations import locate

SETTLING_SECONDS = 30.0
"""How long the end of a machine may take to be noticed and cleared away."""


async def nothing_is_left_over(machines: Machines) -> None:
    """One QEMU for each instance that runs, and nothing at all of one that does not."""

    async def look() -> None:
        assert not (found := await left_over(machines)), found

    await eventually(look, SETTLING_SECONDS, AssertionError)


async def left_over(machines: Machines) -> list[str]:
    """What there is and should not be, in words."""
    instances = await machines.operator.instances(TENANT)
    running = {i["instance_id"] for i in instances if i["state"] in ("running", "warm")}
    found = _processes(machines, running) + _zombies(machines)
    for instance in instances:
        if instance["instance_id"] not in running:
            found += _of_one_at_rest(machines, instance)
    taps = {i["network"]["tap"] for i in instances if i["instance_id"] in running}
    found += [f"device {name}" for _, name in socket.if_nameindex() if name.startswith("tn") and name not in taps]
    return found


def _processes(machines: Machines, running: set[str]) -> list[str]:
    owners = machines.owners()
    wrong = [f"{owners.count(one)} machines of {one}" for one in sorted(running) if owners.count(one) != 1]
    return wrong + [f"a machine of {one}, which does not run" for one in owners if one not in running]


def _zombies(machines: Machines) -> list[str]:
    children = psutil.Process(machines.operator.agent_pid()).children()
    return [f"{child} was not reaped" for child in children if child.status() == psutil.STATUS_ZOMBIE]


def _of_one_at_rest(machines: Machines, instance: Json) -> list[str]:
    name, operator = instance["instance_id"], machines.operator
    run = operator.directory / "run"
    secrets = locate({"state_dir": str(machines.state_dir), "run_dir": str(run)}).secrets_dir
    paths = [*(run / "i" / name).glob("*.sock"), *(run / "i" / name).glob("process.json"), *secrets.glob(f"{name}*")]
    groups = Path("/sys/fs/cgroup").rglob(f"mvm-{name}-*")
    return [str(path) for path in (*paths, *groups)]
